//! What the writer does one at a time: queues, purges, dead letters.

use std::{collections::BTreeMap, sync::PoisonError};

use codering_core::QueueName;
use codering_kit::clock;

use super::{
    STEP_MESSAGES,
    books::Account,
    settle::Row,
    writer::{Answer, Op, Sql, Step, Writer, answer},
};
use crate::queue::Result;

impl Writer {
    pub(super) async fn other(&mut self, op: Op) -> Sql<Answer> {
        Ok(match op {
            Op::Reject { row, reason, reply } => {
                let buried = self.bury(row, &reason).await?;
                if buried.is_err() {
                    self.settle(&[], &[row]).await?;
                }
                answer(reply, buried)
            }
            Op::Create { queue, reply } => {
                let new = self.books.id(&queue).is_none();
                self.ensure(&queue).await?;
                answer(reply, Ok(new))
            }
            Op::Delete { queue, reply } => {
                if let Some(id) = self.books.id(&queue) {
                    self.store.unname(id).await?;
                    self.books.close(id);
                    self.shared.depths.lock().unwrap_or_else(PoisonError::into_inner).remove(&queue);
                }
                answer(reply, Ok(()))
            }
            Op::Sweep { reply } => answer(reply, Ok(self.store.sweep(STEP_MESSAGES).await?)),
            Op::Purge { queue, last, reply } => {
                let purged = self.purge(&queue, last.unwrap_or(self.next_id)).await?;
                answer(reply, purged)
            }
            Op::RequeueDead { queue, ids, last, reply } => {
                let moved = self.requeue_dead(&queue, ids.as_deref(), last.unwrap_or(0)).await?;
                answer(reply, moved)
            }
            Op::Put { .. } | Op::Ack { .. } | Op::Release { .. } | Op::Take { .. } | Op::Close { .. } => {
                Box::new(|| ())
            }
        })
    }

    async fn ensure(&mut self, queue: &QueueName) -> Sql<i64> {
        if let Some(id) = self.books.id(queue) {
            return Ok(id);
        }
        let id = self.store.create(queue).await?;
        self.books.open(id, Account::new(queue.clone()));
        Ok(id)
    }

    /// Moves a taken message to its project's dead letters.
    pub(super) async fn bury(&mut self, row: Row, why: &str) -> Sql<Result<()>> {
        let Some(from) = self.books.get(row.queue).map(|account| account.name.clone()) else {
            return Ok(Ok(()));
        };
        let dead = self.ensure(&QueueName::dead(&from.project())).await?;
        if dead != row.queue
            && let Err(full) = self.books.room(dead, 1, row.bytes, self.bounds)
        {
            return Ok(Err(full));
        }
        self.store.bury(row.id, dead, &from, why, clock::now()).await?;
        if let Some(account) = self.books.change(row.queue) {
            account.taken = account.taken.saturating_sub(1);
            account.remove(1, row.bytes);
        }
        if let Some(account) = self.books.change(dead) {
            account.add(1, row.bytes);
        }
        Ok(Ok(()))
    }

    async fn purge(&mut self, queue: &QueueName, last: i64) -> Sql<Result<Step>> {
        let id = match self.books.known(queue) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let (moved, bytes) = self.store.drop_head(id, STEP_MESSAGES, last).await?;
        if let Some(account) = self.books.change(id) {
            account.remove(moved, bytes);
        }
        Ok(Ok(Step { moved, more: moved >= STEP_MESSAGES.unsigned_abs(), last }))
    }

    async fn requeue_dead(&mut self, queue: &QueueName, ids: Option<&[i64]>, last: i64) -> Sql<Result<Step>> {
        let Some(dead) = self.books.id(queue) else {
            return Ok(Ok(Step { moved: 0, more: false, last }));
        };
        let rows = self.store.dead(dead, ids, last, STEP_MESSAGES).await?;
        let more = rows.len() as u64 >= STEP_MESSAGES.unsigned_abs();
        let last = rows.last().map_or(last, |row| row.id);
        let mut by_queue: BTreeMap<String, (Vec<i64>, u64)> = BTreeMap::new();
        for row in rows {
            let group = by_queue.entry(row.from).or_default();
            group.0.push(row.id);
            group.1 += row.bytes;
        }
        let (mut moved, mut refused) = (0, None);
        for (name, (ids, bytes)) in by_queue {
            let Ok(name) = QueueName::new(name) else { continue };
            let count = ids.len() as u64;
            let fits = self.books.known(&name);
            match fits.and_then(|id| self.books.room(id, count, bytes, self.bounds).map(|()| id)) {
                Ok(id) => {
                    self.store.revive(ids, id).await?;
                    if let Some(account) = self.books.change(dead) {
                        account.remove(count, bytes);
                    }
                    if let Some(account) = self.books.change(id) {
                        account.add(count, bytes);
                    }
                    self.ring(id);
                    moved += count;
                }
                Err(error) => refused = Some(error),
            }
        }
        Ok(match refused {
            Some(error) if moved == 0 => Err(error),
            _ => Ok(Step { moved, more, last }),
        })
    }
}
