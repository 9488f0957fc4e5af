//! A configuration that is wrong, or points to a certificate whose time is over: what, where and what to do, from
//! `--check` and from a start alike.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codering_tests::{Ran, binary, repository, run};

const BOUND: Duration = Duration::from_secs(60);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("codering-test-").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the daemon on `config`, to its end: it must not get as far as to serve.
    fn run(&self, daemon: &str, config: &str, check: bool) -> Ran {
        let file = self.path("config.toml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(binary(daemon));
        command.arg("--config").arg(&file).env_remove("NOTIFY_SOCKET");
        if check {
            command.arg("--check");
        }
        run(&mut command, BOUND)
    }
}

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn copy(name: &str, to: &Path, mode: u32) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(fixture(name), to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_config_that_is_wrong_is_refused_with_its_line_its_key_and_the_cure() {
    let place = Place::new();
    let deep = format!("data_dir = '/x'\nlabels = {}", "[".repeat(100_000));
    for (daemon, config, place_of, told) in [
        (
            "codering-brokerd",
            "data_dir = '/x'\n[leases]\nduratoin = '5s'\n",
            ":3",
            "did you mean `duration`?",
        ),
        ("codering-brokerd", "datadir = '/x'\n", ":1", "did you mean `data_dir`?"),
        ("codering-brokerd", "data_dir = '/x'\n[limits]\nmemory = '-5'\n", ":3", "a size such as"),
        ("codering-brokerd", "data_dir = '/x'\n[limits]\nmemory = -5\n", ":3", "a size such as"),
        ("codering-brokerd", "data_dir = '/x'\n[queue]\nmax_message_bytes = -1\n", ":3", ""),
        ("codering-brokerd", "data_dir = '/x'\n[grpc]\nlisten = 'nowhere'\n", ":3", "socket address"),
        ("codering-brokerd", "data_dir = '/x'\n[grpc]\nlisten = [\n", "config.toml", ""),
        ("codering-brokerd", deep.as_str(), ":2", "recurse"),
        ("codering-workerd", "slots = 0\n", ":1", "1 to 4096 slots"),
        ("codering-workerd", "slots = -1\n", ":1", ""),
        ("codering-workerd", "[git]\nmax_byte = '1G'\n", ":2", "did you mean `max_bytes`?"),
        ("codering-workerd", "[git]\nmax_bytes = '-1G'\n", ":2", "a size such as"),
        ("codering-workerd", "[git]\nschemes = ['ext']\n", ":2", "is not one of https"),
        ("codering-workerd", "name = '../w'\n", ":1", "worker name"),
        ("codering-workerd", "[labels]\n\"a\\u001bb\" = 'x'\n", "labels", "a label's name"),
        (
            "codering-workerd",
            "[git]\nssh_key_file = '/nonexistent/key'\n",
            "git.ssh_key_file",
            "/nonexistent/key",
        ),
    ] {
        let ran = place.run(daemon, config, true);
        let shown = &config[..config.len().min(200)];
        assert_eq!(ran.code, Some(2), "{daemon} on {shown}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error[config.invalid]: "), "{shown}: {}", ran.stderr);
        assert!(ran.stderr.contains(place_of) && ran.stderr.contains(told), "{shown}: {}", ran.stderr);
        assert!(ran.stderr.len() < 2000 && !ran.stderr.contains('\u{1b}'), "{shown}: {}", ran.stderr);
    }
}

#[test]
fn a_certificate_whose_time_is_over_is_refused_with_its_file_its_date_and_the_cure() {
    let given = |place: &Place| {
        copy("expired.pem", &place.path("rest.pem"), 0o644);
        copy("expired.key", &place.path("rest.key"), 0o600);
        format!("rest.tls = true\ntls.cert_file = '{}'\n", place.path("rest.pem").display())
            + &format!("tls.key_file = '{}'\n", place.path("rest.key").display())
    };
    let ca = |place: &Place| {
        copy("expired.pem", &place.path("data/ca/ca.pem"), 0o644);
        copy("expired.key", &place.path("data/ca/ca.key"), 0o600);
        String::new()
    };
    let workers = |place: &Place| {
        copy("expired.pem", &place.path("data/tls/worker.pem"), 0o644);
        copy("expired.key", &place.path("data/tls/worker.key"), 0o600);
        copy("expired.pem", &place.path("data/tls/ca.pem"), 0o644);
        String::new()
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&Place) -> String, &'a str, &'a str);
    let cases: [Case<'_>; 3] = [
        ("codering-brokerd", &given, "rest.pem", "put a valid one there and restart"),
        ("codering-brokerd", &ca, "data/ca/ca.pem", "enroll every worker again"),
        ("codering-workerd", &workers, "data/tls/worker.pem", "codering-workerd enroll --replace"),
    ];
    for (daemon, prepare, file, cure) in cases {
        let place = Place::new();
        let mut config = format!("data_dir = '{}'\n", place.path("data").display());
        config += match daemon {
            "codering-brokerd" => "grpc.listen = '127.0.0.1:0'\nrest.listen = '127.0.0.1:0'\n",
            _ => "name = 'w'\nsimulate.enabled = true\nlisten.metrics = '127.0.0.1:0'\n",
        };
        config += &prepare(&place);
        for check in [true, false] {
            let ran = place.run(daemon, &config, check);
            assert_eq!(ran.code, Some(2), "{daemon} {file}: {}", ran.stderr);
            let named = place.path(file).display().to_string();
            for told in [named.as_str(), "expired at 2020-01-02", cure] {
                assert!(ran.stderr.contains(told), "{daemon} {file} {check}: no `{told}` in {}", ran.stderr);
            }
        }
    }
}
