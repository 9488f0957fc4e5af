//! A directory as a git tree.

use std::path::Path;

use codering_core::{Code, Error, ids::shown, units::show_size};
use git2::{Delta, Index, IndexAddOption, Oid, Repository, Tree};

use super::git;

/// A job's files are code, not data; more than this is a directory taken by mistake.
const MAX_FILES: usize = 20_000;
const MAX_BYTES: u64 = 512 << 20;

/// Writes the tree of `dir`, without what its `.gitignore` names.
pub fn take(repository: &Repository, dir: &Path) -> Result<Oid, Error> {
    let place = |error: Error| error.at(dir.display().to_string());
    let refused = |what: String| Error::new(Code::InvalidInput, what).at(dir.display().to_string());
    repository.set_workdir(dir, false).map_err(|error| place(git(&error)))?;
    let mut index = Index::new().map_err(|error| git(&error))?;
    repository.set_index(&mut index).map_err(|error| git(&error))?;

    let (mut files, mut bytes) = (0_usize, 0_u64);
    let mut inner = None;
    let mut within = |path: &Path, _: &[u8]| {
        let found = dir.join(path).symlink_metadata();
        // A link to a directory is a link, wherever it leads.
        if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) && dir.join(path).join(".git").exists() {
            inner = Some(path.to_path_buf());
            return -1;
        }
        files += 1;
        bytes += found.map_or(0, |found| found.len());
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
    if let Some(inner) = inner {
        let path = shown(inner.to_string_lossy().trim_end_matches('/'));
        return Err(refused(format!("holds {path}, which is a git repository of its own"))
            .hint(format!("name it in .gitignore, or take {path}/.git away")));
    }
    added.map_err(|error| place(git(&error)))?;
    if index.is_empty() {
        return Err(refused("has no file to push".into()).hint("its .gitignore may name all of them"));
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
