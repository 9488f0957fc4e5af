//! Time, medians, and what the kernel says of a process.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long this took.
pub fn took<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed(), done)
}

/// The middle one.
pub fn median(figures: &[f64]) -> f64 {
    percentile(figures, 50.0)
}

/// The middle one of what each of them says.
pub fn median_of<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    median(&rounds.iter().map(figure).collect::<Vec<_>>())
}

/// The figures that half of all do not exceed, and 99 percent.
pub fn p50_p99(figures: &[f64]) -> (f64, f64) {
    (median(figures), percentile(figures, 99.0))
}

/// The figure that so many percent of all do not exceed (nearest rank).
pub fn percentile(figures: &[f64], percent: f64) -> f64 {
    assert!(!figures.is_empty(), "nothing was measured");
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Runs both sides by turns, `rounds` times each, and gives the medians: the machine's moods meet both.
pub fn side_by_side(
    rounds: usize,
    mut ours: impl FnMut() -> f64,
    mut peer: impl FnMut() -> f64,
) -> (f64, f64) {
    let (ours, peers): (Vec<_>, Vec<_>) = (0..rounds).map(|_| (ours(), peer())).unzip();
    (median(&ours), median(&peers))
}

/// A process as the kernel sees it.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Processor time in user and kernel mode.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// What of it is its own: neither files nor shared.
    pub anonymous: u64,
    /// The most that was resident so far, in bytes.
    pub peak: u64,
    /// How often its threads gave the processor away by themselves: each is a wake-up later.
    pub switches: u64,
}

impl Usage {
    /// Of a running process.
    pub fn of(process: u32) -> Self {
        let stat = read(&format!("/proc/{process}/stat"));
        // The name in parentheses may hold anything; the fields after it are counted from its end.
        let after = stat.rsplit_once(')').expect("a name").1;
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
        let cpu = Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        let status = read(&format!("/proc/{process}/status"));
        let kilobytes = |name| field(&status, name) * 1024;
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a running process").flatten();
        let switches = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|status| field(&status, "voluntary_ctxt_switches"))
            .sum();
        Self {
            cpu,
            resident: kilobytes("VmRSS"),
            anonymous: kilobytes("RssAnon"),
            peak: kilobytes("VmHWM"),
            switches,
        }
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("/proc says nothing of {name}"))
}

/// What a reader of the figures has to know of the machine.
pub fn machine() -> Value {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let mounts = read("/proc/mounts");
    let temporary = std::env::temp_dir();
    // The last of those that fit best: it lies over the others.
    let file_system = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(place, _)| temporary.starts_with(place))
        .max_by_key(|(place, _)| place.len())
        .map(|(_, kind)| kind);
    json!({
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "model": model.map(|(_, name)| name),
        "memory_bytes": field(&read("/proc/meminfo"), "MemTotal") * 1024,
        "file_system": file_system,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// 12,345
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// 12.3 MB
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// 1.23 s or 12.3 ms.
pub fn time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}
