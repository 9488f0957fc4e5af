//! Replays the kept corpus of fuzz targets in ordinary tests, so that what was found once is found again at once, without a
//! fuzzer. Each crate with parsers includes this file in its `fuzz.rs`.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// No input of a few kilobytes may take longer, on a machine that is busy with other tests too.
const LONGEST: Duration = Duration::from_secs(20);

/// Hands every kept input of `name` to `target`.
pub fn replay(name: &str, target: fn(&[u8])) {
    let dir = corpus().join(name);
    let mut inputs: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("listed").path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} holds no input", dir.display());
    for input in inputs {
        let data = std::fs::read(&input).expect("read");
        // Shown when it fails.
        eprintln!("{}", input.display());
        let began = Instant::now();
        target(&data);
        let took = began.elapsed();
        assert!(took < LONGEST, "{} took {took:?}", input.display());
    }
}

fn corpus() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here.ancestors().map(|dir| dir.join("fuzz/corpus")).find(|dir| dir.is_dir());
    found.expect("fuzz/corpus is above every crate")
}

/// One test for each target named.
macro_rules! replayed {
    ($($target:ident),* $(,)?) => {
        mod every_kept_input_is_taken_by {
            $(#[test] fn $target() { super::replay::replay(stringify!($target), super::$target) })*
        }
    };
}
pub(super) use replayed;
