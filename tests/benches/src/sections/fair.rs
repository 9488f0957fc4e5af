//! Fair shares: how long the tasks of many small projects wait for a worker while one large project has filled the pool.

use std::time::{Duration, Instant};

use codering_tests::{Fleet, wait_for};
use futures::future::join_all;
use serde_json::json;

use super::{
    BACKENDS, Section,
    flow::{simulated, submit_as},
};
use crate::{
    Bench,
    client::{self, Client},
    measure::{grouped, p50_p99},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "fair", about: "waits of 49 small projects beside a large one", run };

const SMALL: usize = 49;
const WORKERS: usize = 2;
const SLOTS: u32 = 16;
/// What each task does: long enough that the workers are what is short, and not brokerd. No two real tasks take the same
/// time; if they did, all slots would be freed in the same moment, and who comes just after it would wait for the next.
const TASK: &str = "sleep 25ms-75ms";
/// A small project submits a job this often on average.
const EVERY: Duration = Duration::from_secs(2);
const MOST_TASKS: u64 = 3;
/// The large project's tasks are on their queue within this.
const QUEUED: Duration = Duration::from_secs(120);
/// How much longer than alone they may wait.
const ASKED: f64 = 2.0;

fn run(bench: &Bench) -> Vec<Row> {
    let large = bench.size(100_000, 20_000);
    let period = bench.size(Duration::from_secs(20), Duration::from_secs(8));
    let runtime = client::runtime();
    let mut rows = Vec::new();
    for (name, backend) in BACKENDS {
        let fleet = simulated(backend, WORKERS, SLOTS);
        let client = runtime.block_on(prepare(&fleet));
        let alone = runtime.block_on(waits(&client, period));
        submit_as(&fleet, large, TASK);
        let meanwhile = runtime.block_on(waits(&client, period / 4));
        let mut waiting = 0;
        wait_for("its tasks are on their queue", QUEUED, || {
            let before = std::mem::replace(&mut waiting, fleet.waiting("demo.todo"));
            (waiting < before).then_some(())
        });
        let beside = runtime.block_on(waits(&client, period));
        let left = fleet.waiting("demo.todo");
        assert!(left > 0, "the large project was done before the small ones");
        fleet.stop();
        let ((middle, high), (middle_alone, high_alone)) = (p50_p99(&beside), p50_p99(&alone));
        let (_, high_meanwhile) = p50_p99(&meanwhile);
        rows.push(
            Row::new(
                format!(
                    "wait from queued to leased in {SMALL} small projects, one pool with one that has {} queued, {name}",
                    grouped(large as f64)
                ),
                format!(
                    "p50 {middle:.0} ms, p99 {high:.0} ms, {:.1} times; p99 {high_meanwhile:.0} ms while its tasks came",
                    high / high_alone
                ),
            )
            .beside(format!("p50 {middle_alone:.0} ms, p99 {high_alone:.0} ms without the large one"))
            .asked(format!("p99 {ASKED} times"), high <= ASKED * high_alone)
            .from(json!({ "backend": name, "large": large, "tasks": beside.len(), "tasks_alone": alone.len(),
                "p50_ms": middle, "p99_ms": high, "p99_meanwhile_ms": high_meanwhile, "p50_alone_ms": middle_alone, "p99_alone_ms": high_alone })),
        );
    }
    rows
}

fn project(number: usize) -> String {
    format!("small-{number}")
}

async fn prepare(fleet: &Fleet) -> Client {
    let client = Client::connect(fleet).await;
    for number in 0..SMALL {
        client.create_project(&project(number)).await;
    }
    client
}

/// What each task of the small projects waited, in milliseconds, which is how brokerd tells it.
async fn waits(client: &Client, period: Duration) -> Vec<f64> {
    let end = Instant::now() + period;
    let all = join_all((0..SMALL).map(|number| one_project(client, number, end))).await;
    all.into_iter().flatten().collect()
}

/// The same pauses and jobs in each run.
async fn one_project(client: &Client, number: usize, end: Instant) -> Vec<f64> {
    let mut random = Random(number as u64 + 1);
    let mut jobs = Vec::new();
    loop {
        let pause = EVERY.mul_f64(2.0 * random.below(1000) as f64 / 1000.0);
        tokio::time::sleep(pause).await;
        if Instant::now() >= end {
            break;
        }
        jobs.push(client.submit(&project(number), 1 + random.below(MOST_TASKS), TASK).await);
    }
    let mut waits = Vec::new();
    for job in jobs {
        client.ended(&job).await;
        let results = client.results(&job).await;
        waits.extend(results.iter().map(|result| result.phases.unwrap_or_default().queued_ms as f64));
    }
    waits
}

/// A sequence that looks random (a linear congruential generator).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
