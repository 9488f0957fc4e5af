//! `codering.v1.Ledger`.

use bytes::Bytes;
use codering_core::{Code, Error};
use codering_proto::v1::{self, ledger_server::Ledger};
use futures::{Stream, stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tonic::{Request, Response, Status, async_trait};

use super::{Answers, streamed, unary};
use crate::{api::views, ledger::Snapshot};

/// Bytes of one piece of a backup.
const PIECE: usize = 256 << 10;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Ledger for Service {
    type BackupStream = Answers<v1::BackupPiece>;

    async fn check(
        &self,
        request: Request<v1::CheckLedgerRequest>,
    ) -> Result<Response<v1::LedgerReport>, Status> {
        unary(request, |call, _| async move {
            let report = call.everywhere()?.audit_ledger().await?;
            if !report.problems.is_empty() {
                tracing::error!(problems = ?report.problems, "the ledger is damaged");
            }
            Ok(views::ledger_report(report))
        })
        .await
    }

    async fn backup(
        &self,
        request: Request<v1::BackupLedgerRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        streamed(request, |call, _| async move {
            let snapshot = call.everywhere()?.snapshot().await?;
            // It holds all that users ever sent: who has it should be known.
            tracing::warn!(
                token = call.shown(), from = %call.peer().address, bytes = snapshot.bytes,
                "a backup of the ledger is given out"
            );
            pieces(snapshot).await
        })
        .await
    }
}

/// The length, the bytes, and at last the checksum.
async fn pieces(
    snapshot: Snapshot,
) -> Result<impl Stream<Item = Result<v1::BackupPiece, Error>> + Send, Error> {
    let unread =
        |error: std::io::Error| Error::new(Code::Internal, format!("the snapshot cannot be read: {error}"));
    let total_bytes = snapshot.bytes;
    let mut file = tokio::fs::File::from_std(snapshot.file);
    file.rewind().await.map_err(unread)?;
    let head = v1::BackupPiece { total_bytes, ..Default::default() };
    let rest = stream::unfold(Some((file, Sha256::new())), move |state| async move {
        let (mut file, mut sum) = state?;
        let mut data = vec![0; PIECE];
        match file.read(&mut data).await {
            Err(error) => Some((Err(unread(error)), None)),
            Ok(0) => {
                let sha256 = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                Some((Ok(v1::BackupPiece { sha256, ..Default::default() }), None))
            }
            Ok(read) => {
                data.truncate(read);
                sum.update(&data);
                Some((
                    Ok(v1::BackupPiece { data: Bytes::from(data), ..Default::default() }),
                    Some((file, sum)),
                ))
            }
        }
    });
    Ok(futures::StreamExt::chain(stream::iter([Ok(head)]), rest))
}
