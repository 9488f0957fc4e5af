//! gRPC to a fleet's brokerd, where the start of a coderingctl would blur what is measured.

use std::{fs, time::Instant};

use codering_proto::v1::{
    self, jobs_client::JobsClient, projects_client::ProjectsClient, queues_client::QueuesClient,
};
use codering_tests::Fleet;
use futures::{Stream, StreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// A connection, with the administrator's token on every call.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    bearer: Bearer,
}

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// How far a job was when that was heard.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub at: Instant,
    pub done: u64,
    pub over: bool,
}

/// A thread of its own answers brokerd's pings while nothing is asked.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread")
}

impl Client {
    pub async fn connect(fleet: &Fleet) -> Self {
        let ca = fs::read_to_string(fleet.broker_dir().join("ca/ca.pem")).expect("brokerd made it");
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        let endpoint = Endpoint::from_shared(format!("https://{}", fleet.grpc())).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("a certificate").tcp_nodelay(true);
        let channel = endpoint.connect().await.expect("brokerd answers");
        Self { channel, bearer: Bearer(format!("Bearer {}", fleet.token()).parse().expect("plain text")) }
    }

    fn jobs(&self) -> JobsClient<InterceptedService<Channel, impl Interceptor + Clone + use<>>> {
        JobsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Puts and takes messages.
    pub fn queues(&self) -> QueuesClient<InterceptedService<Channel, impl Interceptor + Clone + use<>>> {
        QueuesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Makes a project.
    pub async fn create_project(&self, name: &str) {
        let mut projects = ProjectsClient::with_interceptor(self.channel.clone(), self.bearer.clone());
        let request = v1::CreateProjectRequest { name: name.to_owned(), ..Default::default() };
        projects.create(request).await.expect("a new project");
    }

    /// Submits a small job of tasks that simulated workers run as `command` says.
    pub async fn submit(&self, project: &str, tasks: u64, command: &str) -> String {
        let command = v1::Command { kind: Some(v1::command::Kind::Shell(command.to_owned())) };
        let job = v1::JobSpec {
            project: project.to_owned(),
            name: "none".into(),
            git_url: "https://localhost/none.git".into(),
            command: Some(command),
            ..Default::default()
        };
        let task = |number: u64| v1::TaskSpec { task_id: number.to_string(), ..Default::default() };
        let request = v1::SubmitRequest {
            job: Some(job),
            tasks: (1..=tasks).map(task).collect(),
            end_of_tasks: Some(tasks),
            ..Default::default()
        };
        let answer = self.jobs().submit(stream::iter([request])).await.expect("the job is taken");
        answer.into_inner().job.expect("a job").job_id
    }

    /// How far a job is, at most ten times a second, until it is over.
    pub async fn watch(&self, job: &str) -> impl Stream<Item = Heard> + use<> {
        let request = v1::WatchJobRequest { job_id: job.to_owned() };
        let events = self.jobs().watch(request).await.expect("a job to watch").into_inner();
        events.map(|event| {
            let job = event.expect("the broker stays").job.expect("each event has it");
            let tasks = job.tasks.unwrap_or_default();
            let done = tasks.succeeded + tasks.failed + tasks.cancelled;
            Heard { at: Instant::now(), done, over: job.finished_at_ms > 0 || done == tasks.total }
        })
    }

    /// Waits for a job's end.
    pub async fn ended(&self, job: &str) {
        let mut events = std::pin::pin!(self.watch(job).await);
        while let Some(heard) = events.next().await {
            if heard.over {
                return;
            }
        }
        panic!("the watch of {job} ended before the job did");
    }

    /// All results of a job.
    pub async fn results(&self, job: &str) -> Vec<v1::TaskResult> {
        let request = v1::ResultsRequest { job_id: job.to_owned(), ..Default::default() };
        let results = self.jobs().results(request).await.expect("a job").into_inner();
        results.map(|result| result.expect("the broker stays")).collect().await
    }
}
