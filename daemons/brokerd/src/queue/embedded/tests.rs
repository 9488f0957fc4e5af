use futures::{StreamExt, stream};
use sqlx::Connection;

use super::*;
use crate::queue::{
    DELIVERY_LIMIT,
    conformance::{SMALL_BOUND, Subjects, suite},
};

fn name(text: &str) -> QueueName {
    QueueName::new(text).expect("a valid queue name")
}

async fn open_at(directory: &Path) -> SharedQueues {
    open(directory, &QueueConfig::default()).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_backend_conforms() {
    let directory = tempfile::tempdir().expect("directory");
    let small = tempfile::tempdir().expect("directory");
    let bound = QueueConfig { max_messages: SMALL_BOUND as u64, ..QueueConfig::default() };
    let queues = open_at(directory.path()).await;
    let small = open(small.path(), &bound).await.expect("opens");
    suite(Subjects { queues: queues.clone(), foreign: queues, small }).await;
}

#[tokio::test]
async fn it_is_blank_until_it_is_told_to_remember_and_again_when_its_file_is_gone() {
    let directory = tempfile::tempdir().expect("directory");
    for _ in 0..2 {
        let queues = open_at(directory.path()).await;
        assert!(queues.is_blank().await.expect("answered"));
        queues.remember().await.expect("remember");
        queues.close().await;
        drop(queues);
        let queues = open_at(directory.path()).await;
        assert!(!queues.is_blank().await.expect("answered"), "a restart forgets nothing");
        queues.close().await;
        drop(queues);
        std::fs::remove_file(directory.path().join("queue.db")).expect("there");
    }
}

#[tokio::test]
async fn what_was_taken_and_not_settled_is_back_after_a_restart_and_marked() {
    let directory = tempfile::tempdir().expect("directory");
    let queue = name("p.todo");
    let queues = open_at(directory.path()).await;
    queues.create(&queue).await.expect("create");
    for text in ["acked", "held", "waiting"] {
        queues.put(&queue, Message::new(text)).await.expect("put");
    }
    let mut taken = queues.take(&queue, 2).await.expect("take").into_iter();
    taken.next().expect("first").settle.ack().await.expect("ack");
    let held = taken.next().expect("second");
    queues.close().await;
    let after = queues.put(&queue, Message::new("late")).await.expect_err("closed");
    assert!(matches!(after, QueueError::Unavailable(_)), "{after:?}");
    assert!(queues.connected().is_err());
    drop((held, taken, queues));

    let queues = open_at(directory.path()).await;
    assert_eq!(queues.depth(&queue).await.expect("depth"), Depth { ready: 2, unacked: 0 });
    let again = queues.take(&queue, 5).await.expect("take");
    let seen: Vec<_> = again.iter().map(|d| (&d.body[..], d.redelivered)).collect();
    assert_eq!(seen, [(&b"held"[..], true), (&b"waiting"[..], false)]);
}

#[tokio::test]
async fn below_the_reserve_puts_are_refused_and_takes_and_acks_go_on() {
    let directory = tempfile::tempdir().expect("directory");
    let queue = name("p.todo");
    let queues = open_at(directory.path()).await;
    queues.create(&queue).await.expect("create");
    queues.put(&queue, Message::new("before")).await.expect("put");
    queues.close().await;
    drop(queues);

    let all_of_it = QueueConfig { min_free_disk: u64::MAX, ..QueueConfig::default() };
    let queues = open(directory.path(), &all_of_it).await.expect("opens");
    let refused =
        codering_core::Error::from(queues.put(&queue, Message::new("x")).await.expect_err("no room"));
    assert_eq!(refused.code, codering_core::Code::QueueDiskFull);
    assert!(
        refused.to_string().contains("free space") && refused.to_string().contains("in reserve"),
        "{refused}"
    );
    assert_eq!(queues.depth(&queue).await.expect("depth"), Depth { ready: 1, unacked: 0 }, "nothing was put");
    let taken = queues.take(&queue, 2).await.expect("take").pop().expect("one");
    assert_eq!(&taken.body[..], b"before");
    taken.settle.ack().await.expect("ack");
    assert_eq!(queues.depth(&queue).await.expect("depth"), Depth::default());
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_what_is_lost_without_it_and_what_to_do() {
    let directory = tempfile::tempdir().expect("directory");
    let queues = open_at(directory.path()).await;
    queues.create(&name("p.todo")).await.expect("create");
    for n in 0..200 {
        queues.put(&name("p.todo"), Message::new(format!("{n:0>500}"))).await.expect("put");
    }
    queues.close().await;
    drop(queues);
    let file = directory.path().join("queue.db");
    let whole = std::fs::read(&file).expect("read");
    let mut page = whole.clone();
    page[8192..20_480].fill(0xa5);
    for damaged in [whole[..whole.len() / 2].to_vec(), page, b"no database at all".repeat(99)] {
        std::fs::write(&file, damaged).expect("write");
        let error = open(directory.path(), &QueueConfig::default()).await.err().expect("refused").to_string();
        assert!(
            error.contains("damaged") && error.contains("Move it away") && error.contains("ledger"),
            "{error}"
        );
    }
    std::fs::write(&file, whole).expect("write");
    assert_eq!(open_at(directory.path()).await.depth(&name("p.todo")).await.expect("depth").ready, 200);
}

#[tokio::test]
async fn a_second_process_may_not_open_the_same_queues() {
    let directory = tempfile::tempdir().expect("directory");
    let first = open_at(directory.path()).await;
    let second = open(directory.path(), &QueueConfig::default()).await.err().expect("held");
    assert!(second.to_string().contains("another process"), "{second}");
    drop(first);
}

#[tokio::test]
async fn higher_priority_comes_first_and_equal_ones_in_order() {
    let directory = tempfile::tempdir().expect("directory");
    let queues = open_at(directory.path()).await;
    let queue = name("p.todo");
    queues.create(&queue).await.expect("create");
    for (body, priority) in [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5)] {
        queues.put(&queue, Message { body: body.into(), priority }).await.expect("put");
    }
    let taken = queues.take(&queue, 9).await.expect("take");
    assert_eq!(taken.iter().map(|d| d.body[0]).collect::<Vec<_>>(), b"cead\x62");
}

#[tokio::test]
async fn a_message_given_back_too_often_is_put_among_the_dead() {
    let directory = tempfile::tempdir().expect("directory");
    let queues = open_at(directory.path()).await;
    let queue = name("p.todo");
    queues.create(&queue).await.expect("create");
    queues.put(&queue, Message::new("poison")).await.expect("put");
    for round in 0..DELIVERY_LIMIT {
        let taken = queues.take(&queue, 1).await.expect("take");
        assert_eq!(taken.len(), 1, "round {round}");
        for delivery in taken {
            delivery.settle.requeue().await.expect("requeue");
        }
    }
    assert!(queues.take(&queue, 1).await.expect("take").is_empty());
    let dead = queues.dead(&name("p.dead"), 9).await.expect("dead");
    assert_eq!((dead.len(), &dead[0].body[..], &dead[0].queue), (1, &b"poison"[..], &queue));
    assert!(dead[0].reason.contains("too often"));
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_costs_the_same_from_a_long_queue_as_from_a_short_one() {
    let directory = tempfile::tempdir().expect("directory");
    let queues = open_at(directory.path()).await;
    let (long, short) = (name("long.todo"), name("short.todo"));
    for (queue, count) in [(&long, 100_000), (&short, 100)] {
        queues.create(queue).await.expect("create");
        let puts = (0..count).map(|n| queues.put(queue, Message::new(n.to_string())));
        stream::iter(puts).buffer_unordered(512).for_each(|put| async { put.expect("put") }).await;
    }
    let mut best = HashMap::new();
    for _ in 0..9 {
        for queue in [&long, &short] {
            let begun = std::time::Instant::now();
            let taken = queues.take(queue, 10).await.expect("take");
            let took = begun.elapsed();
            assert_eq!(taken.len(), 10);
            for delivery in taken {
                delivery.settle.ack().await.expect("ack");
            }
            let least = best.entry(queue.clone()).or_insert(took);
            *least = took.min(*least);
        }
    }
    assert!(best[&long] < best[&short] * 10, "{best:?}");
}

#[tokio::test]
async fn a_write_that_fails_is_said_and_the_queue_recovers() {
    let directory = tempfile::tempdir().expect("directory");
    let queues = open_at(directory.path()).await;
    let queue = name("p.todo");
    queues.create(&queue).await.expect("create");
    for text in ["one", "two"] {
        queues.put(&queue, Message::new(text)).await.expect("put");
    }
    let taken = queues.take(&queue, 1).await.expect("take");

    // Another connection holds the write lock for longer than the writer waits for it.
    let file = SqliteConnectOptions::new().filename(directory.path().join("queue.db"));
    let mut other = sqlx::SqliteConnection::connect_with(&file).await.expect("open");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("lock");
    let refused = queues.put(&queue, Message::new("three")).await.expect_err("locked");
    assert!(refused.to_string().contains("cannot be written"), "{refused}");
    for delivery in taken {
        delivery.settle.ack().await.expect_err("locked");
    }
    assert!(queues.connected().is_err());
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlock");

    // It is found by itself, for those who wait for it before they call.
    let begun = std::time::Instant::now();
    while queues.connected().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", queues.connected());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    queues.put(&queue, Message::new("four")).await.expect("works again");
    let bodies: Vec<_> =
        queues.take(&queue, 9).await.expect("take").into_iter().map(|d| (d.body, d.redelivered)).collect();
    assert_eq!(bodies, [("one".into(), true), ("two".into(), false), ("four".into(), false)]);
}

#[tokio::test]
async fn a_take_of_large_messages_ends_after_some_megabytes_also_once_it_was_opened_again() {
    let directory = tempfile::tempdir().expect("directory");
    let (queue, mut queues) = (name("p.todo"), open_at(directory.path()).await);
    queues.create(&queue).await.expect("create");
    for n in 0..12u8 {
        queues.put(&queue, Message::new(vec![n; 2 << 20])).await.expect("put");
    }
    for seen in [0..4u8, 4..8] {
        let taken = queues.take(&queue, 64).await.expect("take");
        assert_eq!(
            taken.iter().map(|delivery| delivery.body[0]).collect::<Vec<_>>(),
            seen.collect::<Vec<_>>()
        );
        for delivery in taken {
            delivery.settle.ack().await.expect("ack");
        }
        queues.close().await;
        drop(queues);
        queues = open_at(directory.path()).await;
    }
    // Small ones behind them come all at once, and one however large it is.
    for _ in 0..64 {
        queues.put(&queue, Message::new("small")).await.expect("put");
    }
    queues.put(&queue, Message::new(vec![0; 16 << 20])).await.expect("put");
    let mut held = Vec::new();
    for count in [4, 64, 1] {
        let taken = queues.take(&queue, 64).await.expect("take");
        assert_eq!(taken.len(), count);
        held.extend(taken);
    }
}
