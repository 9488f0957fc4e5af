//! gRPC over real TLS, as ctl sees it.

use codering_core::{Code, Error};
use codering_proto::{
    status::from_status,
    v1::{
        self, jobs_client::JobsClient, projects_client::ProjectsClient, queues_client::QueuesClient,
        tokens_client::TokensClient,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::rig::{BOUND, Rig, queue_name, until};
use crate::{
    api::access::{Access, METHODS},
    ledger::Role,
};

fn error<T: std::fmt::Debug>(answer: Result<T, Status>) -> Error {
    from_status(&answer.expect_err("refused"))
}

fn spec() -> v1::JobSpec {
    v1::JobSpec {
        project: "pi".into(),
        name: "pi".into(),
        git_url: "https://host/pi.git".into(),
        command: Some(codering_core::Command::Shell("pi {}".into()).into()),
        ..Default::default()
    }
}

fn tasks(ids: std::ops::RangeInclusive<u32>) -> Vec<v1::TaskSpec> {
    ids.map(|id| v1::TaskSpec { task_id: id.to_string(), ..Default::default() }).collect()
}

/// A submit in three requests, the last of which says how many tasks there were.
fn submit(end: Option<u64>) -> Vec<v1::SubmitRequest> {
    vec![
        v1::SubmitRequest { job: Some(spec()), tasks: tasks(1..=2), ..Default::default() },
        v1::SubmitRequest { tasks: tasks(3..=5), ..Default::default() },
        v1::SubmitRequest { end_of_tasks: end, ..Default::default() },
    ]
}

#[tokio::test]
async fn a_submit_in_pieces_is_recorded_whole_or_not_at_all() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut jobs = JobsClient::new(rig.with_token(channel, &rig.admin));
    for (end, place) in [(None, ""), (Some(4), "end_of_tasks"), (Some(6), "end_of_tasks")] {
        let refused = error(jobs.submit(stream::iter(submit(end))).await);
        assert_eq!((refused.code, refused.place.as_str()), (Code::InvalidInput, place), "{refused}");
    }
    let mut twice = submit(Some(5));
    twice[1].tasks = tasks(2..=4);
    assert_eq!(error(jobs.submit(stream::iter(twice)).await).code, Code::JobDuplicateTask);
    let mut second = submit(Some(5));
    second[1].job = Some(spec());
    assert_eq!(error(jobs.submit(stream::iter(second)).await).place, "job");
    let mut bad = submit(Some(5));
    bad[1].tasks[2].task_id = "a b".into();
    assert_eq!(error(jobs.submit(stream::iter(bad)).await).place, "tasks[4].id");
    let none = jobs.list(v1::ListJobsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(none.jobs, [], "something of a refused submit stayed");

    let answer = jobs.submit(stream::iter(submit(Some(5)))).await.expect("recorded").into_inner();
    let job = answer.job.expect("a job");
    assert_eq!((job.tasks.expect("counts").total, answer.existed), (5, false));
    let request = v1::ListTasksRequest {
        job_id: job.job_id.clone(),
        page: Some(v1::Page { page_size: 3, page_token: String::new() }),
        ..Default::default()
    };
    let page = jobs.list_tasks(request.clone()).await.expect("listed").into_inner();
    assert_eq!(page.tasks.iter().map(|t| t.task_id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    let page = Some(v1::Page { page_size: 3, page_token: page.next_page_token });
    let page = jobs.list_tasks(v1::ListTasksRequest { page, ..request }).await.expect("listed").into_inner();
    assert_eq!(page.tasks.len(), 2);
    let task = &page.tasks[0];
    assert_eq!(task.command, Some(codering_core::Command::Shell("pi 4".into()).into()));
    rig.stop().await;
}

#[tokio::test]
async fn a_watch_ends_with_the_final_state_and_results_follow() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut jobs = JobsClient::new(rig.with_token(channel, &rig.admin));
    let job =
        jobs.submit(stream::iter(submit(Some(5)))).await.expect("recorded").into_inner().job.expect("a job");
    let job_id = job.job_id.clone();
    let events = jobs.watch(v1::WatchJobRequest { job_id: job_id[..9].to_owned() }).await.expect("watched");
    jobs.cancel(v1::CancelJobRequest { job_id: job_id.clone() }).await.expect("cancelled");
    let events: Vec<_> = tokio::time::timeout(BOUND, events.into_inner().try_collect())
        .await
        .expect("it ends")
        .expect("whole");
    let last = events.last().and_then(|event: &v1::JobEvent| event.job.clone()).expect("a job");
    assert_eq!(last.state(), v1::JobState::Cancelled);
    let results = jobs.results(v1::ResultsRequest { job_id: job_id.clone(), ..Default::default() }).await;
    let results: Vec<_> = results.expect("begun").into_inner().try_collect().await.expect("whole");
    assert_eq!(results.iter().map(|r| r.task_id.as_str()).collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    let only = vec![v1::Outcome::Succeeded.into()];
    let none = jobs.results(v1::ResultsRequest { job_id: job_id.clone(), outcomes: only }).await;
    assert_eq!(none.expect("begun").into_inner().count().await, 0);
    assert_eq!(error(jobs.answer(v1::AnswerRequest { job_id }).await).code, Code::JobNoAnswer);
    rig.stop().await;
}

#[tokio::test]
async fn puts_are_confirmed_in_their_order_and_the_first_bad_one_ends_them() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut queues = QueuesClient::new(rig.with_token(channel, &rig.admin));
    queues.create(v1::CreateQueueRequest { name: "pi.mine".into() }).await.expect("created");
    let put = |n: u32| v1::PutRequest {
        queue: if n == 0 { "pi.mine".into() } else { String::new() },
        message: n.to_string(),
    };
    let answers = queues.put(stream::iter((0..1000).map(put))).await.expect("begun").into_inner();
    let indexes: Vec<_> = answers.map_ok(|a| a.index).try_collect().await.expect("all confirmed");
    assert_eq!(indexes, (0..1000).collect::<Vec<u64>>());
    let first =
        queues.get(v1::GetMessageRequest { queue: "pi.mine".into() }).await.expect("got").into_inner();
    assert_eq!(first.message.expect("one").message, "0");

    let bad = v1::PutRequest { message: "{".into(), ..Default::default() };
    let answers = queues.put(stream::iter([put(0), put(1), bad, put(3)])).await.expect("begun").into_inner();
    let answers: Vec<_> = answers.collect().await;
    let refused = error(answers.into_iter().last().expect("one"));
    assert_eq!((refused.code, refused.place.as_str()), (Code::InvalidJson, "messages[2]"));
    let unnamed = v1::PutRequest { message: "1".into(), ..Default::default() };
    let mut answers = queues.put(stream::iter([unnamed])).await.expect("begun").into_inner();
    assert_eq!(error(answers.message().await).place, "queue");
    rig.stop().await;
}

#[tokio::test]
async fn a_subscriber_gets_as_many_as_it_wants_and_no_more_are_taken() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut queues = QueuesClient::new(rig.with_token(channel, &rig.admin));
    let queue = queue_name("pi.mine");
    rig.broker.create_queue(&queue).await.expect("made");
    let subscribed = queues.subscribe(v1::SubscribeRequest { queue: "pi.mine".into(), count: 2 }).await;
    let messages = subscribed.expect("begun").into_inner();
    for n in 0..5 {
        rig.broker.put(&queue, n.to_string().into(), 0).await.expect("put");
    }
    let got = tokio::time::timeout(BOUND, messages.map_ok(|m| m.message).try_collect::<Vec<_>>());
    assert_eq!(got.await.expect("it ends").expect("whole"), ["0", "1"]);
    assert_eq!(rig.broker.purge(&queue).await.expect("purged"), 3);
    rig.stop().await;
}

#[tokio::test]
async fn nobody_reaches_a_method_without_what_its_row_asks_for() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let viewer = rig.token(Role::Viewer, &["pi"]).await;
    for (method, access) in METHODS {
        // The messages do not matter: nobody reads them before the caller is let in.
        let call = async |token: Option<&str>| {
            let path = format!("/{method}").parse().expect("a path");
            let codec =
                tonic_prost::ProstCodec::<v1::ListProjectsRequest, v1::ListProjectsResponse>::default();
            let mut request = tonic::Request::new(v1::ListProjectsRequest {});
            if let Some(token) = token {
                let value = format!("Bearer {token}").parse().expect("plain text");
                request.metadata_mut().insert("authorization", value);
            }
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.expect("connected");
            grpc.unary(request, path, codec).await.map(|_| ())
        };
        if *access == Access::Open {
            continue;
        }
        assert_eq!(error(call(None).await).code, Code::AuthMissing, "{method}");
        match access {
            Access::Everywhere(_) => {
                assert_eq!(error(call(Some(&viewer)).await).code, Code::AuthDenied, "{method}")
            }
            Access::Certificate => {
                assert_eq!(error(call(Some(&viewer)).await).code, Code::AuthMissing, "{method}")
            }
            _ => {}
        }
    }
    let mut jobs = JobsClient::new(channel.clone());
    assert_eq!(error(jobs.list(v1::ListJobsRequest::default()).await).code, Code::AuthMissing);
    let mut projects = ProjectsClient::new(rig.with_token(channel.clone(), &viewer));
    let refused = error(projects.delete(v1::DeleteProjectRequest { name: "pi".into(), force: true }).await);
    assert_eq!(refused.code, Code::AuthDenied);
    assert!(refused.hint.contains("--role admin --project pi"), "{refused}");
    let listed = projects.list(v1::ListProjectsRequest {}).await.expect("allowed").into_inner();
    assert_eq!(listed.projects.len(), 1);
    let mut tokens = TokensClient::new(rig.with_token(channel, &viewer));
    let me = tokens.who_am_i(v1::WhoAmIRequest {}).await.expect("allowed").into_inner();
    assert_eq!((me.role(), me.projects), (v1::Role::Viewer, vec!["pi".to_owned()]));
    rig.stop().await;
}

#[tokio::test]
async fn health_is_open_and_reflection_needs_a_token() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut health = HealthClient::new(channel.clone());
    let status = health.check(HealthCheckRequest::default()).await.expect("open").into_inner();
    assert_eq!(status.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    let ask = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        stream::iter([ServerReflectionRequest { host: String::new(), message_request }])
    };
    let refused = ServerReflectionClient::new(channel.clone()).server_reflection_info(ask()).await;
    assert_eq!(error(refused).code, Code::AuthMissing);
    let mut reflection = ServerReflectionClient::new(rig.with_token(channel, &rig.admin));
    let answers = reflection.server_reflection_info(ask()).await.expect("allowed").into_inner();
    let answers: Vec<_> = answers.try_collect().await.expect("answered");
    let Some(MessageResponse::ListServicesResponse(list)) = &answers[0].message_response else {
        panic!("no list: {answers:?}");
    };
    assert!(list.service.iter().any(|service| service.name == "codering.v1.Jobs"), "{list:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_message_over_its_bound_is_refused() {
    let rig = Rig::new().await;
    let channel = rig.channel(rig.serve().await, None);
    let mut tokens = TokensClient::new(rig.with_token(channel, &rig.admin));
    let request = v1::RevokeTokenRequest { token_id: "x".repeat(5 << 20) };
    let refused = tokens.revoke(request).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    until("the broker still answers", async || tokens.who_am_i(v1::WhoAmIRequest {}).await.ok()).await;
    rig.stop().await;
}
