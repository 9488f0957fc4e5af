//! A fuzz target: a job file in TOML, and an error shown at its place in it.

use crate::jobfile::Written;

/// Any bytes.
pub fn job_file_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = std::env::temp_dir().join(format!("codering-fuzz-{}-job.toml", std::process::id()));
    std::fs::write(&file, text).expect("written");
    let read = Written::read(&file);
    std::fs::remove_file(&file).expect("removed");
    match read {
        Err(error) => {
            assert!(error.to_string().len() < 16 << 10, "an error of {} bytes", error.to_string().len())
        }
        Ok(written) => {
            if let Err(error) = written.job.clone().job(None) {
                let shown = written.locate(error);
                assert!(shown.to_string().len() < 16 << 10, "an error of {} bytes", shown.to_string().len());
            }
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
#[cfg(test)]
replay::replayed!(job_file_toml);
