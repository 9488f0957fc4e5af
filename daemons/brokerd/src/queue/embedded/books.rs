//! What each queue holds, counted: the bounds and `depth` need no query.

use std::collections::{BTreeSet, HashMap};

use codering_core::QueueName;

use crate::queue::{Depth, QueueError, Result};

/// The bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// One queue's count.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) name: QueueName,
    /// Waiting and taken.
    pub(super) messages: u64,
    pub(super) taken: u64,
    pub(super) bytes: u64,
    /// No message of it is larger; after a start that is known again once the queue was empty.
    pub(super) largest: u64,
}

impl Account {
    /// An empty queue's.
    pub(super) fn new(name: QueueName) -> Self {
        Self { name, messages: 0, taken: 0, bytes: 0, largest: 0 }
    }

    pub(super) fn depth(&self) -> Depth {
        Depth { ready: self.messages.saturating_sub(self.taken), unacked: self.taken }
    }

    /// The results' queue gives up its oldest rather than refuse: the ledger has every result.
    pub(super) fn drops_oldest(&self) -> bool {
        self.name.is_reserved() && self.name.local() == "done"
    }

    pub(super) fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
        // Of several at once: all of them weigh as much.
        self.largest = self.largest.max(bytes);
    }

    pub(super) fn remove(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.messages == 0 {
            self.largest = 0;
        }
    }

    pub(super) fn over(&self, bounds: Bounds) -> bool {
        self.messages > bounds.messages || self.bytes > bounds.bytes
    }
}

/// All queues' counts, and which of them the group under way has touched.
#[derive(Debug, Default)]
pub(super) struct Books {
    accounts: HashMap<i64, Account>,
    ids: HashMap<QueueName, i64>,
    touched: BTreeSet<i64>,
}

impl Books {
    pub(super) fn open(&mut self, id: i64, account: Account) {
        self.ids.insert(account.name.clone(), id);
        self.accounts.insert(id, account);
        self.touched.insert(id);
    }

    pub(super) fn close(&mut self, id: i64) -> Option<Account> {
        let account = self.accounts.remove(&id)?;
        self.ids.remove(&account.name);
        self.touched.remove(&id);
        Some(account)
    }

    pub(super) fn id(&self, queue: &QueueName) -> Option<i64> {
        self.ids.get(queue).copied()
    }

    pub(super) fn known(&self, queue: &QueueName) -> Result<i64> {
        self.id(queue).ok_or_else(|| QueueError::NotFound(queue.clone()))
    }

    /// `None` once the queue is deleted.
    pub(super) fn change(&mut self, id: i64) -> Option<&mut Account> {
        let account = self.accounts.get_mut(&id)?;
        self.touched.insert(id);
        Some(account)
    }

    pub(super) fn get(&self, id: i64) -> Option<&Account> {
        self.accounts.get(&id)
    }

    /// Whether there is room for more, on queues that refuse.
    pub(super) fn room(&self, id: i64, messages: u64, bytes: u64, bounds: Bounds) -> Result<()> {
        match self.accounts.get(&id) {
            Some(account)
                if !account.drops_oldest()
                    && (account.messages + messages > bounds.messages
                        || account.bytes + bytes > bounds.bytes) =>
            {
                Err(QueueError::Full(account.name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The queues that changed since the last call.
    pub(super) fn take_touched(&mut self) -> Vec<(i64, Account)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|id| Some((id, self.accounts.get(&id)?.clone()))).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }
}
