//! Fuzz targets: what must hold for any bytes that come over gRPC. See `codering_core`'s.
#![allow(missing_docs, clippy::unwrap_used)]

use codering_core::{JobSpec, Reduce, TaskResult, TaskSpec, message::DoneMessage};
use prost::Message;

use crate::{convert::Assigned, v1};

/// A whole submit.
pub fn submit_request(data: &[u8]) {
    let Ok(request) = v1::SubmitRequest::decode(data) else { return };
    let Some(Ok(job)) = request.job.map(JobSpec::try_from) else { return };
    job.validate().unwrap();
    assert_eq!(JobSpec::try_from(v1::JobSpec::from(job.clone())).as_ref(), Ok(&job));
    for wire in request.tasks {
        let Ok(task) = TaskSpec::try_from(wire) else { continue };
        assert_eq!(TaskSpec::try_from(v1::TaskSpec::from(task.clone())).as_ref(), Ok(&task));
        if task.validate(&job).is_ok() {
            let attempt = job.attempt(&task, &codering_core::Limits::default());
            attempt.command.validate().unwrap();
            let id = codering_core::JobId::at(1_763_722_560_000, 7);
            let message =
                codering_core::message::TodoMessage::of(&job.project, &id, &task, &attempt, job.priority);
            let body = serde_json::to_vec(&message).unwrap();
            codering_core::message::TodoMessage::read(&body, &job.project).unwrap();
        }
    }
}

/// What a worker says on its stream, and in a call of its own.
pub fn worker_message(data: &[u8]) {
    let result = match v1::FromWorker::decode(data) {
        Ok(v1::FromWorker { message: Some(v1::from_worker::Message::Report(report)) }) => report.result,
        _ => v1::AttemptReport::decode(data).ok().and_then(|report| report.result),
    };
    let Some(Ok(result)) = result.map(TaskResult::try_from) else { return };
    assert_eq!(TaskResult::try_from(v1::TaskResult::from(result.clone())).as_ref(), Ok(&result));
    // What is recorded can be read by everyone who is told of it.
    let told: DoneMessage =
        serde_json::from_slice(&serde_json::to_vec(&DoneMessage::from(&result)).unwrap()).unwrap();
    assert_eq!(told.result(), Some(result));
}

/// What a worker is told.
pub fn assignment(data: &[u8]) {
    let Ok(message) = v1::ToWorker::decode(data) else { return };
    let Some(v1::to_worker::Message::Assignment(wire)) = message.message else { return };
    let Ok(assigned) = Assigned::try_from(wire) else { return };
    assigned.spec.source.validate().unwrap();
    let wire = v1::Assignment::from(assigned);
    let again = Assigned::try_from(wire.clone()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(v1::Assignment::from(again), wire);
}

/// Requests of the other verbs, by their first byte, and the answers' JSON.
pub fn requests(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 5 {
        0 => {
            let Ok(request) = v1::ReduceJobRequest::decode(data) else { return };
            let Some(Ok(reduce)) = request.reduce.map(Reduce::try_from) else { return };
            reduce.validate().unwrap();
            assert_eq!(Reduce::try_from(v1::Reduce::from(reduce.clone())), Ok(reduce));
        }
        1 => reads_back::<v1::Task>(data),
        2 => reads_back::<v1::Job>(data),
        3 => reads_back::<v1::ListDeadResponse>(data),
        _ => reads_back::<v1::ListWorkersResponse>(data),
    }
}

/// JSON that we write for a message is JSON that we read.
fn reads_back<T: Message + Default + PartialEq + serde::Serialize + serde::de::DeserializeOwned>(
    data: &[u8],
) {
    let Ok(json) = serde_json::from_slice::<T>(data) else { return };
    let Ok(text) = serde_json::to_vec(&json) else { return };
    serde_json::from_slice::<T>(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
#[cfg(test)]
replay::replayed!(submit_request, worker_message, assignment, requests);
