//! Messages put by REST, beside RabbitMQ's own management API: the way without a client library on both sides.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use codering_tests::{Backend, Fleet, Node};
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpStream, runtime::Runtime};

use super::{
    Section,
    publish::{QUEUE, message, queues_only},
};
use crate::{
    Bench,
    measure::{grouped, median_of, p50_p99, time},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "rest", about: "messages put by REST, beside RabbitMQ's management API", run };

const CONNECTIONS: usize = 16;
const TIMES: f64 = 6.0;
/// guest:guest
const GUEST: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";

fn run(bench: &Bench) -> Vec<Row> {
    let (messages, rounds) = (bench.size(20_000, 6_000), bench.size(5, 3));
    // Its own API is slower: as many requests would take most of the time.
    let to_management = messages / 5;
    let node = Node::with_management();
    let rabbitmq = queues_only(Backend::RabbitMq, Some(node.url()));
    let embedded = queues_only(Backend::Embedded, None);
    let runtime = Runtime::new().expect("a runtime");
    let (mut ours, mut peers, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let part = if round == 0 { 10 } else { 1 };
        let through_rabbitmq = runtime.block_on(hammer(Target::codering(&rabbitmq), messages / part));
        let by_management = runtime.block_on(hammer(Target::management(&node), to_management / part));
        let through_embedded = runtime.block_on(hammer(Target::codering(&embedded), messages / part));
        let all = [(&rabbitmq, messages / part + to_management / part), (&embedded, messages / part)];
        for (fleet, put) in all {
            let purged = fleet.json(&["queue", "purge", QUEUE, "--yes"]);
            assert_eq!(purged["purged"], put, "{purged}");
        }
        // The first round is for what a first message meets, and none of the others does.
        if round > 0 {
            ours.push(through_rabbitmq);
            peers.push(by_management);
            own.push(through_embedded);
        }
    }
    rabbitmq.stop();
    embedded.stop();
    let (ours, peer, own) = (middle(&ours), middle(&peers), middle(&own));
    let what = format!("messages a second by `POST /rabbit/QUEUE/`, {CONNECTIONS} connections");
    let figures = |backend, round: &Round| {
        json!({ "backend": backend, "per_second": round.rate, "p50_s": round.p50, "p99_s": round.p99,
            "management": { "per_second": peer.rate, "p50_s": peer.p50, "p99_s": peer.p99 }, "rounds": rounds })
    };
    vec![
        Row::new(format!("{what}, RabbitMQ"), ours.shown())
            .beside(format!("{}, its management API", peer.shown()))
            .asked(format!("{TIMES} times it"), ours.rate >= TIMES * peer.rate)
            .from(figures("RabbitMQ", &ours)),
        Row::new(format!("{what}, embedded queue"), own.shown())
            .beside(format!("{} with RabbitMQ", grouped(ours.rate)))
            .asked("as fast", own.rate >= ours.rate)
            .from(figures("embedded queue", &own)),
    ]
}

struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
}

impl Round {
    fn shown(&self) -> String {
        format!("{} a second, p50 {}, p99 {}", grouped(self.rate), time(self.p50), time(self.p99))
    }
}

fn middle(rounds: &[Round]) -> Round {
    Round {
        rate: median_of(rounds, |round| round.rate),
        p50: median_of(rounds, |round| round.p50),
        p99: median_of(rounds, |round| round.p99),
    }
}

/// Where messages are posted, and how.
struct Target {
    address: SocketAddr,
    path: String,
    authorization: String,
    body: fn(usize) -> String,
    done: StatusCode,
}

impl Target {
    fn codering(fleet: &Fleet) -> Self {
        Self {
            address: fleet.rest(),
            path: format!("/rabbit/{QUEUE}/"),
            authorization: format!("Bearer {}", fleet.token()),
            body: |number| format!(r#"{{"message":{}}}"#, message(number)),
            done: StatusCode::CREATED,
        }
    }

    /// Persistent, to the same queue.
    fn management(node: &Node) -> Self {
        Self {
            address: node.management(),
            path: "/api/exchanges/%2F/amq.default/publish".into(),
            authorization: GUEST.into(),
            body: |number| {
                let body = json!({ "properties": { "delivery_mode": 2 }, "routing_key": QUEUE,
                    "payload": message(number), "payload_encoding": "string" });
                body.to_string()
            },
            done: StatusCode::OK,
        }
    }

    fn request(&self, number: usize) -> Request<Full<Bytes>> {
        Request::post(&self.path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from((self.body)(number))))
            .expect("a request")
    }
}

/// Posts over connections that are open already, each its next message once the last one was answered.
async fn hammer(target: Target, count: usize) -> Round {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(target.address).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let (sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        connections.push(sender);
    }
    let (target, next) = (Arc::new(target), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let posting = connections.into_iter().map(|mut sender| {
        let (target, next) = (target.clone(), next.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return times;
                }
                let request = target.request(number);
                let sent = Instant::now();
                sender.ready().await.expect("the connection is kept");
                let answer = sender.send_request(request).await.expect("an answer");
                let status = answer.status();
                let body = answer.into_body().collect().await.expect("its body").to_bytes();
                times.push(sent.elapsed().as_secs_f64());
                assert_eq!(status, target.done, "{}", String::from_utf8_lossy(&body));
            }
        })
    });
    let times: Vec<_> =
        join_all(posting).await.into_iter().flat_map(|times| times.expect("no panic")).collect();
    let seconds = began.elapsed().as_secs_f64();
    let (p50, p99) = p50_p99(&times);
    Round { rate: count as f64 / seconds, p50, p99 }
}
