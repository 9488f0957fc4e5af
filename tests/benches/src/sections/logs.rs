//! A task that writes without end, and what the daemons and others' tasks have of it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use codering_core::time::from_rfc3339;
use codering_tests::{Backend, Fleet, Setup, rest};
use serde_json::{Value, json};

use super::{Section, real};
use crate::{
    Bench,
    measure::{Usage, megabytes, p50_p99, time},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "logs", about: "one task writing 100 MB/s, and the others", run };

/// What it writes in a second, in pieces of 1 MB, if the way takes it.
const RATE_MB: u64 = 100;
const OUTPUT_BYTES: usize = 1 << 20;
/// What each daemon may have taken more at most than before.
const GROWTH: u64 = 32 << 20;
/// What a small task's wait may be in any case, in seconds: the bound of an idle system.
const UNHARMED: f64 = 0.025;
const EVERY: Duration = Duration::from_millis(50);

fn run(bench: &Bench) -> Vec<Row> {
    let seconds = bench.size(20, 8);
    let mut fleet = fleet();
    // Everything has been used once before memory is looked at.
    let flood = flood(&fleet, 1);
    real::finished(&fleet, &flood);
    let alone = waits(&fleet, Duration::from_secs(seconds));
    let daemons = [("brokerd", fleet.broker_id()), ("workerd", fleet.worker_id(0))];
    let before = daemons.map(|(_, id)| Usage::of(id));
    let job = self::flood(&fleet, seconds + 5);
    let running = || fleet.json(&["job", "show", &job])["tasks"]["running"] == 1;
    codering_tests::wait_for("it writes", Duration::from_secs(60), || running().then_some(()));
    let beside = waits(&fleet, Duration::from_secs(seconds));
    assert!(running(), "it ended before the others were measured");
    real::finished(&fleet, &job);
    let after = daemons.map(|(_, id)| Usage::of(id));
    let result = fleet.results(&job).remove(0);
    fleet.end_worker(1);
    fleet.stop();

    let wrote: f64 =
        result["stderr"].as_str().and_then(|text| text.trim().parse().ok()).expect("what it wrote a second");
    let kept = result["stdout"].as_str().expect("a text").len();
    let honoured =
        kept == OUTPUT_BYTES && result["stdout_truncated"] == true && result["outcome"] == "succeeded";
    let growth: Vec<_> =
        before.iter().zip(&after).map(|(before, after)| after.peak.saturating_sub(before.resident)).collect();
    let ((p50, p99), (p50_alone, p99_alone)) = (p50_p99(&beside), p50_p99(&alone));
    vec![
        Row::new(
            format!("one task writing {wrote:.0} MB/s: growth of brokerd and workerd"),
            format!("{} and {}; {kept} B kept", megabytes(growth[0]), megabytes(growth[1])),
        )
        .asked("32 MiB each; its limit of 1 MiB honoured", growth.iter().all(|g| *g <= GROWTH) && honoured)
        .from(json!({ "mb_per_second": wrote, "brokerd_growth": growth[0], "workerd_growth": growth[1], "kept": kept,
            "brokerd_cpu_s": (after[0].cpu - before[0].cpu).as_secs_f64(),
            "workerd_cpu_s": (after[1].cpu - before[1].cpu).as_secs_f64(), "brokerd_peak": after[0].peak,
            "workerd_peak": after[1].peak })),
        Row::new(
            "others' tasks beside it, submit to recorded result (simulated)",
            format!("p50 {}, p99 {}", time(p50), time(p99)),
        )
        .beside(format!("p50 {}, p99 {} without it", time(p50_alone), time(p99_alone)))
        .asked("p99 twice what it is alone, or 25 ms", p99 <= UNHARMED.max(2.0 * p99_alone))
        .from(json!({ "p50_s": p50, "p99_s": p99, "p50_alone_s": p50_alone, "p99_alone_s": p99_alone, "tasks": beside.len() })),
    ]
}

/// One real worker and one that only pretends, told apart by a label.
fn fleet() -> Fleet {
    let mut setup = Setup::new(Backend::Embedded, 2);
    setup.broker = String::new();
    let mut fleet = Fleet::prepare(setup);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.setup().worker = "labels = { kind = 'real' }".into();
    fleet.start_worker(0);
    fleet.setup().worker = "labels = { kind = 'simulated' }\nsimulate.enabled = true".into();
    fleet.start_worker(1);
    fleet.wait_for_workers();
    fleet
}

/// It says on its standard error how many MB a second it could write.
fn flood(fleet: &Fleet, seconds: u64) -> String {
    let git = format!("file://{}", fleet.directory().join("flood").display());
    if !fleet.directory().join("flood").exists() {
        real::repository(fleet, "flood");
    }
    let program = format!(
        "import os,sys,time\npiece=(b'x'*99+b'\\n')*10000\nbegan=time.monotonic()\nwrote=0\n\
         while time.monotonic()<began+{seconds}:\n\
         \x20if wrote>(time.monotonic()-began)*{RATE_MB}: time.sleep(.005)\n\
         \x20else:\n\
         \x20 os.writev(1,[piece])\n\x20 wrote+=1\n\
         sys.stderr.write(str(wrote/(time.monotonic()-began)))"
    );
    let job = json!({ "project": "demo", "name": "flood", "git": git, "command": ["python3", "-c", program],
        "labels": { "kind": "real" }, "limits": { "output": OUTPUT_BYTES, "timeout": "5m" } });
    submitted(fleet, &job)
}

fn submitted(fleet: &Fleet, job: &Value) -> String {
    let (status, answer) = rest::call(fleet, "POST", "/api/v1/jobs", Some(job.to_string().as_bytes()));
    assert_eq!(status, 201, "{answer}");
    let job: Value = serde_json::from_str(&answer).expect("JSON");
    job["job_id"].as_str().expect("an id").to_owned()
}

/// Small jobs, one after the other for so long: from submit to the recorded result by the broker's clock, in seconds.
fn waits(fleet: &Fleet, during: Duration) -> Vec<f64> {
    let job = json!({ "project": "demo", "git": "https://localhost/none.git", "command": "true",
        "labels": { "kind": "simulated" } });
    let began = Instant::now();
    let mut waits = Vec::new();
    while began.elapsed() < during {
        let place = format!("/api/v1/jobs/{}", submitted(fleet, &job));
        // The events of a job end with the job, but come at a pace of their own.
        rest::call(fleet, "GET", &format!("{place}/events"), None);
        let (_, job) = rest::call(fleet, "GET", &place, None);
        let job: Value = serde_json::from_str(&job).expect("JSON");
        assert_eq!(job["state"], "succeeded", "{job}");
        let at = |name: &str| {
            job[name].as_str().and_then(from_rfc3339).unwrap_or_else(|| panic!("{name} in {job}"))
        };
        waits.push((at("finished_at") - at("created_at")) as f64 / 1e3);
        sleep(EVERY);
    }
    waits
}
