//! Output on its way while it is written: from its beginning on each new stream, for the broker drops what it has.

use std::sync::Arc;

use codering_proto::v1::{self, FromWorker, from_worker::Message};
use tokio::sync::mpsc;

use crate::{held::Held, output::Stream};

/// Bytes of one message.
const CHUNK: usize = 32 << 10;

/// Sends an attempt's output as it grows, until the stream is gone.
pub(super) async fn pump(held: Arc<Held>, to: mpsc::Sender<FromWorker>) {
    let mut grown = held.capture.grown();
    let mut sent = [0_usize; 2];
    loop {
        // Marked as seen before it is read, so that no growth is missed.
        grown.mark_unchanged();
        let mut more = true;
        while more {
            more = false;
            for stream in Stream::BOTH {
                let offset = &mut sent[stream as usize];
                let data = held.capture.read(stream, *offset, CHUNK);
                if data.is_empty() {
                    continue;
                }
                more = true;
                let message = v1::LogData {
                    token: held.token.to_string(),
                    stream: wire(stream) as i32,
                    offset: *offset as u64,
                    data: data.into(),
                };
                *offset += message.data.len();
                if to.send(FromWorker { message: Some(Message::Log(message)) }).await.is_err() {
                    return;
                }
            }
        }
        if grown.changed().await.is_err() {
            return;
        }
    }
}

fn wire(stream: Stream) -> v1::LogStream {
    match stream {
        Stream::Stdout => v1::LogStream::Stdout,
        Stream::Stderr => v1::LogStream::Stderr,
    }
}
