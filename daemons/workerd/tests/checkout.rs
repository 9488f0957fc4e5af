//! Git for real: over file, https and ssh, with the process that workerd starts for it.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use codering_core::{Code, Source};
use codering_kit::{listen, shutdown::Shutdown};
use codering_workerd::{
    checkout::{CheckoutError, Mirrors},
    config::{Config, File, Git, Proxy},
};
use support::{Repository, WORKERD, githost::https, run, scratch, until};
use tokio::io::AsyncReadExt;

fn git() -> Git {
    let config: Config = File { name: Some("t".into()), ..File::default() }.check().unwrap();
    Git { schemes: vec!["file".into(), "https".into(), "ssh".into()], ..config.git }
}

fn mirrors(dir: &Path, git: Git) -> Mirrors {
    Mirrors::new(WORKERD.into(), dir.join("mirrors"), dir.join("home"), git, Proxy::default()).unwrap()
}

fn source(url: &str, git_ref: &str) -> Source {
    Source { git_url: url.into(), git_ref: git_ref.into(), dockerfile: "Dockerfile".into() }
}

fn code(error: CheckoutError) -> Code {
    match error {
        CheckoutError::Refused(error) | CheckoutError::Unreachable(error) => error.code,
    }
}

#[tokio::test]
async fn a_ref_is_what_the_host_says_now_and_a_commit_is_not_asked_for_twice() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.git(&["tag", "-a", "v1", "-m", "annotated"]);
    repository.git(&["update-ref", "refs/special/x", "HEAD"]);
    let mirrors = mirrors(&dir, git());
    for name in ["HEAD", "main", "v1", "refs/heads/main", &first[..10], "refs/special/x"] {
        let look =
            mirrors.resolve(&source(&repository.url(), name)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((look.commit.as_str(), look.has_dockerfile), (first.as_str(), true), "{name}");
    }
    let second = repository.commit(&[("new", "file")]);
    assert_eq!(mirrors.resolve(&source(&repository.url(), "HEAD")).await.unwrap().commit, second);
    let fetches = mirrors.fetches();
    for _ in 0..3 {
        assert_eq!(mirrors.at(&source(&repository.url(), "HEAD"), &first).await.unwrap().commit, first);
    }
    assert_eq!(mirrors.fetches(), fetches, "a commit that is there was fetched again");
}

#[tokio::test]
async fn many_tasks_share_one_fetch() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    let asked = (0..24).map(|_| mirrors.resolve(&source));
    for look in futures::future::join_all(asked).await {
        look.unwrap();
    }
    // One runs when the others ask; they share the next.
    assert!(mirrors.fetches() <= 2, "{} fetches", mirrors.fetches());
}

#[tokio::test]
async fn what_is_wrong_with_an_address_is_the_users_fault_and_a_dead_host_is_ours() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("a", "b")]);
    let mirrors = mirrors(&dir, Git { schemes: vec!["file".into(), "https".into()], ..git() });
    let refused = |error: CheckoutError| match error {
        CheckoutError::Refused(error) => error.code,
        other => panic!("{other:?} is the user's fault"),
    };
    let missing = mirrors.resolve(&source(&repository.url(), "nosuch")).await.unwrap_err();
    assert_eq!(refused(missing), Code::GitRefNotFound);
    let commit = "0123456789012345678901234567890123456789";
    let missing = mirrors.resolve(&source(&repository.url(), commit)).await.unwrap_err();
    assert_eq!(refused(missing), Code::GitRefNotFound);
    let missing = mirrors.resolve(&source("file:///nonexistent/x.git", "HEAD")).await.unwrap_err();
    assert_eq!(refused(missing), Code::GitUrlRefused);
    let scheme = mirrors.resolve(&source("ssh://git@localhost/x", "HEAD")).await.unwrap_err();
    assert_eq!(refused(scheme), Code::GitUrlRefused);
    let scp = mirrors.resolve(&source("git@localhost:x", "HEAD")).await.unwrap_err();
    assert_eq!(refused(scp), Code::GitUrlRefused);
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = mirrors.resolve(&source(&format!("https://localhost:{port}/x"), "HEAD")).await.unwrap_err();
    assert!(matches!(&dead, CheckoutError::Unreachable(e) if e.code == Code::GitUnreachable), "{dead:?}");
    let look = mirrors.resolve(&source(&repository.url(), "HEAD")).await.unwrap();
    assert!(!look.has_dockerfile);
}

#[tokio::test]
async fn a_host_that_hangs_is_given_up_and_its_process_ended() {
    let (_dir, dir) = scratch();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mirrors = mirrors(&dir, Git { timeout: Duration::from_secs(1), ..git() });
    for url in ["https://127.0.0.1", "ssh://git@127.0.0.1"] {
        let began = std::time::Instant::now();
        let hung = mirrors.resolve(&source(&format!("{url}:{port}/x"), "HEAD")).await.unwrap_err();
        assert!(matches!(&hung, CheckoutError::Unreachable(e) if e.code == Code::GitUnreachable), "{hung:?}");
        assert!(hung.to_string().contains("within 1 s"), "{hung}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    until("the end of the git process", async || {
        let children = format!("/proc/{}/task/{}/children", std::process::id(), std::process::id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let alive = children.split_whitespace().any(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("git-process") && line.contains(&*dir.to_string_lossy()))
        });
        (!alive).then_some(())
    })
    .await;
}

/// A host that answers everything with this status and `location`.
async fn answering(status: u16, location: &str) -> String {
    use axum::{body::Body, response::Response};
    let location = location.to_owned();
    let answer = move || {
        let answer = Response::builder().status(status).header("location", location.clone());
        let answer = answer.header("content-type", "text/html").body(Body::from("<p>hello")).unwrap();
        async move { answer }
    };
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = axum::Router::new().fallback(answer);
    let shutdown = Shutdown::new(Duration::ZERO);
    tokio::spawn(listen::serve(listener, None, router, listen::Bounds::default(), shutdown));
    format!("http://127.0.0.1:{port}/x.git")
}

#[tokio::test]
async fn a_host_that_redirects_is_the_users_matter_and_nobody_goes_where_it_points() {
    let (_dir, dir) = scratch();
    let secret = TcpListener::bind("127.0.0.1:0").unwrap();
    secret.set_nonblocking(true).unwrap();
    let near = secret.local_addr().unwrap().port();
    let git = Git { schemes: vec!["http".into()], timeout: Duration::from_secs(20), ..git() };
    let mirrors = mirrors(&dir, git);
    for to in [
        &format!("http://localhost:{near}/x.git/info/refs?service=git-upload-pack"),
        "http://169.254.169.254/latest/info/refs?service=git-upload-pack",
        "file:///etc/info/refs?service=git-upload-pack",
        "ssh://root@localhost/x",
        "nonsense",
    ] {
        let url = answering(302, to).await;
        let refused = mirrors.resolve(&source(&url, "HEAD")).await.unwrap_err();
        assert!(
            matches!(&refused, CheckoutError::Refused(e) if e.code == Code::GitUrlRefused),
            "{to}: {refused:?}"
        );
        // libgit2 falls over a location that is no address at all.
        let told = ["redirect", "ended the process"].iter().any(|told| refused.to_string().contains(told));
        assert!(told, "{to}: {refused}");
    }
    assert!(secret.accept().is_err(), "somebody went where the host pointed");
}

#[tokio::test]
async fn a_host_in_trouble_is_ours_to_try_again_and_one_that_is_no_git_host_is_not() {
    let (_dir, dir) = scratch();
    let mirrors = mirrors(&dir, Git { schemes: vec!["http".into()], ..git() });
    for (status, ours) in [(500, true), (503, true), (429, true), (200, false), (400, false), (410, false)] {
        let failed = mirrors.resolve(&source(&answering(status, "/").await, "HEAD")).await.unwrap_err();
        assert_eq!(matches!(failed, CheckoutError::Unreachable(_)), ours, "{status}: {failed:?}");
    }
}

#[tokio::test]
async fn what_is_no_repository_on_disk_or_a_metadata_address_is_the_users_fault() {
    let (_dir, dir) = scratch();
    let schemes = ["file", "http", "https", "ssh"].map(str::to_owned).to_vec();
    let mirrors = mirrors(&dir, Git { schemes, ..git() });
    for url in [
        "file:///etc",
        "file:///etc/passwd",
        "file:///dev/zero",
        "file:///proc/self",
        "http://169.254.169.254/x",
        "git@169.254.169.254:x",
    ] {
        let refused =
            tokio::time::timeout(Duration::from_secs(30), mirrors.resolve(&source(url, "HEAD"))).await;
        let refused = refused.unwrap_or_else(|_| panic!("{url} takes for ever")).unwrap_err();
        assert!(
            matches!(&refused, CheckoutError::Refused(e) if e.code == Code::GitUrlRefused),
            "{url}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_mirror_that_a_crash_left_broken_is_made_anew() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    mirrors.resolve(&source).await.unwrap();
    let (mirror, _, _) = mirrors.sizes().remove(0);
    std::fs::write(mirror.join("HEAD"), "garbage").unwrap();
    std::fs::remove_dir_all(mirror.join("objects")).unwrap();
    repository.commit(&[("more", "x")]);
    mirrors.resolve(&source).await.unwrap();
}

#[tokio::test]
async fn the_context_holds_symlinks_as_symlinks_and_nothing_of_submodules_or_attributes() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[
        ("Dockerfile", "FROM x\n"),
        ("dir/run.sh", "#!/bin/sh\n"),
        ("crlf.txt", "a\n"),
        (".gitattributes", "*.txt eol=crlf\nsecret export-ignore\n* filter=evil\n"),
        ("secret", "kept"),
    ]);
    let inner = Repository::new(&[("inside", "x")]);
    repository.git(&["submodule", "add", "-q", &inner.url(), "sub"]);
    std::os::unix::fs::symlink("/etc/passwd", repository.path().join("link")).unwrap();
    run(Command::new("chmod").args(["+x", "dir/run.sh"]).current_dir(repository.path()));
    repository.commit(&[]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    let look = mirrors.resolve(&source).await.unwrap();
    let tar = export(&mirrors, &source, &look.tree, 1 << 20).await.unwrap();
    let again = export(&mirrors, &source, &look.tree, 1 << 20).await.unwrap();
    assert_eq!(tar, again, "the same tree gave other bytes");
    let mut found = Vec::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        let header = entry.header();
        let link = header.link_name().unwrap().map(|l| l.display().to_string());
        found.push((entry.path().unwrap().display().to_string(), header.mode().unwrap(), link, text));
    }
    let file =
        |name: &str| found.iter().find(|f| f.0 == name).unwrap_or_else(|| panic!("{name} in {found:?}"));
    assert_eq!(file("link").2.as_deref(), Some("/etc/passwd"));
    assert_eq!(file("dir/run.sh").1, 0o755);
    assert_eq!(file("crlf.txt").3, "a\n");
    assert_eq!(file("secret").3, "kept");
    assert!(!found.iter().any(|f| f.0.starts_with("sub")), "{found:?}");
}

#[tokio::test]
async fn the_context_leaves_out_what_dockerignore_names_but_never_the_dockerfile() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[
        ("Dockerfile", "FROM x\n"),
        (".dockerignore", "*\n!src\nsrc/*.log\n"),
        ("notes", "x"),
        ("src/main", "x"),
        ("src/debug.log", "x"),
        ("docs/a", "x"),
    ]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    let look = mirrors.resolve(&source).await.unwrap();
    let tar = export(&mirrors, &source, &look.tree, 1 << 20).await.unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let names: Vec<_> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, [".dockerignore", "Dockerfile", "src/", "src/main"]);
}

async fn export(mirrors: &Mirrors, source: &Source, tree: &str, max: u64) -> Result<Vec<u8>, CheckoutError> {
    let mut export = mirrors.export(source, tree, max)?;
    let mut tar = Vec::new();
    export.output().unwrap().read_to_end(&mut tar).await.unwrap();
    mirrors.exported(export, source).await.map(|()| tar)
}

#[tokio::test]
async fn a_repository_or_context_over_its_bound_is_refused() {
    let (_dir, dir) = scratch();
    // Not to be compressed.
    let noise: String = (0..200_000_u64)
        .map(|n| char::from(33 + (n.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 13 & 63) as u8))
        .collect();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n"), ("noise", &noise)]);
    let source = source(&repository.url(), "HEAD");
    let all = mirrors(&dir, git());
    let look = all.resolve(&source).await.unwrap();
    let large = export(&all, &source, &look.tree, 100_000).await.unwrap_err();
    assert_eq!(code(large), Code::TooLarge);
}

#[tokio::test]
async fn mirrors_are_evicted_unless_in_use_and_come_back() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    let look = mirrors.resolve(&source).await.unwrap();
    let (path, bytes, _) = mirrors.sizes().remove(0);
    assert!(bytes > 0);
    assert!(mirrors.evict(&path));
    assert!(mirrors.sizes().is_empty());
    assert_eq!(mirrors.at(&source, &look.commit).await.unwrap(), look);
}

#[tokio::test]
async fn a_mirror_is_in_use_for_as_long_as_a_tar_is_written_from_it() {
    let (_dir, dir) = scratch();
    // More than a pipe holds, so that it cannot be over before it is read.
    let large = "x".repeat(1 << 20);
    let repository = Repository::new(&[("Dockerfile", "FROM x\n"), ("large", &large), ("other", "y")]);
    let mirrors = mirrors(&dir, git());
    let source = source(&repository.url(), "HEAD");
    let look = mirrors.resolve(&source).await.unwrap();
    let (path, ..) = mirrors.sizes().remove(0);
    let mut export = mirrors.export(&source, &look.tree, 8 << 20).unwrap();
    assert!(!mirrors.evict(&path), "it was removed under an export");
    let mut tar = Vec::new();
    export.output().unwrap().read_to_end(&mut tar).await.unwrap();
    mirrors.exported(export, &source).await.unwrap();
    assert!(tar.len() > large.len() && mirrors.evict(&path));
}

#[tokio::test]
async fn https_works_with_a_ca_and_a_password_and_not_without_them() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let root = repository.path().parent().unwrap().to_owned();
    let name = repository.path().file_name().unwrap().to_str().unwrap().to_owned();
    let (url, _server) = https(&root, &dir.join("ca")).await;
    let ca = dir.join("ca/ca.pem");

    let trusting = Git { ca: Some(ca.clone()), ..git() };
    let open = source(&format!("{url}/{name}/.git"), "HEAD");
    let look = mirrors(&dir.join("a"), trusting.clone()).resolve(&open).await.unwrap();
    assert_eq!(look.commit, commit);

    let distrusting = mirrors(&dir.join("b"), git()).resolve(&open).await.unwrap_err();
    assert!(matches!(distrusting, CheckoutError::Unreachable(_)), "{distrusting:?}");

    let private = source(&format!("{url}/private/{name}/.git"), "HEAD");
    let denied = mirrors(&dir.join("c"), trusting.clone()).resolve(&private).await.unwrap_err();
    assert!(
        matches!(&denied, CheckoutError::Refused(_)) && denied.to_string().contains("denies access"),
        "{denied:?}"
    );

    let credentials = dir.join("credentials");
    std::fs::write(&credentials, format!("{}\n", url.replace("https://", "https://me:secret@"))).unwrap();
    let with_password = Git { credentials: Some(credentials), ..trusting.clone() };
    let look = mirrors(&dir.join("d"), with_password).resolve(&private).await.unwrap();
    assert_eq!(look.commit, commit);

    let moved = source(&format!("{url}/moved/{name}"), "HEAD");
    let moved = mirrors(&dir.join("e"), trusting.clone()).resolve(&moved).await.unwrap_err();
    assert!(moved.to_string().contains("redirect"), "another host was asked: {moved}");

    let missing = source(&format!("{url}/nosuch"), "HEAD");
    let missing = mirrors(&dir.join("f"), trusting).resolve(&missing).await.unwrap_err();
    assert!(matches!(missing, CheckoutError::Refused(_)), "{missing:?}");
}

struct Sshd {
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An ssh server of the test's own that takes one key.
async fn sshd(dir: &Path) -> Sshd {
    let program = "/usr/sbin/sshd";
    assert!(
        Path::new(program).exists(),
        "{program} is missing: apt-get install openssh-server, or scripts/setup"
    );
    for key in ["host", "user", "other"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)));
    }
    std::fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\nUsePAM no\n\
         StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nSetEnv GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*\n",
        dir.display()
    );
    std::fs::write(dir.join("sshd_config"), config).unwrap();
    // Where it separates its privileges; a package's start script makes it otherwise.
    let _ = std::fs::create_dir_all("/run/sshd");
    let child = Command::new(program)
        .args(["-D", "-e", "-f"])
        .arg(dir.join("sshd_config"))
        .stderr(std::fs::File::create(dir.join("sshd.log")).unwrap())
        .spawn()
        .unwrap();
    until("sshd", async || std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
    Sshd { child, port }
}

#[tokio::test]
async fn ssh_works_with_its_key_and_a_known_host_and_not_without_them() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let server = sshd(&dir).await;
    let user = run(Command::new("id").arg("-un"));
    let source =
        source(&format!("ssh://{user}@127.0.0.1:{}{}", server.port, repository.path().display()), "HEAD");
    let host_key = std::fs::read_to_string(dir.join("host.pub")).unwrap();
    let known = dir.join("known_hosts");
    std::fs::write(&known, format!("[127.0.0.1]:{} {host_key}", server.port)).unwrap();
    let strange = dir.join("strange_hosts");
    let other_key = std::fs::read_to_string(dir.join("other.pub")).unwrap();
    std::fs::write(&strange, format!("[127.0.0.1]:{} {other_key}", server.port)).unwrap();
    let with = |known: Option<&Path>, key: Option<&str>| Git {
        known_hosts: known.map(Path::to_path_buf),
        ssh_key: key.map(|key| dir.join(key)),
        ..git()
    };
    let resolve = async |name: &str, git: Git| mirrors(&dir.join(name), git).resolve(&source).await;

    let look = resolve("a", with(Some(&known), Some("user"))).await;
    let log = std::fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
    assert_eq!(look.unwrap_or_else(|e| panic!("{e}\n{log}")).commit, commit);
    let strange = resolve("b", with(Some(&strange), Some("user"))).await.unwrap_err();
    assert!(matches!(strange, CheckoutError::Unreachable(_)), "another host's key was taken: {strange:?}");
    let unknown = resolve("c", with(Some(Path::new("/dev/null")), Some("user"))).await.unwrap_err();
    assert!(matches!(unknown, CheckoutError::Unreachable(_)), "an unknown host was trusted: {unknown:?}");
    for key in [Some("other"), None] {
        let denied = resolve("d", with(Some(&known), key)).await.unwrap_err();
        assert!(denied.to_string().contains("denies access"), "{key:?}: {denied:?}");
    }
}
