//! What a task costs, and what brokerd holds in memory, by how many tasks are queued.

use std::{
    pin::pin,
    thread::sleep,
    time::{Duration, Instant},
};

use codering_tests::{Backend, Fleet};
use futures::StreamExt;
use serde_json::json;

use super::{
    BACKENDS, Section,
    flow::{each_worker, simulated, submit},
    watch::{self, Watched},
};
use crate::{
    Bench,
    client::{self, Client},
    measure::{Usage, grouped, median_of, megabytes},
    table::Row,
};

/// See the module.
pub const SECTION: Section = Section {
    name: "backlog",
    about: "cost per task, brokerd's memory and watch, by the number of queued tasks",
    run,
};

/// Tasks of one sample, and how many samples.
const WINDOW: u64 = 10_000;
const WINDOWS: u64 = 3;
/// Between two looks at the queue, each of which starts a coderingctl.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Tasks before the first sample.
const WARM_UP: u64 = 1_000;
const SLOTS: u32 = 64;
const MOST_TASKS_OF_A_JOB: u64 = 1_000_000;
/// How long a job that lasts is worked on before it is watched.
const WARM: Duration = Duration::from_secs(5);
/// How much more a task may cost with most queued than with least.
const ASKED: f64 = 1.2;
const RESIDENT: u64 = 150_000_000;
const BOUND: Duration = Duration::from_secs(900);

fn run(bench: &Bench) -> Vec<Row> {
    let sizes: &[u64] = bench.size(&[10_000, 100_000, 1_000_000], &[10_000, 100_000]);
    let mut rows = Vec::new();
    for (name, backend) in BACKENDS {
        let mut measured: Vec<_> = sizes.iter().map(|queued| measure(bench, backend, *queued)).collect();
        // Minutes later the machine is not what it was: what others are compared with is measured at both ends.
        let again = measure(bench, backend, sizes[0]);
        measured[0].us = f64::midpoint(measured[0].us, again.us);
        measured[0].cpu_us = f64::midpoint(measured[0].cpu_us, again.cpu_us);
        let [least, .., most] = &measured[..] else { panic!("two sizes are compared") };
        for one in &measured {
            let times = one.us / least.us;
            let row = Row::new(
                format!("cost of a no-op task with {} queued, {name}", grouped(one.queued as f64)),
                format!(
                    "{:.0} µs, {times:.2} times; {:.0} µs of brokerd's CPU; queued at {} a second",
                    one.us,
                    one.cpu_us,
                    grouped(one.queued_per_second)
                ),
            )
            .from(json!({ "backend": name, "queued": one.queued, "us_per_task": one.us,
                "cpu_us_per_task": one.cpu_us, "times": times, "queued_per_second": one.queued_per_second }));
            rows.push(match std::ptr::eq(one, most) {
                true => row.asked(
                    format!("{ASKED} times that with {}", grouped(least.queued as f64)),
                    times <= ASKED,
                ),
                false => row,
            });
        }
        rows.push(
            Row::new(
                format!("brokerd's memory with {} queued, {name}", grouped(most.queued as f64)),
                format!(
                    "{} resident, {} at most so far",
                    megabytes(most.usage.resident),
                    megabytes(most.usage.peak)
                ),
            )
            .asked("150 MB", most.usage.resident <= RESIDENT)
            .from(json!({ "backend": name, "queued": most.queued, "resident": most.usage.resident,
                "anonymous": most.usage.anonymous, "peak": most.usage.peak })),
        );
        rows.push(watch::row(name, &least.watched, &most.watched));
    }
    rows
}

struct Measured {
    queued: u64,
    us: f64,
    cpu_us: f64,
    queued_per_second: f64,
    usage: Usage,
    watched: Watched,
}

/// On a fleet of its own. Half of what is measured ends while more than `queued` wait, the other half while fewer do.
fn measure(bench: &Bench, backend: Backend, queued: u64) -> Measured {
    let fleet = simulated(backend, 1, SLOTS);
    let runtime = client::runtime();
    let client = runtime.block_on(Client::connect(&fleet));
    // A small backlog does not last for all samples: each has one of its own.
    let windows = bench.size(WINDOWS, 1);
    let lasts = queued >= WINDOW * WINDOWS;
    let (jobs, windows) = if lasts { (1, windows) } else { (windows, 1) };
    let tasks = (queued + WINDOW * windows / 2 + WARM_UP).min(MOST_TASKS_OF_A_JOB);
    let (mut samples, mut last) = (Vec::new(), None);
    for _ in 0..jobs {
        let job = queue(&fleet, tasks);
        let usage = Usage::of(fleet.broker_id());
        samples.extend(runtime.block_on(sample(&client, &fleet, &job.id, windows)));
        if !lasts {
            runtime.block_on(client.ended(&job.id));
        }
        last = Some((job, usage));
    }
    let (job, usage) = last.expect("a job was submitted");
    let watched = match lasts {
        true => watch::measure(&fleet, &job.id, tasks, WARM),
        false => watch::measure(&fleet, &queue(&fleet, tasks).id, tasks, Duration::ZERO),
    };
    fleet.stop();
    Measured {
        queued,
        us: median_of(&samples, |sample| sample.us),
        cpu_us: median_of(&samples, |sample| sample.cpu_us),
        queued_per_second: job.queued_per_second,
        usage,
        watched,
    }
}

struct Queued {
    id: String,
    queued_per_second: f64,
}

/// Submits a job while nobody takes its tasks, and waits until the last of them is on the queue.
fn queue(fleet: &Fleet, tasks: u64) -> Queued {
    each_worker(fleet, 1, "pause");
    let id = submit(fleet, tasks);
    let waiting = || fleet.waiting("demo.todo");
    let (before, began) = (waiting(), Instant::now());
    while waiting() < tasks {
        assert!(began.elapsed() < BOUND, "not all tasks are queued");
        sleep(LOOK_EVERY);
    }
    let queued_per_second = (tasks - before) as f64 / began.elapsed().as_secs_f64();
    Queued { id, queued_per_second }
}

struct Sample {
    us: f64,
    cpu_us: f64,
}

/// Lets the job run and tells, for each window, what its tasks took.
async fn sample(client: &Client, fleet: &Fleet, job: &str, windows: u64) -> Vec<Sample> {
    let cpu = || Usage::of(fleet.broker_id()).cpu.as_secs_f64();
    let mut events = pin!(client.watch(job).await);
    let mut samples = Vec::new();
    let mut began = None;
    each_worker(fleet, 1, "resume");
    while samples.len() < windows as usize {
        let heard = events.next().await.expect("the job goes on");
        let Some((at, done, used)) = began else {
            began = (heard.done >= WARM_UP).then(|| (heard.at, heard.done, cpu()));
            continue;
        };
        // The last one of a job that was just large enough.
        if heard.done - done >= WINDOW || heard.over {
            let (tasks, now) = ((heard.done - done) as f64, cpu());
            let us = heard.at.duration_since(at).as_secs_f64() / tasks * 1e6;
            samples.push(Sample { us, cpu_us: (now - used) / tasks * 1e6 });
            began = Some((heard.at, heard.done, now));
        }
        assert!(!heard.over || samples.len() == windows as usize, "{job} ended before it was measured");
    }
    samples
}
