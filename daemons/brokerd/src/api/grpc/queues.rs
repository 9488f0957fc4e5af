//! `codering.v1.Queues`.

use std::sync::Arc;

use bytes::Bytes;
use codering_core::{Code, Error, ProjectName, QueueName, message::MAX_MESSAGE_BYTES};
use codering_proto::{
    convert::id,
    v1::{self, queues_server::Queues},
};
use futures::{Stream, TryStreamExt, future, stream};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Answers, next, streamed, unary};
use crate::api::{call::Call, views};

/// Messages of one stream that wait for their confirm at the same time.
const WINDOW: usize = 256;
/// And KiB of them.
const WINDOW_KIB: usize = 32 << 10;
/// Dead letters in one answer.
const MAX_DEAD: u32 = 1000;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Queues for Service {
    type PutStream = Answers<v1::PutResponse>;
    type SubscribeStream = Answers<v1::QueueMessage>;

    async fn list(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        unary(request, |call, asked| async move {
            let (broker, only) = call.listing(&asked.project)?;
            let queues = broker.queues(only.as_deref()).await?.into_iter().map(views::queue).collect();
            Ok(v1::ListQueuesResponse { queues, backend: broker.queue_backend().into() })
        })
        .await
    }

    async fn create(
        &self,
        request: Request<v1::CreateQueueRequest>,
    ) -> Result<Response<v1::CreateQueueResponse>, Status> {
        unary(request, |call, asked| async move {
            let name: QueueName = id(&asked.name, "name")?;
            let broker = call.new_queue(&name).await?;
            let created = broker.create_queue(&name).await?;
            let mut views = broker.queues(Some(&[name.project()])).await?;
            views.retain(|view| view.name == name);
            Ok(v1::CreateQueueResponse { queue: views.pop().map(views::queue), created })
        })
        .await
    }

    async fn put(
        &self,
        request: Request<Streaming<v1::PutRequest>>,
    ) -> Result<Response<Self::PutStream>, Status> {
        streamed(request, |call, messages| async move { Ok(put_all(call, messages)) }).await
    }

    async fn get(
        &self,
        request: Request<v1::GetMessageRequest>,
    ) -> Result<Response<v1::GetMessageResponse>, Status> {
        unary(request, |call, asked| async move {
            let queue = id(&asked.queue, "queue")?;
            let body = call.queue(&queue)?.get(&queue).await?;
            Ok(v1::GetMessageResponse { message: body.map(message) })
        })
        .await
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        streamed(request, |call, asked| async move {
            let queue: QueueName = id(&asked.queue, "queue")?;
            let count = match asked.count {
                0 => usize::MAX,
                n => usize::try_from(n).unwrap_or(usize::MAX),
            };
            Ok(call.queue(&queue)?.subscribe(queue, count).map_ok(message))
        })
        .await
    }

    async fn purge(
        &self,
        request: Request<v1::PurgeQueueRequest>,
    ) -> Result<Response<v1::PurgeQueueResponse>, Status> {
        unary(request, |call, asked| async move {
            let queue = id(&asked.name, "name")?;
            Ok(v1::PurgeQueueResponse { purged: call.queue(&queue)?.purge(&queue).await? })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteQueueRequest>,
    ) -> Result<Response<v1::DeleteQueueResponse>, Status> {
        unary(request, |call, asked| async move {
            let queue = id(&asked.name, "name")?;
            call.queue(&queue)?.delete_queue(&queue).await?;
            Ok(v1::DeleteQueueResponse {})
        })
        .await
    }

    async fn list_dead(
        &self,
        request: Request<v1::ListDeadRequest>,
    ) -> Result<Response<v1::ListDeadResponse>, Status> {
        unary(request, |call, asked| async move {
            let project = id(&asked.project, "project")?;
            dead(&call, &project, asked.limit).await
        })
        .await
    }

    async fn requeue_dead(
        &self,
        request: Request<v1::RequeueDeadRequest>,
    ) -> Result<Response<v1::RequeueDeadResponse>, Status> {
        unary(request, |call, asked| async move { requeue(&call, asked).await }).await
    }

    async fn rebuild(
        &self,
        request: Request<v1::RebuildQueuesRequest>,
    ) -> Result<Response<v1::RebuildQueuesResponse>, Status> {
        unary(request, |call, asked| async move {
            let project = id(&asked.project, "project")?;
            let (tasks, results) = call.project(&project)?.rebuild(&project).await?;
            Ok(v1::RebuildQueuesResponse { project: asked.project, tasks, results })
        })
        .await
    }
}

/// A page of a project's dead letters.
pub async fn dead(call: &Call, project: &ProjectName, limit: u32) -> Result<v1::ListDeadResponse, Error> {
    let limit = if limit == 0 { 100 } else { limit.min(MAX_DEAD) };
    let (letters, total) = call.project(project)?.dead(project, limit as usize).await?;
    Ok(v1::ListDeadResponse { letters: letters.into_iter().map(views::dead).collect(), total })
}

/// Puts dead letters back: the named ones, or, where that was said, all.
pub async fn requeue(call: &Call, asked: v1::RequeueDeadRequest) -> Result<v1::RequeueDeadResponse, Error> {
    let project = id(&asked.project, "project")?;
    let broker = call.project(&project)?;
    let ids = match (asked.all, asked.ids.is_empty()) {
        (true, true) => None,
        (false, false) => Some(asked.ids),
        _ => {
            return Err(
                Error::new(Code::InvalidInput, "either some ids are named, or `all` is true").at("ids")
            );
        }
    };
    Ok(v1::RequeueDeadResponse { requeued: broker.requeue_dead(&project, ids).await? })
}

fn message(body: Bytes) -> v1::QueueMessage {
    let text = match String::from_utf8(body.into()) {
        Ok(text) => text,
        // From a raw AMQP client; it was taken, so it is shown as well as can be.
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    v1::QueueMessage { message: text }
}

/// Puts what comes, a window at a time; answers in order, each after its confirm.
fn put_all(
    call: Call,
    messages: Streaming<v1::PutRequest>,
) -> impl Stream<Item = Result<v1::PutResponse, Error>> + Send {
    let room = Arc::new(Semaphore::new(WINDOW_KIB));
    let puts = stream::try_unfold((messages, None, 0), move |(mut messages, mut queue, index)| {
        let (call, room) = (call.clone(), room.clone());
        async move {
            let Some(request) = next(&mut messages).await? else { return Ok(None) };
            if !request.queue.is_empty() {
                queue = Some(id::<QueueName>(&request.queue, "queue")?);
            }
            let named = queue.clone().ok_or_else(|| {
                Error::new(Code::InvalidInput, "the first message names its queue").at("queue")
            })?;
            let broker = call.queue(&named)?.clone();
            let body = checked(request.message).map_err(|error| error.at(format!("messages[{index}]")))?;
            let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX);
            let place = room.acquire_many_owned(kib).await.map_err(crate::broker::internal)?;
            let put = async move {
                broker.put(&named, body, 0).await?;
                drop(place);
                Ok(v1::PutResponse { index })
            };
            // A put takes its place in the queue when it is first polled, so that happens here, in order:
            // a window of futures is polled in any order, and out of turn where tokio's budget runs out.
            let mut put = Box::pin(future::maybe_done(tokio::task::unconstrained(put)));
            let _ = futures::poll!(put.as_mut());
            let put = async move {
                put.as_mut().await;
                put.as_mut()
                    .take_output()
                    .unwrap_or_else(|| Err(Error::new(Code::Internal, "a put was lost")))
            };
            Ok(Some((put, (messages, queue, index + 1))))
        }
    });
    puts.try_buffered(WINDOW)
}

/// A message that is JSON and not too large.
pub fn checked(text: String) -> Result<Bytes, Error> {
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(Error::new(
            Code::TooLarge,
            format!("a message has at most {MAX_MESSAGE_BYTES} bytes, this one {}", text.len()),
        ));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(&text)
        .map_err(|error| Error::new(Code::InvalidJson, format!("the message is not JSON: {error}")))?;
    Ok(text.into())
}
