//! A queue's messages as they come. They are settled once their reader has read on: what a broken stream had not
//! given comes again, and so may the last few that it had.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use codering_core::{Error, QueueName};
use codering_kit::fault::{self, Point};
use futures::{Stream, future::try_join_all, stream};
use tokio::{
    sync::mpsc::{self, OwnedPermit},
    time::timeout,
};

use super::{Broker, queues::with_cure};
use crate::queue::{Delivery, Settle};

/// Held for one reader at once, at most.
const BATCH: usize = 128;
/// A batch that came to more bytes is followed by a single message.
const BATCH_BYTES: usize = 1 << 20;
/// A reader that stands still for so long gets no further message kept for it: RabbitMQ closes a channel that holds one
/// unsettled for half an hour.
const STANDS_STILL: Duration = Duration::from_secs(60);
/// Messages that others put on queues that nobody listens to ring no bell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Broker {
    /// Gives `count` messages as they come, or fewer where the stream is not read to its end.
    pub fn subscribe(
        &self,
        queue: QueueName,
        count: usize,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        // A send returns when what was sent before has been read.
        let (to, from) = mpsc::channel(1);
        let (broker, waiting, given) = (self.clone(), VecDeque::new(), Vec::new());
        tokio::spawn(Giving { broker, queue, left: count, to, batch: 1, waiting, given }.run());
        stream::unfold(from, async |mut from| from.recv().await.map(|item| (item, from)))
    }
}

struct Giving {
    broker: Broker,
    queue: QueueName,
    left: usize,
    to: mpsc::Sender<Result<Bytes, Error>>,
    /// The size of the next batch.
    batch: usize,
    waiting: VecDeque<Delivery>,
    given: Vec<Box<dyn Settle>>,
}

/// The reader is gone, or was told an error.
struct Over;

impl Giving {
    async fn run(mut self) {
        let stop = self.broker.stop.clone();
        tokio::select! {
            _ = self.give() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn give(&mut self) -> Result<(), Over> {
        let (mut bell, mut results) = (self.broker.queues.bell(), self.broker.outbox.watch_results());
        while self.left > 0 {
            let room = self.room().await?;
            let Some(Delivery { body, settle, .. }) = self.waiting.pop_front() else {
                drop(room);
                self.settle().await?;
                self.take().await?;
                if self.waiting.is_empty() {
                    tokio::select! {
                        _ = bell.rung() => {}
                        _ = results.changed() => {}
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                        () = self.to.closed() => return Err(Over),
                    }
                }
                continue;
            };
            self.given.push(settle);
            self.left -= 1;
            if self.left == 0 {
                // A reader of so many goes away with the last.
                self.settle().await?;
            }
            room.send(Ok(body));
        }
        Ok(())
    }

    /// Returns once what was given before has been read.
    async fn room(&mut self) -> Result<OwnedPermit<Result<Bytes, Error>>, Over> {
        let room = self.to.clone().reserve_owned();
        tokio::pin!(room);
        if let Ok(room) = timeout(STANDS_STILL, &mut room).await {
            return room.map_err(|_| Over);
        }
        // What was not given goes back to its queue.
        self.waiting.clear();
        self.settle().await?;
        room.await.map_err(|_| Over)
    }

    async fn take(&mut self) -> Result<(), Over> {
        let taken = self.broker.queues.take(&self.queue, self.batch.min(self.left)).await;
        let taken = self.or_end(taken.map_err(|e| with_cure(e, &self.queue))).await?;
        let bytes = taken.iter().map(|delivery| delivery.body.len()).sum::<usize>();
        self.batch = match () {
            () if bytes > BATCH_BYTES => 1,
            // Nobody knows yet how large they are.
            () if taken.is_empty() => self.batch,
            () => (self.batch * 2).min(BATCH),
        };
        self.waiting = taken.into();
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Over> {
        if self.given.is_empty() {
            return Ok(());
        }
        let acked = try_join_all(self.given.drain(..).map(Settle::ack)).await.map(drop);
        self.or_end(acked.map_err(Error::from)).await?;
        fault::reached(Point::MessagesSettled);
        Ok(())
    }

    /// An error is the last thing that its reader gets.
    async fn or_end<T>(&self, result: Result<T, Error>) -> Result<T, Over> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let _ = self.to.send(Err(error)).await;
                Err(Over)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{super::tests::rig::*, *};
    use crate::queue::Message;

    #[tokio::test]
    async fn a_reader_of_an_empty_queue_asks_for_one_message_at_first_however_long_it_waited() {
        let rig = Rig::new().await;
        let queue: QueueName = "pi.own".parse().unwrap();
        rig.queues.create(&queue).await.unwrap();
        let (to, _from) = mpsc::channel(1);
        let (broker, queue) = (rig.broker.clone(), queue);
        let (waiting, given) = (VecDeque::new(), Vec::new());
        let mut giving = Giving { broker, queue, left: 1000, to, batch: 1, waiting, given };
        let mut batches = Vec::new();
        for there in [0, 0, 0, 10, 9] {
            if there == 10 {
                for n in 0..there {
                    rig.queues.put(&giving.queue, Message::new(n.to_string())).await.unwrap();
                }
            }
            assert!(giving.take().await.is_ok());
            batches.push(giving.waiting.len());
        }
        assert_eq!(batches, [0, 0, 0, 1, 2]);
    }
}
