//! Docker that goes away, comes back, hangs or fills up, and containers and images that somebody takes away: each task
//! ends as it should, once, and the worker goes on by itself. On a dockerd of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codering_tests::{
    Backend, Dockerd, Fleet, Setup,
    dockerd::{ACTIVATED, BASE},
    run, wait_for,
};
use serde_json::Value;

const JOB: Duration = Duration::from_secs(120);

fn fleet(docker: &Dockerd, more: &str) -> Setup {
    let mut setup = Setup::new(Backend::Embedded, 1);
    setup.worker = format!("{}{more}", docker.of_worker());
    setup
}

/// A directory to push: a Dockerfile, and a job of `tasks` tasks that have one attempt each.
fn job(fleet: &Fleet, name: &str, dockerfile: &str, tasks: u32, command: &str) -> PathBuf {
    let directory = fleet.directory().join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), dockerfile).unwrap();
    let job = format!(
        "project = 'demo'\nname = '{name}'\npush = '.'\narray = '1-{tasks}'\ncommand = '''{command}'''\n\
         [limits]\ntimeout = '1m'\nmemory = '64M'\nattempts = 1\n"
    );
    fs::write(directory.join("job.toml"), job).unwrap();
    directory
}

fn dockerfile(name: &str) -> String {
    format!("FROM {BASE}\nENV NAME={name}\nCOPY job.toml /app/\n")
}

fn sleepers(fleet: &Fleet, name: &str, tasks: u32, seconds: u32) -> String {
    let command = format!("echo begun; sleep {seconds}; echo done {{}}");
    fleet.submit(&job(fleet, name, &dockerfile(name), tasks, &command))
}

fn running(docker: &Dockerd, count: usize) -> Vec<String> {
    wait_for("the containers run", JOB, || {
        let ids = docker.says(&["ps", "--quiet", "--filter", "label=codering.worker"]);
        let ids: Vec<_> = ids.lines().map(str::to_owned).collect();
        (ids.len() == count).then_some(ids)
    })
}

/// Every task succeeded, each with one result, and no container is left.
fn all_succeeded(fleet: &Fleet, docker: &Dockerd, job: &str, tasks: usize) -> Vec<Value> {
    fleet.succeeded(job, JOB);
    let results = fleet.results(job);
    assert_eq!(results.len(), tasks, "one result a task: {results:?}");
    assert!(results.iter().all(|result| result["outcome"] == "succeeded"), "{results:?}");
    wait_for("no container is left", JOB, || docker.containers().is_empty().then_some(()));
    results
}

fn stdout(result: &Value) -> &str {
    result["stdout"].as_str().unwrap()
}

#[test]
fn a_worker_that_starts_before_docker_waits_for_it() {
    let mut docker = Dockerd::prepare(&[], None);
    let mut fleet = Fleet::prepare(fleet(&docker, ""));
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    wait_for("the worker says what it waits for", JOB, || {
        fleet.worker_log(0).contains("waiting for Docker").then_some(())
    });
    docker.start_new_base();
    fleet.wait_for_workers();
    let job = sleepers(&fleet, "late", 2, 0);
    all_succeeded(&fleet, &docker, &job, 2);
    fleet.stop();
}

/// Docker goes in the middle of tasks and comes back; the tasks have one attempt of their own.
fn docker_goes_and_comes(options: &[&str], go: impl FnOnce(&mut Dockerd)) -> Vec<Value> {
    let mut docker = Dockerd::start_new(options, None);
    let fleet = Fleet::start(fleet(&docker, ""));
    let job = sleepers(&fleet, "gone", 4, 4);
    running(&docker, 2);
    go(&mut docker);
    docker.start();
    let results = all_succeeded(&fleet, &docker, &job, 4);
    for result in &results {
        assert!(stdout(result).starts_with("begun\ndone "), "{result}");
    }
    fleet.stop();
    results
}

#[test]
fn invariant_4_a_docker_that_is_killed_amid_tasks_costs_their_user_no_attempt() {
    docker_goes_and_comes(&[], Dockerd::kill);
}

#[test]
fn invariant_4_a_docker_that_is_stopped_amid_tasks_costs_their_user_no_attempt() {
    docker_goes_and_comes(&[], Dockerd::stop);
}

#[test]
fn invariant_4_a_docker_that_is_restarted_behind_its_socket_amid_tasks_costs_their_user_no_attempt() {
    docker_goes_and_comes(&[ACTIVATED], Dockerd::stop);
}

#[test]
fn containers_that_outlive_a_killed_docker_are_followed_to_their_end() {
    let results = docker_goes_and_comes(&["--live-restore"], Dockerd::kill);
    let first = results.iter().filter(|result| result["attempt"] == 1).count();
    assert_eq!(first, 4, "no task was begun again: {results:?}");
}

#[test]
fn a_docker_that_hangs_holds_up_its_tasks_and_loses_none() {
    let docker = Dockerd::start_new(&[], None);
    let fleet = Fleet::start(fleet(&docker, ""));
    let first = sleepers(&fleet, "hangs", 2, 3);
    running(&docker, 2);
    docker.freeze();
    let second = sleepers(&fleet, "later", 2, 0);
    // Several leases of 3 s, and longer than it takes to notice.
    wait_for("the worker notices", JOB, || {
        fleet.worker_log(0).contains("Docker does not answer").then_some(())
    });
    docker.thaw();
    let results = all_succeeded(&fleet, &docker, &first, 2);
    assert!(results.iter().all(|result| result["attempt"] == 1), "their leases were renewed: {results:?}");
    all_succeeded(&fleet, &docker, &second, 2);
    fleet.stop();
}

#[test]
fn invariant_4_what_somebody_does_to_a_container_is_no_failure_of_its_user() {
    let docker = Dockerd::start_new(&[], None);
    let fleet = Fleet::start(fleet(&docker, ""));
    for (name, act) in
        [("removed", &["rm", "--force"][..]), ("killed", &["kill"]), ("terminated", &["stop", "--time=1"])]
    {
        let job = sleepers(&fleet, name, 1, 3);
        let id = running(&docker, 1).remove(0);
        docker.says(&[act, &[&id]].concat());
        let results = all_succeeded(&fleet, &docker, &job, 1);
        assert_eq!(results[0]["attempt"], 2, "{name}: {results:?}");
    }
    // Paused and let go on: nothing happened but time.
    let job = sleepers(&fleet, "paused", 1, 2);
    let id = running(&docker, 1).remove(0);
    docker.says(&["pause", &id]);
    docker.says(&["unpause", &id]);
    assert_eq!(all_succeeded(&fleet, &docker, &job, 1)[0]["attempt"], 1);
    // Paused until its time was over.
    let directory = job_with_timeout(&fleet, "held", "sleep 2", "4s");
    let job = fleet.submit(&directory);
    let id = running(&docker, 1).remove(0);
    docker.says(&["pause", &id]);
    assert_eq!(all_succeeded(&fleet, &docker, &job, 1)[0]["attempt"], 2);
    // What a command does to itself is its own affair.
    let job = fleet.submit(&self::job(&fleet, "itself", &dockerfile("itself"), 1, "kill -9 $$"));
    assert_eq!(fleet.try_ctl(&["watch", &job], JOB).code, Some(1));
    let results = fleet.results(&job);
    assert_eq!(
        (results.len(), &results[0]["outcome"], &results[0]["signal"]),
        (1, &"failed".into(), &9.into())
    );
    wait_for("no container is left", JOB, || docker.containers().is_empty().then_some(()));
    fleet.stop();
}

fn job_with_timeout(fleet: &Fleet, name: &str, command: &str, timeout: &str) -> PathBuf {
    let directory = job(fleet, name, &dockerfile(name), 1, command);
    let file = directory.join("job.toml");
    let text =
        fs::read_to_string(&file).unwrap().replace("timeout = '1m'", &format!("timeout = '{timeout}'"));
    fs::write(file, text).unwrap();
    directory
}

#[test]
fn an_image_that_is_deleted_is_built_again_while_its_job_runs() {
    let docker = Dockerd::start_new(&[], None);
    let fleet = Fleet::start(fleet(&docker, ""));
    let job = sleepers(&fleet, "image", 6, 2);
    running(&docker, 2);
    let image = docker.says(&["images", "--format", "{{.Repository}}:{{.Tag}}", "codering/ctx"]);
    docker.says(&["rmi", "--force", &image]);
    all_succeeded(&fleet, &docker, &job, 6);
    assert_eq!(docker.says(&["images", "--format", "{{.Repository}}:{{.Tag}}", "codering/ctx"]), image);
    // Between two jobs, with the steps that the builder remembers.
    docker.says(&["rmi", "--force", &image]);
    docker.says(&["image", "prune", "--force"]);
    let again = fleet.submit(&fleet.directory().join("image"));
    all_succeeded(&fleet, &docker, &again, 6);
    // The base goes: what is built of it still runs, and a new build says what is missing and what helps.
    docker.says(&["rmi", "--force", BASE]);
    let again = fleet.submit(&fleet.directory().join("image"));
    all_succeeded(&fleet, &docker, &again, 6);
    let lost = sleepers(&fleet, "baseless", 2, 0);
    let watched = fleet.try_ctl(&["watch", &lost], JOB);
    assert_eq!(watched.code, Some(1));
    let said = watched.text();
    assert!(
        said.contains("error[image.build_failed]") && said.contains("step 1 of 3: FROM codering/base"),
        "{said}"
    );
    assert!(said.contains("does not reach the image registry"), "{said}");
    fleet.stop();
}

/// The one mirror that the worker has.
fn mirror(fleet: &Fleet) -> PathBuf {
    let mut found: Vec<_> = fs::read_dir(fleet.worker_dir(0).join("mirrors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "git"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn files_below(at: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn a_mirror_that_is_damaged_is_made_anew() {
    let docker = Dockerd::start_new(&[], None);
    let mut fleet = Fleet::start(fleet(&docker, ""));
    let job = sleepers(&fleet, "mirror", 1, 0);
    all_succeeded(&fleet, &docker, &job, 1);
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("objects truncated", |mirror| {
            for file in files_below(&mirror.join("objects")) {
                let half = fs::metadata(&file).unwrap().len() / 2;
                let _ = fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600));
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half).unwrap();
            }
        }),
        ("objects lost", |mirror| {
            files_below(&mirror.join("objects")).iter().for_each(|file| fs::remove_file(file).unwrap());
        }),
        ("refs overwritten", |mirror| {
            fs::write(mirror.join("packed-refs"), "garbage\n").unwrap();
            files_below(&mirror.join("refs")).iter().for_each(|file| fs::write(file, "garbage\n").unwrap());
        }),
        ("locks left", |mirror| {
            for file in files_below(&mirror.join("refs")) {
                fs::write(file.with_extension("lock"), "").unwrap();
            }
            for name in ["HEAD.lock", "packed-refs.lock", "config.lock"] {
                fs::write(mirror.join(name), "").unwrap();
            }
        }),
        ("half made", |mirror| {
            fs::remove_file(mirror.join("HEAD")).unwrap();
            fs::remove_dir_all(mirror.join("refs")).unwrap();
        }),
        ("a file in its place", |mirror| {
            fs::remove_dir_all(mirror).unwrap();
            fs::write(mirror, "").unwrap();
        }),
    ];
    for (round, (what, damage)) in damages.into_iter().enumerate() {
        fleet.stop_worker(0);
        damage(&mirror(&fleet));
        // No image either, so that the objects are needed; and the commit of before as well as a new one.
        docker.says(&[
            "rmi",
            "--force",
            docker.says(&["images", "--quiet", "codering/ctx"]).lines().next().unwrap(),
        ]);
        docker.says(&["image", "prune", "--force"]);
        fleet.start_worker(0);
        fleet.wait_for_workers();
        eprintln!("{what}: the same commit");
        let same = fleet.submit(&fleet.directory().join("mirror"));
        all_succeeded(&fleet, &docker, &same, 1);
        eprintln!("{what}: another commit");
        fs::write(fleet.directory().join("mirror/round"), round.to_string()).unwrap();
        let other = fleet.submit(&fleet.directory().join("mirror"));
        all_succeeded(&fleet, &docker, &other, 1);
    }
    fleet.stop();
}

#[test]
fn a_build_that_fills_dockers_disk_is_stopped_and_the_next_one_has_room() {
    let docker = Dockerd::start_new(&[], Some("160m"));
    let fleet = Fleet::start(fleet(&docker, "build.disk_reserve = '40M'\n"));
    let greedy = format!(
        "FROM {BASE}\nENV GREEDY=1\nRUN dd if=/dev/zero of=/first bs=1M count=30\n\
         RUN while true; do dd if=/dev/zero bs=64k count=16 >>/full 2>/dev/null; sleep 0.05; done\n"
    );
    let full = fleet.submit(&job(&fleet, "full", &greedy, 2, "true"));
    let watched = fleet.try_ctl(&["watch", &full], JOB);
    let said = watched.text();
    assert_eq!(watched.code, Some(1), "{said}");
    assert!(said.contains("step 4 of 4: RUN while") && said.contains("disk_reserve"), "{said}");
    let results = fleet.results(&full);
    assert_eq!(results.len(), 2);
    for result in &results {
        assert_eq!((&result["outcome"], &result["attempt"]), (&"build_failed".into(), &1.into()), "{result}");
    }
    wait_for("the builder's container is gone", JOB, || docker.containers().is_empty().then_some(()));
    let next = sleepers(&fleet, "next", 2, 0);
    all_succeeded(&fleet, &docker, &next, 2);
    fleet.stop();
}

#[test]
fn a_disk_of_dockers_that_others_fill_is_no_failure_of_the_user() {
    let docker = Dockerd::start_new(&[], Some("160m"));
    let fleet = Fleet::start(fleet(&docker, "build.disk_reserve = '40M'\n"));
    let foreign = docker.socket().with_file_name("data").join("foreign");
    let filled = run(
        Command::new("dd")
            .args(["if=/dev/zero", "bs=1M", "count=130"])
            .arg(format!("of={}", foreign.display())),
        JOB,
    );
    drop(filled);
    let held_up = sleepers(&fleet, "heldup", 1, 0);
    wait_for("the job says why it is held up", JOB, || {
        let job = fleet.json(&["job", "show", &held_up]);
        job["message"].as_str().is_some_and(|why| why.contains("nearly full")).then_some(())
    });
    fs::remove_file(foreign).unwrap();
    all_succeeded(&fleet, &docker, &held_up, 1);
    fleet.stop();
}
