//! The state machine under every kind of event, and under thousands of random ones.

use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy { max_attempts: 3, max_infrastructure_failures: 4 };

fn lease(n: u8) -> Lease {
    Lease {
        token: LeaseToken::from_bytes([n; 16]),
        worker: WorkerName::new("w1").expect("valid"),
        leased_at: 0,
        deadline: 30_000,
    }
}

fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes([n; 16])
}

fn leased(n: u8) -> Progress {
    Progress::new(0).step(Event::Lease(lease(n)), POLICY, 0).expect("ready").0
}

#[test]
fn a_late_result_of_an_expired_attempt_is_fenced() {
    let (ready, effect) = leased(1).step(Event::Expire { token: token(1) }, POLICY, 5).expect("live");
    assert_eq!(effect, Some(Effect::AttemptEnded(Outcome::InfrastructureError)));
    let again = ready.step(Event::Lease(lease(2)), POLICY, 6).expect("ready").0;
    let late = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
    assert_eq!(again.step(late.clone(), POLICY, 7), Err(Refusal::Fenced));
    assert_eq!(ready.step(late, POLICY, 7), Err(Refusal::Fenced));
}

#[test]
fn a_build_that_failed_is_final_at_the_first_attempt_and_a_user_may_ask_for_another() {
    let failed = Event::Complete { token: token(1), outcome: Outcome::BuildFailed };
    let (done, effect) = leased(1).step(failed, POLICY, 5).expect("live");
    assert_eq!(effect, Some(Effect::Finish(Outcome::BuildFailed)));
    assert_eq!((done.state.clone(), done.user_failures), (State::Done(Outcome::BuildFailed), 1));
    let again = done.step(Event::Retry, POLICY, 6).expect("done").0;
    assert!(matches!(again.state, State::Ready { .. }));
}

#[test]
fn a_users_failure_counts_against_max_attempts_and_ours_against_its_own_bound() {
    let mut task = Progress::new(0);
    for n in 1..=3 {
        task = task.step(Event::Lease(lease(n)), POLICY, 0).expect("ready").0;
        task = task
            .step(Event::Complete { token: token(n), outcome: Outcome::InfrastructureError }, POLICY, 0)
            .expect("live")
            .0;
    }
    assert_eq!((task.user_failures, task.infrastructure_failures), (0, 3));
    assert!(matches!(task.state, State::Ready { not_before: 1.., .. }), "it waits before it is tried again");
    for n in 4..=6 {
        task = task.step(Event::Lease(lease(n)), POLICY, 0).expect("ready").0;
        task = task
            .step(Event::Complete { token: token(n), outcome: Outcome::Failed }, POLICY, 0)
            .expect("live")
            .0;
    }
    assert_eq!(task.state, State::Done(Outcome::Failed));
    assert_eq!(task.attempt, 6);
}

#[test]
fn a_cancelled_running_task_stops_and_ends_as_cancelled_whatever_the_attempt_says() {
    let (asked, effect) = leased(1).step(Event::Cancel, POLICY, 0).expect("running");
    assert_eq!(effect, Some(Effect::Stop(lease(1))));
    for end in
        [Event::Expire { token: token(1) }, Event::Complete { token: token(1), outcome: Outcome::Failed }]
    {
        let (done, effect) = asked.step(end, POLICY, 0).expect("live");
        assert_eq!(effect, Some(Effect::Finish(Outcome::Cancelled)));
        assert_eq!(done.state, State::Done(Outcome::Cancelled));
    }
    let won = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
    assert_eq!(asked.step(won, POLICY, 0).expect("live").0.state, State::Done(Outcome::Succeeded));
}

#[test]
fn only_a_done_task_can_be_retried_and_its_failures_are_forgiven() {
    assert_eq!(leased(1).step(Event::Retry, POLICY, 0), Err(Refusal::NotDone));
    let done = leased(1)
        .step(Event::Complete { token: token(1), outcome: Outcome::Cancelled }, POLICY, 0)
        .expect("live")
        .0;
    let (again, effect) = done.step(Event::Retry, POLICY, 9).expect("done");
    assert_eq!(effect, Some(Effect::Publish));
    assert_eq!((again.user_failures, again.attempt, again.ready_at), (0, 1, 9));
}

#[test]
fn a_task_whose_message_is_handed_back_waits_to_be_published_again_and_no_failure_is_counted() {
    for ready in [Progress::new(0), Progress::adopted(0)] {
        let (back, effect) = ready.step(Event::HandBack { not_before: 7 }, POLICY, 5).expect("ready");
        assert_eq!(effect, None);
        let waits = State::Ready { published: false, not_before: 7 };
        assert_eq!(back, Progress { state: waits, version: ready.version + 1, ..ready });
    }
    assert_eq!(leased(1).step(Event::HandBack { not_before: 0 }, POLICY, 5), Err(Refusal::NotReady));
}

fn any_event() -> impl Strategy<Value = Event> {
    let outcomes = prop::sample::select(Outcome::ALL.to_vec());
    prop_oneof![
        Just(Event::Publish),
        Just(Event::Unpublish),
        (0..20i64).prop_map(|not_before| Event::HandBack { not_before }),
        (0..6u8).prop_map(|n| Event::Lease(lease(n))),
        (0..6u8).prop_map(|n| Event::Renew { token: token(n), deadline: 1 }),
        (0..6u8).prop_map(|n| Event::Expire { token: token(n) }),
        (0..6u8, outcomes).prop_map(|(n, outcome)| Event::Complete { token: token(n), outcome }),
        Just(Event::Cancel),
        Just(Event::Retry),
    ]
}

proptest! {
    #[test]
    fn no_run_of_events_finishes_a_task_twice_or_without_a_live_token(events in prop::collection::vec(any_event(), 1..60)) {
        let mut task = Progress::new(0);
        for event in events {
            let before = task.clone();
            let Ok((after, effect)) = before.step(event.clone(), POLICY, 10) else { continue };
            prop_assert_eq!(after.version, before.version + 1);
            if let Some(Effect::Finish(outcome)) = &effect {
                prop_assert!(!matches!(before.state, State::Done(_)), "a done task finished again");
                prop_assert_eq!(&after.state, &State::Done(*outcome));
            }
            if let Event::Complete { token, .. } | Event::Expire { token } = &event {
                prop_assert_eq!(before.lease().map(|l| &l.token), Some(token));
            }
            prop_assert!(after.user_failures <= POLICY.max_attempts);
            prop_assert!(after.infrastructure_failures <= POLICY.max_infrastructure_failures);
            if matches!(before.state, State::Done(_)) && event != Event::Retry {
                prop_assert!(false, "only a retry changes a done task");
            }
            task = after;
        }
    }
}
