//! The broker, as attempts call it beside the stream: bounded, and repeated while it makes sense.

use std::time::Duration;

use bytes::Bytes;
use codering_core::{Code, LeaseToken};
use codering_kit::live::Live;
use codering_proto::{
    status::from_status,
    v1::{self, workers_client::WorkersClient},
};
use futures::{StreamExt, stream::BoxStream};
use tonic::transport::Channel;

use crate::{attempt::Fault, backoff::Backoff, held::Stop};

/// For one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// For a large result.
const REPORT_TIMEOUT: Duration = Duration::from_secs(120);
/// Calls of one question, before it counts as the infrastructure's failure; the lease ends it earlier, mostly.
const TRIES: u32 = 8;
/// An assignment carries a standard input of a MiB, and an environment.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A client of the broker. Clones share it.
#[derive(Debug, Clone)]
pub struct Broker(Live<WorkersClient<Channel>>);

fn client(channel: Channel) -> WorkersClient<Channel> {
    WorkersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Broker {
    /// Over this channel.
    pub fn new(channel: Channel) -> Self {
        Self(Live::new(client(channel)))
    }

    /// From now on over this one; a stream or call that is under way stays on its own.
    pub fn set_channel(&self, channel: Channel) {
        self.0.set(client(channel));
    }

    /// For the stream.
    pub(crate) fn client(&self) -> WorkersClient<Channel> {
        WorkersClient::clone(&self.0.get())
    }

    /// Proposes a commit; the answer is the one in force.
    pub(crate) async fn pin(&self, token: &LeaseToken, commit: &str) -> Result<String, Fault> {
        let mut backoff = Backoff::default();
        for tries in 1.. {
            let request = v1::PinCommitRequest { token: token.to_string(), commit: commit.to_owned() };
            let mut client = self.client();
            let answer = tokio::time::timeout(CALL_TIMEOUT, client.pin_commit(request)).await;
            let error = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner().commit),
                Ok(Err(status)) => from_status(&status),
                Err(_) => codering_core::Error::new(Code::TimedOut, "the broker did not answer"),
            };
            if error.code == Code::LeaseFenced {
                return Err(Fault::Stopped(Stop::Fenced));
            }
            if tries >= TRIES || matches!(error.code, Code::InvalidInput | Code::AuthDenied) {
                return Err(Fault::Ours(format!("the commit could not be pinned: {error}")));
            }
            tokio::time::sleep(backoff.next()).await;
        }
        Err(Fault::Ours("the commit could not be pinned".into()))
    }

    /// A reduce step's standard input.
    pub(crate) async fn input(
        &self,
        token: &LeaseToken,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, String> {
        let said = |status: tonic::Status| from_status(&status).to_string();
        let mut client = self.client();
        let request = v1::InputRequest { token: token.to_string() };
        let stream = client.input(request).await.map_err(said)?.into_inner();
        Ok(stream.map(move |chunk| chunk.map(|chunk| chunk.data).map_err(said)).boxed())
    }

    /// Reports a result that is too large for the stream. `None`: not now.
    pub(crate) async fn report(&self, report: v1::AttemptReport) -> Option<v1::ReportReceived> {
        let mut client = self.client();
        match tokio::time::timeout(REPORT_TIMEOUT, client.report(report)).await {
            Ok(Ok(answer)) => Some(answer.into_inner()),
            Ok(Err(status)) => {
                tracing::warn!("a result was not taken, and is kept: {}", from_status(&status));
                None
            }
            Err(_) => None,
        }
    }
}
