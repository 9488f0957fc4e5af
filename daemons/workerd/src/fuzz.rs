//! Fuzz targets: what must hold for any repository, build, registry file and `workerd.toml`, and for any file in the spool.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    io::Read,
    path::{Component, PathBuf},
};

use git2::{ObjectType, Oid, Repository};

use crate::{
    checkout::{export, ignore::Ignore},
    config::File,
    image::{credentials, log::BuildLog},
    spool::{Spool, slot},
};

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("codering-fuzz-{}-{name}", std::process::id()))
}

/// A `.dockerignore`, a NUL, and a path.
pub fn dockerignore(data: &[u8]) {
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (file, path) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let ignore = Ignore::parse(file);
    let out = ignore.leaves_out(path);
    if !ignore.has_exceptions() && out {
        assert!(
            ignore.leaves_out(&[path, b"/below"].concat()),
            "what is below a directory that is left out is too"
        );
    }
}

/// A tree made of what the bytes say: kinds, and names of any bytes.
pub fn build_context(data: &[u8]) {
    const MOST: u64 = 64 << 10;
    let dir = place("context.git");
    let repository = Repository::open_bare(&dir).or_else(|_| Repository::init_bare(&dir)).unwrap();
    let odb = repository.odb().unwrap();
    // Nothing is written to disk.
    let memory = odb.add_new_mempack_backend(999).unwrap();
    let (dockerfile, mut data) =
        data.split_at(data.len().min(usize::from(data.first().copied().unwrap_or(0) % 16)));
    let dockerfile = String::from_utf8_lossy(dockerfile).into_owned();
    let tree = tree(&odb, &mut data, 0);
    let mut tar = Vec::new();
    let written = export::write(&repository, tree, &dockerfile, MOST, &mut tar);
    memory.reset().unwrap();
    let mut again = Vec::new();
    if written.is_ok() {
        for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
            let kind = entry.header().entry_type();
            assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{kind:?}");
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
            assert_eq!(entry.header().mode().unwrap() & 0o7000, 0);
            entry.read_to_end(&mut again).unwrap();
        }
        assert!(again.len() as u64 <= MOST);
    }
}

fn tree(odb: &git2::Odb<'_>, data: &mut &[u8], depth: usize) -> Oid {
    let mut raw = Vec::new();
    while let [kind, length, rest @ ..] = *data {
        let (name, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        *data = rest;
        let name: Vec<u8> = name.iter().copied().filter(|b| *b != 0).collect();
        let (mode, oid) = match kind % 7 {
            0 => ("100644", odb.write(ObjectType::Blob, b"text").unwrap()),
            1 => ("100755", odb.write(ObjectType::Blob, &name).unwrap()),
            2 => ("120000", odb.write(ObjectType::Blob, &name).unwrap()),
            3 => ("160000", Oid::from_bytes(&[7; 20]).unwrap()),
            // There is no such object.
            4 => ("40000", Oid::from_bytes(&[9; 20]).unwrap()),
            5 if depth < 300 => ("40000", tree(odb, data, depth + 1)),
            _ => break,
        };
        raw.extend_from_slice(mode.as_bytes());
        raw.push(b' ');
        // The list of what is left out, as often as a name is empty.
        raw.extend_from_slice(if name.is_empty() { b".dockerignore" } else { &name });
        raw.push(0);
        raw.extend_from_slice(oid.as_bytes());
    }
    odb.write(ObjectType::Tree, &raw).unwrap()
}

/// What a build says, in pieces.
pub fn build_log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut log = BuildLog::default();
    for piece in text.split('\u{1}') {
        log.push(piece);
    }
    assert!(log.cached_steps() as usize <= data.len() && log.step().len() <= 8 << 10);
    assert!(log.last_lines(20).lines().count() <= 20);
    assert!(log.leftovers(true).iter().all(|id| id.len() == 12));
    let (text, _) = log.finish();
    assert!(text.len() <= 256 << 10);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
}

/// A slot that a former process left in the spool: any bytes, and any result with the right digest.
pub fn spooled_report(data: &[u8]) {
    let dir = place("spool");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("0.slot"), data).unwrap();
    std::fs::write(dir.join("1.slot"), slot(data)).unwrap();
    let spool = Spool::open(&dir, false).unwrap();
    for token in spool.tokens() {
        let report = spool.get(&token).expect("what was whole at the start is whole");
        spool.put(&token, report.clone());
        assert_eq!(spool.get(&token), Some(report));
        spool.remove(&token);
        assert!(!spool.contains(&token));
    }
    assert!(Spool::open(&dir, false).unwrap().tokens().is_empty());
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Docker's `config.json`.
pub fn registry_credentials(data: &[u8]) {
    let file = place("config.json");
    std::fs::write(&file, data).unwrap();
    let read = credentials::read(&file);
    std::fs::remove_file(&file).unwrap();
    if let Ok(found) = read {
        assert!(found.iter().all(|(host, known)| known.serveraddress.as_ref() == Some(host)));
        assert!(found.values().all(|known| known.username.is_some() == known.password.is_some()));
    }
}

/// `workerd.toml`.
pub fn workerd_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = place("workerd.toml");
    std::fs::write(&file, text).unwrap();
    let loaded = codering_kit::config::load("workerd", Some(&file), File::check);
    std::fs::remove_file(&file).unwrap();
    match loaded {
        Ok(config) => {
            assert!((1..=4096).contains(&config.slots) && config.broker.starts_with("https://"));
            assert!(
                config
                    .git
                    .schemes
                    .iter()
                    .all(|scheme| ["https", "http", "ssh", "file"].contains(&scheme.as_str()))
            );
            assert!(config.build.memory_bytes >= 6 << 20 && config.build.cpus > 0.0);
        }
        Err(error) => {
            assert!(error.to_string().len() < 8 << 10, "an error of {} bytes", error.to_string().len());
            assert_eq!(error.code, codering_core::Code::ConfigInvalid);
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
#[cfg(test)]
replay::replayed!(
    dockerignore,
    build_context,
    build_log,
    spooled_report,
    registry_credentials,
    workerd_config
);
