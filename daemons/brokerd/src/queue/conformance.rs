//! What every backend of [`Queues`] does, as one plain async function that each of them passes.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use codering_core::QueueName;
use futures::{StreamExt, future::join_all, stream};

use super::{Delivery, Depth, Message, QueueError, Queues, Rung};

/// The bound that [`Subjects::small`] has on messages of every queue of the projects `small`.
pub(super) const SMALL_BOUND: usize = 10;

/// What the suite runs on.
pub(super) struct Subjects {
    /// The backend.
    pub(super) queues: Arc<dyn Queues>,
    /// One that puts into the same queues behind its back, if there can be one; else the same.
    pub(super) foreign: Arc<dyn Queues>,
    /// One whose queues of the project `small` hold at most [`SMALL_BOUND`] messages.
    pub(super) small: Arc<dyn Queues>,
}

/// Panics, saying what, when the backend is not as it should be.
pub(super) async fn suite(subjects: Subjects) {
    let Subjects { queues, foreign, small } = subjects;
    queues_are_made_once_and_removed_with_their_messages(&*queues).await;
    a_call_on_a_queue_that_is_not_there_says_so(&*queues).await;
    messages_come_in_order_and_are_gone_once_acked(&*queues).await;
    requeued_and_dropped_messages_come_back_marked(&*queues).await;
    rejected_messages_wait_among_the_dead_until_requeued(&*queues).await;
    a_purge_removes_what_waits_and_counts_it(&*queues).await;
    large_and_empty_messages_come_whole(&*queues).await;
    a_take_that_ends_early_leaves_none_behind(&*queues).await;
    the_bell_rings_when_another_puts(&*queues, &*foreign).await;
    ten_thousand_messages_come_through_once_each(&queues).await;
    a_full_queue_refuses_and_the_done_queue_drops_its_oldest(&*small).await;
    queues.remember().await.expect("remember");
    queues.remember().await.expect("once more");
    assert!(!queues.is_blank().await.expect("answered"), "it was told to remember");
    assert_eq!(queues.connected(), Ok(()));
}

fn name(text: &str) -> QueueName {
    QueueName::new(text).expect("a valid queue name")
}

async fn fresh(queues: &dyn Queues, text: &str) -> QueueName {
    let queue = name(text);
    queues.delete(&queue).await.expect("delete");
    assert!(queues.create(&queue).await.expect("create"), "{queue} was deleted, so it is new");
    queue
}

async fn put(queues: &dyn Queues, queue: &QueueName, text: &str) {
    queues.put(queue, Message::new(text.to_owned())).await.expect("put");
}

/// Takes until `count` messages came; a put that was answered may be takeable a moment later.
async fn take(queues: &dyn Queues, queue: &QueueName, count: usize) -> Vec<Delivery> {
    let begun = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        let more = queues.take(queue, count - all.len()).await.expect("take");
        assert!(all.len() + more.len() <= count, "more were taken than asked for");
        if more.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{queue}: {} of {count} came", all.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        all.extend(more);
    }
    all
}

async fn depth_becomes(queues: &dyn Queues, queue: &QueueName, ready: u64) {
    let begun = Instant::now();
    loop {
        let depth = queues.depth(queue).await.expect("depth");
        if depth.ready == ready {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{queue}: {depth:?}, expected {ready} ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned()).collect()
}

async fn ack(deliveries: Vec<Delivery>) {
    for result in join_all(deliveries.into_iter().map(|delivery| delivery.settle.ack())).await {
        result.expect("ack");
    }
}

async fn queues_are_made_once_and_removed_with_their_messages(queues: &dyn Queues) {
    let queue = fresh(queues, "made.once").await;
    assert!(!queues.create(&queue).await.expect("create"), "it was there");
    put(queues, &queue, "lost with its queue").await;
    queues.delete(&queue).await.expect("delete");
    queues.delete(&queue).await.expect("a second delete is no error");
    assert!(queues.create(&queue).await.expect("create"));
    assert_eq!(queues.depth(&queue).await.expect("depth"), Depth::default());
    assert!(queues.take(&queue, 5).await.expect("take").is_empty());
    // A message that is held while its queue goes does not haunt the next queue of that name.
    put(queues, &queue, "held").await;
    let held = take(queues, &queue, 1).await;
    queues.delete(&queue).await.expect("delete");
    assert!(queues.create(&queue).await.expect("create"));
    put(queues, &queue, "new").await;
    for delivery in held {
        // Whether this is an error is the backend's own.
        let _ = delivery.settle.ack().await;
    }
    let new = take(queues, &queue, 1).await;
    assert_eq!(texts(&new), ["new"]);
    ack(new).await;
    queues.delete(&queue).await.expect("delete");
}

async fn a_call_on_a_queue_that_is_not_there_says_so(queues: &dyn Queues) {
    let none = name("none.here");
    queues.delete(&none).await.expect("delete");
    let gone = |error: QueueError| assert!(matches!(error, QueueError::NotFound(_)), "{error:?}");
    gone(queues.put(&none, Message::new("x")).await.expect_err("put"));
    gone(queues.take(&none, 1).await.expect_err("take"));
    gone(queues.depth(&none).await.expect_err("depth"));
    gone(queues.purge(&none).await.expect_err("purge"));
    assert_eq!(queues.dead(&name("none.dead"), 10).await.expect("no dead"), []);
    assert_eq!(queues.requeue_dead(&name("none.dead"), None).await.expect("none"), 0);
    // The errors before did no harm to what is there.
    let queue = fresh(queues, "made.after").await;
    put(queues, &queue, "still works").await;
    ack(take(queues, &queue, 1).await).await;
    queues.delete(&queue).await.expect("delete");
}

async fn messages_come_in_order_and_are_gone_once_acked(queues: &dyn Queues) {
    let queue = fresh(queues, "order.todo").await;
    let sent: Vec<String> = (0..100).map(|n| format!("{{\"n\":{n}}}")).collect();
    for result in join_all(sent.iter().map(|text| queues.put(&queue, Message::new(text.clone())))).await {
        result.expect("put");
    }
    depth_becomes(queues, &queue, 100).await;
    let first = take(queues, &queue, 30).await;
    assert_eq!(texts(&first), sent[..30]);
    assert!(first.iter().all(|delivery| !delivery.redelivered), "none was delivered before");
    let rest = take(queues, &queue, 70).await;
    assert_eq!(texts(&rest), sent[30..]);
    assert!(queues.take(&queue, 1).await.expect("take").is_empty(), "all are taken");
    ack(first).await;
    ack(rest).await;
    depth_becomes(queues, &queue, 0).await;
    assert!(queues.take(&queue, 0).await.expect("take nothing").is_empty());
    queues.delete(&queue).await.expect("delete");
}

async fn requeued_and_dropped_messages_come_back_marked(queues: &dyn Queues) {
    let queue = fresh(queues, "back.todo").await;
    put(queues, &queue, "a").await;
    put(queues, &queue, "b").await;
    let mut both = take(queues, &queue, 2).await.into_iter();
    both.next().expect("a").settle.requeue().await.expect("requeue");
    drop(both);
    let again = take(queues, &queue, 2).await;
    assert!(again.iter().all(|delivery| delivery.redelivered), "both were delivered before");
    let mut came = texts(&again);
    came.sort();
    assert_eq!(came, ["a", "b"]);
    ack(again).await;
    depth_becomes(queues, &queue, 0).await;
    queues.delete(&queue).await.expect("delete");
}

async fn rejected_messages_wait_among_the_dead_until_requeued(queues: &dyn Queues) {
    let (queue, dead) = (fresh(queues, "bad.todo").await, name("bad.dead"));
    queues.delete(&dead).await.expect("delete");
    for text in ["not json", "{\"fine\":1}", "also bad", "third"] {
        put(queues, &queue, text).await;
    }
    for delivery in take(queues, &queue, 4).await {
        if delivery.body.starts_with(b"{") {
            delivery.settle.ack().await.expect("ack");
        } else {
            let reason = format!("cannot read: {}", String::from_utf8_lossy(&delivery.body));
            delivery.settle.reject(reason).await.expect("reject");
        }
    }
    depth_becomes(queues, &dead, 3).await;
    assert_eq!(queues.dead(&dead, 2).await.expect("dead").len(), 2, "no more than asked for");
    let mut letters = queues.dead(&dead, 100).await.expect("dead");
    // Where a look at them takes them for a moment, they need one to return.
    depth_becomes(queues, &dead, 3).await;
    assert_eq!(queues.dead(&dead, 100).await.expect("dead").len(), 3, "looking takes none");
    letters.sort_by(|a, b| a.body.cmp(&b.body));
    assert_eq!(
        letters.iter().map(|letter| &letter.body[..]).collect::<Vec<_>>(),
        [b"also bad" as &[u8], b"not json", b"third"]
    );
    assert!(letters.iter().all(|letter| letter.queue == queue && letter.at > 1_700_000_000_000));
    assert_eq!(letters[1].reason, "cannot read: not json");
    assert_eq!(letters.iter().map(|letter| &letter.id).collect::<HashSet<_>>().len(), 3);

    depth_becomes(queues, &dead, 3).await;
    let chosen = Some(vec![letters[1].id.clone(), "99999999".to_owned()]);
    assert_eq!(queues.requeue_dead(&dead, chosen).await.expect("requeue one"), 1);
    let back = take(queues, &queue, 1).await;
    assert_eq!(texts(&back), ["not json"]);
    ack(back).await;
    depth_becomes(queues, &dead, 2).await;
    assert_eq!(queues.requeue_dead(&dead, None).await.expect("requeue all"), 2);
    ack(take(queues, &queue, 2).await).await;
    depth_becomes(queues, &dead, 0).await;
    for queue in [queue, dead] {
        queues.delete(&queue).await.expect("delete");
    }
}

async fn a_purge_removes_what_waits_and_counts_it(queues: &dyn Queues) {
    let queue = fresh(queues, "purge.todo").await;
    for n in 0..7 {
        put(queues, &queue, &n.to_string()).await;
    }
    let held = take(queues, &queue, 2).await;
    depth_becomes(queues, &queue, 5).await;
    assert_eq!(queues.purge(&queue).await.expect("purge"), 5);
    ack(held).await;
    assert_eq!(queues.purge(&queue).await.expect("purge"), 0);
    assert!(queues.take(&queue, 9).await.expect("take").is_empty());
    queues.delete(&queue).await.expect("delete");
}

async fn large_and_empty_messages_come_whole(queues: &dyn Queues) {
    let queue = fresh(queues, "large.todo").await;
    let large: Bytes = (0..8 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for body in [large.clone(), Bytes::new()] {
        queues.put(&queue, Message::new(body.clone())).await.expect("put");
        let mut back = take(queues, &queue, 1).await;
        assert!(back[0].body == body, "{} bytes came back as {}", body.len(), back[0].body.len());
        back.remove(0).settle.ack().await.expect("ack");
    }
    let error = queues.put(&queue, Message::new(vec![0; (16 << 20) + 1])).await.expect_err("too large");
    assert!(matches!(error, QueueError::TooLarge { limit: 16_777_216, .. }), "{error:?}");
    queues.delete(&queue).await.expect("delete");
}

/// Fewer may come than were asked for, where they are large: then the bell says that there are more.
async fn a_take_that_ends_early_leaves_none_behind(queues: &dyn Queues) {
    const COUNT: usize = 12;
    let queue = fresh(queues, "heavy.todo").await;
    for n in 0..COUNT {
        queues.put(&queue, Message::new(vec![n as u8; 2 << 20])).await.expect("put");
    }
    depth_becomes(queues, &queue, COUNT as u64).await;
    queues.listen_to(vec![queue.clone()]);
    let (mut came, mut held) = (Vec::new(), Vec::new());
    while came.len() < COUNT {
        let mut bell = queues.bell();
        let some = queues.take(&queue, COUNT).await.expect("take");
        assert!(!some.is_empty(), "one comes however large it is");
        came.extend(some.iter().map(|delivery| usize::from(delivery.body[0])));
        held.extend(some);
        if came.len() < COUNT {
            let rung = tokio::time::timeout(Duration::from_secs(5), bell.rung()).await;
            assert!(rung.expect("a ring while there are more").is_some());
        }
    }
    assert_eq!(came, (0..COUNT).collect::<Vec<_>>());
    ack(held).await;
    queues.listen_to(Vec::new());
    queues.delete(&queue).await.expect("delete");
}

async fn the_bell_rings_when_another_puts(queues: &dyn Queues, foreign: &dyn Queues) {
    let queue = fresh(queues, "bell.todo").await;
    queues.listen_to(vec![queue.clone()]);
    for round in 0..3 {
        let mut bell = queues.bell();
        put(foreign, &queue, "ding").await;
        let rung = tokio::time::timeout(Duration::from_secs(5), bell.rung()).await;
        let heard = Some(Rung::Queues([queue.clone()].into()));
        assert_eq!(rung.expect("a ring in each round"), heard, "round {round}");
        ack(take(queues, &queue, 1).await).await;
    }
    queues.listen_to(Vec::new());
    queues.delete(&queue).await.expect("delete");
}

async fn ten_thousand_messages_come_through_once_each(queues: &Arc<dyn Queues>) {
    const COUNT: usize = 10_000;
    let queue = fresh(&**queues, "many.todo").await;
    let putting = async {
        stream::iter(0..COUNT)
            .map(|n| queues.put(&queue, Message::new(n.to_string())))
            .buffer_unordered(256)
            .for_each(|result| async { result.expect("put") })
            .await;
    };
    let taking = async {
        let mut seen = HashSet::new();
        while seen.len() < COUNT {
            let some = queues.take(&queue, 32).await.expect("take");
            if some.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for text in texts(&some) {
                assert!(seen.insert(text.clone()), "{text} came twice");
            }
            ack(some).await;
        }
    };
    let begun = Instant::now();
    let both = async { tokio::join!(putting, taking) };
    tokio::time::timeout(Duration::from_secs(120), both).await.expect("10,000 within two minutes");
    let rate = COUNT as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{}: {rate:.0} put, taken and acked a second", queues.backend());
    depth_becomes(&**queues, &queue, 0).await;
    queues.delete(&queue).await.expect("delete");
}

async fn a_full_queue_refuses_and_the_done_queue_drops_its_oldest(small: &dyn Queues) {
    let (todo, done) = (fresh(small, "small.todo").await, fresh(small, "small.done").await);
    let mut put_ok = 0;
    let refused = loop {
        match small.put(&todo, Message::new(put_ok.to_string())).await {
            Ok(()) => put_ok += 1,
            Err(error) => break error,
        }
        // RabbitMQ's bound on a quorum queue is soft by a few messages.
        assert!(put_ok < 5 * SMALL_BOUND, "the queue never was full");
    };
    assert!(matches!(refused, QueueError::Full(ref queue) if *queue == todo), "{refused:?}");
    assert!(put_ok >= SMALL_BOUND);
    let some = take(small, &todo, put_ok).await;
    ack(some).await;
    depth_becomes(small, &todo, 0).await;
    put(small, &todo, "there is room again").await;

    for n in 0..3 * SMALL_BOUND {
        put(small, &done, &n.to_string()).await;
    }
    depth_becomes(small, &done, SMALL_BOUND as u64).await;
    let kept = take(small, &done, SMALL_BOUND).await;
    assert_eq!(texts(&kept).last().map(String::as_str), Some("29"), "the newest are kept");
    ack(kept).await;
    for queue in [todo, done] {
        small.delete(&queue).await.expect("delete");
    }
}
