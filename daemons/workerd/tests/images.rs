//! Images for real: built once for all who share their content.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, time::Instant};

use bollard::{Docker, query_parameters::RemoveImageOptions};
use codering_core::{JobId, Source};
use codering_workerd::{
    checkout::Mirrors,
    config::{Config, File, OnStop},
    image::{BuildError, Images},
};
use support::{BUSYBOX, Repository, WORKERD, docker_with_busybox, scratch};

struct Builder {
    mirrors: Mirrors,
    images: Images,
}

fn builder(docker: &Docker, dir: &Path, change: impl FnOnce(&mut Config)) -> Builder {
    let file = File {
        name: Some("t".into()),
        data_dir: Some(dir.into()),
        on_stop: Some(OnStop::Kill),
        ..File::default()
    };
    let mut config = file.check().unwrap();
    config.git.schemes = vec!["file".into()];
    change(&mut config);
    let mirrors = Mirrors::new(
        WORKERD.into(),
        dir.join("mirrors"),
        dir.join("home"),
        config.git.clone(),
        config.proxy.clone(),
    );
    let mirrors = mirrors.unwrap();
    let images = Images::new(docker.clone(), mirrors.clone(), &config).unwrap();
    Builder { mirrors, images }
}

fn source(repository: &Repository) -> Source {
    Source { git_url: repository.url(), git_ref: "HEAD".into(), dockerfile: "Dockerfile".into() }
}

impl Builder {
    async fn ready(&self, source: &Source) -> Result<codering_workerd::image::Ready, BuildError> {
        self.ready_for(source, Instant::now()).await
    }

    async fn ready_for(
        &self,
        source: &Source,
        asked: Instant,
    ) -> Result<codering_workerd::image::Ready, BuildError> {
        let look = self.mirrors.resolve(source).await.unwrap();
        self.images.ready(source, &look, asked).await
    }
}

/// Something that no image on this machine was built from.
fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[tokio::test]
async fn one_build_serves_all_tasks_and_all_commits_of_the_same_content() {
    let docker = docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let dockerfile =
        format!("FROM {BUSYBOX}\nENV UNIQUE={}\nCOPY data /app/data\nWORKDIR /app\nUSER 7\n", unique());
    let repository = Repository::new(&[("Dockerfile", &dockerfile), ("data", "x")]);
    let builder = builder(&docker, &dir, |_| {});
    let source = source(&repository);
    let look = builder.mirrors.resolve(&source).await.unwrap();
    let asked = (0..12).map(|_| builder.images.ready(&source, &look, Instant::now()));
    let ready: Vec<_> = futures::future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(builder.images.builds(), 1);
    let image = &ready[0].image;
    assert_eq!((image.user.as_str(), image.workdir.as_str()), ("7", "/app"));
    let report = ready[0].report.as_ref().unwrap();
    assert!(report.succeeded && report.steps == 5, "{report:?}");
    // Told to each job once.
    let job = JobId::at(1_763_722_560_000, 1);
    assert_eq!(ready.iter().filter(|r| r.report.as_ref().unwrap().first_for(&job)).count(), 1);
    assert!(builder.images.is_used(&image.name));
    let name = image.name.clone();
    drop(ready);
    assert!(!builder.images.is_used(&name));

    repository.commit(&[]);
    let same = builder.ready(&source).await.unwrap();
    assert_eq!((same.image.name.as_str(), builder.images.builds()), (name.as_str(), 1));
    repository.commit(&[("data", "y")]);
    let other = builder.ready(&source).await.unwrap();
    assert_ne!(other.image.id, same.image.id);
    assert_eq!(
        other.report.as_ref().unwrap().cached_steps,
        1,
        "the steps before the change came from the cache"
    );
    assert!(builder.images.leftovers().is_empty());
    for name in [&same.image.name, &other.image.name] {
        docker.remove_image(name, None::<RemoveImageOptions>, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_broken_dockerfile_is_built_once_and_names_its_step() {
    let docker = docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let dockerfile = format!("FROM {BUSYBOX}\nRUN echo {0} && echo oops-{0} >&2 && exit 3\n", unique());
    let repository = Repository::new(&[("Dockerfile", &dockerfile)]);
    let builder = builder(&docker, &dir, |_| {});
    let source = source(&repository);
    let asked = Instant::now();
    for _ in 0..5 {
        match builder.ready_for(&source, asked).await.unwrap_err() {
            BuildError::Failed { message, lines, report } => {
                assert!(
                    message.contains(", Dockerfile step 2 of 2: RUN echo") && message.contains("code: 3"),
                    "{message}"
                );
                assert!(lines.contains("oops-") && !lines.contains('\u{1b}'), "{lines}");
                assert!(!report.unwrap().succeeded);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(builder.images.builds(), 1);
    // Who asks after it had failed wants to see whether it does so again.
    builder.ready(&source).await.unwrap_err();
    assert_eq!(builder.images.builds(), 2);
}

#[tokio::test]
async fn whose_fault_a_failed_build_is() {
    let docker = docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let failed = async |text: &str, dockerfile: &str, change: fn(&mut Config)| {
        let repository = Repository::new(&[("Dockerfile", text), ("big", &"x".repeat(100_000))]);
        let dir = dir.join(unique());
        std::fs::create_dir(&dir).unwrap();
        let source = Source { dockerfile: dockerfile.into(), ..source(&repository) };
        builder(&docker, &dir, change).ready(&source).await.unwrap_err()
    };
    let users = async |text: &str, dockerfile: &str, change: fn(&mut Config), part: &str| match failed(
        text, dockerfile, change,
    )
    .await
    {
        BuildError::Failed { message, .. } => assert!(message.contains(part), "no `{part}` in {message}"),
        other => panic!("the user's fault: {other:?}"),
    };
    let run = |script: &str| format!("FROM {BUSYBOX}\nRUN echo {}; {script}\n", unique());
    users(
        "FROM codering-test/nosuch:1\n",
        "Dockerfile",
        |_| {},
        "Dockerfile step 1 of 1: FROM codering-test/nosuch:1",
    )
    .await;
    users("FRM x\n", "Dockerfile", |_| {}, "FRM").await;
    users("FROM x\n", "other/Dockerfile", |_| {}, "there is no file `other/Dockerfile`").await;
    users(
        &run("sleep 60"),
        "Dockerfile",
        |c| c.build.timeout = std::time::Duration::from_secs(2),
        "not done within",
    )
    .await;
    users(&run("true"), "Dockerfile", |c| c.build.max_context_bytes = 1000, "too large").await;
    let greedy = run("/bin/busybox awk 'BEGIN{s=\"aaaaaaaa\"; while(1) s=s s}'");
    users(&greedy, "Dockerfile", |c| c.build.memory_bytes = 16 << 20, "step 2 of 2").await;
    users(
        &run("test $(grep -c : /proc/net/dev) = 1 && exit 9"),
        "Dockerfile",
        |c| c.build.network = false,
        "code: 9",
    )
    .await;
}
