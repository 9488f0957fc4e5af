//! Who may depend on what, as `deny.toml` writes it down, holds in the resolved graph (invariant 8 of the design: nothing
//! but brokerd speaks to RabbitMQ and to the ledger, nothing but workerd runs anything in Docker), and within brokerd, where
//! `deny.toml` does not reach, in the sources.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde::Deserialize;

#[derive(Deserialize)]
struct Deny {
    bans: Bans,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

/// Each crate of the graph with the names of those that depend on it.
fn dependents() -> BTreeMap<String, Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(codering_tests::repository())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Metadata = serde_json::from_slice(&out.stdout).unwrap();
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for node in &metadata.resolve.nodes {
        for dependency in &node.dependencies {
            found.entry(names[dependency].to_owned()).or_default().push(names[&node.id].to_owned());
        }
    }
    found
}

#[test]
fn invariant_8_only_the_crates_that_deny_toml_names_speak_to_rabbitmq_the_ledger_docker_and_git() {
    let text = std::fs::read_to_string(codering_tests::repository().join("deny.toml")).unwrap();
    let deny: Deny = toml::from_str(&text).unwrap();
    let dependents = dependents();
    for must in ["lapin", "sqlx", "bollard", "git2"] {
        assert!(deny.bans.deny.iter().any(|ban| ban.name == must), "deny.toml says nothing of {must}");
        assert!(dependents.contains_key(must), "nothing depends on {must}: is the graph complete?");
    }
    for ban in &deny.bans.deny {
        let strangers: Vec<_> = dependents
            .get(&ban.name)
            .into_iter()
            .flatten()
            .filter(|name| !ban.wrappers.contains(name))
            .collect();
        assert!(strangers.is_empty(), "{strangers:?} may not depend on {}, see deny.toml", ban.name);
    }
}

/// Within brokerd: a crate, and where alone it is named.
const PLACES: [(&str, &[&str]); 2] = [
    ("lapin::", &["queue/rabbitmq/"]),
    ("sqlx::", &["ledger/sqlite/", "queue/embedded/", "bulk.rs", "migrations.rs", "sqlite.rs"]),
];

#[test]
fn invariant_8_within_brokerd_only_the_backends_name_rabbitmqs_and_sqlites_crates() {
    let root = codering_tests::repository().join("daemons/brokerd/src");
    let mut sources = Vec::new();
    read(&root, &mut sources);
    for (name, places) in PLACES {
        let (theirs, others): (Vec<_>, Vec<_>) = sources
            .iter()
            .filter(|(_, text)| text.contains(name))
            .map(|(file, _)| file.strip_prefix(&root).unwrap().to_str().unwrap())
            .partition(|file| places.iter().any(|place| file.starts_with(place)));
        assert!(theirs.len() > 3, "{name} is hardly found: were its users renamed?");
        assert!(others.is_empty(), "{others:?} name {name}");
    }
}

fn read(at: &Path, into: &mut Vec<(std::path::PathBuf, String)>) {
    for entry in fs::read_dir(at).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            into.push((path, text));
        }
    }
}
