//! Waiting for a daemon to be there, with a bound, and with the reason where it is not.

use std::{io, net::Ipv4Addr, time::Duration};

use codering_core::{Code, Error};
use codering_proto::v1::ListWorkersRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::daemon::Daemon;
use crate::{
    client::{Broker, said},
    context::Context,
};

/// How long the broker may take, on a machine that does other things too.
const BROKER_PATIENCE: Duration = Duration::from_secs(45);
/// How long workers may take; a broker without them is of use all the same.
const WORKER_PATIENCE: Duration = Duration::from_secs(45);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// For one look.
const LOOK: Duration = Duration::from_secs(5);
/// A daemon that ended this often before it was ready will not be.
const DEATHS: u32 = 3;

/// Waits until the broker says that it is ready.
pub async fn answers(broker: &Daemon, port: u16) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        if let Ok(Ok(true)) = timeout(LOOK, is_ready(port)).await {
            return Ok(());
        }
        died(broker)?;
        if began.elapsed() > BROKER_PATIENCE {
            return Err(Error::new(Code::TimedOut, "the broker did not become ready")
                .hint(format!("what it waits for: http://127.0.0.1:{port}/readyz")));
        }
        sleep(PAUSE).await;
    }
}

fn died(daemon: &Daemon) -> Result<(), Error> {
    if daemon.deaths() < DEATHS {
        return Ok(());
    }
    Err(Error::new(Code::Internal, format!("{} does not start", daemon.name()))
        .hint("its last lines above say why"))
}

/// Whether `GET /readyz` answers 200.
async fn is_ready(port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// Waits until every worker is connected. One that takes too long is noted and left to come later.
pub async fn connected(
    ctx: &Context,
    broker: &Broker,
    daemons: &[Daemon],
    names: &[String],
) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let workers = said(broker.workers().list(ListWorkersRequest {}).await)?.workers;
        let is_there =
            |name: &&String| workers.iter().any(|worker| worker.name == **name && worker.connected);
        let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        daemons.iter().try_for_each(died)?;
        if began.elapsed() > WORKER_PATIENCE {
            ctx.out.note(format!("not connected yet: {} (why: coderingctl doctor)", missing.join(", ")));
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}
