//! Containers for real: what a command may and may not, and what is told of its end.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bollard::Docker;
use codering_core::{JobId, LeaseToken, Limits};
use codering_workerd::{
    config::{Config, File},
    held::LeaseEnd,
    output::{Capture, Stream},
    sandbox::{Exit, Image, Record, Running, Sandbox, Spec, StartError, docker::Containers},
};
use futures::StreamExt;
use support::{BUSYBOX, docker_with_busybox};
use tokio::io::AsyncWriteExt;

fn containers(docker: &Docker, worker: &str) -> Containers {
    let config: Config = File { name: Some("t".into()), ..File::default() }.check().unwrap();
    // Others may run the same test on this machine.
    let worker = format!("{worker}-{:08x}", rand::random::<u32>());
    Containers::new(docker.clone(), worker.parse().unwrap(), config.sandbox)
}

fn spec(script: &str) -> Spec {
    Spec {
        token: LeaseToken::from_bytes(rand::random()),
        project: "p".parse().unwrap(),
        job: JobId::at(1_763_722_560_000, 1),
        task: "t".parse().unwrap(),
        attempt: 1,
        image: Image { id: BUSYBOX.into(), name: BUSYBOX.into(), ..Image::default() },
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: BTreeMap::new(),
        limits: Limits { memory_bytes: 64 << 20, max_pids: 32, ..Limits::default() },
        stdin: false,
        lease: LeaseEnd::at(tokio::time::Instant::now() + Duration::from_secs(600)),
        record: Record { output_bytes: 1 << 20, ..Record::default() },
    }
}

async fn drain(running: &mut Running, capture: &Capture) {
    while let Some(piece) = running.output.next().await {
        let (stream, data) = piece.unwrap();
        capture.push(stream, &data);
    }
}

fn text(capture: &Capture, stream: Stream) -> String {
    String::from_utf8_lossy(&capture.read(stream, 0, usize::MAX)).into_owned()
}

/// Runs it to its end: how it ended, and its two outputs.
async fn outcome(sandbox: &Containers, spec: &Spec) -> (Exit, String, String) {
    let mut running = sandbox.start(spec).await.unwrap();
    let capture = Capture::new(spec.limits.output_bytes);
    drain(&mut running, &capture).await;
    let exit = running.control.wait().await.unwrap();
    running.control.remove().await.unwrap();
    (exit, text(&capture, Stream::Stdout), text(&capture, Stream::Stderr))
}

#[tokio::test]
async fn a_command_has_no_network_no_capability_no_root_and_writes_only_where_it_may() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-denied");
    let script = "id -u; pwd; echo $HOME; grep -c : /proc/net/dev; grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status; \
        touch /app/x || echo read-only; touch /tmp/a /work/b && echo written; \
        dd if=/dev/zero of=/tmp/fill bs=1M count=100 2>/dev/null || echo bounded; ls /dev/shm /proc/1/root/home 2>/dev/null; echo end";
    let (exit, stdout, _) = outcome(&sandbox, &spec(script)).await;
    assert_eq!(exit.code, 0, "{stdout}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[..4], ["65534", "/work", "/work", "1"], "{stdout}");
    for capabilities in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(
            lines.iter().any(|l| l.starts_with(capabilities) && l.ends_with("0000000000000000")),
            "{stdout}"
        );
    }
    for line in ["NoNewPrivs:\t1", "read-only", "written", "bounded"] {
        assert!(lines.contains(&line), "no `{line}` in {stdout}");
    }
}

#[tokio::test]
async fn an_image_that_names_a_user_and_a_directory_gets_them() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-user");
    let mut named = spec("id -u; pwd; ls / | grep -c work");
    named.image.user = "1234".into();
    named.image.workdir = "/app".into();
    let (_, stdout, _) = outcome(&sandbox, &named).await;
    assert_eq!(stdout, "1234\n/app\n1\n");
    // An image's own files in /work are not hidden.
    named.image.workdir = "/work/src".into();
    named.argv[2] = "echo $HOME".into();
    assert_eq!(outcome(&sandbox, &named).await.1, "/tmp\n");
}

#[tokio::test]
async fn a_volume_that_an_image_asks_for_is_bounded_and_leaves_nothing_on_the_host() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-volume");
    let mut volume =
        spec("touch /app/x && dd if=/dev/zero of=/app/fill bs=1M count=100 2>/dev/null || echo bounded");
    // In the image it is root's.
    volume.image.volumes = vec!["/app".into()];
    volume.limits.memory_bytes = 256 << 20;
    assert_eq!(outcome(&sandbox, &volume).await.1, "bounded\n");
}

#[tokio::test]
async fn out_of_memory_is_told_from_a_kill() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-oom");
    let mut greedy =
        spec("head -c 200m /dev/zero | wc -c; x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $?");
    greedy.argv = vec!["/bin/busybox".into(), "awk".into(), "BEGIN{s=\"aaaaaaaa\"; while(1) s=s s}".into()];
    greedy.limits.memory_bytes = 16 << 20;
    let (exit, ..) = outcome(&sandbox, &greedy).await;
    assert!(exit.out_of_memory && exit.code != 0, "{exit:?}");
    let (exit, ..) = outcome(&sandbox, &spec("kill -9 $$")).await;
    assert_eq!((exit.code, exit.out_of_memory), (137, false));
}

#[tokio::test]
async fn processes_and_open_files_are_bounded() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-pids");
    let (exit, _, stderr) = outcome(&sandbox, &spec("for i in $(seq 100); do sleep 3 & done; wait")).await;
    assert!(exit.code != 0 && stderr.contains("fork"), "{exit:?} {stderr}");
}

#[tokio::test]
async fn what_cannot_be_started_is_the_users_fault_with_a_shells_code() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-refused");
    let mut missing = spec("");
    missing.argv = vec!["nosuchprogram".into()];
    let code = match sandbox.start(&missing).await {
        Err(StartError::Refused { code, .. }) => code,
        Ok(running) => {
            let exit = running.control.wait().await.unwrap();
            running.control.remove().await.unwrap();
            exit.code
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(code, 127);
    let mut user = spec("true");
    user.image.user = "nosuchuser".into();
    let refused = sandbox.start(&user).await.err().unwrap();
    assert!(matches!(refused, StartError::Refused { .. }), "{refused:?}");
    let mut gone = spec("true");
    gone.image.id = "codering-test/nosuch:1".into();
    assert!(matches!(sandbox.start(&gone).await.err().unwrap(), StartError::ImageGone));
    assert!(sandbox.left().await.unwrap().is_empty(), "a failed start left a container");
}

#[tokio::test]
async fn output_is_streamed_while_it_runs_and_talking_too_much_kills_nothing() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-output");
    let mut running = sandbox.start(&spec("echo first; sleep 30")).await.unwrap();
    let began = Instant::now();
    let (stream, data) = running.output.next().await.unwrap().unwrap();
    assert_eq!((stream, data.as_ref()), (Stream::Stdout, b"first\n".as_slice()));
    assert!(began.elapsed() < Duration::from_secs(20), "it came only with the end");
    running.control.kill().await.unwrap();
    assert_eq!(running.control.wait().await.unwrap().code, 137);
    running.control.remove().await.unwrap();

    let mut loud = spec("yes | head -c 3000000; echo done >&2");
    loud.limits.output_bytes = 1000;
    let (exit, stdout, stderr) = outcome(&sandbox, &loud).await;
    assert_eq!((exit.code, stdout.len(), stderr.as_str()), (0, 1000, "done\n"));
}

#[tokio::test]
async fn standard_input_comes_whole_and_ends() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-stdin");
    let mut reader = spec("wc -c");
    reader.stdin = true;
    let mut running = sandbox.start(&reader).await.unwrap();
    let mut stdin = running.stdin.take().unwrap();
    let feeding = tokio::spawn(async move {
        stdin.write_all(&vec![b'x'; 3_000_000]).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let capture = Capture::new(100);
    drain(&mut running, &capture).await;
    feeding.await.unwrap();
    assert_eq!(text(&capture, Stream::Stdout).trim(), "3000000");
    running.control.remove().await.unwrap();
}

#[tokio::test]
async fn another_process_reads_a_containers_output_from_its_first_byte() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "t-adopt");
    let mut talker =
        spec("printf 'a\\n\\nb\\000\\377c'; echo err >&2; sleep 2; printf ' no newline'; exit 4");
    talker.record.commit = "c0ffee".into();
    let first = sandbox.start(&talker).await.unwrap();
    drop(first);

    let mine = sandbox.left().await.unwrap();
    let left = mine.iter().find(|l| l.whose.as_ref().is_some_and(|w| w.token == talker.token)).unwrap();
    let whose = left.whose.as_ref().unwrap();
    assert_eq!((&whose.job, &whose.record), (&talker.job, &talker.record));
    assert!(left.began_at.is_some());
    let mut running = sandbox.adopt(left).await.unwrap();
    let capture = Capture::new(1000);
    drain(&mut running, &capture).await;
    let exit = running.control.wait().await.unwrap();
    assert_eq!(exit.code, 4);
    assert!(exit.finished_at - exit.started_at >= 1900, "{exit:?}");
    let again = Capture::new(1000);
    let whole = codering_workerd::sandbox::docker::read_again(running.control.as_ref(), |(stream, data)| {
        again.push(stream, &data);
    });
    assert!(whole.await.unwrap());
    assert_eq!(again.read(Stream::Stdout, 0, 1000), b"a\n\nb\0\xffc no newline");
    assert_eq!(again.read(Stream::Stderr, 0, 1000), b"err\n");
    running.control.remove().await.unwrap();
    let mine = sandbox.left().await.unwrap();
    assert!(!mine.iter().any(|l| l.id == running.id));
}

#[tokio::test]
async fn invariant_3_a_container_whose_lease_ended_while_it_was_made_is_not_started() {
    let docker = docker_with_busybox().await;
    let sandbox = containers(&docker, "late");
    let spec = Spec { lease: LeaseEnd::at(tokio::time::Instant::now()), ..spec("echo ran") };
    let late = sandbox.start(&spec).await;
    assert!(matches!(&late, Err(StartError::Unavailable(_))), "it was started");
    assert!(sandbox.left().await.unwrap().is_empty(), "and its container is gone");
}
