//! Random scripts, the same for the same seed.

use codering_core::{Outcome, task::LONGEST_PAUSE_MS};

use super::world::{Step, TASKS, WORKERS};

/// SplitMix64: small, fast without optimisation, and good enough to choose steps.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// How often each kind of step comes, and how it is made.
type Choice = (usize, fn(&mut Random) -> Step);

const CHOICES: &[Choice] = &[
    (3, |r| Step::Submit(key(r))),
    (1, |r| Step::Cancel(key(r))),
    (2, |r| Step::Retry(key(r))),
    (1, |r| Step::Pause(r.below(2) == 0)),
    (6, |_| Step::Publish),
    (6, |_| Step::Take),
    (3, |_| Step::Expire),
    (2, |_| Step::Reconcile),
    (40, |r| Step::Broker(r.below(64))),
    (6, |r| Step::Stall(r.below(3))),
    (2, |_| Step::GoOn),
    (12, |_| Step::Drain),
    (4, |r| Step::Attach(r.below(WORKERS))),
    (1, |r| Step::Cut(r.below(WORKERS))),
    (5, |r| Step::Beat(r.below(WORKERS))),
    (6, |r| Step::Finish(r.below(WORKERS), r.below(2), outcome(r))),
    (6, |r| Step::Report(r.below(WORKERS))),
    (10, |r| Step::Hear(r.below(WORKERS))),
    (10, |r| Step::Speak(r.below(WORKERS))),
    (12, |r| Step::Talk(r.below(WORKERS))),
    (3, |r| Step::Late(r.below(64))),
    (1, |r| Step::KillWorker(r.below(WORKERS))),
    (2, |r| Step::StartWorker(r.below(WORKERS))),
    (1, |_| Step::KillBroker),
    (1, |_| Step::Wipe),
    (1, |r| Step::Lose(r.below(64))),
    (1, |r| Step::Duplicate(r.below(64))),
    (1, |_| Step::Turn),
    (8, |r| Step::Wait(u8::try_from(1 + r.below(60)).unwrap())),
    (1, |r| Step::Jump([3_600_000, -3_600_000][r.below(2)])),
    // Every pause is over.
    (4, |_| Step::Jump(LONGEST_PAUSE_MS)),
];

fn key(r: &mut Random) -> u8 {
    u8::try_from(r.below(usize::from(TASKS))).unwrap()
}

fn outcome(r: &mut Random) -> Outcome {
    match r.below(8) {
        0..=2 => Outcome::Succeeded,
        3..=4 => Outcome::Failed,
        5..=6 => Outcome::InfrastructureError,
        _ => Outcome::ALL[r.below(Outcome::ALL.len())],
    }
}

/// Up to 400 steps.
pub fn random(r: &mut Random) -> Vec<Step> {
    let all: usize = CHOICES.iter().map(|(weight, _)| weight).sum();
    let mut script = Vec::new();
    for _ in 0..1 + r.below(400) {
        let mut at = r.below(all);
        for (weight, make) in CHOICES {
            if at < *weight {
                script.push(make(r));
                break;
            }
            at -= weight;
        }
    }
    script
}
