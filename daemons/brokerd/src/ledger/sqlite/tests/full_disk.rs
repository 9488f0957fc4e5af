//! A disk that is really full: a small tmpfs in a mount namespace of the test's own, which goes with it.

use std::os::unix::fs::MetadataExt;

use super::*;

const NAME: &str = "full_disk::a_full_disk_fails_writes_and_room_makes_them_succeed_again";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_writes_and_room_makes_them_succeed_again() {
    if let Some(directory) = as_child() {
        return fill_and_free(&directory).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let child = child(NAME, directory.path());
    let mount = "mount -t tmpfs -o size=10m tmpfs \"$CODERING_TEST_LEDGER_CHILD\" && exec \"$@\"";
    let mut unshare = std::process::Command::new("unshare");
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        unshare.arg("--map-root-user");
    }
    unshare.args(["--mount", "sh", "-c", mount, "sh"]);
    unshare.arg(child.get_program()).args(child.get_args()).env(CHILD, directory.path());
    let output = unshare.output().expect("`unshare` of util-linux starts");
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("filled and freed"),
        "needs a mount namespace: root, or kernel.unprivileged_userns_clone=1\n{told}"
    );
}

async fn fill_and_free(directory: &Path) {
    let ledger = open_in(directory).await;
    let job = committed(&*ledger, "full", 1, 100).await;
    for seq in 0..100 {
        step(&*ledger, &key(&job, seq), leased_by(1), Record::Nothing).await;
    }
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![0; 6 << 20]).unwrap();

    let mut recorded = 0;
    let error = loop {
        let key = key(&job, recorded);
        let mut result = result(&job, recorded, Outcome::Succeeded);
        result.stdout = vec![b'x'; 200 << 10];
        let complete = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
        let change = change(&*ledger, &key, complete, Record::Result(Box::new(result), None)).await;
        match ledger.swap_task(change).await {
            Ok(swapped) => assert_eq!(swapped, Swapped::Yes),
            Err(error) => break error,
        }
        recorded += 1;
        assert!(recorded < 100, "10 MiB do not hold this");
    };
    assert!(matches!(&error, LedgerError::Full(why) if why.contains("free space")), "{error}");

    // What failed is not there, what was answered is, and reads go on.
    assert_eq!(ledger.result(&key(&job, recorded)).await.unwrap(), None);
    let counts = ledger.counts(&job.id).await.unwrap();
    assert_eq!((counts.succeeded, counts.running), (recorded, 100 - recorded));

    std::fs::remove_file(&ballast).unwrap();
    ledger.check().await.expect("there is room again");
    let complete = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
    let record = Record::Result(Box::new(result(&job, recorded, Outcome::Succeeded)), None);
    step(&*ledger, &key(&job, recorded), complete, record).await;
    assert_eq!(ledger.counts(&job.id).await.unwrap().succeeded, recorded + 1);
    ledger.close().await;
    let ledger = open_in(directory).await;
    assert_eq!(ledger.counts(&job.id).await.unwrap().succeeded, recorded + 1);
    ledger.close().await;
    use std::io::Write;
    writeln!(std::io::stdout(), "filled and freed after {recorded} results").unwrap();
}
