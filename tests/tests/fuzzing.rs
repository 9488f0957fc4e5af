//! Every fuzz target is built, has a kept corpus, and is replayed by an ordinary test of the crate whose parser it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

#[derive(serde::Deserialize)]
struct Manifest {
    bin: Vec<Bin>,
}

#[derive(serde::Deserialize)]
struct Bin {
    name: String,
}

#[derive(serde::Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(serde::Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Crate {
    dependencies: BTreeMap<String, toml::Value>,
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_fuzz_target_is_built_has_a_corpus_and_is_replayed_by_a_test() {
    let repository = codering_tests::repository();
    let targets = names(&repository.join("fuzz/fuzz_targets"));
    assert!(targets.len() >= 20, "{targets:?}");
    assert_eq!(
        names(&repository.join("fuzz/corpus")),
        targets,
        "each target has a corpus, and each corpus a target"
    );
    let manifest = fs::read_to_string(repository.join("fuzz/Cargo.toml")).unwrap();
    let built: Manifest = toml::from_str(&manifest).unwrap();
    assert_eq!(
        built.bin.into_iter().map(|bin| bin.name).collect::<BTreeSet<_>>(),
        targets,
        "fuzz/Cargo.toml"
    );
    let places = [
        "daemons/core/src/fuzz.rs",
        "proto/src/fuzz.rs",
        "daemons/brokerd/src/fuzz.rs",
        "daemons/workerd/src/fuzz.rs",
        "ctl/src/jobfile_fuzz.rs",
    ];
    let mut replayed = BTreeSet::new();
    for place in places {
        let text = fs::read_to_string(repository.join(place)).unwrap();
        let list = text.split_once("replayed!(").unwrap_or_else(|| panic!("{place} replays nothing")).1;
        let list = list.split_once(')').unwrap().0;
        replayed.extend(list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    }
    assert_eq!(replayed, targets, "each target is replayed");
}

#[test]
fn the_kept_corpus_is_small() {
    let corpus = codering_tests::repository().join("fuzz/corpus");
    let mut bytes = 0;
    for target in names(&corpus) {
        for entry in fs::read_dir(corpus.join(target)).unwrap() {
            bytes += entry.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes < 500_000, "{bytes} bytes: scripts/fuzz --keep keeps only what reaches new code");
}

/// `scripts/fuzz` builds with `--locked`, in a workspace of its own, which no other build looks at.
#[test]
fn the_fuzz_targets_lock_file_is_that_of_the_crates_as_they_are() {
    let repository = codering_tests::repository();
    let read =
        |file: &str| -> Lock { toml::from_str(&fs::read_to_string(repository.join(file)).unwrap()).unwrap() };
    let (fuzz, all) = (read("fuzz/Cargo.lock"), read("Cargo.lock"));
    let update = "run `cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml > /dev/null`";
    let places = ["daemons/core", "daemons/kit", "daemons/brokerd", "daemons/workerd", "proto"];
    for place in places {
        let manifest = fs::read_to_string(repository.join(place).join("Cargo.toml")).unwrap();
        let wanted: Crate = toml::from_str(&manifest).unwrap();
        let name = format!("codering-{}", Path::new(place).file_name().unwrap().to_string_lossy());
        let locked = fuzz.package.iter().find(|package| package.name == name);
        let locked = locked.unwrap_or_else(|| panic!("{name} is not in fuzz/Cargo.lock: {update}"));
        // Of two versions of one crate, each is named with its own.
        let has: BTreeSet<&str> =
            locked.dependencies.iter().map(|name| name.split(' ').next().unwrap()).collect();
        for dependency in wanted.dependencies.keys() {
            assert!(has.contains(dependency.as_str()), "{name} needs {dependency}: {update}");
        }
    }
    // What is tried with random bytes is what is shipped.
    let shipped: BTreeSet<(&str, &str)> =
        all.package.iter().map(|package| (package.name.as_str(), package.version.as_str())).collect();
    let of_fuzz = ["arbitrary", "codering-fuzz", "libfuzzer-sys"];
    let others: Vec<_> = fuzz
        .package
        .iter()
        .filter(|package| package.source.is_some() && !of_fuzz.contains(&package.name.as_str()))
        .map(|package| (package.name.as_str(), package.version.as_str()))
        .filter(|package| !shipped.contains(package))
        .collect();
    assert!(others.is_empty(), "not in Cargo.lock: {others:?}: {update}");
}
