//! A start on a full disk waits for room: what would be tried again every second by systemd is tried again here, and
//! says once why.

use std::time::Duration;

use codering_core::{Code, Error};
use codering_kit::notify;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// What systemd is asked for each time.
const LONGER: Duration = Duration::from_secs(30);

/// Tries until it works, or fails for another reason than a full disk.
pub(super) async fn waited_for<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut told = false;
    loop {
        let error = match Box::pin(attempt()).await {
            Ok(done) => {
                if told {
                    tracing::info!("there is room: starting");
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        if !matches!(error.code, Code::LedgerFull | Code::QueueDiskFull) {
            return Err(error);
        }
        if !told {
            tracing::error!(%error, "waiting for room on the disk");
            told = true;
        }
        notify::status(&format!("waiting for room on the disk: {error}"));
        notify::longer(LONGER);
        tokio::time::sleep(AGAIN).await;
    }
}
