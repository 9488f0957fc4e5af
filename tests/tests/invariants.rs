//! ARCHITECTURE.md says which tests prove which invariant; here that is held against the tests that there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use codering_tests::repository;

type Proofs = BTreeMap<u32, BTreeSet<String>>;

/// The numbers in a test's name: `invariant_1_2_and_9_hold…` is of three.
fn numbers(name: &str) -> Vec<u32> {
    let words = name.split('_').skip(1);
    words
        .take_while(|word| *word == "and" || word.parse::<u32>().is_ok())
        .filter_map(|w| w.parse().ok())
        .collect()
}

fn look(directory: &Path, found: &mut Proofs) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            look(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let file = path.strip_prefix(repository()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines().map(str::trim_start) {
                let line = line.strip_prefix("async ").unwrap_or(line);
                let Some(name) = line.strip_prefix("fn ").filter(|name| name.starts_with("invariant_"))
                else {
                    continue;
                };
                for number in numbers(name) {
                    found.entry(number).or_default().insert(file.clone());
                }
            }
        }
    }
}

#[test]
fn the_architectures_table_names_every_file_with_a_test_of_an_invariant_and_no_other() {
    let mut found = Proofs::new();
    for part in ["daemons", "ctl", "proto", "tests"] {
        look(&repository().join(part), &mut found);
    }
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let mut written = Proofs::new();
    for line in text.lines() {
        let mut columns = line.split('|').map(str::trim).skip(1);
        let Some(number) = columns.next().and_then(|number| number.parse().ok()) else { continue };
        let files = columns.next().unwrap_or_default().split('`').skip(1).step_by(2);
        written.insert(number, files.filter(|file| file.ends_with(".rs")).map(str::to_owned).collect());
    }
    assert_eq!(written, found, "left: what ARCHITECTURE.md says; right: the tests that there are");
    assert_eq!(found.into_keys().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>(), "one has no test");
}
