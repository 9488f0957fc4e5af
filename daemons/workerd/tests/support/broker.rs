//! A broker of the tests' own: it speaks the real protocol over real TLS, and does what the test says.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use codering_core::{JobId, LeaseToken, Outcome, TaskResult, WorkerName};
use codering_kit::{listen, live::Live, shutdown::Shutdown, tls};
use codering_proto::v1::{
    self, FromWorker, ToWorker,
    from_worker::Message as From,
    to_worker::Message as To,
    workers_server::{Workers, WorkersServer},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// What a worker said, and what it will be told.
#[derive(Default)]
pub struct Said {
    pub hellos: Vec<v1::Hello>,
    pub beats: Vec<v1::Heartbeat>,
    pub progress: Vec<v1::Progress>,
    pub builds: Vec<v1::BuildDone>,
    pub logs: HashMap<(String, i32), Vec<u8>>,
    pub results: Vec<(String, TaskResult)>,
    pub pinned: Vec<String>,
    /// Tokens that are answered as fenced.
    pub fenced: Vec<String>,
    /// Tokens that are answered as cancelled.
    pub cancelled: Vec<String>,
    /// Heartbeats and reports are not answered.
    pub mute: bool,
    /// Each result on the stream is looked at for so long before anything behind it is read.
    pub slow: Duration,
    /// Results that came by a call of their own, and whether such calls wait for their answers.
    pub calls: usize,
    pub hold_calls: bool,
    /// What a pin is answered with, instead of what was proposed.
    pub pin_to: Option<String>,
    /// The pieces of the standard input of a reduce step; an error after them.
    pub input: (Vec<Vec<u8>>, bool),
    to: Option<mpsc::Sender<Result<ToWorker, Status>>>,
}

#[derive(Clone)]
pub struct Broker {
    pub said: Arc<Mutex<Said>>,
    pub address: std::net::SocketAddr,
    pub lease_ms: u64,
    dir: PathBuf,
    ca: Arc<tls::Ca>,
    shutdown: Shutdown,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Said>>, Arc<tls::Ca>, u64);

impl Broker {
    /// Serves on a port of its own.
    pub async fn start(dir: &Path, lease_ms: u64) -> Self {
        tls::install_provider();
        let ca = Arc::new(tls::Ca::at(&dir.join("ca")).unwrap());
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let broker = Self {
            said: Arc::default(),
            address,
            lease_ms,
            dir: dir.to_owned(),
            ca,
            shutdown: Shutdown::new(Duration::ZERO),
        };
        broker.serve().await
    }

    async fn serve(mut self) -> Self {
        self.shutdown = Shutdown::new(Duration::ZERO);
        // The former one lets go of the port a moment after it was told to.
        let listener = super::until("the port", async || listen::bind(self.address).await.ok()).await;
        let issued = self.ca.issue_server(&["localhost".to_owned(), "broker.test".to_owned()]).unwrap();
        let config = tls::server_config(
            issued.chain_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            Some(self.ca.pem().as_bytes()),
        );
        let service = Service(self.said.clone(), self.ca.clone(), self.lease_ms);
        let service = WorkersServer::new(service).max_decoding_message_size(100 << 20);
        let router = tonic::service::Routes::new(service).into_axum_router();
        tokio::spawn(listen::serve(
            listener,
            Some(Live::new(config.unwrap())),
            router,
            listen::Bounds::default(),
            self.shutdown.clone(),
        ));
        self
    }

    /// Goes away: all connections break.
    pub fn die(&self) {
        self.said.lock().unwrap().to = None;
        self.shutdown.force();
    }

    /// Comes back at the same address.
    pub async fn back(self) -> Self {
        self.serve().await
    }

    /// Tells the worker something.
    pub async fn tell(&self, message: To) {
        let to = super::until("a stream", async || self.said.lock().unwrap().to.clone()).await;
        to.send(Ok(ToWorker { message: Some(message) })).await.unwrap();
    }

    pub async fn assign(&self, assignment: v1::Assignment) -> String {
        let token = assignment.token.clone();
        self.tell(To::Assignment(assignment)).await;
        token
    }

    /// The result of a token, once it is reported.
    pub async fn result(&self, token: &str) -> TaskResult {
        super::until(&format!("the result of {token}"), async || {
            self.said.lock().unwrap().results.iter().find(|(t, _)| t == token).map(|(_, r)| r.clone())
        })
        .await
    }

    /// Waits for something to be true of what was said.
    pub async fn until<T>(&self, what: &str, found: impl Fn(&Said) -> Option<T>) -> T {
        super::until(what, async || found(&self.said.lock().unwrap())).await
    }

    /// Waits until the attempt runs in a container; answers with its id.
    pub async fn running(&self, token: &str) -> String {
        self.until("a running container", |said| {
            let found = said.progress.iter().rev().find(|p| p.token == token && p.phase == "run")?;
            Some(found.container_id.clone())
        })
        .await
    }

    pub fn log(&self, token: &str, stream: v1::LogStream) -> String {
        let said = self.said.lock().unwrap();
        let log = said.logs.get(&(token.to_owned(), stream as i32));
        log.map(|log| String::from_utf8_lossy(log).into_owned()).unwrap_or_default()
    }

    /// Starts a worker of this broker, its data in `name` below the test's directory; `more` goes into its configuration.
    pub fn worker(&self, name: &str, more: &str) -> Worker {
        // Containers are found by it, and others may run the same test on this machine.
        let unique = format!("{name}-{:08x}", rand::random::<u32>());
        let data = self.dir.join(name);
        let token = self.dir.join("join");
        std::fs::write(&token, "cdr_test_test\n").unwrap();
        run(Command::new("chmod").arg("600").arg(&token));
        let config = self.dir.join(format!("{name}.toml"));
        let text = format!(
            "name = \"{unique}\"\nbroker = \"https://localhost:{}\"\ndata_dir = \"{}\"\nslots = 4\n{more}\n\
             [enroll]\ntoken_file = \"{}\"\nca_file = \"{}\"\n[git]\nschemes = [\"file\"]\n[listen]\nmetrics = \"127.0.0.1:0\"\n",
            self.address.port(),
            data.display(),
            token.display(),
            self.dir.join("ca/ca.pem").display(),
        );
        std::fs::write(&config, text).unwrap();
        let log = self.dir.join(format!("{name}.log"));
        let mut worker = Worker { name: unique, config, log, child: None };
        worker.start();
        worker
    }
}

use super::run;

/// A worker's process.
pub struct Worker {
    pub name: String,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Worker {
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(super::WORKERD)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub fn crash(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub async fn stop(&mut self) {
        run(Command::new("kill").arg(self.pid().to_string()));
        let mut child = self.child.take().unwrap();
        let status = super::until("the worker's end", async || child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What a failed test left; nothing otherwise.
        let mine =
            format!("docker ps -aq --filter label=codering.worker={} | xargs -r docker rm -f", self.name);
        let _ = Command::new("sh").args(["-c", &mine]).output();
        if std::thread::panicking() {
            eprintln!("---- the worker's log ----\n{}", self.log());
        }
    }
}

/// A task that runs `script` at HEAD of `url`.
pub fn assignment(url: &str, script: &str) -> v1::Assignment {
    let limits = codering_core::Limits { memory_bytes: 64 << 20, ..Default::default() };
    v1::Assignment {
        token: LeaseToken::from_bytes(rand::random()).to_string(),
        project: "p".into(),
        job_id: JobId::at(1_763_722_560_000, 1).to_string(),
        task_id: "t".into(),
        attempt: 1,
        lease_ms: 30_000,
        git_url: url.into(),
        git_ref: "HEAD".into(),
        dockerfile: "Dockerfile".into(),
        command: Some(codering_core::Command::Shell(script.into()).into()),
        limits: Some((&limits).into()),
        queued_ms: 5,
        ..Default::default()
    }
}

impl Service {
    fn take(&self, message: From) -> Vec<To> {
        let mut said = self.0.lock().unwrap();
        match message {
            From::Hello(_) => vec![],
            From::Heartbeat(beat) => {
                let among =
                    |tokens: &[String]| tokens.iter().filter(|t| beat.tokens.contains(t)).cloned().collect();
                let reply = v1::HeartbeatReply {
                    seq: beat.seq,
                    fenced_tokens: among(&said.fenced),
                    cancelled_tokens: among(&said.cancelled),
                };
                said.beats.push(beat);
                if said.mute { vec![] } else { vec![To::Heartbeat(reply)] }
            }
            From::Progress(progress) => {
                said.progress.push(progress);
                vec![]
            }
            From::Log(log) => {
                let kept = said.logs.entry((log.token, log.stream)).or_default();
                // As the real one: what it has is not taken twice, a gap not at all.
                let offset = log.offset as usize;
                if offset <= kept.len() {
                    let from = kept.len() - offset;
                    kept.extend(log.data.get(from..).unwrap_or_default());
                }
                vec![]
            }
            From::Build(done) => {
                said.builds.push(done);
                vec![]
            }
            From::Report(report) => {
                if said.mute {
                    return vec![];
                }
                vec![To::Received(record(&mut said, report))]
            }
        }
    }
}

fn record(said: &mut Said, report: v1::AttemptReport) -> v1::ReportReceived {
    let recorded =
        !said.fenced.contains(&report.token) && !said.results.iter().any(|(t, _)| *t == report.token);
    if recorded {
        let result = TaskResult::try_from(report.result.unwrap()).unwrap();
        said.results.push((report.token.clone(), result));
    }
    v1::ReportReceived { token: report.token, recorded }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Workers for Service {
    type AttachStream = ReceiverStream<Result<ToWorker, Status>>;
    type InputStream = ReceiverStream<Result<v1::InputChunk, Status>>;

    async fn attach(&self, request: Request<Streaming<FromWorker>>) -> Answer<Self::AttachStream> {
        let certificate =
            request.extensions().get::<listen::Peer>().and_then(|peer| peer.certificate.clone());
        let name =
            certificate.and_then(|c| c.worker()).ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let mut from = request.into_inner();
        let Some(Ok(FromWorker { message: Some(From::Hello(hello)) })) = from.next().await else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (to, answers) = mpsc::channel(64);
        let fenced = {
            let mut said = self.0.lock().unwrap();
            let fenced = hello.held_tokens.iter().filter(|t| said.fenced.contains(t)).cloned().collect();
            said.hellos.push(hello);
            said.to = Some(to.clone());
            fenced
        };
        let (lease_ms, heartbeat_ms) = (self.2, self.2 / 3);
        let welcome = v1::Welcome { worker: name.to_string(), lease_ms, heartbeat_ms, fenced_tokens: fenced };
        to.send(Ok(ToWorker { message: Some(To::Welcome(welcome)) })).await.unwrap();
        let service = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(FromWorker { message: Some(message) })) = from.next().await {
                let slow = service.0.lock().unwrap().slow;
                if matches!(message, From::Report(_)) {
                    tokio::time::sleep(slow).await;
                }
                for answer in service.take(message) {
                    if to.send(Ok(ToWorker { message: Some(answer) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Answer<v1::EnrollResponse> {
        let request = request.into_inner();
        let worker: WorkerName = request.worker.parse().unwrap();
        let signed = self.1.issue_worker(&request.csr_pem, &worker).unwrap();
        Ok(Response::new(v1::EnrollResponse {
            certificate_pem: signed.certificate_pem,
            ca_pem: self.1.pem().to_owned(),
            expires_at_ms: signed.identity.not_after_ms,
        }))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Answer<v1::EnrollResponse> {
        Err(Status::unimplemented("the tests' broker renews nothing"))
    }

    async fn report(&self, request: Request<v1::AttemptReport>) -> Answer<v1::ReportReceived> {
        self.0.lock().unwrap().calls += 1;
        while self.0.lock().unwrap().hold_calls {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Response::new(record(&mut self.0.lock().unwrap(), request.into_inner())))
    }

    async fn pin_commit(&self, request: Request<v1::PinCommitRequest>) -> Answer<v1::PinCommitResponse> {
        let mut said = self.0.lock().unwrap();
        let commit = said.pin_to.clone().unwrap_or(request.into_inner().commit);
        said.pinned.push(commit.clone());
        Ok(Response::new(v1::PinCommitResponse { commit }))
    }

    async fn input(&self, _: Request<v1::InputRequest>) -> Answer<Self::InputStream> {
        let (pieces, broken) = self.0.lock().unwrap().input.clone();
        let (to, answers) = mpsc::channel(1);
        tokio::spawn(async move {
            for data in pieces {
                if to.send(Ok(v1::InputChunk { data: data.into() })).await.is_err() {
                    return;
                }
            }
            if broken {
                let _ = to.send(Err(Status::unavailable("the broker stops"))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn list(&self, _: Request<v1::ListWorkersRequest>) -> Answer<v1::ListWorkersResponse> {
        Err(Status::unimplemented("not a worker's"))
    }
    async fn get(&self, _: Request<v1::GetWorkerRequest>) -> Answer<v1::Worker> {
        Err(Status::unimplemented("not a worker's"))
    }
    async fn pause(&self, _: Request<v1::PauseWorkerRequest>) -> Answer<v1::Worker> {
        Err(Status::unimplemented("not a worker's"))
    }
    async fn resume(&self, _: Request<v1::ResumeWorkerRequest>) -> Answer<v1::Worker> {
        Err(Status::unimplemented("not a worker's"))
    }
    async fn revoke(&self, _: Request<v1::RevokeWorkerRequest>) -> Answer<v1::Worker> {
        Err(Status::unimplemented("not a worker's"))
    }
}

/// Whether an outcome is the infrastructure's fault.
pub fn ours(result: &TaskResult) -> bool {
    result.outcome == Outcome::InfrastructureError
}
