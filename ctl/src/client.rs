//! The way to the broker: an endpoints file or a named context, then gRPC over TLS with the token.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::{Code, Error};
use codering_proto::{
    status::from_status,
    v1::{
        jobs_client::JobsClient, ledger_client::LedgerClient, projects_client::ProjectsClient,
        queues_client::QueuesClient, tokens_client::TokensClient, workers_client::WorkersClient,
    },
};
use serde::{Deserialize, Serialize};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::contexts::{self, Contexts, Saved};

/// What `coderingctl dev` writes; its first keys are an outside interface.
#[derive(Clone, Serialize, Deserialize)]
pub struct Endpoints {
    /// Base address of the REST interface.
    pub rest: String,
    /// Address of the gRPC interface.
    pub grpc: String,
    /// An administrator's.
    pub token: String,
    /// Path of the CA's certificate.
    pub ca: PathBuf,
    /// Address of the broker's metrics.
    pub metrics: String,
    /// A directory, as a `file://` address, where a push may make bare repositories by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_root: Option<String>,
    /// The project of a job that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// Where a broker is and how to speak to it. It has no `Debug`, so that no token is logged by accident.
#[derive(Clone)]
pub struct Target {
    /// Names it in messages: a context, or a file.
    pub label: String,
    /// `HOST:PORT`.
    pub address: String,
    /// The certificate of the CA that signed the broker's.
    pub ca_pem: String,
    /// The secret.
    pub token: String,
    /// See [`Endpoints::git_root`].
    pub git_root: Option<PathBuf>,
    /// See [`Endpoints::project`].
    pub project: Option<String>,
    /// See [`Endpoints::rest`]; only where an endpoints file named the broker.
    pub rest: Option<String>,
    /// The context that named the broker.
    pub context: Option<String>,
}

/// What [`Target::find`] says where neither the command line, a context nor this machine names a broker.
pub const NONE_NAMED: &str = "no broker is named";

/// Where a broker keeps its data that was installed from its package.
const INSTALLED: &str = "/var/lib/codering/brokerd";

impl Target {
    /// An endpoints file before a context, a named context before the current one, and where there is none, the broker that
    /// was installed on this machine, for those who may read its administrator's token.
    pub fn find(endpoints: Option<&Path>, context: Option<&str>) -> Result<Self, Error> {
        match endpoints.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => Self::from_endpoints(path),
            None => Self::from_contexts(context.filter(|name| !name.is_empty())),
        }
    }

    fn from_endpoints(path: &Path) -> Result<Self, Error> {
        let place = path.display().to_string();
        let wrong = |what: String| Error::new(Code::ConfigInvalid, what).at(&place);
        let text = fs::read_to_string(path).map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            wrong(why).hint("`coderingctl dev` writes it, in its --data-dir")
        })?;
        let found: Endpoints = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("not an endpoints file: line {}", error.line())))?;
        // A relative path means beside the file, so that the directory may move.
        let ca = path.parent().unwrap_or(Path::new(".")).join(&found.ca);
        Self::of(&Endpoints { ca, ..found }, &place)
    }

    /// As endpoints say; `label` names them in messages.
    pub fn of(found: &Endpoints, label: &str) -> Result<Self, Error> {
        let ca_pem = fs::read_to_string(&found.ca).map_err(|error| {
            Error::new(Code::ConfigInvalid, format!("its ca {} cannot be read: {error}", found.ca.display()))
                .at(label)
        })?;
        let address = found.grpc.strip_prefix("https://").unwrap_or(&found.grpc);
        let git_root = found.git_root.as_deref().and_then(|url| url.strip_prefix("file://"));
        Ok(Self {
            label: label.to_owned(),
            address: address.trim_end_matches('/').to_owned(),
            ca_pem,
            token: found.token.clone(),
            git_root: git_root.map(PathBuf::from),
            project: found.project.clone(),
            rest: Some(found.rest.clone()),
            context: None,
        })
    }

    fn from_contexts(name: Option<&str>) -> Result<Self, Error> {
        let contexts = Contexts::load(&contexts::default_path()?)?;
        match contexts.find(name)? {
            Some((name, saved)) => Ok(Self::of_context(name, saved)),
            None => Self::installed(Path::new(INSTALLED)),
        }
    }

    /// The broker that keeps its data in `dir` and listens on the port that it has by default.
    fn installed(dir: &Path) -> Result<Self, Error> {
        let read = |name: &str| fs::read_to_string(dir.join(name));
        let (ca_pem, token) = match (read("ca/ca.pem"), read("admin.token")) {
            (Ok(ca_pem), Ok(token)) => (ca_pem, token.trim_end().to_owned()),
            (ca_pem, token) => {
                let error = Error::new(Code::ConfigInvalid, NONE_NAMED);
                let denied = |read: std::io::Result<String>| {
                    read.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
                };
                return Err(error.hint(match denied(ca_pem) || denied(token) {
                    true => {
                        "one runs on this machine: use it as root, or with a token of your own:\n\
                         coderingctl login NAME --broker localhost:7443 --ca ca.pem --token-file FILE"
                    }
                    false => {
                        "name one: coderingctl login NAME --broker HOST:7443 …\n\
                         or start one here: coderingctl dev --data-dir ./dev, then --endpoints ./dev/endpoints.json"
                    }
                }));
            }
        };
        Ok(Self {
            label: "this machine's broker".to_owned(),
            address: "localhost:7443".to_owned(),
            ca_pem,
            token,
            git_root: None,
            project: None,
            rest: None,
            context: None,
        })
    }

    /// The broker of a context.
    pub fn of_context(name: &str, saved: &Saved) -> Self {
        Self {
            label: format!("context `{name}`"),
            address: saved.broker.clone(),
            ca_pem: saved.ca_pem.clone(),
            token: saved.token.clone(),
            git_root: None,
            project: None,
            rest: None,
            context: Some(name.to_owned()),
        }
    }

    /// The host of its address; of an IPv6 address, without its brackets.
    pub fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port of its address.
    pub fn port(&self) -> &str {
        self.address.rsplit_once(':').map_or("", |(_, port)| port)
    }

    /// Whether an endpoints file named it, as `coderingctl dev` writes one.
    pub fn is_dev(&self) -> bool {
        self.rest.is_some()
    }
}

/// A connected broker.
#[derive(Clone)]
pub struct Broker {
    channel: Channel,
    bearer: Bearer,
}

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authenticated = InterceptedService<Channel, Bearer>;
/// Calls on jobs.
pub type Jobs = JobsClient<Authenticated>;
/// Calls on queues.
pub type Queues = QueuesClient<Authenticated>;

/// The largest answer: a result with both streams at their bound.
const MAX_ANSWER_BYTES: usize = 80 << 20;

impl Broker {
    /// Connects, at most five seconds long.
    pub async fn connect(target: Target) -> Result<Self, Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&target.ca_pem));
        let endpoint = Endpoint::from_shared(format!("https://{}", target.address))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| {
                Error::new(Code::ConfigInvalid, format!("cannot be used as a broker: {}", innermost(&error)))
                    .at(&target.address)
            })?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true);
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", target.token)
            .parse()
            .map_err(|_| Error::new(Code::AuthInvalid, "the token has characters that no token has"))?;
        bearer.set_sensitive(true);
        let channel = endpoint.connect().await.map_err(|error| unreachable(&target, &error))?;
        Ok(Self { channel, bearer: Bearer(bearer) })
    }

    /// For what is asked without a token.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Projects.
    pub fn projects(&self) -> ProjectsClient<Authenticated> {
        ProjectsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Queues.
    pub fn queues(&self) -> Queues {
        QueuesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Jobs and their tasks.
    pub fn jobs(&self) -> Jobs {
        JobsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Workers.
    pub fn workers(&self) -> WorkersClient<Authenticated> {
        WorkersClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The ledger itself.
    pub fn ledger(&self) -> LedgerClient<Authenticated> {
        LedgerClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Tokens.
    pub fn tokens(&self) -> TokensClient<Authenticated> {
        TokensClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// The answer of a call, or codering's own error.
pub fn said<T>(answer: Result<Response<T>, Status>) -> Result<T, Error> {
    match answer {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(from_status(&status)),
    }
}

fn unreachable(target: &Target, error: &tonic::transport::Error) -> Error {
    let why = innermost(error);
    let error = Error::new(Code::BrokerUnreachable, format!("{why} ({})", target.label)).at(&target.address);
    if why.contains("corrupt message") {
        let error = Error::new(Code::BrokerUnreachable, format!("it does not speak TLS ({})", target.label));
        return error
            .at(&target.address)
            .hint("is it the gRPC port (7443 by default), and not that of REST?");
    }
    if why.contains("certificate") {
        return error.hint("the CA's certificate is not that of this broker: coderingctl doctor");
    }
    error.hint("your history is here all the same: coderingctl history")
}

/// What the layers of libraries were about in the end.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    // "Connection refused (os error 111)"
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "no connection".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_of_this_machine_is_used_by_those_who_may_read_its_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let nobody = Target::installed(dir.path()).map(|target| target.label).expect_err("none is there");
        assert!(nobody.hint.contains("coderingctl dev"), "{nobody}");
        fs::create_dir(dir.path().join("ca")).expect("made");
        fs::write(dir.path().join("ca/ca.pem"), "-----BEGIN").expect("written");
        fs::write(dir.path().join("admin.token"), "cdr_x_y\n").expect("written");
        let found =
            Target::installed(dir.path()).map(|target| (target.address, target.token)).expect("found");
        assert_eq!(found, ("localhost:7443".to_owned(), "cdr_x_y".to_owned()));
    }
}
