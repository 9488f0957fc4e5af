//! Repositories and Dockerfiles that are wrong, endless, greedy or hostile: their jobs end at once with one error that names
//! the place, and the worker builds the next one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use codering_tests::{Backend, Fleet, Ran, Setup, fixture::git_repository, run, wait_for};
use serde_json::Value;

const JOB: Duration = Duration::from_secs(180);
const TASKS: usize = 3;

fn fleet(worker: &str) -> Fleet {
    let mut setup = Setup::new(Backend::Embedded, 1);
    setup.slots = 6;
    // Nothing of this is about leases, and the machine may be busy.
    setup.broker = "leases.duration = '30s'\n".into();
    setup.worker = format!("build.network = false\n{worker}");
    Fleet::start(setup)
}

/// Something that no image on this machine was built from.
fn unique() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

fn submit(fleet: &Fleet, url: &str, more: &[&str], command: &str) -> String {
    let submit = ["submit", "--output", "json", "--project", "demo", "--git", url, "--array", "1-3"];
    let job = fleet.ctl(&[&submit[..], more, &["--", command]].concat());
    serde_json::from_slice::<Value>(&job).unwrap()["job_id"].as_str().unwrap().to_owned()
}

/// A job of a repository that holds only this Dockerfile, and what is tried with it.
fn built(fleet: &Fleet, name: &str, dockerfile: &str) -> String {
    let url =
        git_repository(&fleet.directory().join("repositories").join(name), &[("Dockerfile", dockerfile)]);
    submit(fleet, &url, &["--name", name], "true")
}

/// It failed as its user's, each task once and at its first attempt; what `watch` said of it.
fn failed_build(fleet: &Fleet, job: &str, expected: &[&str]) -> String {
    let Ran { code, stdout, .. } = fleet.try_ctl(&["watch", job], JOB);
    let said = String::from_utf8(stdout).unwrap();
    assert_eq!(code, Some(1), "{said}");
    let results = fleet.results(job);
    assert_eq!(results.len(), TASKS, "{results:?}");
    for result in &results {
        assert_eq!((&result["outcome"], &result["attempt"]), (&"build_failed".into(), &1.into()), "{result}");
    }
    assert_eq!(said.matches("error[image.build_failed]: ").count(), 1, "one block: {said}");
    let logs = results.iter().filter(|result| result["stderr"] != "").count();
    assert!(logs <= 1, "one task shows the log: {results:?}");
    for part in expected {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
    let story = String::from_utf8(fleet.ctl(&["job", "show", job])).unwrap();
    assert_eq!(story.matches("build failed").count() + story.matches("build_failed").count(), 1, "{story}");
    said
}

/// The worker builds and runs what is right.
fn healthy(fleet: &Fleet) {
    let job = built(
        fleet,
        &format!("right-{}", unique()),
        &format!("FROM codering/base\nENV UNIQUE={}\n", unique()),
    );
    fleet.succeeded(&job, JOB);
    assert_eq!(fleet.results(&job).len(), TASKS);
}

#[test]
fn invariant_4_a_bad_dockerfile_ends_its_job_at_once_with_one_error_that_names_its_place() {
    let fleet = fleet("");
    let id = unique();
    let long = format!("FROM codering/base\nENV LONG={}\n", "x".repeat(10 << 20));
    let jobs: Vec<_> =
        [
            (
                "fails",
                format!("FROM codering/base\nRUN echo {id}; echo no rule >&2; exit 3\n"),
                &[
                    "/fails at ",
                    ", Dockerfile step 2 of 2: RUN echo",
                    "code: 3",
                    "  | no rule",
                    "job logs j-",
                ][..],
            ),
            ("syntax", "FROM codering/base\nRNU x\n".into(), &["/syntax at ", "unknown instruction: RNU"]),
            ("empty", String::new(), &["/empty at ", "Dockerfile", "empty"]),
            ("comment", "# nothing\n".into(), &["/comment at ", "Dockerfile"]),
            ("nothing", "FROM scratch\n".into(), &["/nothing at ", "o image was generated"]),
            ("long", long, &["/long at ", "Dockerfile"]),
            (
                "nobase",
                "FROM codering-test/nosuch:1\n".into(),
                &["step 1 of 1: FROM codering-test/nosuch:1", "("],
            ),
            (
                "noregistry",
                "FROM 127.0.0.1:1/x:1\n".into(),
                &["step 1 of 1: FROM 127.0.0.1:1/x:1", "does not reach"],
            ),
            (
                "fetches",
                "FROM codering/base\nADD http://127.0.0.1:15672/ /x\n".into(),
                &["/fetches", "Dockerfile:2: ADD takes files of the repository only"],
            ),
            (
                "nouser",
                "FROM codering/base\nUSER nosuch\nRUN true\n".into(),
                &["step 3 of 3: RUN true", "nosuch"],
            ),
        ]
        .into_iter()
        .map(|(name, dockerfile, expected)| (built(&fleet, name, &dockerfile), expected))
        .collect();
    for (job, expected) in &jobs {
        failed_build(&fleet, job, expected);
    }
    // The user may ask for another try, which is a new build.
    let (job, expected) = &jobs[0];
    fleet.ctl(&["job", "retry", job]);
    let ended = fleet.try_ctl(&["watch", job], JOB);
    assert!(ended.text().contains(expected[2]), "{ended:?}");
    let again = fleet.results(job);
    assert!(again.iter().all(|result| result["attempt"] == 2) && again.len() == TASKS, "{again:?}");
    let commit = again[0]["commit"].as_str().unwrap();
    let log = fleet.worker_log(0);
    let builds =
        log.lines().filter(|line| line.contains("building an image") && line.contains(commit)).count();
    assert_eq!(builds, 2, "one for all tasks, and one for the retry");
    healthy(&fleet);
    fleet.stop();
}

#[test]
fn invariant_6_an_endless_or_greedy_build_is_stopped_at_its_bound() {
    let fleet = fleet("build.timeout = '15s'\nbuild.max_pids = 64\nbuild.memory = '64M'\n");
    let id = unique();
    let run = |script: &str| format!("FROM codering/base\nRUN : {id}; {script}\n");
    let forks = run("sleep 1; i=0; while [ $i -lt 300 ]; do sleep 60 & i=$((i+1)); done; exit 9");
    let jobs = [
        (
            built(&fleet, "sleeps", &run("sleep 1000")),
            &["step 2 of 2", "not done within 15s", "[build] timeout"][..],
        ),
        (built(&fleet, "talks", &run("yes talking")), &["step 2 of 2", "not done within 15s"]),
        (built(&fleet, "forks", &forks), &["step 2 of 2", "fork"]),
        (
            built(&fleet, "grows", &run("exec python3 -c \"x = b'x' * (1 << 30)\"")),
            &["step 2 of 2", "it was killed", "64 MB", "[build] memory"],
        ),
    ];
    for (job, expected) in &jobs {
        failed_build(&fleet, job, expected);
    }
    wait_for("the builder's containers are gone", JOB, || {
        let args = ["ps", "--all", "--no-trunc", "--format", "{{.Command}}"];
        let listed = run_docker(&args);
        (!listed.contains(&id)).then_some(())
    });
    fleet.stop();
}

fn run_docker(args: &[&str]) -> String {
    let ran = run(Command::new("docker").args(args), JOB);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran.text()
}

#[test]
fn a_repository_without_the_ref_or_the_dockerfile_ends_its_job_at_once() {
    let fleet = fleet("");
    let at = fleet.directory().join("plain");
    let url = git_repository(&at, &[("Dockerfile", "FROM codering/base\n"), ("other", "x")]);
    std::os::unix::fs::symlink("/etc/passwd", at.join("Linked")).unwrap();
    git(&at, &["add", "--all"], b"");
    git(&at, &["commit", "--quiet", "--message=link"], b"");
    let nowhere = format!("file://{}", fleet.directory().join("nowhere").display());
    for (url, more, expected) in [
        (&url, &["--ref", "nosuch"][..], &["/plain", "no branch, tag or commit `nosuch`"][..]),
        (&url, &["--ref", "0123456789012345678901234567890123456789"], &["/plain", "0123456"]),
        (&url, &["--dockerfile", "deploy/Dockerfile"], &["/plain at ", "no file `deploy/Dockerfile`"]),
        (&url, &["--dockerfile", "Linked"], &["/plain at ", "no file `Linked`", "symlink"]),
        (&url, &["--dockerfile", "other"], &["/plain at ", "unknown instruction"]),
        (&nowhere, &[], &["/nowhere", "no such repository"]),
    ] {
        let job = submit(&fleet, url, more, "true");
        failed_build(&fleet, &job, expected);
    }
    healthy(&fleet);
    fleet.stop();
}

/// What git says; `input` goes to its standard input.
fn git(at: &Path, args: &[&str], input: &[u8]) -> String {
    let mut git = Command::new("git")
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@localhost"])
        .args(args)
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(input).unwrap();
    let out = git.wait_with_output().unwrap();
    assert!(out.status.success(), "git {args:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A repository whose one commit has a tree of these raw entries beside a good Dockerfile: mode, name, object.
fn hostile(at: &Path, dockerfile: &str, entries: &[(&str, &str, &str)]) -> String {
    let url = git_repository(at, &[("Dockerfile", dockerfile)]);
    let good = git(at, &["rev-parse", "HEAD:Dockerfile"], b"");
    let mut tree = Vec::new();
    let mut entries = [&[("100644", "Dockerfile", good.as_str())], entries].concat();
    entries.sort_by_key(|(_, name, _)| name.to_owned());
    for (mode, name, object) in entries {
        tree.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        let bytes = (0..40).step_by(2).map(|i| u8::from_str_radix(&object[i..i + 2], 16).unwrap());
        tree.extend(bytes);
    }
    let tree = git(at, &["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &tree);
    let commit = git(at, &["commit-tree", &tree, "-m", "hostile"], b"");
    git(at, &["update-ref", "HEAD", &commit], b"");
    url
}

#[test]
fn invariant_7_a_tree_that_no_checkout_could_hold_is_refused() {
    let fleet = fleet("");
    let dockerfile = format!("FROM codering/base\nENV UNIQUE={}\nCOPY . /context\n", unique());
    let at = |name: &str| fleet.directory().join("hostile").join(name);
    let blob = |at: &Path| {
        fs::create_dir_all(at).unwrap();
        git(at, &["init", "--quiet"], b"");
        git(at, &["hash-object", "-w", "--stdin"], b"FROM scratch\n")
    };
    let mut jobs = Vec::new();
    for (name, mode, entry) in [
        ("parent", "100644", ".."),
        ("outside", "100644", "../../etc/cron.d/x"),
        ("absolute", "100644", "/etc/cron.d/x"),
    ] {
        let at = at(name);
        let object = blob(&at);
        let url = hostile(&at, &dockerfile, &[(mode, entry, &object)]);
        jobs.push((submit(&fleet, &url, &[], "true"), format!("/{name}: it cannot be a build context")));
    }
    // A file and a symlink of one name: which of them a build reads would be anybody's guess.
    let twice = at("twice");
    let object = blob(&twice);
    let url = hostile(&twice, &dockerfile, &[("120000", "same", &object), ("100644", "same", &object)]);
    jobs.push((submit(&fleet, &url, &[], "true"), "/twice: it cannot be a build context".to_owned()));
    for (job, expected) in &jobs {
        failed_build(&fleet, job, &[expected]);
    }
    healthy(&fleet);
    fleet.stop();
}

#[test]
fn invariant_7_nothing_of_a_repository_runs_outside_its_build() {
    let fleet = fleet("");
    let at = fleet.directory().join("tricky");
    let marker = fleet.directory().join("ran");
    let touch = format!("touch {}", marker.display());
    let dockerfile = format!("FROM codering/base\nENV UNIQUE={}\nCOPY . /context\n", unique());
    let url = git_repository(
        &at,
        &[
            ("Dockerfile", &dockerfile),
            (".gitattributes", "* filter=evil ident export-subst text eol=crlf\nhidden export-ignore\n"),
            (
                ".gitmodules",
                &format!(
                    "[submodule \"s\"]\n\tpath = s\n\turl = ext::sh -c '{touch}'\n\tupdate = !{touch}\n"
                ),
            ),
            ("data", "$Id$ $Format:%H$\n"),
            ("hidden", "here\n"),
        ],
    );
    std::os::unix::fs::symlink("/etc/hostname", at.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc", at.join("up")).unwrap();
    for (name, value) in
        [("filter.evil.smudge", &touch), ("filter.evil.clean", &touch), ("core.fsmonitor", &touch)]
    {
        git(&at, &["config", name, value], b"");
    }
    for hook in ["post-checkout", "pre-upload-pack", "post-update"] {
        let file = at.join(".git/hooks").join(hook);
        fs::write(&file, format!("#!/bin/sh\n{touch}\n")).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let commit = git(&at, &["rev-parse", "HEAD"], b"");
    let link = git(
        &at,
        &["-c", "core.fsmonitor=", "update-index", "--add", "--cacheinfo", &format!("160000,{commit},s")],
        b"",
    );
    assert_eq!(link, "");
    for name in ["link", "up"] {
        let target = fs::read_link(at.join(name)).unwrap();
        let blob = git(&at, &["hash-object", "-w", "--stdin"], target.as_os_str().as_encoded_bytes());
        git(
            &at,
            &[
                "-c",
                "core.fsmonitor=",
                "update-index",
                "--add",
                "--cacheinfo",
                &format!("120000,{blob},{name}"),
            ],
            b"",
        );
    }
    git(&at, &["-c", "core.fsmonitor=", "commit", "--quiet", "--message=x"], b"");
    let _ = fs::remove_file(&marker);
    let script = "cd /context; cat data hidden; readlink link up; ls -d s .git 2>/dev/null; true";
    let job = submit(&fleet, &url, &[], script);
    fleet.succeeded(&job, JOB);
    for result in fleet.results(&job) {
        let expected = "$Id$ $Format:%H$\nhere\n/etc/hostname\n../../../../../../etc\n";
        assert_eq!(result["stdout"], expected, "{result}");
    }
    assert!(!marker.exists(), "something of the repository ran on the host");
    fleet.stop();
}

#[test]
fn invariant_6_a_repository_of_too_much_of_anything_is_refused_or_managed() {
    let fleet = fleet("build.max_context_bytes = '64M'\ngit.max_bytes = '8M'\n");
    let dockerfile = format!("FROM codering/base\nENV UNIQUE={}\nCOPY . /context\n", unique());
    let at = |name: &str| -> PathBuf { fleet.directory().join("large").join(name) };
    // A blob of a few hundred KiB in the pack that is 200 MiB long.
    let bomb = at("bomb");
    let url = git_repository(&bomb, &[("Dockerfile", &dockerfile)]);
    let make = "head -c 209715200 /dev/zero > zeros && git add zeros";
    assert_eq!(run(Command::new("sh").args(["-c", make]).current_dir(&bomb), JOB).code, Some(0));
    git(&bomb, &["commit", "--quiet", "--message=x"], b"");
    fs::remove_file(bomb.join("zeros")).unwrap();
    let bomb = submit(&fleet, &url, &[], "true");
    // More bytes than a fetch may bring.
    let heavy = at("heavy");
    let url = git_repository(&heavy, &[("Dockerfile", &dockerfile)]);
    let make = "head -c 16777216 /dev/urandom > noise && git add noise";
    assert_eq!(run(Command::new("sh").args(["-c", make]).current_dir(&heavy), JOB).code, Some(0));
    git(&heavy, &["commit", "--quiet", "--message=x"], b"");
    let heavy = submit(&fleet, &url, &[], "true");
    // A tree deeper than any path.
    let deep = at("deep");
    let url = git_repository(&deep, &[("Dockerfile", &dockerfile)]);
    let good = git(&deep, &["rev-parse", "HEAD:Dockerfile"], b"");
    let mut tree = git(&deep, &["mktree"], format!("100644 blob {good}\tf\n").as_bytes());
    for _ in 0..300 {
        tree = git(&deep, &["mktree"], format!("040000 tree {tree}\td\n").as_bytes());
    }
    let root = format!("100644 blob {good}\tDockerfile\n040000 tree {tree}\td\n");
    let tree = git(&deep, &["mktree"], root.as_bytes());
    let commit = git(&deep, &["commit-tree", &tree, "-m", "deep"], b"");
    git(&deep, &["update-ref", "HEAD", &commit], b"");
    let deep = submit(&fleet, &url, &[], "true");
    // 20,000 files are only many.
    let many = at("many");
    let url = git_repository(&many, &[("Dockerfile", &dockerfile)]);
    let good = git(&many, &["rev-parse", "HEAD:Dockerfile"], b"");
    let files: String = (0..20_000).map(|n| format!("100644 blob {good}\tf{n:06}\n")).collect();
    let tree = git(&many, &["mktree"], format!("100644 blob {good}\tDockerfile\n{files}").as_bytes());
    let commit = git(&many, &["commit-tree", &tree, "-m", "many"], b"");
    git(&many, &["update-ref", "HEAD", &commit], b"");
    let many = submit(&fleet, &url, &[], "ls /context | wc -l");

    failed_build(&fleet, &bomb, &["/bomb", "too large", "max_context_bytes"]);
    failed_build(&fleet, &heavy, &["/heavy", "too large", "max_bytes"]);
    failed_build(&fleet, &deep, &["/deep", "nested too deep"]);
    fleet.succeeded(&many, JOB);
    assert!(fleet.results(&many).iter().all(|result| result["stdout"] == "20001\n"));
    fleet.stop();
}

#[test]
fn what_an_image_asks_for_does_not_change_how_a_task_runs() {
    let fleet = fleet("");
    let dockerfile = format!(
        "FROM codering/base\nENV UNIQUE={}\nVOLUME /data\nHEALTHCHECK --interval=1s CMD exit 1\nONBUILD RUN exit 1\n\
         STOPSIGNAL SIGINT\nUSER 12:34\nEXPOSE 80\nENTRYPOINT [\"/bin/false\"]\nCMD [\"no\"]\n",
        unique()
    );
    let url = git_repository(&fleet.directory().join("asks"), &[("Dockerfile", &dockerfile)]);
    let job = submit(&fleet, &url, &[], "id -u; id -g; touch /data/x && echo written; sleep 3");
    let nowhere = submit(&fleet, &url, &[], "nosuch-command");
    fleet.succeeded(&job, JOB);
    for result in fleet.results(&job) {
        assert_eq!(result["stdout"], "12\n34\nwritten\n", "{result}");
    }
    assert_eq!(fleet.try_ctl(&["watch", &nowhere], JOB).code, Some(1));
    for result in fleet.results(&nowhere) {
        assert_eq!(
            (&result["outcome"], &result["exit_code"]),
            (&"failed".into(), &Value::from(127)),
            "{result}"
        );
        assert!(result["message"].as_str().unwrap().contains("not found"), "{result}");
    }
    fleet.stop();
}
