//! From the call that submits a task to the moment when a worker begins it, with nothing else to do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{BACKENDS, Section, flow::simulated};
use crate::{
    Bench,
    client::{self, Client},
    measure::{p50_p99, time},
    table::Row,
};

/// See the module.
pub const SECTION: Section = Section { name: "dispatch", about: "submit to started on an idle system", run };

const BOUND: f64 = 0.025;
/// Samples that only warm up.
const FIRST: usize = 5;

fn run(bench: &Bench) -> Vec<Row> {
    let samples = bench.size(200, 40);
    let runtime = client::runtime();
    let mut rows = Vec::new();
    for (name, backend) in BACKENDS {
        let fleet = simulated(backend, 1, 4);
        let mut latencies = runtime.block_on(async {
            let client = Client::connect(&fleet).await;
            let mut latencies = Vec::new();
            for _ in 0..FIRST + samples {
                latencies.push(latency(&client).await);
            }
            latencies
        });
        fleet.stop();
        let latencies = latencies.split_off(FIRST);
        let (middle, high) = p50_p99(&latencies);
        rows.push(
            Row::new(
                format!("from submit to started, idle, {name}, {samples} times"),
                format!("p50 {}, p99 {}", time(middle), time(high)),
            )
            .asked("p99 25 ms", high <= BOUND)
            .from(json!({ "backend": name, "samples": samples, "p50_s": middle, "p99_s": high,
                "latencies_s": latencies })),
        );
    }
    rows
}

/// One job of one task. To hear of its end takes a tenth of a second, so that all is at rest again before the next.
async fn latency(client: &Client) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let job = client.submit("demo", 1, "true").await;
    client.ended(&job).await;
    let [result] = &client.results(&job).await[..] else { panic!("one task has one result") };
    // The worker tells whole milliseconds, the last one cut off: counted as if it were over.
    let started = Duration::from_millis(result.started_at_ms.unsigned_abs() + 1);
    started.checked_sub(now).expect("it starts after it was submitted").as_secs_f64()
}
