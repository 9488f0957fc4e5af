//! Messages put through brokerd's gRPC, beside lapin that puts the same into RabbitMQ itself.

use std::{collections::VecDeque, time::Instant};

use codering_proto::v1::PutRequest;
use codering_tests::{Backend, Fleet, Setup};
use futures::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Section, flow::setup};
use crate::{
    Bench,
    client::Client,
    measure::{Usage, grouped, median_of},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "publish", about: "messages put by gRPC, beside lapin with confirms", run };

/// Messages that wait for their confirm, on both sides.
const WINDOW: usize = 256;
const BYTES: usize = 512;
const OF_LAPIN: f64 = 0.7;
/// On the broker's side.
pub const QUEUE: &str = "demo.bench";
const RAW_QUEUE: &str = "raw.bench";

fn run(bench: &Bench) -> Vec<Row> {
    let (messages, rounds) = (bench.size(50_000, 15_000), bench.size(5, 3));
    let (rabbitmq, embedded) = (queues_only(Backend::RabbitMq, None), queues_only(Backend::Embedded, None));
    let runtime = Runtime::new().expect("a runtime");
    let (mut ours, mut peers, mut own) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(async {
        let raw = Raw::connect(&rabbitmq.rabbitmq().expect("an address")).await;
        let (by_rabbitmq, by_embedded) = (Client::connect(&rabbitmq).await, Client::connect(&embedded).await);
        // What a first message meets, none of the others does.
        for round in 0..=rounds {
            let count = if round == 0 { messages / 10 } else { messages };
            let through_rabbitmq = put(&rabbitmq, &by_rabbitmq, count).await;
            let by_lapin = raw.put(count).await;
            let through_embedded = put(&embedded, &by_embedded, count).await;
            raw.purge().await;
            for fleet in [&rabbitmq, &embedded] {
                let purged = fleet.json(&["queue", "purge", QUEUE, "--yes"]);
                assert_eq!(purged["purged"], count, "{purged}");
            }
            if round > 0 {
                ours.push(through_rabbitmq);
                peers.push(by_lapin);
                own.push(through_embedded);
            }
        }
        raw.connection.close(200, "done".into()).await.expect("it closes");
    });
    rabbitmq.stop();
    embedded.stop();
    let (rate, cpu) = (median_of(&ours, |put| put.rate), median_of(&ours, |put| put.cpu));
    let (own_rate, own_cpu) = (median_of(&own, |put| put.rate), median_of(&own, |put| put.cpu));
    let raw_rate = median_of(&peers, |rate| *rate);
    let what = format!("messages a second put by gRPC, {BYTES} B, window {WINDOW}");
    let shown =
        |rate, cpu: f64| format!("{} a second, {:.0} µs of brokerd's CPU each", grouped(rate), cpu * 1e6);
    vec![
        Row::new(format!("{what}, RabbitMQ"), shown(rate, cpu))
            .beside(format!("{} by lapin with confirms", grouped(raw_rate)))
            .asked(format!("{OF_LAPIN} of it"), rate >= OF_LAPIN * raw_rate)
            .from(json!({ "backend": "RabbitMQ", "per_second": rate, "cpu_s_per_message": cpu,
                "lapin_per_second": raw_rate, "messages": messages, "rounds": rounds })),
        Row::new(format!("{what}, embedded queue"), shown(own_rate, own_cpu))
            .beside(format!("{} with RabbitMQ", grouped(rate)))
            .asked("as fast", own_rate >= rate)
            .from(json!({ "backend": "embedded queue", "per_second": own_rate, "cpu_s_per_message": own_cpu,
                "messages": messages, "rounds": rounds })),
    ]
}

/// A broker of queues alone: no worker.
pub fn queues_only(backend: Backend, rabbitmq: Option<String>) -> Fleet {
    let fleet = Fleet::start(Setup { rabbitmq, ..setup(backend, 0, 1) });
    fleet.ctl(&["queue", "create", QUEUE]);
    fleet
}

/// JSON of the size that is measured; each has a number of its own.
pub fn message(number: usize) -> String {
    let (head, tail) = (format!(r#"{{"number":{number},"text":""#), r#""}"#);
    let text = "x".repeat(BYTES - head.len() - tail.len());
    format!("{head}{text}{tail}")
}

struct Put {
    rate: f64,
    /// Of brokerd, for one message.
    cpu: f64,
}

/// Sends another message for each that is confirmed, once a window is out.
async fn put(fleet: &Fleet, client: &Client, count: usize) -> Put {
    let messages: Vec<_> = (0..count).map(message).collect();
    let (sender, receiver) = mpsc::channel(WINDOW);
    let before = Usage::of(fleet.broker_id());
    let began = Instant::now();
    let mut answers =
        client.queues().put(ReceiverStream::new(receiver)).await.expect("a stream").into_inner();
    let mut left = messages.into_iter().enumerate();
    let next = |(number, message)| {
        let queue = if number == 0 { QUEUE.to_owned() } else { String::new() };
        sender.try_send(PutRequest { queue, message }).expect("a window holds it");
    };
    left.by_ref().take(WINDOW).for_each(next);
    for index in 0..count {
        let answer = answers.message().await.expect("no error").expect("an answer for each");
        assert_eq!(answer.index, index as u64);
        left.next().into_iter().for_each(next);
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Usage::of(fleet.broker_id()).cpu - before.cpu;
    Put { rate: count as f64 / seconds, cpu: cpu.as_secs_f64() / count as f64 }
}

/// lapin without codering.
struct Raw {
    connection: Connection,
    channel: lapin::Channel,
}

impl Raw {
    /// With a queue of the same arguments as codering's.
    async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ");
        let channel = connection.create_channel().await.expect("a channel");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(RAW_QUEUE.into(), durable, arguments).await.expect("a queue");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    /// As many a second. The window is of publishes under way, since awaiting each one's way to the socket would make
    /// lapin slower than it is.
    async fn put(&self, count: usize) -> f64 {
        let messages: VecDeque<_> = (0..count).map(message).collect();
        let began = Instant::now();
        let mut window = FuturesUnordered::new();
        for message in messages {
            if window.len() == WINDOW {
                let confirmed: Option<bool> = window.next().await;
                assert_eq!(confirmed, Some(true));
            }
            window.push(async move {
                let options = BasicPublishOptions::default();
                let properties = BasicProperties::default().with_delivery_mode(2);
                let sent = self.channel.basic_publish(
                    "".into(),
                    RAW_QUEUE.into(),
                    options,
                    message.as_bytes(),
                    properties,
                );
                let confirmed = sent.await.expect("sent").await.expect("confirmed");
                matches!(confirmed, Confirmation::Ack(None))
            });
        }
        while let Some(confirmed) = window.next().await {
            assert!(confirmed);
        }
        count as f64 / began.elapsed().as_secs_f64()
    }

    async fn purge(&self) {
        self.channel.queue_purge(RAW_QUEUE.into(), QueuePurgeOptions::default()).await.expect("purged");
    }
}
