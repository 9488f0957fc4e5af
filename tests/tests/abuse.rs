//! Clients that mean harm: half a request and then silence, connections without end. Others are served all the same.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use codering_tests::{Backend, Fleet, Setup, fleet::get, wait_for};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MINUTE: Duration = Duration::from_secs(60);
/// The daemons give a client ten seconds for a handshake and ten for the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

fn open_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Bytes of memory in use.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn half_a_request_and_then_silence_ends_within_its_bound() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 0, 1));
    let token = fleet.token();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // A body that was announced, by somebody without a token: the answer does not wait for it.
    let nobodys = b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{".to_vec();
    let begun: [(&str, SocketAddr, Vec<u8>); 8] = [
        ("nothing at all", fleet.rest(), Vec::new()),
        ("half a request line", fleet.rest(), b"GET /heal".to_vec()),
        ("half a header", fleet.rest(), b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: ".to_vec()),
        ("half a preface", fleet.rest(), b"PRI * HTTP".to_vec()),
        ("a preface", fleet.rest(), preface),
        ("a body of nobody's", fleet.rest(), nobodys),
        ("nothing at all, with TLS", fleet.grpc(), Vec::new()),
        ("half a handshake", fleet.grpc(), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec()),
    ];
    let waiting: Vec<_> = begun
        .into_iter()
        .map(|(what, to, said)| {
            thread::spawn(move || {
                let began = Instant::now();
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&said).unwrap();
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                    Err(error) => panic!("{what}: {error} after {:?}", began.elapsed()),
                }
            })
        })
        .collect();
    // Whoever shows a token may be slow, for as long as is written beside the bound; others are served meanwhile.
    let mut slow = TcpStream::connect(fleet.rest()).unwrap();
    let head = format!(
        "POST /api/v1/projects HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 99\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).unwrap();
    fleet.ctl(&["project", "list"]);
    for silent in waiting {
        silent.join().unwrap();
    }
    slow.set_read_timeout(Some(MINUTE)).unwrap();
    let mut answer = [0; 15];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408 Re");
    fleet.stop();
}

/// Lets this process have so many files open.
fn may_open(files: u64) {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|current| current < files) {
        let maximum = now.maximum.map(|maximum| maximum.max(files));
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap_or_else(|error| {
            panic!("{files} open files are needed, and {now:?} are allowed: {error}; run it as root")
        });
    }
}

#[test]
fn ten_thousand_open_connections_take_nothing_from_anybody_else() {
    may_open(12_000);
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 4));
    let broker = fleet.broker_id();
    let limits = fs::read_to_string(format!("/proc/{broker}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limit: usize = limit.split_whitespace().nth(3).unwrap().parse().unwrap();
    let attached = || fleet.broker_log().matches("a worker is connected").count();
    assert_eq!(attached(), 1);

    // Most say nothing; some have been served, and then keep quiet.
    let (rest, grpc) = (fleet.rest(), fleet.grpc());
    let flood = thread::spawn(move || {
        let mut open = Vec::with_capacity(10_000);
        for number in 0..10_000 {
            let to = if number % 2 == 0 { rest } else { grpc };
            let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { continue };
            if number % 20 == 0 {
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
            }
            open.push(stream);
        }
        open
    });
    // A job meanwhile, from its submit to its results.
    let submit = ["submit", "--quiet", "--git", "https://h/p.git", "--array", "1-40", "--", "sleep", "200ms"];
    let job = String::from_utf8(fleet.ctl(&submit)).unwrap();
    let job = job.trim();
    let mut most = 0;
    while !flood.is_finished() {
        most = most.max(open_files(broker));
        thread::sleep(Duration::from_millis(20));
    }
    let open = flood.join().unwrap();
    assert!(open.len() > 9_000, "only {} connections were made", open.len());
    most = most.max(open_files(broker));
    assert!(most < limit - 100, "{most} of {limit} files were open");
    assert!(resident(broker) < 700 << 20, "{} MB", resident(broker) >> 20);
    for _ in 0..5 {
        fleet.ctl(&["project", "list"]);
        let answer = get(fleet.rest(), "/readyz").expect("served");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    fleet.succeeded(job, MINUTE);
    assert_eq!(attached(), 1, "the worker's stream did not survive");
    drop(open);
    wait_for("all is as it was", MINUTE, || (open_files(broker) < 200).then_some(()));
    fleet.succeeded(job, MINUTE);
    fleet.stop();
}
