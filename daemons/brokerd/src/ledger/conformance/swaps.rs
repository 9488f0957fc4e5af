//! Compare-and-set on one task.

use super::*;

pub(super) async fn suite(ledger: &dyn Ledger) {
    let job = committed(ledger, "swaps", 1, 3).await;
    let key = key(&job, 0);
    assert_eq!(ledger.task(&key).await.unwrap(), Some(task(&job, 0)));

    // Every part of the progress is stored, and read back as it was written.
    let mut stored = task(&job, 0);
    for event in [Event::Publish, leased_by(7), Event::Cancel] {
        let mut change = change(ledger, &key, event, Record::Nothing).await;
        change.progress.user_failures += 2;
        change.progress.infrastructure_failures += 3;
        stored.progress = change.progress.clone();
        assert_eq!(ledger.swap_task(change).await.unwrap(), Swapped::Yes);
        assert_eq!(ledger.task(&key).await.unwrap(), Some(stored.clone()));
    }
    assert_eq!(ledger.leased().await.unwrap(), [stored.clone()]);

    // A later time, and a commit that stays when the next change names none.
    let mut pinned = change(ledger, &key, Event::Expire { token: token(7) }, Record::Nothing).await;
    pinned.progress.state = State::Ready { published: false, not_before: NOW + 5 };
    pinned.commit = Some("c0ffee".into());
    assert_eq!(ledger.swap_task(pinned.clone()).await.unwrap(), Swapped::Yes);
    stored.progress = pinned.progress.clone();
    stored.commit = "c0ffee".into();
    assert_eq!(ledger.task(&key).await.unwrap(), Some(stored.clone()));
    step(ledger, &key, Event::Publish, Record::Nothing).await;
    let now = ledger.task(&key).await.unwrap().unwrap();
    assert_eq!((now.commit.as_str(), now.progress.version), ("c0ffee", stored.progress.version + 1));
    assert_eq!(ledger.leased().await.unwrap(), []);

    // Another version, or no such task or job: nothing happens, the record included.
    let mut stale = pinned;
    stale.record = Record::Result(Box::new(result(&job, 0, Outcome::Failed)), Some(attempt(1)));
    assert_eq!(ledger.swap_task(stale.clone()).await.unwrap(), Swapped::No);
    assert_eq!(ledger.task(&key).await.unwrap(), Some(now));
    assert_eq!(ledger.result(&key).await.unwrap(), None);
    assert_eq!(ledger.attempts(&key).await.unwrap(), []);
    stale.key.task = "none".parse().unwrap();
    assert_eq!(ledger.swap_task(stale.clone()).await.unwrap(), Swapped::No);
    stale.key = super::key(&super::job("swaps", 99), 0);
    assert_eq!(ledger.swap_task(stale).await.unwrap(), Swapped::No);
}

pub(super) fn attempt(n: u32) -> Attempt {
    Attempt {
        attempt: n,
        worker: "w1".parse().unwrap(),
        leased_at: NOW,
        finished_at: NOW + 9,
        outcome: Outcome::InfrastructureError,
        message: "the worker died".into(),
    }
}

/// Of many that swap the same version at once, one has done it; and only its result is there.
pub(super) async fn races(ledger: SharedLedger) {
    const RACERS: u32 = 64;
    let job = committed(&*ledger, "races", 2, 8).await;
    for seq in 0..8 {
        let key = key(&job, seq);
        step(&*ledger, &key, leased_by(1), Record::Nothing).await;
        let complete = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
        let change = change(&*ledger, &key, complete, Record::Nothing).await;
        let racers = (1..=RACERS).map(|racer| {
            let mut result = result(&job, seq, Outcome::Succeeded);
            result.attempt = racer;
            let record = Record::Result(Box::new(result), Some(attempt(racer)));
            let (ledger, change) = (ledger.clone(), TaskChange { record, ..change.clone() });
            tokio::spawn(async move { (racer, ledger.swap_task(change).await.unwrap()) })
        });
        let ended = futures::future::join_all(racers).await;
        let won: Vec<u32> = ended
            .into_iter()
            .map(std::result::Result::unwrap)
            .filter(|(_, swapped)| *swapped == Swapped::Yes)
            .map(|(racer, _)| racer)
            .collect();
        assert_eq!(won.len(), 1, "one of {RACERS} swaps of one version");
        assert_eq!(ledger.result(&key).await.unwrap().map(|result| result.attempt), Some(won[0]));
        let attempts = ledger.attempts(&key).await.unwrap();
        assert_eq!(attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), won);
    }
}
