//! A tree as a tar, straight from git's objects: no file is checked out, a symlink stays a symlink, a submodule is left
//! out, and so is what `.dockerignore` names. The same tree gives the same bytes.

use std::{collections::HashSet, io::Write, path::Path};

use git2::{ObjectType, Oid, Repository};
use tar::{Builder, EntryType, Header};

use super::{
    adds,
    child::{Failure, damaged},
    ignore::Ignore,
    wire::Problem,
};

/// Deeper trees are refused.
const MAX_DEPTH: usize = 200;
/// `PATH_MAX`. An object made by hand may hold a name of megabytes.
const MAX_PATH_BYTES: usize = 4096;
/// What is read here, and not only passed on, is not longer.
const MAX_READ_BYTES: usize = 4 << 20;
const IGNORE_FILE: &str = ".dockerignore";

pub(super) fn export(
    mirror: &Path,
    tree: &str,
    dockerfile: &str,
    max_bytes: u64,
    out: impl Write,
) -> Result<(), Failure> {
    let broken = |e: git2::Error| damaged(&e);
    let repository = Repository::open_bare(mirror).map_err(broken)?;
    write(&repository, Oid::from_str(tree).map_err(broken)?, dockerfile, max_bytes, out)
}

pub(crate) fn write(
    repository: &Repository,
    oid: Oid,
    dockerfile: &str,
    max_bytes: u64,
    out: impl Write,
) -> Result<(), Failure> {
    let broken = |e: git2::Error| damaged(&e);
    let ignore = {
        let tree = repository.find_tree(oid).map_err(broken)?;
        match tree.get_name(IGNORE_FILE).filter(|entry| entry.kind() == Some(ObjectType::Blob)) {
            None => Ignore::default(),
            Some(entry) => {
                let size = repository.odb().and_then(|odb| odb.read_header(entry.id())).map_err(broken)?.0;
                if size > MAX_READ_BYTES {
                    return Err((
                        Problem::Unfit,
                        format!("its {IGNORE_FILE} has more than {MAX_READ_BYTES} bytes"),
                    ));
                }
                Ignore::parse(repository.find_blob(entry.id()).map_err(broken)?.content())
            }
        }
    };
    let mut writer = Writer {
        repository,
        tar: Builder::new(out),
        ignore,
        dockerfile: dockerfile.as_bytes(),
        left: max_bytes,
        max_bytes,
    };
    writer.tree(oid, &[], 0)?;
    writer.tar.finish().map_err(|e| (Problem::Unread, e.to_string()))
}

struct Writer<'r, W: Write> {
    repository: &'r Repository,
    tar: Builder<W>,
    ignore: Ignore,
    dockerfile: &'r [u8],
    left: u64,
    max_bytes: u64,
}

impl<W: Write> Writer<'_, W> {
    fn tree(&mut self, oid: Oid, under: &[u8], depth: usize) -> Result<(), Failure> {
        let broken = |e: git2::Error| damaged(&e);
        if depth > MAX_DEPTH {
            return Err((Problem::Unfit, "its directories are nested too deep".into()));
        }
        let tree = self.repository.find_tree(oid).map_err(broken)?;
        let mut names = HashSet::new();
        for entry in &tree {
            let name = entry.name_bytes();
            if !names.insert(name.to_owned()) {
                return Err((Problem::Unfit, "a tree holds two files of one name".into()));
            }
            // git itself refuses these; an object made by hand may hold them.
            if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
                return Err((Problem::Unfit, "a tree holds a name that no file can have".into()));
            }
            let path = [under, name].concat();
            if path.len() > MAX_PATH_BYTES {
                return Err((Problem::TooLarge, "a path in it is longer than Linux takes".into()));
            }
            let left_out = self.leaves_out(&path);
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    let holds_dockerfile = self.dockerfile.starts_with(&[&path, b"/".as_slice()].concat());
                    if left_out && !self.ignore.has_exceptions() && !holds_dockerfile {
                        continue;
                    }
                    let path = [&path, b"/".as_slice()].concat();
                    if !left_out {
                        self.entry(EntryType::Directory, 0o755, &path, None, &[])?;
                    }
                    self.tree(entry.id(), &path, depth + 1)?;
                }
                Some(ObjectType::Blob) if !left_out => {
                    let size = self.repository.odb().and_then(|odb| odb.read_header(entry.id()));
                    self.take(size.map_err(broken)?.0 as u64)?;
                    let blob = self.repository.find_blob(entry.id()).map_err(broken)?;
                    if path == self.dockerfile
                        && let Some(line) = adds::remote(blob.content())
                    {
                        let file = String::from_utf8_lossy(self.dockerfile).into_owned();
                        let why = "ADD takes files of the repository only (fetch with RUN, or name files with COPY)";
                        return Err((Problem::Unfit, format!("{file}:{line}: {why}")));
                    }
                    let (kind, mode, link) = match entry.filemode() {
                        0o120000 => (EntryType::Symlink, 0o777, Some(blob.content())),
                        0o100755 => (EntryType::Regular, 0o755, None),
                        _ => (EntryType::Regular, 0o644, None),
                    };
                    self.entry(kind, mode, &path, link, blob.content())?;
                }
                // Left out, or a submodule: its files are another repository's.
                _ => {}
            }
        }
        Ok(())
    }

    /// Docker needs these two itself, whatever the file says.
    fn leaves_out(&self, path: &[u8]) -> bool {
        path != self.dockerfile && path != IGNORE_FILE.as_bytes() && self.ignore.leaves_out(path)
    }

    fn take(&mut self, bytes: u64) -> Result<(), Failure> {
        match self.left.checked_sub(bytes + 512) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err((Problem::TooLarge, format!("its files have more than {} bytes", self.max_bytes))),
        }
    }

    fn entry(
        &mut self,
        kind: EntryType,
        mode: u32,
        path: &[u8],
        link: Option<&[u8]>,
        content: &[u8],
    ) -> Result<(), Failure> {
        let path = bytes_path(path);
        // What the tar itself refuses is of the kind `Other`; the rest is the way to its reader.
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::Other => (Problem::Unfit, format!("{}: {e}", path.display())),
            _ => (Problem::Unread, e.to_string()),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match link {
            Some(target) => {
                header.set_size(0);
                self.tar.append_link(&mut header, path, bytes_path(target)).map_err(failed)
            }
            None => {
                let content = if kind == EntryType::Regular { content } else { &[] };
                header.set_size(content.len() as u64);
                self.tar.append_data(&mut header, path, content).map_err(failed)
            }
        }
    }
}

fn bytes_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}
