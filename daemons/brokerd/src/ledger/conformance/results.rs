//! Results, attempts, and what becomes of them.

use codering_core::result::Phases;

use super::*;

pub(super) async fn suite(ledger: &dyn Ledger) {
    let job = committed(ledger, "results", 800, 3).await;
    let (name, key) = (project("results"), key(&job, 0));
    let ours = async || -> Vec<TaskResult> {
        let results = ledger.unpublished_results(1000).await.unwrap();
        results.into_iter().filter(|result| result.project == name).collect()
    };
    let mut full = result(&job, 0, Outcome::Failed);
    full.attempt = 2;
    (full.exit_code, full.signal) = (Some(-1), Some(9));
    (full.stdout, full.stderr) = (vec![0, 255], b"oh".to_vec());
    full.stderr_truncated = true;
    (full.started_at, full.finished_at) = (NOW + 1, NOW + 2);
    full.phases = Phases { queued: 1, checkout: 2, build: 3, start: 4, run: 5 };
    full.worker = "w1".into();
    (full.commit, full.image, full.message) = ("abc".into(), "pi:1".into(), "why".into());

    // The first attempt ends, the second is the last.
    step(ledger, &key, leased_by(1), Record::Nothing).await;
    let expire = Event::Expire { token: token(1) };
    step(ledger, &key, expire, Record::Attempt(super::swaps::attempt(1))).await;
    assert_eq!(ledger.result(&key).await.unwrap(), None);
    step(ledger, &key, leased_by(2), Record::Nothing).await;
    let second = Attempt { message: String::new(), ..super::swaps::attempt(2) };
    let complete = Event::Complete { token: token(2), outcome: Outcome::Succeeded };
    step(ledger, &key, complete, Record::Result(Box::new(full.clone()), Some(second.clone()))).await;
    assert_eq!(ledger.result(&key).await.unwrap(), Some(full.clone()));
    assert_eq!(ledger.attempts(&key).await.unwrap(), [super::swaps::attempt(1), second]);
    assert_eq!(ledger.usage(&name).await.unwrap().result_bytes, 4);
    assert_eq!(ledger.result_bytes(&key).await.unwrap(), 4);

    // Oldest first, until marked; marking what is not there is nothing.
    complete_with_nothing(ledger, &job, 1).await;
    assert_eq!(ours().await.iter().map(|result| result.task.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(ours().await[0], full);
    let of_another_attempt = vec![(key.clone(), full.attempt + 1)];
    ledger.mark_results_published(of_another_attempt).await.unwrap();
    assert_eq!(ours().await.len(), 2, "a mark for another attempt is not for this result");
    let nowhere = super::key(&super::job("results", 899), 0);
    let marked = vec![(key.clone(), full.attempt), (super::key(&job, 2), 1), (nowhere, 1)];
    ledger.mark_results_published(marked).await.unwrap();
    assert_eq!(ours().await.iter().map(|result| result.task.as_str()).collect::<Vec<_>>(), ["1"]);
    ledger.mark_results_published(Vec::new()).await.unwrap();

    // And unmarked again: each once, those of tasks without a result not at all.
    ledger.unpublish_results(vec![key.clone(), super::key(&job, 1), super::key(&job, 2)]).await.unwrap();
    let mut again: Vec<_> = ours().await.iter().map(|result| result.task.to_string()).collect();
    again.sort();
    assert_eq!(again, ["0", "1"]);
    ledger.mark_results_published(vec![(key.clone(), full.attempt)]).await.unwrap();
    assert_eq!(ours().await.len(), 1);

    // A task that runs again has no result; its attempts stay.
    step(ledger, &key, Event::Retry, Record::Forget).await;
    assert_eq!(ledger.result(&key).await.unwrap(), None);
    assert_eq!(ledger.result_bytes(&key).await.unwrap(), 0);
    assert_eq!(ledger.attempts(&key).await.unwrap().len(), 2);
    assert_eq!(ledger.usage(&name).await.unwrap().result_bytes, 0);
    step(ledger, &super::key(&job, 1), Event::Retry, Record::Forget).await;
    assert_eq!(ours().await, []);
    super::complete(ledger, &job, 0, Outcome::Succeeded).await;
    assert_eq!(ours().await.len(), 1, "the new result is unpublished");
    assert_eq!(ledger.usage(&name).await.unwrap().result_bytes, 2);

    assert_eq!(ledger.delete_job(&job.id).await.unwrap(), 2, "bytes of its results");
    assert_eq!(ledger.delete_job(&job.id).await.unwrap(), 0);
    assert_eq!(ledger.result(&key).await.unwrap(), None);
    assert_eq!(ledger.attempts(&key).await.unwrap(), []);
    assert_eq!(ours().await, []);
    assert_eq!(ledger.usage(&name).await.unwrap(), Usage::default());
}

/// Cancelled before it ever ran: a result without a word, and no attempt.
async fn complete_with_nothing(ledger: &dyn Ledger, job: &Job, seq: u64) {
    let key = key(job, seq);
    let mut result = result(job, seq, Outcome::Cancelled);
    (result.attempt, result.stdout) = (0, Vec::new());
    step(ledger, &key, Event::Cancel, Record::Result(Box::new(result.clone()), None)).await;
    assert_eq!(ledger.result(&key).await.unwrap(), Some(result));
    assert_eq!(ledger.attempts(&key).await.unwrap(), []);
}

/// What nobody has been told yet is not let go.
pub(super) async fn retention(ledger: &dyn Ledger) {
    let mut job = committed(ledger, "kept", 850, 1).await;
    super::complete(ledger, &job, 0, Outcome::Succeeded).await;
    (job.state, job.finished_at) = (JobState::Succeeded, NOW);
    ledger.update_job(job.clone()).await.unwrap();
    let is_expired = async || ledger.expired_jobs(NOW + 1, 0, 1000).await.unwrap().contains(&job.id);
    assert!(!is_expired().await, "its result is not published");
    let attempt = ledger.result(&key(&job, 0)).await.unwrap().unwrap().attempt;
    ledger.mark_results_published(vec![(key(&job, 0), attempt)]).await.unwrap();
    assert!(is_expired().await);
    ledger.delete_job(&job.id).await.unwrap();
}

pub(super) async fn paging(ledger: &dyn Ledger) {
    const MIB: usize = 1 << 20;
    let job = committed(ledger, "pages", 900, 30).await;
    // Done in another order than that of the tasks.
    for seq in (0..30).rev() {
        let key = key(&job, seq);
        step(ledger, &key, leased_by(1), Record::Nothing).await;
        let outcome = if seq % 3 == 0 { Outcome::Failed } else { Outcome::Succeeded };
        let mut result = result(&job, seq, outcome);
        result.stdout = vec![b'x'; MIB];
        let complete = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
        let mut change = change(ledger, &key, complete, Record::Result(Box::new(result), None)).await;
        change.progress.state = State::Done(outcome);
        assert_eq!(ledger.swap_task(change).await.unwrap(), Swapped::Yes);
    }
    let read = async |outcomes: &[Outcome], limit: u32| {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = ledger.results(&job.id, outcomes, after, limit).await.unwrap();
            let Some((last, _)) = page.last() else { return seen };
            let bytes: u64 = page.iter().map(|(_, result)| result.bytes()).sum();
            assert!(page.len() <= limit as usize && bytes <= PAGE_BYTES as u64, "{bytes}");
            assert!(page.iter().all(|(seq, result)| result.task.as_str() == seq.to_string()));
            after = Some(*last);
            seen.extend(page.into_iter().map(|(seq, _)| seq));
        }
    };
    let all: Vec<u64> = (0..30).collect();
    assert_eq!(read(&[], 1000).await, all);
    assert_eq!(read(&[], 7).await, all);
    assert_eq!(read(&[Outcome::Failed], 3).await, (0..30).step_by(3).collect::<Vec<_>>());
    assert_eq!(read(&[Outcome::TimedOut], 3).await, [0; 0]);
    let unpublished = ledger.unpublished_results(1000).await.unwrap();
    assert!(unpublished.iter().map(TaskResult::bytes).sum::<u64>() <= PAGE_BYTES as u64);
    assert_eq!(ledger.usage(&job.spec.project).await.unwrap().result_bytes, 30 * MIB as u64);
    assert_eq!(ledger.delete_job(&job.id).await.unwrap(), 30 * MIB as u64);
    assert_eq!(ledger.usage(&job.spec.project).await.unwrap().result_bytes, 0);
}
