//! A taken message's handle.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use codering_core::QueueName;
use futures::FutureExt;
use lapin::{
    Acker, BasicProperties,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::time::timeout;

use super::{
    letters,
    shared::{Shared, Weight},
};
use crate::queue::{QueueError, Result, Settle};

const SETTLE: Duration = Duration::from_secs(15);

fn requeue() -> BasicNackOptions {
    BasicNackOptions { multiple: false, requeue: true }
}

/// Settles one message, once; dropped, it gives the message back.
pub(super) struct Held {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: QueueName,
    pub(super) body: Bytes,
    pub(super) acker: Option<Acker>,
    /// Counted for as long as the body is in memory.
    pub(super) weight: Weight,
}

impl Held {
    /// Kept to be given back alone: of its body nothing stays in memory.
    pub(super) fn without_body(mut self) -> Self {
        self.body = Bytes::new();
        self.weight = self.shared.load.hold(0);
        self
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("queue", &self.queue).field("bytes", &self.body.len()).finish()
    }
}

/// Whether the channel that it came by still was there to settle it on.
fn settled(answer: std::result::Result<lapin::Result<bool>, tokio::time::error::Elapsed>) -> Result<()> {
    match answer {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(QueueError::Unavailable(
            "the connection by which the message came is gone; it comes again".to_owned(),
        )),
        Ok(Err(error)) => Err(QueueError::Unavailable(error.to_string())),
        Err(_) => Err(QueueError::Unavailable("RabbitMQ did not take the answer in time".to_owned())),
    }
}

#[async_trait]
impl Settle for Held {
    async fn ack(mut self: Box<Self>) -> Result<()> {
        let Some(acker) = self.acker.take() else { return Ok(()) };
        settled(timeout(SETTLE, acker.ack(BasicAckOptions::default())).await)
    }

    async fn requeue(mut self: Box<Self>) -> Result<()> {
        let Some(acker) = self.acker.take() else { return Ok(()) };
        settled(timeout(SETTLE, acker.nack(requeue())).await)
    }

    async fn reject(self: Box<Self>, reason: String) -> Result<()> {
        // First to the dead, then away from here: in between it may be doubled, never lost. An error drops
        // the handle, which gives the message back.
        let dead = QueueName::dead(&self.queue.project());
        let properties = BasicProperties::default().with_headers(letters::headers(&self.queue, &reason));
        let put = self.shared.publish(&dead, self.body.clone(), properties.clone()).await;
        if let Err(QueueError::NotFound(_)) = put {
            self.shared.create(&dead).await?;
            self.shared.publish(&dead, self.body.clone(), properties).await?;
        } else {
            put?;
        }
        self.ack().await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(acker) = self.acker.take() {
            // The first poll hands the nack to the connection; nobody waits for it to be written.
            let _ = acker.nack(requeue()).now_or_never();
        }
    }
}
