//! One setting for all ways out: the broker, git and the steps of a build, through a small proxy that is real.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Instant,
};

use codering_core::Source;
use codering_workerd::{
    checkout::{CheckoutError, Mirrors},
    config::{Config, File, Git, Proxy as Settings},
    image::Images,
};
use support::{
    BUSYBOX, Repository, WORKERD,
    broker::Broker,
    docker_with_busybox,
    githost::https,
    proxy::{PAGE, Proxy},
    run, scratch, until,
};

fn through(proxy: &Proxy) -> Settings {
    let address = Some(format!("http://me:se%40cret@{}", proxy.at));
    Settings { http: address.clone(), https: address, no_proxy: None }
}

/// `me:se@cret`
const LOGIN: &str = "authorization: Basic bWU6c2VAY3JldA==";

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_reached_through_the_proxy_and_after_a_reload_without_it() {
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 30_000).await;
    let proxy = Proxy::start(Ipv4Addr::LOCALHOST.into(), &[("broker.test:7443", broker.address)]).await;
    std::fs::create_dir(dir.join("w-proxy.d")).unwrap();
    let settings = |no_proxy: &str, log: &str| {
        let text = format!(
            "broker = 'https://broker.test:7443'\nlog = '{log}'\n[proxy]\nhttps = 'http://me:se%40cret@{}'\n{no_proxy}",
            proxy.at
        );
        std::fs::write(dir.join("w-proxy.d/50-proxy.toml"), text).unwrap();
    };
    settings("", "info");
    let worker = broker.worker("w-proxy", "simulate.enabled = true");
    broker.until("a hello", |said| (!said.hellos.is_empty()).then_some(())).await;
    let heads = proxy.heads();
    assert!(heads.iter().all(|head| head.starts_with("CONNECT broker.test:7443 HTTP/1.1\r\n")), "{heads:?}");
    assert!(heads.iter().all(|head| head.to_lowercase().contains(&LOGIN.to_lowercase())), "{heads:?}");
    // Nobody but the proxy knows the name: without it the worker does not come back.
    settings("no_proxy = '.test'", "info");
    run(Command::new("kill").args(["-HUP", &worker.pid().to_string()]));
    until("the reload", async || worker.log().contains("read again: proxy.no_proxy").then_some(())).await;
    assert_eq!(broker.said.lock().unwrap().hellos.len(), 1, "the reload broke the stream");
    let before = proxy.heads().len();
    broker.die();
    let broker = broker.back().await;
    until("a look for the name", async || worker.log().contains("lookup").then_some(())).await;
    assert_eq!(proxy.heads().len(), before, "the proxy was asked for what no_proxy names");
    drop(broker);
    assert!(!worker.log().contains("se%40cret") && !worker.log().contains("se@cret"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn git_goes_through_the_proxy_and_not_to_whom_no_proxy_names() {
    let (_dir, dir) = scratch();
    let repository = Repository::new(&[("Dockerfile", "FROM x\n")]);
    let root = repository.path().parent().unwrap().to_owned();
    let name = repository.path().file_name().unwrap().to_str().unwrap().to_owned();
    let (url, _server) = https(&root, &dir.join("ca")).await;
    let at = url.trim_start_matches("https://localhost:").parse::<u16>().unwrap();
    let proxy =
        Proxy::start(Ipv4Addr::LOCALHOST.into(), &[("git.test:443", (Ipv4Addr::LOCALHOST, at).into())]).await;
    let config: Config = File { name: Some("t".into()), ..File::default() }.check().unwrap();
    let git = Git { ca: Some(dir.join("ca/ca.pem")), ..config.git };
    let source = Source {
        git_url: format!("https://git.test/{name}/.git"),
        git_ref: "HEAD".into(),
        dockerfile: "Dockerfile".into(),
    };
    let mirrors = |of: &str, proxy: Settings| {
        let at = dir.join(of);
        Mirrors::new(WORKERD.into(), at.join("mirrors"), at.join("home"), git.clone(), proxy).unwrap()
    };
    let look = mirrors("a", through(&proxy)).resolve(&source).await.unwrap();
    assert_eq!(look.commit, repository.git(&["rev-parse", "HEAD"]));
    let heads = proxy.heads();
    assert!(
        heads.iter().any(|head| head.starts_with("CONNECT git.test:443 ") && head.contains(&LOGIN[1..])),
        "{heads:?}"
    );
    let except = Settings { no_proxy: Some("git.test".into()), ..through(&proxy) };
    let direct = mirrors("b", except).resolve(&source).await.unwrap_err();
    assert!(matches!(direct, CheckoutError::Unreachable(_)), "{direct:?}");
    assert_eq!(proxy.heads().len(), heads.len(), "the proxy was asked for what no_proxy names");
}

/// The host's address on Docker's bridge. Docker 20.10 tells it of a bridge that was there before it alone; then it is the first.
async fn gateway(docker: &bollard::Docker) -> IpAddr {
    let bridge = docker.inspect_network("bridge", None).await.unwrap();
    let address = &bridge.ipam.unwrap().config.unwrap()[0];
    match &address.gateway {
        Some(gateway) => gateway.parse().unwrap(),
        None => {
            let subnet: Ipv4Addr =
                address.subnet.as_ref().unwrap().split('/').next().unwrap().parse().unwrap();
            Ipv4Addr::from(u32::from(subnet) + 1).into()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_s_steps_go_through_the_proxy() {
    let docker = docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let proxy = Proxy::start(gateway(&docker).await, &[]).await;
    let unique = format!("{:032x}", rand::random::<u128>());
    let fetch = format!("/bin/busybox wget -q -O - http://files.test/{unique}");
    let repository = Repository::new(&[("Dockerfile", &format!("FROM {BUSYBOX}\nRUN {fetch}\n"))]);
    let file = File {
        name: Some("t".into()),
        data_dir: Some(dir.clone()),
        proxy: through(&proxy),
        ..File::default()
    };
    let mut config = file.check().unwrap();
    config.git.schemes = vec!["file".into()];
    let home = (dir.join("mirrors"), dir.join("home"));
    let mirrors =
        Mirrors::new(WORKERD.into(), home.0, home.1, config.git.clone(), config.proxy.clone()).unwrap();
    let images = Images::new(docker.clone(), mirrors.clone(), &config).unwrap();
    let source =
        Source { git_url: repository.url(), git_ref: "HEAD".into(), dockerfile: "Dockerfile".into() };
    let look = mirrors.resolve(&source).await.unwrap();
    let ready = images.ready(&source, &look, Instant::now()).await.unwrap();
    let log = ready.report.as_ref().unwrap().log.clone();
    assert!(log.contains(PAGE.trim_end()), "{log}");
    assert!(proxy.heads().iter().any(|head| head.starts_with(&format!("GET http://files.test/{unique} "))));
    // Of the password nothing stays in the image.
    let image = docker.inspect_image(&ready.report.as_ref().unwrap().image).await.unwrap();
    let kept = format!("{image:?}");
    assert!(!kept.contains("cret@") && !kept.contains("se%40cret"), "{kept}");
    let options = bollard::query_parameters::RemoveImageOptions { force: true, ..Default::default() };
    let _ = docker.remove_image(&ready.report.as_ref().unwrap().image, Some(options), None).await;
}
