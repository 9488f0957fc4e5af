use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::*;

struct Place {
    _kept: tempfile::TempDir,
    root: PathBuf,
    dir: PathBuf,
}

fn place() -> Place {
    let kept = tempfile::tempdir().expect("a directory");
    let (root, dir) = (kept.path().join("git"), kept.path().join("code"));
    fs::create_dir_all(dir.join("sub")).expect("made");
    fs::write(dir.join("Dockerfile"), "FROM x\n").expect("written");
    fs::write(dir.join("sub/count.py"), "print(1)\n").expect("written");
    Place { _kept: kept, root, dir }
}

impl Place {
    fn address(&self) -> Address {
        Address::find(None, Some(&self.root), "demo").expect("an address")
    }

    fn push(&self) -> Result<Pushed, Error> {
        push(&self.dir, &self.address(), "codering/words", "Submit words")
    }

    fn tree(&self, commit: &str) -> Vec<(String, i32)> {
        let repository = Repository::open(self.root.join("demo.git")).expect("opened");
        let commit = repository.find_commit(Oid::from_str(commit).expect("an id")).expect("there");
        let mut paths = Vec::new();
        commit
            .tree()
            .expect("a tree")
            .walk(git2::TreeWalkMode::PreOrder, |root, entry| {
                if entry.kind() == Some(git2::ObjectType::Blob) {
                    paths.push((format!("{root}{}", entry.name().expect("UTF-8")), entry.filemode()));
                }
                git2::TreeWalkResult::Ok
            })
            .expect("walked");
        paths
    }

    fn names(&self, commit: &str) -> Vec<String> {
        self.tree(commit).into_iter().map(|entry| entry.0).collect()
    }
}

#[test]
fn a_first_push_makes_the_repository_and_an_unchanged_directory_the_same_commit() {
    let place = place();
    let first = place.push().expect("pushed");
    assert_eq!((first.changed, first.removed, first.commit.len()), (2, 0, 40));
    assert_eq!(place.names(&first.commit), ["Dockerfile", "sub/count.py"]);
    let again = place.push().expect("pushed");
    assert_eq!((again.changed, again.commit.as_str()), (0, first.commit.as_str()));
}

#[test]
fn the_commit_is_the_directory_without_what_it_ignores_or_no_longer_has() {
    let place = place();
    fs::write(place.dir.join(".gitignore"), "*.tmp\n/out/\n").expect("written");
    fs::write(place.dir.join("a.tmp"), "x").expect("written");
    fs::create_dir(place.dir.join("out")).expect("made");
    fs::write(place.dir.join("out/b"), "x").expect("written");
    let first = place.push().expect("pushed");
    assert_eq!(place.names(&first.commit), [".gitignore", "Dockerfile", "sub/count.py"]);
    fs::remove_file(place.dir.join("sub/count.py")).expect("removed");
    fs::write(place.dir.join("Dockerfile"), "FROM y\n").expect("written");
    let second = place.push().expect("pushed");
    assert_eq!((second.changed, second.removed), (1, 1));
    assert_eq!(place.names(&second.commit), [".gitignore", "Dockerfile"]);
}

#[test]
fn a_symlink_stays_a_symlink_and_nothing_outside_the_directory_is_read() {
    let place = place();
    let secret = place.dir.parent().expect("a parent").join("secret");
    fs::write(&secret, "secret").expect("written");
    fs::create_dir(place.dir.parent().expect("a parent").join(".git")).expect("made");
    symlink(&secret, place.dir.join("link")).expect("linked");
    symlink(place.dir.parent().expect("a parent"), place.dir.join("up")).expect("linked");
    let pushed = place.push().expect("pushed");
    let tree = place.tree(&pushed.commit);
    let mode = |name: &str| tree.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
    assert_eq!((mode("link"), mode("up")), (Some(0o120_000), Some(0o120_000)));
    assert!(!tree.iter().any(|entry| entry.0.contains("secret")), "{tree:?}");
    let repository = Repository::open(place.root.join("demo.git")).expect("opened");
    let target = secret.as_os_str().as_encoded_bytes();
    let blob = git2::Oid::hash_object(git2::ObjectType::Blob, target).expect("hashed");
    assert!(repository.find_blob(blob).is_ok(), "the link's own text");
}

#[test]
fn a_pipe_is_left_out_and_a_repository_within_is_refused_by_name() {
    let place = place();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.dir.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("made");
    let pushed = place.push().expect("pushed");
    assert_eq!(place.names(&pushed.commit), ["Dockerfile", "sub/count.py"]);
    let inner = Repository::init(place.dir.join("vendor")).expect("made");
    fs::write(place.dir.join("vendor/x"), "x").expect("written");
    let mut index = inner.index().expect("an index");
    index.add_path(Path::new("x")).expect("added");
    let tree = inner.find_tree(index.write_tree().expect("written")).expect("there");
    let who = Signature::now("a", "a@b").expect("valid");
    inner.commit(Some("HEAD"), &who, &who, "x", &tree, &[]).expect("committed");
    let error = place.push().expect_err("a repository within");
    assert!(error.message.contains("holds vendor, which is a git repository"), "{error}");
}

#[test]
fn two_jobs_of_one_repository_keep_branches_of_their_own() {
    let place = place();
    let first = place.push().expect("pushed");
    let other = push(&place.dir.join("sub"), &place.address(), "codering/pi", "Submit pi").expect("pushed");
    assert_eq!(place.names(&other.commit), ["count.py"]);
    assert_eq!(place.push().expect("pushed").commit, first.commit);
}

#[test]
fn a_repository_is_made_only_in_the_broker_s_directory_of_them() {
    let place = place();
    let elsewhere = format!("file://{}/x.git", place.dir.display());
    let address = Address::find(Some(&elsewhere), Some(&place.root), "demo").expect("an address");
    let error = push(&place.dir, &address, "main", "x").expect_err("refused");
    assert_eq!(error.code, Code::GitPushFailed);
    assert!(!place.dir.join("x.git").exists());
    let above = Address::find(Some(".."), Some(&place.root), "demo").expect("an address");
    assert!(!above.may_be_made() && above.check().is_err());
    assert!(Address::find(None, None, "demo").is_err());
}

#[test]
fn a_branch_is_the_job_s_own_unless_its_ref_names_one() {
    assert_eq!(branch_of(None, "Word count/1"), "codering/word-count-1");
    assert_eq!(branch_of(Some("HEAD"), "…"), "codering/job");
    assert_eq!(branch_of(Some("refs/heads/main"), "x"), "main");
}

#[test]
fn a_host_gets_one_commit_on_top_of_what_the_branch_holds() {
    let place = place();
    let bare = place.dir.parent().expect("a parent").join("host.git");
    Repository::init_bare(&bare).expect("made");
    let address =
        Address::find(Some(&format!("file://{}", bare.display())), None, "demo").expect("an address");
    let cache = place.dir.parent().expect("a parent").join("cache");
    let push = |cache: &Path| {
        let pushed = retried(|| remote::push(&place.dir, &address, "main", "Submit words", cache));
        pushed.expect("pushed")
    };
    let tip = || {
        let host = Repository::open(&bare).expect("opened");
        let tip =
            host.find_reference("refs/heads/main").expect("a branch").peel_to_commit().expect("a commit");
        (tip.id().to_string(), tip.parent_ids().map(|id| id.to_string()).collect::<Vec<_>>())
    };
    let first = push(&cache);
    assert_eq!((first.changed, tip()), (2, (first.commit.clone(), vec![])));
    assert_eq!(push(&cache).commit, first.commit, "nothing new");
    fs::write(place.dir.join("new"), "x").expect("written");
    // Another machine: nothing of it is cached there.
    let second = push(&cache.join("other"));
    assert_eq!((second.changed, tip()), (1, (second.commit.clone(), vec![first.commit])));
    fs::remove_file(place.dir.join("new")).expect("removed");
    let third = push(&cache);
    assert_eq!(((third.changed, third.removed), tip().1), ((0, 1), vec![second.commit]));
}
