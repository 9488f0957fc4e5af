//! Fuzz targets: what must hold for any bytes that come over REST, lie on a queue, or stand in `brokerd.toml`.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::{api::rest, config::Config};

/// The first byte says whose body it is.
pub fn rest_body(data: &[u8]) {
    if let Some((which, body)) = data.split_first()
        && let Err(error) = rest::fuzz::body(*which, body)
    {
        assert!(error.to_string().len() < 64 << 10, "an error of {} bytes", error.to_string().len());
    }
}

/// A message that is shown to whoever takes it, whatever it is.
pub fn queue_message(data: &[u8]) {
    let shown = rest::fuzz::shown(data);
    let shown: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(&shown) {
        Ok(shown) => shown,
        // JSON, as it was put: as deep, and with numbers as large. How much of either a reader takes is the reader's.
        Err(error) => {
            let said = error.to_string();
            return assert!(
                said.contains("recursion limit") || said.contains("number out of range"),
                "{said}"
            );
        }
    };
    assert!(shown.contains_key("message"));
}

/// `brokerd.toml`.
pub fn brokerd_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = std::env::temp_dir().join(format!("codering-fuzz-{}-brokerd.toml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let loaded = Config::load(Some(&file));
    std::fs::remove_file(&file).unwrap();
    match loaded {
        Ok(config) => {
            let (usual, most) = (&config.settings.default_limits, &config.settings.max_limits);
            assert!(usual.timeout_ms <= most.timeout_ms && usual.memory_bytes <= most.memory_bytes);
            assert!(config.settings.lease.as_secs() >= 3 && config.settings.max_tasks_per_job > 0);
            assert!(config.rest_tls || config.rest.ip().is_loopback());
        }
        Err(error) => {
            assert!(error.to_string().len() < 8 << 10, "an error of {} bytes", error.to_string().len());
            assert_eq!(error.code, codering_core::Code::ConfigInvalid);
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
#[cfg(test)]
replay::replayed!(rest_body, queue_message, brokerd_config);
