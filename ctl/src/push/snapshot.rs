//! A directory as a git tree.

use std::path::Path;

use codering_core::{Code, Error, ids::shown, units::show_size};
use git2::{Delta, Index, IndexAddOption, Oid, Repository, Tree};

use super::git;

/// A job's files are code, not data; more than this is a directory taken by mistake.
const MAX_FILES: usize = 20_000;
const MAX_BYTES: u64 = 512 << 20;
/// The mode of an entry that is a repository of its own.
const MODE_REPOSITORY: u32 = 0o160_000;

/// Writes the tree of `dir`, without what its `.gitignore` names.
pub fn take(repository: &Repository, dir: &Path) -> Result<Oid, Error> {
    let place = |error: Error| error.at(dir.display().to_string());
    let refused = |what: String| Error::new(Code::InvalidInput, what).at(dir.display().to_string());
    repository.set_workdir(dir, false).map_err(|error| place(git(&error)))?;
    let mut index = Index::new().map_err(|error| git(&error))?;
    repository.set_index(&mut index).map_err(|error| git(&error))?;

    let (mut files, mut bytes) = (0_usize, 0_u64);
    let mut within = |path: &Path, _: &[u8]| {
        files += 1;
        bytes += dir.join(path).symlink_metadata().map_or(0, |found| found.len());
        if files > MAX_FILES || bytes > MAX_BYTES { -1 } else { 0 }
    };
    let added = index.add_all(["*"], IndexAddOption::DEFAULT, Some(&mut within));
    if files > MAX_FILES || bytes > MAX_BYTES {
        return Err(refused(format!(
            "is too much to push: more than {MAX_FILES} files or {}",
            show_size(MAX_BYTES)
        ))
        .hint("name what is not needed in its .gitignore"));
    }
    added.map_err(|error| place(git(&error)))?;
    if index.is_empty() {
        return Err(refused("has no file to push".into()).hint("its .gitignore may name all of them"));
    }
    if let Some(inner) = index.iter().find(|entry| entry.mode == MODE_REPOSITORY) {
        let path = String::from_utf8_lossy(&inner.path).into_owned();
        let path = shown(path.trim_end_matches('/'));
        return Err(refused(format!("holds {path}, which is a git repository of its own"))
            .hint(format!("name it in .gitignore, or take {path}/.git away")));
    }
    index.write_tree_to(repository).map_err(|error| place(git(&error)))
}

/// How many files of `after` are new or differ, and how many of `before` are gone.
pub fn differences(
    repository: &Repository,
    before: Option<&Tree<'_>>,
    after: &Tree<'_>,
) -> Result<(usize, usize), Error> {
    let diff = repository.diff_tree_to_tree(before, Some(after), None).map_err(|error| git(&error))?;
    let removed = diff.deltas().filter(|delta| delta.status() == Delta::Deleted).count();
    Ok((diff.deltas().len() - removed, removed))
}
