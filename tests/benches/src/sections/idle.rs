//! Daemons with nothing to do.

use std::{thread::sleep, time::Duration};

use serde_json::json;

use super::{BACKENDS, Section, flow::simulated};
use crate::{
    Bench,
    measure::{Usage, megabytes},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "idle", about: "memory, CPU and wake-ups of daemons at rest", run };

/// What a start leaves to be done is over by then.
const SETTLED: Duration = Duration::from_secs(5);
const RESIDENT: u64 = 30_000_000;
const BUSY_PERCENT: f64 = 0.5;

fn run(bench: &Bench) -> Vec<Row> {
    let watched = bench.size(Duration::from_secs(60), Duration::from_secs(10));
    let mut rows = Vec::new();
    for (name, backend) in BACKENDS {
        let fleet = simulated(backend, 1, 4);
        sleep(SETTLED);
        let daemons = [("brokerd", fleet.broker_id()), ("workerd", fleet.worker_id(0))];
        let before = daemons.map(|(_, id)| Usage::of(id));
        sleep(watched);
        for ((daemon, id), before) in daemons.into_iter().zip(before) {
            let now = Usage::of(id);
            let percent = (now.cpu - before.cpu).as_secs_f64() / watched.as_secs_f64() * 100.0;
            let wakes = (now.switches - before.switches) as f64 / watched.as_secs_f64();
            rows.push(
                Row::new(
                    format!("{daemon} at rest, {name}"),
                    format!(
                        "{} resident, {} of it its own; {percent:.2} % of a core, {wakes:.1} wake-ups a second",
                        megabytes(now.resident),
                        megabytes(now.anonymous)
                    ),
                )
                .asked("30 MB, 0.5 % of a core", now.resident <= RESIDENT && percent <= BUSY_PERCENT)
                .from(json!({ "daemon": daemon, "backend": name, "resident": now.resident, "anonymous": now.anonymous,
                    "peak": now.peak, "cpu_percent": percent, "wakeups_per_second": wakes })),
            );
        }
        fleet.stop();
    }
    rows
}
