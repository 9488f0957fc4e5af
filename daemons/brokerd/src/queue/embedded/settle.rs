//! A taken message's handle.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::{runtime::Handle, sync::mpsc};

use super::{Result, Shared, call, writer::Op};
use crate::queue::Settle;

/// Which row a handle settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) queue: i64,
    pub(super) bytes: u64,
}

/// Settles one row, once; dropped, it gives the row back.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) row: Option<Row>,
    pub(super) ops: mpsc::Sender<Op>,
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl Settle for Taken {
    async fn ack(mut self: Box<Self>) -> Result<()> {
        let Some(row) = self.row.take() else { return Ok(()) };
        call(&self.ops, &self.shared, |reply| Op::Ack { row, reply }).await
    }

    async fn requeue(mut self: Box<Self>) -> Result<()> {
        let Some(row) = self.row.take() else { return Ok(()) };
        call(&self.ops, &self.shared, |reply| Op::Release { row, reply: Some(reply) }).await
    }

    async fn reject(mut self: Box<Self>, reason: String) -> Result<()> {
        let Some(row) = self.row.take() else { return Ok(()) };
        call(&self.ops, &self.shared, |reply| Op::Reject { row, reason, reply }).await
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(row) = self.row.take() else { return };
        let op = Op::Release { row, reply: None };
        let Err(mpsc::error::TrySendError::Full(op)) = self.ops.try_send(op) else { return };
        let ops = self.ops.clone();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { ops.send(op).await });
        }
    }
}
