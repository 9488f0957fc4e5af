//! A broker in a directory of its own, and callers of each kind.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
};
use codering_core::{ProjectName, QueueName, quota::Quota};
use codering_kit::{
    connect, health,
    listen::{self, Bounds, Peer},
    live::Live,
    shutdown::Shutdown,
    tls::{self, Ca},
};
use http_body_util::BodyExt;
use serde_json::Value;
use tonic::{
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tower::ServiceExt;

use crate::{
    api::{self, Api},
    auth::{Auth, NewToken},
    broker::{Broker, Settings},
    ledger::{self, Role},
    metrics::Metrics,
    queue,
};

pub const BOUND: Duration = Duration::from_secs(20);

pub struct Rig {
    pub broker: Broker,
    pub auth: Auth,
    pub api: Api,
    pub admin: String,
    rest: Router,
    ca: Arc<Ca>,
    shutdown: Shutdown,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON: {e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The problem's code, having looked at the rest of it.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let document = self.json();
        assert_eq!(document["status"], self.status.as_u16());
        let code = document["code"].as_str().expect("a code").to_owned();
        assert_eq!(document["type"], format!("urn:codering:error:{code}"));
        assert!(!document["title"].as_str().expect("a title").is_empty());
        assert!(!document["detail"].as_str().expect("a detail").is_empty());
        code
    }
}

pub fn pi() -> ProjectName {
    ProjectName::new("pi").expect("valid")
}

pub fn queue_name(text: &str) -> QueueName {
    QueueName::new(text).expect("valid")
}

impl Rig {
    pub async fn new() -> Self {
        tls::install_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let mut settings = Settings::new(dir.path().join("live"));
        settings.reconcile_every = Duration::from_millis(200);
        let ledger = ledger::open(&dir.path().join("ledger.db")).await.expect("opens");
        let config = queue::QueueConfig { data_dir: Some(dir.path().to_owned()), ..Default::default() };
        let queues = queue::open(&config).await.expect("opens");
        let metrics = Arc::new(Metrics::new(&mut Default::default()));
        let ca = Arc::new(Ca::at(&dir.path().join("ca")).expect("made"));
        let auth = Auth::new(ledger.clone(), ca.clone(), metrics.clone());
        auth.ensure_admin(&dir.path().join("admin.token")).await.expect("made");
        let admin =
            std::fs::read_to_string(dir.path().join("admin.token")).expect("written").trim().to_owned();
        let broker = Broker::start(settings, ledger, queues, metrics).await.expect("starts");
        broker.create_project(pi(), Quota::default()).await.expect("made");
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let api = Api::new(broker.clone(), auth.clone(), shutdown.clone());
        let probes = health::router(health::Readiness::new(), Arc::default());
        let rest = api::rest::router(&api, probes);
        Self { broker, auth, api, admin, rest, ca, shutdown, _dir: dir }
    }

    /// A token of this role, limited to these projects.
    pub async fn token(&self, role: Role, projects: &[&str]) -> String {
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let admin =
            self.auth.authenticate(Some(&format!("Bearer {}", self.admin)), from).await.expect("known");
        let projects = projects.iter().map(|p| ProjectName::new(p).expect("valid")).collect();
        let wanted = NewToken { name: "test".into(), role, projects, ttl_seconds: 0 };
        self.auth.create_token(&admin, wanted).await.expect("created").1
    }

    pub fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        let request = Request::builder().method(method).uri(path);
        Ask { rig: self, request, token: self.admin.clone(), from: [127, 0, 0, 1], body: Body::empty() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path).send().await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path).json(body).send().await
    }

    /// A listener with TLS, as in the real process.
    pub async fn serve(&self) -> SocketAddr {
        let own = self.ca.issue_server(&["localhost".into(), "127.0.0.1".into()]).expect("issued");
        let ca = self.ca.pem().as_bytes();
        let config = tls::server_config(own.chain_pem.as_bytes(), own.key_pem.as_bytes(), Some(ca));
        let listener = listen::bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (router, shutdown) = (api::grpc::router(&self.api), self.shutdown.clone());
        let tls = Some(Live::new(config.expect("valid")));
        tokio::spawn(listen::serve(listener, tls, router, Bounds::default(), shutdown));
        address
    }

    /// REST's listener, without TLS as on loopback.
    pub async fn serve_rest(&self) -> SocketAddr {
        let listener = listen::bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(listen::serve(
            listener,
            None,
            self.rest.clone(),
            Bounds::default(),
            self.shutdown.clone(),
        ));
        address
    }

    /// A channel without a certificate, or with that of a worker: chain and key.
    pub fn channel(&self, address: SocketAddr, identity: Option<(&str, &str)>) -> Channel {
        let identity = identity.map(|(chain, key)| (chain.as_bytes(), key.as_bytes()));
        let config = tls::client_config(self.ca.pem().as_bytes(), identity).expect("valid");
        connect::channel(&format!("https://{address}"), Arc::new(config)).expect("an address")
    }

    pub fn with_token(&self, channel: Channel, token: &str) -> InterceptedService<Channel, Bearer> {
        InterceptedService::new(channel, Bearer(format!("Bearer {token}")))
    }

    pub async fn stop(self) {
        self.shutdown.force();
        self.broker.stop().await;
    }
}

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let value = MetadataValue::try_from(&self.0).expect("plain text");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A REST call.
pub struct Ask<'a> {
    rig: &'a Rig,
    request: axum::http::request::Builder,
    token: String,
    from: [u8; 4],
    body: Body,
}

impl Ask<'_> {
    pub fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub fn from(mut self, address: [u8; 4]) -> Self {
        self.from = address;
        self
    }

    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub async fn open(self) -> Response<Body> {
        let mut request = self.request;
        if !self.token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        }
        let mut request = request.body(self.body).expect("a request");
        let peer = Peer { address: SocketAddr::from((self.from, 4711)), certificate: None };
        request.extensions_mut().insert(peer);
        self.rig.rest.clone().oneshot(request).await.expect("infallible")
    }

    pub async fn send(self) -> Answer {
        let answer = self.open().await;
        let (parts, body) = answer.into_parts();
        let read = tokio::time::timeout(BOUND, body.collect()).await.expect("the body ends");
        let text = String::from_utf8(read.expect("whole").to_bytes().to_vec()).expect("text");
        Answer { status: parts.status, headers: parts.headers, text }
    }
}

/// Waits for a condition, with a bound.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(BOUND, search).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A job file of so many tasks.
pub fn job(tasks: u32) -> Value {
    serde_json::json!({
        "project": "pi", "name": "pi", "git": "https://me:secret@host/pi.git", "command": "pi {}",
        "array": format!("1-{tasks}"), "limits": { "memory": "64M", "timeout": "2m" },
        "reduce": { "command": "sum", "output": "sum.json" },
    })
}
