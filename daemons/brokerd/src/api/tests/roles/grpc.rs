//! Every gRPC method, over TLS.

use std::collections::BTreeSet;

use codering_core::Command;
use codering_kit::tls;
use codering_proto::{status::from_status, v1};
use futures::stream;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{super::rig::BOUND, Caller, People, Row, names, row};

#[rustfmt::skip]
const TABLE: &[Row] = &[
    //                                        who may     answered           refused to another's admin
    row("codering.v1.Projects/Create",       "A",        "project.exists",  "auth.denied"),
    row("codering.v1.Projects/List",         "AaSsVvo",  "ok",              ""),
    row("codering.v1.Projects/Get",          "AaSsVv",   "ok",              "auth.denied"),
    row("codering.v1.Projects/Delete",       "Aa",       "project.busy",    "auth.denied"),
    row("codering.v1.Projects/SetQuota",     "A",        "ok",              "auth.denied"),
    row("codering.v1.Queues/List",           "AaSsVvo",  "ok",              ""),
    row("codering.v1.Queues/Create",         "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Put",            "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Get",            "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Subscribe",      "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Purge",          "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Delete",         "AaSs",     "queue.reserved",  "auth.denied"),
    row("codering.v1.Queues/ListDead",       "AaSsVv",   "ok",              "auth.denied"),
    row("codering.v1.Queues/RequeueDead",    "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Queues/Rebuild",        "Aa",       "ok",              "auth.denied"),
    row("codering.v1.Jobs/Submit",           "AaSs",     "ok",              "auth.denied"),
    row("codering.v1.Jobs/List",             "AaSsVvo",  "ok",              ""),
    row("codering.v1.Jobs/Get",              "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/Watch",            "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/Cancel",           "AaSs",     "job.finished",    "job.not_found"),
    row("codering.v1.Jobs/Retry",            "AaSs",     "ok",              "job.not_found"),
    row("codering.v1.Jobs/Pause",            "AaSs",     "ok",              "job.not_found"),
    row("codering.v1.Jobs/Resume",           "AaSs",     "ok",              "job.not_found"),
    row("codering.v1.Jobs/Reduce",           "AaSs",     "job.unfinished",  "job.not_found"),
    row("codering.v1.Jobs/Results",          "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/Answer",           "AaSsVv",   "job.no_answer",   "job.not_found"),
    row("codering.v1.Jobs/BuildLogs",        "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/ListTasks",        "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/GetTask",          "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Jobs/CancelTask",       "AaSs",     "task.finished",   "job.not_found"),
    row("codering.v1.Jobs/RetryTask",        "AaSs",     "task.unfinished", "job.not_found"),
    row("codering.v1.Jobs/Logs",             "AaSsVv",   "ok",              "job.not_found"),
    row("codering.v1.Ledger/Check",          "A",        "ok",              "auth.denied"),
    row("codering.v1.Ledger/Backup",         "A",        "ok",              "auth.denied"),
    // Nobody makes, sees or revokes what reaches further than its own.
    row("codering.v1.Tokens/Create",         "Aa",       "ok",              "auth.denied"),
    row("codering.v1.Tokens/List",           "Aao",      "ok",              ""),
    row("codering.v1.Tokens/Revoke",         "Aa",       "ok",              "token.not_found"),
    row("codering.v1.Tokens/WhoAmI",         "AaSsVvo",  "ok",              ""),
    row("codering.v1.Workers/List",          "ASV",      "ok",              "auth.denied"),
    row("codering.v1.Workers/Get",           "ASV",      "ok",              "auth.denied"),
    row("codering.v1.Workers/Pause",         "A",        "ok",              "auth.denied"),
    row("codering.v1.Workers/Resume",        "A",        "ok",              "auth.denied"),
    row("codering.v1.Workers/Revoke",        "A",        "worker.not_found", "auth.denied"),
    // Its join token is in the message: a test of its own.
    row(ENROLL,                              "J",        "ok",              "auth.denied"),
    // What is asked for is no signing request.
    row("codering.v1.Workers/Renew",         "W",        "invalid.input",   ""),
    row("codering.v1.Workers/Attach",        "W",        "ok",              ""),
    row("codering.v1.Workers/Report",        "W",        "ok",              ""),
    row("codering.v1.Workers/PinCommit",     "W",        "lease.fenced",    ""),
    row("codering.v1.Workers/Input",         "W",        "lease.fenced",    ""),
    row("grpc.health.v1.Health/Check",       "*",        "ok",              ""),
    row("grpc.health.v1.Health/Watch",       "*",        "ok",              ""),
    row("grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                             "AaSsVvo",  "ok",              ""),
];

const ENROLL: &str = "codering.v1.Workers/Enroll";

fn served() -> BTreeSet<String> {
    let sets = [
        codering_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).expect("descriptors").file);
    let mut names = BTreeSet::new();
    for file in files {
        for service in &file.service {
            let name = |m: &prost_types::MethodDescriptorProto| {
                format!("{}.{}/{}", file.package(), service.name(), m.name())
            };
            names.extend(service.method.iter().map(name));
        }
    }
    names
}

/// A call that means something to a caller who may.
fn request(people: &People, method: &str) -> Vec<u8> {
    let (pi, mine) = (|| "pi".to_owned(), || "pi.mine".to_owned());
    let (job_id, over) = (people.job.clone(), people.over.clone());
    let task_id = "1".to_owned();
    let token = "0".repeat(32);
    match method.rsplit_once('.').expect("a package").1 {
        "Projects/Create" => v1::CreateProjectRequest { name: pi(), ..Default::default() }.encode_to_vec(),
        "Projects/List" | "Tokens/List" | "Tokens/WhoAmI" | "Workers/List" | "Ledger/Check"
        | "Ledger/Backup" | "Health/Check" | "Health/Watch" => Vec::new(),
        "Projects/Get" => v1::GetProjectRequest { name: pi() }.encode_to_vec(),
        "Projects/Delete" => v1::DeleteProjectRequest { name: pi(), force: false }.encode_to_vec(),
        "Projects/SetQuota" => v1::SetQuotaRequest { name: pi(), quota: None }.encode_to_vec(),
        "Queues/List" => v1::ListQueuesRequest::default().encode_to_vec(),
        "Queues/Create" => v1::CreateQueueRequest { name: mine() }.encode_to_vec(),
        "Queues/Put" => v1::PutRequest { queue: mine(), message: "1".into() }.encode_to_vec(),
        "Queues/Get" => v1::GetMessageRequest { queue: mine() }.encode_to_vec(),
        "Queues/Subscribe" => v1::SubscribeRequest { queue: mine(), count: 1 }.encode_to_vec(),
        "Queues/Purge" => v1::PurgeQueueRequest { name: "pi.purged".into() }.encode_to_vec(),
        "Queues/Delete" => v1::DeleteQueueRequest { name: "pi.todo".into() }.encode_to_vec(),
        "Queues/ListDead" => v1::ListDeadRequest { project: pi(), limit: 1 }.encode_to_vec(),
        "Queues/RequeueDead" => {
            v1::RequeueDeadRequest { project: pi(), all: true, ..Default::default() }.encode_to_vec()
        }
        "Queues/Rebuild" => v1::RebuildQueuesRequest { project: pi() }.encode_to_vec(),
        "Jobs/Submit" => {
            let job = v1::JobSpec {
                project: pi(),
                name: pi(),
                git_url: "https://host/pi.git".into(),
                command: Some(Command::Shell("true".into()).into()),
                ..Default::default()
            };
            let tasks = vec![v1::TaskSpec { task_id, ..Default::default() }];
            v1::SubmitRequest { job: Some(job), tasks, end_of_tasks: Some(1), ..Default::default() }
                .encode_to_vec()
        }
        "Jobs/List" => v1::ListJobsRequest::default().encode_to_vec(),
        "Jobs/Get" => v1::GetJobRequest { job_id }.encode_to_vec(),
        "Jobs/Watch" => v1::WatchJobRequest { job_id }.encode_to_vec(),
        "Jobs/Cancel" => v1::CancelJobRequest { job_id: over }.encode_to_vec(),
        "Jobs/Retry" => v1::RetryJobRequest { job_id }.encode_to_vec(),
        "Jobs/Pause" => v1::PauseJobRequest { job_id }.encode_to_vec(),
        "Jobs/Resume" => v1::ResumeJobRequest { job_id }.encode_to_vec(),
        "Jobs/Reduce" => v1::ReduceJobRequest { job_id, reduce: None }.encode_to_vec(),
        "Jobs/Results" => v1::ResultsRequest { job_id, ..Default::default() }.encode_to_vec(),
        "Jobs/Answer" => v1::AnswerRequest { job_id }.encode_to_vec(),
        "Jobs/BuildLogs" => v1::BuildLogsRequest { job_id }.encode_to_vec(),
        "Jobs/ListTasks" => v1::ListTasksRequest { job_id, ..Default::default() }.encode_to_vec(),
        "Jobs/GetTask" => v1::GetTaskRequest { job_id, task_id }.encode_to_vec(),
        "Jobs/CancelTask" => v1::CancelTaskRequest { job_id: over, task_id }.encode_to_vec(),
        "Jobs/RetryTask" => v1::RetryTaskRequest { job_id, task_id }.encode_to_vec(),
        "Jobs/Logs" => v1::LogsRequest { job_id, task_id, ..Default::default() }.encode_to_vec(),
        "Tokens/Create" => {
            let role = v1::Role::Viewer.into();
            let asked = v1::CreateTokenRequest {
                name: "made".into(),
                role,
                projects: vec![pi()],
                ..Default::default()
            };
            asked.encode_to_vec()
        }
        "Tokens/Revoke" => v1::RevokeTokenRequest { token_id: people.spare.clone() }.encode_to_vec(),
        "Workers/Get" => v1::GetWorkerRequest { name: "w1".into() }.encode_to_vec(),
        "Workers/Pause" => v1::PauseWorkerRequest { name: "w1".into() }.encode_to_vec(),
        "Workers/Resume" => v1::ResumeWorkerRequest { name: "w1".into() }.encode_to_vec(),
        "Workers/Revoke" => v1::RevokeWorkerRequest { name: "w9".into() }.encode_to_vec(),
        "Workers/Attach" => {
            // The slots are of a worker that is paused or gone: nothing is assigned.
            let hello = v1::Hello { slots: 1, version: "test".into(), ..Default::default() };
            v1::FromWorker { message: Some(v1::from_worker::Message::Hello(hello)) }.encode_to_vec()
        }
        "Workers/Renew" => v1::RenewRequest { csr_pem: "none".into() }.encode_to_vec(),
        "Workers/Report" => v1::AttemptReport { token, result: None }.encode_to_vec(),
        "Workers/PinCommit" => v1::PinCommitRequest { token, commit: "0".repeat(40) }.encode_to_vec(),
        "Workers/Input" => v1::InputRequest { token }.encode_to_vec(),
        "ServerReflection/ServerReflectionInfo" => {
            use tonic_reflection::pb::v1::{
                ServerReflectionRequest, server_reflection_request::MessageRequest,
            };
            let message_request = Some(MessageRequest::ListServices(String::new()));
            ServerReflectionRequest { host: String::new(), message_request }.encode_to_vec()
        }
        unknown => panic!("no request is made for {unknown}: give it one"),
    }
}

/// Calls a method with one message and waits for the first of the answer: `ok`, or the code of the error. On the wire a
/// call with one message is a stream of one.
async fn call(caller: &Caller, method: &str, message: Vec<u8>) -> String {
    let calling = async {
        let mut request = Request::new(stream::iter([message]));
        if let Some(token) = &caller.token {
            let value = format!("Bearer {token}").parse().expect("plain text");
            request.metadata_mut().insert("authorization", value);
        }
        let mut grpc = Grpc::new(caller.channel.clone());
        grpc.ready().await.expect("connected");
        let path = format!("/{method}").parse().expect("a path");
        let mut answer = grpc.streaming(request, path, Bytes).await?.into_inner();
        answer.message().await.map(drop)
    };
    match tokio::time::timeout(BOUND, calling).await.expect("answered in time") {
        Ok(()) => "ok".into(),
        Err(status) => from_status(&status).code.as_str().into(),
    }
}

#[test]
fn invariant_10_every_method_that_is_served_stands_in_the_table_of_who_may() {
    assert_eq!(names(TABLE), served());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_10_a_method_is_answered_to_those_who_may_and_to_nobody_else() {
    let people = People::gather().await;
    let mut wrong = Vec::new();
    for row in TABLE.iter().filter(|row| row.name != ENROLL) {
        for caller in &people.callers {
            let answer = call(caller, row.name, request(&people, row.name)).await;
            let expected = row.expected(caller);
            if answer != expected {
                let (letter, name) = (caller.letter, caller.name);
                wrong.push(format!("{}, to {letter} ({name}): {answer}, not {expected}", row.name));
            }
        }
        // A table of wrong tokens is not an attack: each row begins anew.
        people.rig.auth.forgive_all();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    people.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_10_a_worker_is_enrolled_for_a_live_join_token_and_for_no_other() {
    let people = People::gather().await;
    for caller in people.callers.iter() {
        let (csr_pem, _) = tls::csr(&"w8".parse().expect("valid")).expect("made");
        let join_token = caller.token.clone().unwrap_or_default();
        let request = v1::EnrollRequest { join_token, worker: "w8".into(), csr_pem }.encode_to_vec();
        let expected = match (caller.letter, &caller.token) {
            ('J', _) => "ok",
            ('-', _) | (_, None) => "auth.invalid",
            (_, Some(_)) => "auth.denied",
        };
        assert_eq!(call(caller, ENROLL, request).await, expected, "{} ({})", caller.letter, caller.name);
    }
    people.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_10_a_certificate_adds_nothing_to_a_token_nor_a_token_to_a_certificate() {
    let people = People::gather().await;
    let both = |token: &Caller, certificate: &Caller| Caller {
        letter: '+',
        name: "both",
        token: token.token.clone(),
        channel: certificate.channel.clone(),
        as_user: "",
        as_worker: "",
    };
    let worker = people.of('W');
    let revoked = people.callers.iter().find(|c| c.name == "a revoked worker").expect("one");
    for (letter, certificate, method, expected) in [
        ('v', worker, "codering.v1.Jobs/Get", "ok"),
        ('v', worker, "codering.v1.Jobs/Pause", "auth.denied"),
        ('J', worker, "codering.v1.Jobs/Get", "auth.denied"),
        ('A', revoked, "codering.v1.Workers/PinCommit", "worker.revoked"),
        ('v', worker, "codering.v1.Workers/PinCommit", "lease.fenced"),
    ] {
        let caller = both(people.of(letter), certificate);
        let answer = call(&caller, method, request(&people, method)).await;
        assert_eq!(answer, expected, "{letter} with the certificate of {}: {method}", certificate.name);
    }
    people.rig.stop().await;
}

/// Messages as they are on the wire.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use bytes::BufMut;
        into.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
