//! Against the RabbitMQ of this machine, in a virtual host of each test's own.

use std::{path::PathBuf, process::Command, time::Instant};

use bytes::Bytes;
use codering_kit::tls;
use futures::StreamExt;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::queue::conformance::{SMALL_BOUND, Subjects, suite};

const URL_VARIABLE: &str = "CODERING_TEST_RABBITMQ_URL";
const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672";
const HINT: &str = "these tests need a RabbitMQ on this machine and the right to run rabbitmqctl: \
    `sudo apt-get install rabbitmq-server && sudo systemctl start rabbitmq-server` (or `sudo rabbitmq-server \
    -detached`); CODERING_TEST_RABBITMQ_URL names it if it is not at amqp://guest:guest@127.0.0.1:5672";

fn control(arguments: &[&str]) -> String {
    let done = Command::new("rabbitmqctl").arg("-q").args(arguments).output();
    let done = done.unwrap_or_else(|error| panic!("rabbitmqctl: {error}; {HINT}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "rabbitmqctl {}: {error}; {HINT}", arguments.join(" "));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A virtual host that is deleted at the end.
struct Vhost {
    name: String,
    url: String,
}

impl Vhost {
    fn make(test: &str) -> Self {
        let name = format!("codering-test-{test}-{}", std::process::id());
        let server = std::env::var(URL_VARIABLE).unwrap_or_else(|_| DEFAULT_URL.to_owned());
        let uri: AMQPUri = server.parse().unwrap_or_else(|e| panic!("{URL_VARIABLE}: {e}"));
        let (scheme, rest) = server.split_once("://").expect("a parsed address has a scheme");
        let host = rest.split('/').next().expect("a first part");
        let url = format!("{scheme}://{host}/{name}");
        control(&["add_vhost", &name]);
        let vhost = Self { name, url };
        control(&["set_permissions", "-p", &vhost.name, &uri.authority.userinfo.username, ".*", ".*", ".*"]);
        vhost
    }

    fn policy(&self, name: &str, pattern: &str, definition: &str) {
        control(&["set_policy", "-p", &self.name, "--apply-to", "queues", name, pattern, definition]);
    }

    async fn open(&self) -> SharedQueues {
        let config = QueueConfig { url: Some(self.url.clone()), ..QueueConfig::default() };
        let queues = crate::queue::open(&config).await.expect("opens");
        assert_eq!(queues.connected(), Ok(()), "{HINT}");
        queues
    }

    fn close_connections(&self) {
        control(&["close_all_connections", "--vhost", &self.name, "test"]);
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // It may be gone with a test that failed half-way.
        let _ = Command::new("rabbitmqctl").args(["-q", "delete_vhost", &self.name]).output();
    }
}

fn name(text: &str) -> QueueName {
    QueueName::new(text).expect("a valid queue name")
}

async fn becomes(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rabbitmq_backend_conforms() {
    let vhost = Vhost::make("suite");
    vhost.policy(
        "small-done",
        "^small\\.done$",
        &format!(r#"{{"max-length":{SMALL_BOUND},"overflow":"drop-head"}}"#),
    );
    vhost.policy(
        "small",
        "^small\\.todo$",
        &format!(r#"{{"max-length":{SMALL_BOUND},"overflow":"reject-publish"}}"#),
    );
    let (queues, foreign) = (vhost.open().await, vhost.open().await);
    suite(Subjects { queues: queues.clone(), foreign: foreign.clone(), small: queues.clone() }).await;
    queues.close().await;
    foreign.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_mends_a_lost_connection_and_what_was_held_comes_again() {
    let vhost = Vhost::make("mends");
    let queues = vhost.open().await;
    let queue = name("p.todo");
    queues.create(&queue).await.expect("create");
    queues.put(&queue, Message::new("held")).await.expect("put");
    let held = queues.take(&queue, 1).await.expect("take").remove(0);

    let mut bell = queues.bell();
    vhost.close_connections();
    // The bell says that it is back.
    timeout(Duration::from_secs(30), bell.rung()).await.expect("mended within 30 s").expect("open");
    becomes("connected again", async || queues.connected().is_ok()).await;
    let stale = held.settle.ack().await.expect_err("its channel is gone");
    assert!(matches!(stale, QueueError::Unavailable(_)), "{stale:?}");

    queues.put(&queue, Message::new("after")).await.expect("put");
    let mut bodies = Vec::new();
    becomes("both are there", async || {
        for delivery in queues.take(&queue, 5).await.expect("take") {
            bodies.push((delivery.body.clone(), delivery.redelivered));
            delivery.settle.ack().await.expect("ack");
        }
        bodies.len() >= 2
    })
    .await;
    assert_eq!(bodies, [("held".into(), true), ("after".into(), false)]);
    queues.close().await;
    assert!(queues.connected().is_err());
}

#[tokio::test]
async fn brokerd_starts_while_rabbitmq_is_away_and_says_so() {
    // Nothing listens on port 9 of a test machine.
    let url = "amqp://someone:hunter2@127.0.0.1:9/".to_owned();
    let config = QueueConfig { url: Some(url), ..QueueConfig::default() };
    let queues = crate::queue::open(&config).await.expect("opens all the same");
    let why = queues.connected().expect_err("away");
    assert!(!why.contains("hunter2"), "{why}");
    for error in [
        queues.create(&name("p.todo")).await.expect_err("create"),
        queues.take(&name("p.todo"), 1).await.expect_err("take"),
        queues.put(&name("p.todo"), Message::new("x")).await.expect_err("put"),
    ] {
        assert!(matches!(error, QueueError::Unavailable(_)), "{error:?}");
    }
    queues.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_behind_its_back_is_noticed_by_put_and_take() {
    let vhost = Vhost::make("unroutable");
    let (queues, other) = (vhost.open().await, vhost.open().await);
    let (gone, there) = (name("p.gone"), name("p.there"));
    for queue in [&gone, &there] {
        queues.create(queue).await.expect("create");
        queues.put(queue, Message::new("x")).await.expect("put");
    }
    other.delete(&gone).await.expect("delete");
    // Among many others, each gets the answer that is its own.
    let puts = (0..200).map(|n| {
        let (queues, queue) = (queues.clone(), if n % 10 == 3 { &gone } else { &there });
        async move { (queue, queues.put(queue, Message::new(n.to_string())).await) }
    });
    for (queue, done) in futures::stream::iter(puts).buffer_unordered(100).collect::<Vec<_>>().await {
        match done {
            Ok(()) => assert_eq!(queue, &there),
            Err(QueueError::NotFound(missing)) => assert_eq!((&missing, queue), (&gone, &gone)),
            Err(error) => panic!("{queue}: {error}"),
        }
    }
    becomes("181 messages", async || queues.depth(&there).await.expect("depth").ready == 181).await;

    queues.create(&gone).await.expect("create");
    other.delete(&gone).await.expect("delete");
    let error = queues.take(&gone, 1).await.expect_err("gone");
    assert!(matches!(error, QueueError::NotFound(_)), "{error:?}");
    assert_eq!(queues.take(&there, 1).await.expect("take").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_amqp_clients_share_the_queues_by_their_codering_names() {
    let vhost = Vhost::make("plain");
    let client = Connection::connect(&vhost.url, ConnectionProperties::default()).await.expect(HINT);
    let channel = client.create_channel().await.expect("channel");
    // As pika would: a classic durable queue, and a message with no properties.
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("p.todo".into(), durable, FieldTable::default()).await.expect("declare");
    let body = br#"{"project_id":"p"}"#;
    let plain = BasicProperties::default();
    channel
        .basic_publish("".into(), "p.todo".into(), BasicPublishOptions::default(), body, plain)
        .await
        .expect("publish");

    let (queues, queue) = (vhost.open().await, name("p.todo"));
    assert!(!queues.create(&queue).await.expect("create"), "the client's own queue is used as it is");
    queues.listen_to(vec![queue.clone()]);
    let mut bell = queues.bell();
    timeout(Duration::from_secs(5), bell.rung()).await.expect("rings").expect("open");
    let mut taken = queues.take(&queue, 1).await.expect("take");
    assert_eq!(&taken[0].body[..], body);
    taken.remove(0).settle.reject("no task_id".to_owned()).await.expect("reject");

    let dead = queues.dead(&name("p.dead"), 9).await.expect("dead");
    assert_eq!((dead[0].reason.as_str(), &dead[0].queue), ("no task_id", &queue));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delivery_limit_of_the_shipped_policies_leaves_readable_dead_letters() {
    let vhost = Vhost::make("limit");
    let (queues, queue, dead) = (vhost.open().await, name("p.todo"), name("p.dead"));
    for queue in [&queue, &dead] {
        queues.create(queue).await.expect("create");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/rabbitmq/set-policies");
    let set = Command::new(script).arg(&vhost.name).output().expect("runs");
    assert!(set.status.success(), "{}; {HINT}", String::from_utf8_lossy(&set.stderr));
    queues.put(&queue, Message::new("poison")).await.expect("put");
    becomes("it is given up", async || {
        for delivery in queues.take(&queue, 1).await.expect("take") {
            delivery.settle.requeue().await.expect("requeue");
        }
        queues.depth(&dead).await.expect("depth").ready == 1
    })
    .await;
    let letter = queues.dead(&dead, 9).await.expect("dead").remove(0);
    assert_eq!((&letter.queue, &letter.body[..]), (&queue, &b"poison"[..]));
    assert_eq!(letter.reason, "taken and given back too often");
    assert!(letter.at > 1_700_000_000_000, "{}", letter.at);
    becomes("the look is over", async || queues.depth(&dead).await.expect("depth").ready == 1).await;
    assert_eq!(queues.requeue_dead(&dead, Some(vec![letter.id])).await.expect("requeue"), 1);
    becomes("it is back", async || queues.depth(&queue).await.expect("depth").ready == 1).await;
}

#[tokio::test]
async fn a_password_that_changed_in_its_file_is_used_by_the_next_connection() {
    let vhost = Vhost::make("password");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rabbitmq.url");
    let uri: AMQPUri = vhost.url.parse().expect("an address");
    let (user, password) = (uri.authority.userinfo.username, uri.authority.userinfo.password);
    let (right, other) = (format!("//{user}:{password}@"), format!("//{user}:changed@"));
    let wrong = vhost.url.replacen(&right, &other, 1);
    assert_ne!(wrong, vhost.url);
    std::fs::write(&file, wrong).expect("written");
    let config = QueueConfig { url_file: Some(file.clone()), ..QueueConfig::default() };
    let queues = crate::queue::open(&config).await.expect("opened");
    assert!(queues.connected().is_err(), "a wrong password was accepted");
    std::fs::write(&file, &vhost.url).expect("written");
    let began = std::time::Instant::now();
    while queues.connected().is_err() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", queues.connected());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    queues.close().await;
}

/// A TLS end before this machine's RabbitMQ, of a CA of its own; its port, and the CA's file.
async fn encrypted(directory: &Path) -> (u16, PathBuf) {
    let ca = tls::Ca::at(directory).expect("a CA");
    let shown = ca.issue_server(&["localhost".to_owned()]).expect("a certificate");
    let mut config =
        tls::server_config(shown.chain_pem.as_bytes(), shown.key_pem.as_bytes(), None).expect("a pair");
    config.alpn_protocols.clear();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = std::env::var(URL_VARIABLE).unwrap_or_else(|_| DEFAULT_URL.to_owned());
    let behind = server.parse::<AMQPUri>().expect("an address").authority;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), (behind.host.clone(), behind.port));
            tokio::spawn(async move {
                let mut from = acceptor.accept(stream).await?;
                let mut to = TcpStream::connect(behind).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    (port, directory.join("ca.pem"))
}

#[tokio::test]
async fn amqps_is_spoken_to_a_host_that_its_certificate_names_and_the_authority_signed_and_to_no_other() {
    let vhost = Vhost::make("tls");
    let (directory, another) = (tempfile::tempdir().expect("a place"), tempfile::tempdir().expect("a place"));
    let (port, ca_file) = encrypted(directory.path()).await;
    let (_, strange) = encrypted(another.path()).await;
    let config = |host: &str, ca_file: &Path| {
        let url = vhost.url.replacen("amqp://", "amqps://", 1);
        let (user, rest) = url.split_once('@').expect("a user");
        let (_, path) = rest.split_once('/').expect("a virtual host");
        QueueConfig {
            url: Some(format!("{user}@{host}:{port}/{path}")),
            ca_file: Some(ca_file.to_owned()),
            ..QueueConfig::default()
        }
    };
    let queues = crate::queue::open(&config("localhost", &ca_file)).await.expect("opens");
    assert_eq!(queues.connected(), Ok(()));
    let queue = name("ciphered.todo");
    queues.create(&queue).await.expect("made");
    // More than a TLS record and an AMQP frame hold.
    let body = Bytes::from(vec![7; 1 << 20]);
    queues.put(&queue, Message { body: body.clone(), priority: 0 }).await.expect("put");
    let mut taken = queues.take(&queue, 1).await.expect("taken");
    let delivery = taken.pop().expect("it is there");
    assert!(delivery.body == body, "{} bytes came", delivery.body.len());
    delivery.settle.ack().await.expect("acked");
    queues.close().await;

    for (host, ca_file, why) in
        [("localhost", &strange, "UnknownIssuer"), ("127.0.0.1", &ca_file, "not valid for name")]
    {
        let refused = crate::queue::open(&config(host, ca_file)).await.expect("opens");
        let told = refused.connected().expect_err("it has no right to be believed");
        assert!(told.contains(why), "{told}");
        refused.close().await;
    }
    let refused =
        crate::queue::open(&config("localhost", Path::new("/dev/null"))).await.err().expect("no CA");
    assert!(refused.to_string().contains("queue.ca_file /dev/null"), "{refused}");
}
