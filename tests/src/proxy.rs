//! A TCP proxy that makes a network bad: late, slow, or dead without a word.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// A direction, as the one who connects sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the one who connects.
    Up,
    /// To it.
    Down,
}

/// How all connections are carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// How late each byte comes.
    pub delay: Duration,
    /// Bytes a second; 0: as many as come.
    pub rate: u64,
}

#[derive(Debug)]
struct Shared {
    to: Mutex<Option<SocketAddr>>,
    manner: Manner,
    /// Connections of up to this number carry nothing any more that way, and are not closed either.
    dead: [AtomicU64; 2],
    last: AtomicU64,
    closed: AtomicBool,
}

/// See the module. It ends with the test's process, its port when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    at: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens; whoever connects before [`Proxy::lead_to`] waits for it.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to: Mutex::new(None),
            manner,
            dead: [const { AtomicU64::new(0) }; 2],
            last: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let proxy = Self { at, shared: shared.clone() };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || carry(&shared, client));
            }
        });
        proxy
    }

    /// Where it leads.
    pub fn lead_to(&self, address: SocketAddr) {
        *self.shared.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// The connections that are there carry nothing any more these ways, and nobody is told; new ones do.
    pub fn forget(&self, ways: &[Way]) {
        let last = self.shared.last.load(Ordering::SeqCst);
        for way in ways {
            self.shared.dead[*way as usize].store(last, Ordering::SeqCst);
        }
    }

    /// How many connections there have been.
    pub fn connections(&self) -> u64 {
        self.shared.last.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.at);
    }
}

fn carry(shared: &Arc<Shared>, client: TcpStream) {
    let known = || *shared.to.lock().unwrap_or_else(PoisonError::into_inner);
    let to = loop {
        match known() {
            Some(to) => break to,
            None => thread::sleep(Duration::from_millis(50)),
        }
    };
    let Ok(server) = TcpStream::connect(to) else { return };
    let number = shared.last.fetch_add(1, Ordering::SeqCst) + 1;
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let up = shared.clone();
    thread::spawn(move || one_way(&up, Way::Up, number, from_client, to_server));
    one_way(shared, Way::Down, number, server, client);
}

/// One thread reads and notes when each piece is due, this one writes it then.
fn one_way(shared: &Arc<Shared>, way: Way, number: u64, mut from: TcpStream, mut to: TcpStream) {
    let (pieces, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    let Manner { delay, rate } = shared.manner;
    let size = if rate == 0 { 16 << 10 } else { 64 };
    let reading = thread::spawn(move || {
        let mut piece = vec![0; size];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            if pieces.send((Instant::now() + delay, piece[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    while let Ok((at, piece)) = due.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if let Some(nanos) = (piece.len() as u64 * 1_000_000_000).checked_div(rate) {
            thread::sleep(Duration::from_nanos(nanos));
        }
        if number <= shared.dead[way as usize].load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // An end is told like everything else: not by a connection that is dead this way.
    if number > shared.dead[way as usize].load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
    drop(due);
    let _ = reading.join();
}
