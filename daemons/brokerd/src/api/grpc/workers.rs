//! `codering.v1.Workers`: what people ask about them, and what workers themselves call.

use std::{sync::Arc, time::Duration};

use codering_core::{Code, Error, LeaseToken, WorkerName};
use codering_proto::{
    convert::id,
    v1::{self, from_worker, workers_server::Workers},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Answers, next, opened, refused, streamed, unary};
use crate::{
    api::{follow, views},
    broker::{Session, Speaker},
};

/// For a new stream's first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Workers for Service {
    type AttachStream = Answers<v1::ToWorker>;
    type InputStream = Answers<v1::InputChunk>;

    async fn list(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        unary(request, |call, _| async move {
            let workers = call.everywhere()?.workers().await?;
            Ok(v1::ListWorkersResponse { workers: workers.into_iter().map(views::worker).collect() })
        })
        .await
    }

    async fn get(&self, request: Request<v1::GetWorkerRequest>) -> Result<Response<v1::Worker>, Status> {
        unary(request, |call, asked| async move {
            Ok(views::worker(call.everywhere()?.worker(&id(&asked.name, "name")?).await?))
        })
        .await
    }

    async fn pause(&self, request: Request<v1::PauseWorkerRequest>) -> Result<Response<v1::Worker>, Status> {
        unary(request, |call, asked| async move {
            let worker = call.everywhere()?.pause_worker(&id(&asked.name, "name")?, true).await?;
            call.decided("a worker was paused", worker.worker.name.as_str());
            Ok(views::worker(worker))
        })
        .await
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        unary(request, |call, asked| async move {
            let worker = call.everywhere()?.pause_worker(&id(&asked.name, "name")?, false).await?;
            call.decided("a worker was resumed", worker.worker.name.as_str());
            Ok(views::worker(worker))
        })
        .await
    }

    async fn revoke(
        &self,
        request: Request<v1::RevokeWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        unary(request, |call, asked| async move {
            let worker = call.everywhere()?.revoke_worker(&id(&asked.name, "name")?).await?;
            call.decided("a worker was revoked", worker.worker.name.as_str());
            Ok(views::worker(worker))
        })
        .await
    }

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        unary(request, |call, asked| async move {
            let worker: WorkerName = id(&asked.worker, "worker")?;
            let (from, (auth, broker)) = (call.peer().address, call.enrolment()?);
            // Without it a revocation that comes in between would be written over.
            let _rows = broker.worker_rows().await;
            let enrolled = auth.enroll(&asked.join_token, worker.clone(), &asked.csr_pem, from).await?;
            if enrolled.replaced {
                broker.disconnect(&worker);
            }
            Ok(views::enrolled(enrolled))
        })
        .await
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        unary(request, |call, asked| async move {
            let (auth, broker) = call.renewal()?;
            let _rows = broker.worker_rows().await;
            auth.renew(call.peer(), &asked.csr_pem).await.map(views::enrolled)
        })
        .await
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (call, mut from) = opened(request)?;
        let (broker, name) = call.worker().map_err(refused)?;
        let hello = hello(&mut from).await.map_err(refused)?;
        let serial = call.peer().certificate.as_ref().map_or("", |shown| &shown.serial);
        let session = broker.attach(name.clone(), serial, hello).await.map_err(refused)?;
        let gone = CancellationToken::new();
        tokio::spawn(listen(session.speaker(), from, gone.clone()));
        Ok(Response::new(speak(session, gone).map(Ok).boxed()))
    }

    async fn report(
        &self,
        request: Request<v1::AttemptReport>,
    ) -> Result<Response<v1::ReportReceived>, Status> {
        unary(request, |call, report| async move {
            let (broker, name) = call.worker()?;
            let token = report.token.clone();
            Ok(v1::ReportReceived { token, recorded: broker.report(name, report).await? })
        })
        .await
    }

    async fn pin_commit(
        &self,
        request: Request<v1::PinCommitRequest>,
    ) -> Result<Response<v1::PinCommitResponse>, Status> {
        unary(request, |call, asked| async move {
            let (broker, name) = call.worker()?;
            let token: LeaseToken = id(&asked.token, "token")?;
            Ok(v1::PinCommitResponse { commit: broker.pin_commit(name, &token, &asked.commit).await? })
        })
        .await
    }

    async fn input(&self, request: Request<v1::InputRequest>) -> Result<Response<Self::InputStream>, Status> {
        streamed(request, |call, asked| async move {
            let (broker, name) = call.worker()?;
            let pages = broker.reduce_input(name, &id(&asked.token, "token")?)?;
            // A page may be larger than a message.
            let chunks = pages.map_ok(|page| follow::pieces(page.into()).map(Ok)).try_flatten();
            Ok(chunks.map_ok(|data| v1::InputChunk { data }))
        })
        .await
    }
}

async fn hello(from: &mut Streaming<v1::FromWorker>) -> Result<v1::Hello, Error> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, next(from))
        .await
        .map_err(|_| Error::new(Code::TimedOut, "no hello came"))??;
    match first.and_then(|first| first.message) {
        Some(from_worker::Message::Hello(hello)) => Ok(hello),
        _ => Err(Error::new(Code::InvalidInput, "a worker's stream begins with a hello")),
    }
}

/// Reports of one worker that are recorded at the same time.
const REPORTS_AT_ONCE: usize = 64;

/// Takes what the worker says until one of the two directions ends. A message that is being handled is handled to its
/// end: a result that the ledger has must reach the rest of the broker.
async fn listen(speaker: Speaker, mut from: Streaming<v1::FromWorker>, gone: CancellationToken) {
    let _tells_the_other_direction = gone.clone().drop_guard();
    let room = Arc::new(Semaphore::new(REPORTS_AT_ONCE));
    loop {
        let message = tokio::select! {
            message = next(&mut from) => message,
            () = gone.cancelled() => return,
        };
        match message {
            Ok(Some(message)) if matches!(message.message, Some(from_worker::Message::Report(_))) => {
                // Side by side, so that their writes share a commit and no heartbeat waits behind them all.
                let Ok(room) = room.clone().acquire_owned().await else { return };
                let speaker = speaker.clone();
                tokio::spawn(async move {
                    handle(&speaker, message).await;
                    drop(room);
                });
            }
            Ok(Some(message)) => handle(&speaker, message).await,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "a worker's stream broke"),
        }
    }
}

async fn handle(speaker: &Speaker, message: v1::FromWorker) {
    if let Err(error) = speaker.handle(message).await {
        tracing::warn!(%error, "a worker's message was of no use");
    }
}

/// What the worker is told, until one of the two directions ends. Dropped with the answer, it ends the other.
fn speak(session: Session, gone: CancellationToken) -> impl Stream<Item = v1::ToWorker> + Send {
    let guard: DropGuard = gone.clone().drop_guard();
    stream::unfold((session, gone, guard), async |(mut session, gone, guard)| {
        let message = tokio::select! {
            message = session.next() => message?,
            () = gone.cancelled() => return None,
        };
        Some((message, (session, gone, guard)))
    })
}
