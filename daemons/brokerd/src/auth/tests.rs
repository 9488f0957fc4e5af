use std::path::PathBuf;

use codering_core::ProjectName;
use codering_kit::tls::{self, Identity};
use prometheus_client::registry::Registry;

use super::*;
use crate::ledger;

struct Setup {
    auth: Auth,
    ledger: Arc<dyn Ledger>,
    directory: tempfile::TempDir,
}

const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 999);

async fn setup() -> Setup {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = ledger::open(&directory.path().join("ledger.db")).await.expect("opened");
    let ca = Arc::new(Ca::at(&directory.path().join("ca")).expect("made"));
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    for name in ["demo", "other"] {
        let name = ProjectName::new(name).expect("a name");
        let project = ledger::Project { name, quota: Default::default(), created_at: 1 };
        ledger.put_project(project).await.expect("written");
    }
    Setup { auth: Auth::new(ledger.clone(), ca, metrics), ledger, directory }
}

impl Setup {
    fn admin_file(&self) -> PathBuf {
        self.directory.path().join("admin.token")
    }

    async fn admin(&self) -> Caller {
        self.auth.ensure_admin(&self.admin_file()).await.expect("made");
        let text = std::fs::read_to_string(self.admin_file()).expect("written");
        self.call(text.trim()).await.expect("an administrator")
    }

    async fn call(&self, text: &str) -> Result<Caller, Error> {
        self.auth.authenticate(Some(&format!("Bearer {text}")), FROM).await
    }

    async fn create(&self, by: &Caller, role: Role, projects: &[&str]) -> Result<(Token, String), Error> {
        self.auth.create_token(by, wanted(role, projects)).await
    }

    /// A join token that is called so.
    async fn join_token(&self, by: &Caller, name: &str) -> String {
        let wanted = NewToken { name: name.into(), ..wanted(Role::Worker, &[]) };
        self.auth.create_token(by, wanted).await.expect("created").1
    }

    async fn enroll(&self, join: &str, name: &str) -> Result<Identity, Error> {
        let worker = WorkerName::new(name).expect("a name");
        let (csr, _) = tls::csr(&worker).expect("a request");
        let enrolled = self.auth.enroll(join, worker, &csr, FROM).await?;
        let der = tls::certificates(enrolled.certificate_pem.as_bytes()).expect("PEM").swap_remove(0);
        Identity::of(&der)
    }

    async fn worker(&self, identity: &Identity) -> Result<WorkerName, Error> {
        self.auth.worker(&Peer { address: FROM, certificate: Some(Arc::new(identity.clone())) }).await
    }
}

fn wanted(role: Role, projects: &[&str]) -> NewToken {
    let projects = projects.iter().map(|p| ProjectName::new(p).expect("a name")).collect();
    NewToken { name: "ci".into(), role, projects, ttl_seconds: 0 }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.expect_err("refused").code
}

#[tokio::test]
async fn the_first_start_makes_an_administrators_token_and_later_ones_keep_it() {
    use std::os::unix::fs::PermissionsExt;
    let setup = setup().await;
    let admin = setup.admin().await;
    admin.may_everywhere(Role::Admin).expect("an administrator");
    let mode = std::fs::metadata(setup.admin_file()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(setup.admin().await.token().id, admin.token().id);
    assert_eq!(setup.ledger.tokens().await.expect("read").len(), 1);
    // Without any live administrator nobody could let one in again but a restart.
    setup.auth.revoke_token(&admin, &admin.token().id).await.expect("revoked");
    assert_ne!(setup.admin().await.token().id, admin.token().id);
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_is_completed_by_the_next() {
    let setup = setup().await;
    let (text, id, _) = secret::new();
    std::fs::write(setup.admin_file(), &text).expect("written");
    assert_eq!(setup.admin().await.token().id, id);
}

#[tokio::test]
async fn the_ledger_holds_no_secret() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let secret = text.rsplit('_').next().expect("a secret");
    setup.ledger.close().await;
    for file in std::fs::read_dir(setup.directory.path()).expect("a directory") {
        let path = file.expect("a file").path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ledger")) {
            let bytes = std::fs::read(&path).expect("read");
            assert!(!bytes.windows(16).any(|w| w == &secret.as_bytes()[..16]), "{}", path.display());
        }
    }
    assert!(!format!("{token:?}").contains(secret));
}

#[tokio::test]
async fn a_wrong_token_of_a_known_id_is_refused_like_an_unknown_one() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let forged = format!("cdr_{}_{}", token.id, "0".repeat(64));
    let unknown = format!("cdr_{}_{}", "0".repeat(12), "0".repeat(64));
    let (forged, unknown) = (setup.call(&forged).await, setup.call(&unknown).await);
    assert_eq!(forged.expect_err("refused"), unknown.expect_err("refused"));
    setup.call(&text).await.expect("the right one");
    // The right one is in the cache now; the wrong one still is not right.
    assert_eq!(code(setup.call(&format!("cdr_{}_{}", token.id, "0".repeat(64))).await), Code::AuthInvalid);
}

#[tokio::test]
async fn no_token_and_another_scheme_are_said_to_be_missing() {
    let setup = setup().await;
    assert_eq!(code(setup.auth.authenticate(None, FROM).await), Code::AuthMissing);
    assert_eq!(code(setup.auth.authenticate(Some("Basic eA=="), FROM).await), Code::AuthMissing);
}

#[tokio::test]
async fn a_verified_token_needs_no_ledger_and_a_revoked_one_is_refused_at_once() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, text) = setup.create(&admin, Role::Submitter, &["demo"]).await.expect("created");
    setup.call(&text).await.expect("live");
    setup.auth.revoke_token(&admin, &token.id).await.expect("revoked");
    assert_eq!(code(setup.call(&text).await), Code::AuthInvalid);
    let (_, kept) = setup.create(&admin, Role::Submitter, &["demo"]).await.expect("created");
    setup.call(&kept).await.expect("live");
    setup.ledger.close().await;
    setup.call(&kept).await.expect("from memory");
    assert!(setup.call(&text).await.is_err());
}

#[tokio::test]
async fn noting_a_use_never_brings_a_revoked_token_back() {
    let setup = setup().await;
    let admin = setup.admin().await;
    for _ in 0..20 {
        let (token, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
        // The first call writes `last_used_at` behind its answer, at the same time as this revokes.
        setup.call(&text).await.expect("live");
        setup.auth.revoke_token(&admin, &token.id).await.expect("revoked");
        drop(setup.auth.0.writing.lock().await);
        let row = setup.ledger.token(&token.id).await.expect("read").expect("there");
        assert_ne!(row.revoked_at, 0);
    }
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    setup.call(&text).await.expect("live");
    setup.auth.forget(&token.id);
    setup.ledger.put_token(Token { expires_at: now() - 1, ..token }).await.expect("written");
    assert_eq!(code(setup.call(&text).await), Code::AuthInvalid);
}

#[tokio::test]
async fn a_token_that_ended_is_held_up_like_a_wrong_one() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, revoked) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let (_, live) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    setup.auth.revoke_token(&admin, &token.id).await.expect("revoked");
    for _ in 0..throttle::BURST {
        assert_eq!(code(setup.call(&revoked).await), Code::AuthInvalid);
    }
    assert_eq!(code(setup.call(&revoked).await), Code::AuthTooMany);
    setup.call(&live).await.expect("another token, seen for the first time");
}

#[tokio::test]
async fn a_right_token_gets_through_another_s_guesses_from_the_same_address() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    for n in 0..throttle::BURST {
        let guess = format!("cdr_{n:012x}_{}", "0".repeat(64));
        assert_eq!(code(setup.call(&guess).await), Code::AuthInvalid);
    }
    assert_eq!(code(setup.call("cdr_000000000000_").await), Code::AuthTooMany);
    assert!(setup.auth.cached(&token.id).is_none(), "it was not seen before");
    setup.call(&text).await.expect("the right one");
    // Its own wrong secrets do hold it up where nobody has shown the right one of late.
    setup.auth.forget(&token.id);
    for _ in 0..throttle::BURST {
        let guess = format!("cdr_{}_{}", token.id, "0".repeat(64));
        assert_eq!(code(setup.call(&guess).await), Code::AuthInvalid);
    }
    assert_eq!(code(setup.call(&text).await), Code::AuthTooMany);
}

#[tokio::test]
async fn guesses_cost_the_ledger_nothing() {
    let setup = setup().await;
    setup.admin().await;
    assert_eq!(
        code(setup.call(&format!("cdr_{}_{}", "0".repeat(12), "0".repeat(64))).await),
        Code::AuthInvalid
    );
    setup.ledger.close().await;
    assert_eq!(
        code(setup.call(&format!("cdr_{}_{}", "1".repeat(12), "0".repeat(64))).await),
        Code::AuthInvalid
    );
}

#[tokio::test]
async fn a_token_of_a_project_that_is_not_there_is_refused() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let error = setup.create(&admin, Role::Viewer, &["demo", "nowhere"]).await.expect_err("refused");
    assert_eq!((error.code, error.place.as_str()), (Code::ProjectNotFound, "projects"));
    assert!(error.hint.contains("project create nowhere"), "{error}");
    assert_eq!(setup.auth.tokens(&admin).await.expect("read").len(), 1, "one was made");
}

#[tokio::test]
async fn invariant_10_a_token_of_a_deleted_project_is_nothing_in_a_new_one_of_its_name() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let demo = ProjectName::new("demo").expect("a name");
    let (one, only) = setup.create(&admin, Role::Admin, &["demo"]).await.expect("created");
    let (both, two) = setup.create(&admin, Role::Submitter, &["demo", "other"]).await.expect("created");
    let (_, twice) = setup.create(&admin, Role::Admin, &["demo", "demo"]).await.expect("created");
    setup.call(&only).await.expect("live");
    setup.auth.forget_project(&demo).await.expect("done");
    setup.call(&only).await.expect("the project is there: nothing is taken");
    setup.ledger.delete_project(&demo).await.expect("deleted");
    setup.auth.forget_project(&demo).await.expect("done");
    let project = ledger::Project { name: demo.clone(), quota: Default::default(), created_at: 2 };
    setup.ledger.put_project(project).await.expect("made again");
    assert_eq!(code(setup.call(&only).await), Code::AuthInvalid);
    assert_eq!(code(setup.call(&twice).await), Code::AuthInvalid, "no project left is not all of them");
    let rest = setup.call(&two).await.expect("of another project too");
    assert!(!rest.sees(&demo) && rest.projects().is_some(), "{rest:?}");
    assert_ne!(setup.ledger.token(&one.id).await.expect("read").expect("there").revoked_at, 0);
    assert_eq!(setup.ledger.token(&both.id).await.expect("read").expect("there").revoked_at, 0);
}

#[tokio::test]
async fn ended_tokens_are_removed_in_time_and_sooner_where_room_is_needed() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (kept, _) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let (recent, _) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let (old, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let day = 24 * 3_600_000;
    setup.ledger.put_token(Token { revoked_at: now() - day, ..recent.clone() }).await.expect("written");
    setup.ledger.put_token(Token { expires_at: now() - 40 * day, ..old.clone() }).await.expect("written");
    setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let ids = async || -> Vec<String> {
        setup.ledger.tokens().await.expect("read").into_iter().map(|token| token.id).collect()
    };
    let left = ids().await;
    assert!(left.contains(&recent.id) && left.contains(&kept.id) && !left.contains(&old.id), "{left:?}");
    assert_eq!(code(setup.call(&text).await), Code::AuthInvalid);
    setup.auth.remove_ended(100 * day, 3).await.expect("one makes room");
    assert!(!ids().await.contains(&recent.id), "the live ones are three");
    let full = setup.auth.remove_ended(100 * day, 2).await.expect_err("all of them live");
    assert_eq!(full.code, Code::BrokerBusy);
    assert_eq!(ids().await.len(), 3);
}

#[tokio::test]
async fn a_revoked_administrators_token_in_the_file_is_not_recorded_anew_once_its_row_is_gone() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let text = std::fs::read_to_string(setup.admin_file()).expect("written");
    setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    setup.auth.revoke_token(&admin, &admin.token().id).await.expect("revoked");
    setup.auth.remove_ended(-1000, 100).await.expect("removed");
    assert!(setup.ledger.token(&admin.token().id).await.expect("read").is_none());
    assert_ne!(setup.admin().await.token().id, admin.token().id);
    assert_eq!(code(setup.call(text.trim()).await), Code::AuthInvalid);
}

#[tokio::test]
async fn guessing_is_held_up_and_a_known_token_from_the_same_address_is_not() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    setup.call(&text).await.expect("live");
    let mut last = Code::AuthInvalid;
    for _ in 0..50 {
        last = code(setup.call("cdr_000000000000_wrong").await);
    }
    assert_eq!(last, Code::AuthTooMany);
    setup.call(&text).await.expect("verified before");
    let elsewhere = SocketAddr::from(([192, 0, 2, 2], 1));
    let other = setup.auth.authenticate(Some("Bearer nonsense"), elsewhere).await;
    assert_eq!(code(other), Code::AuthInvalid, "another address is not held up");
}

#[tokio::test]
async fn nobody_creates_a_token_that_can_more_than_its_own() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, text) = setup.create(&admin, Role::Admin, &["demo"]).await.expect("created");
    let of_demo = setup.call(&text).await.expect("live");
    setup.create(&of_demo, Role::Submitter, &["demo"]).await.expect("its own project");
    for (role, projects) in [
        (Role::Viewer, &["other"][..]),
        (Role::Viewer, &[]),
        (Role::Admin, &["demo", "other"]),
        (Role::Worker, &[]),
    ] {
        assert_eq!(
            code(setup.create(&of_demo, role, projects).await),
            Code::AuthDenied,
            "{role:?} {projects:?}"
        );
    }
    let (_, text) = setup.create(&admin, Role::Submitter, &[]).await.expect("created");
    let submitter = setup.call(&text).await.expect("live");
    assert_eq!(code(setup.create(&submitter, Role::Viewer, &["demo"]).await), Code::AuthDenied);
    assert_eq!(code(setup.auth.tokens(&submitter).await), Code::AuthDenied);
    let seen = setup.auth.tokens(&of_demo).await.expect("its own");
    assert!(
        seen.len() == 2 && seen.iter().all(|t| t.projects == [ProjectName::new("demo").expect("a name")])
    );
    let foreign = setup.auth.revoke_token(&of_demo, &admin.token().id).await;
    assert_eq!(code(foreign), Code::TokenNotFound);
}

#[tokio::test]
async fn a_token_is_revoked_by_an_unambiguous_name_and_by_its_owner() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, text) = setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    setup.create(&admin, Role::Viewer, &[]).await.expect("created");
    let error = setup.auth.revoke_token(&admin, "ci").await.expect_err("two have this name");
    assert!(error.message.contains("2 tokens"), "{error}");
    let own = setup.call(&text).await.expect("live");
    setup.auth.revoke_token(&own, &own.token().id).await.expect("its own");
    setup.auth.revoke_token(&admin, "ci").await.expect("one is left of this name");
    assert_eq!(code(setup.auth.revoke_token(&admin, "ci").await), Code::TokenNotFound);
}

#[tokio::test]
async fn what_cannot_be_a_token_is_refused_by_its_field() {
    let setup = setup().await;
    let admin = setup.admin().await;
    for (wanted, place) in [
        (NewToken { name: String::new(), ..wanted(Role::Viewer, &[]) }, "name"),
        (NewToken { name: "a\nb".into(), ..wanted(Role::Viewer, &[]) }, "name"),
        (NewToken { ttl_seconds: u64::MAX, ..wanted(Role::Worker, &[]) }, "ttl_seconds"),
        (wanted(Role::Worker, &["demo"]), "projects"),
    ] {
        let error = setup.auth.create_token(&admin, wanted).await.expect_err("refused");
        assert_eq!((error.code, error.place.as_str()), (Code::InvalidInput, place));
    }
}

#[tokio::test]
async fn a_join_token_enrolls_one_worker_and_does_nothing_else() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (token, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    assert!(token.expires_at > token.created_at, "a join token lives for a time");
    let (text, fingerprint) = join.split_once('.').expect("the CA's fingerprint");
    assert_eq!(fingerprint, setup.auth.0.ca.fingerprint());
    assert_eq!(code(setup.call(text).await), Code::AuthDenied);
    let broken = setup.auth.enroll(&join, WorkerName::new("w1").expect("a name"), "no request", FROM).await;
    assert_eq!(code(broken), Code::InvalidInput);
    let identity = setup.enroll(&join, "w1").await.expect("a broken request left it unused");
    assert_eq!(setup.worker(&identity).await.expect("enrolled").as_str(), "w1");
    assert_eq!(code(setup.enroll(&join, "w2").await), Code::AuthInvalid);
}

#[tokio::test]
async fn of_many_that_use_one_join_token_at_once_one_gets_in() {
    let setup = Arc::new(setup().await);
    let admin = setup.admin().await;
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let names = ["w1", "w2", "w3", "w4", "w5"];
    let all = futures::future::join_all(names.map(|name| setup.enroll(&join, name))).await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(setup.ledger.workers().await.expect("read").len(), 1);
}

#[tokio::test]
async fn a_join_token_of_another_broker_is_refused_before_it_is_looked_at() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let (text, _) = join.split_once('.').expect("the CA's fingerprint");
    let error = setup.enroll(&format!("{text}.{}", "0".repeat(64)), "w1").await.expect_err("refused");
    assert!(error.message.contains("another broker"), "{error}");
    assert_eq!(
        code(setup.enroll(&setup.create(&admin, Role::Viewer, &[]).await.expect("created").1, "w1").await),
        Code::AuthDenied
    );
    setup.enroll(&join, "w1").await.expect("still unused");
}

#[tokio::test]
async fn a_worker_is_known_by_its_newest_certificate_until_it_is_revoked() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let old = setup.enroll(&join, "w1").await.expect("enrolled");
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let new = setup.enroll(&join, "w1").await.expect("enrolled again");
    assert_eq!(code(setup.worker(&old).await), Code::AuthInvalid);
    setup.worker(&new).await.expect("the newest");
    let row = setup.ledger.workers().await.expect("read").swap_remove(0);
    setup.ledger.put_worker(ledger::Worker { revoked: true, ..row }).await.expect("written");
    assert_eq!(code(setup.worker(&new).await), Code::WorkerRevoked);
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    assert_eq!(code(setup.enroll(&join, "w1").await), Code::WorkerRevoked);
    setup.enroll(&join, "w2").await.expect("the token was left unused");
    let stranger = Identity { name: "w9".into(), ..new.clone() };
    assert_eq!(code(setup.worker(&stranger).await), Code::AuthInvalid);
    let server = Identity { role: String::new(), ..new };
    assert_eq!(code(setup.worker(&server).await), Code::AuthMissing);
    let nobody = Peer { address: FROM, certificate: None };
    assert_eq!(code(setup.auth.worker(&nobody).await), Code::AuthMissing);
}

#[tokio::test]
async fn a_renewed_certificate_is_accepted_beside_the_one_that_it_was_renewed_with_and_no_other() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let first = setup.enroll(&join, "w1").await.expect("enrolled");
    let name = WorkerName::new("w1").expect("a name");
    let renew = async |with: &Identity| {
        let peer = Peer { address: FROM, certificate: Some(Arc::new(with.clone())) };
        let (csr, _) = tls::csr(&name).expect("a request");
        let renewed = setup.auth.renew(&peer, &csr).await?;
        let der = tls::certificates(renewed.certificate_pem.as_bytes())?;
        Identity::of(&der[0])
    };
    // The answer to the first try was lost.
    let lost = renew(&first).await.expect("renewed");
    let second = renew(&first).await.expect("renewed again with what the worker has");
    setup.worker(&first).await.expect("the one it renewed with");
    setup.worker(&second).await.expect("the newest");
    assert_eq!(code(setup.worker(&lost).await), Code::AuthInvalid);
    let third = renew(&second).await.expect("renewed");
    assert_eq!(code(setup.worker(&first).await), Code::AuthInvalid);
    assert_eq!(code(renew(&first).await), Code::AuthInvalid);
    setup.auth.set_certificate_life(Duration::from_secs(40));
    let short = renew(&third).await.expect("renewed");
    assert_eq!(short.not_after_ms - short.issued_at_ms(), 40_000);
    let row = setup.ledger.workers().await.expect("read").swap_remove(0);
    assert_eq!(row.certificate_expires_at, short.not_after_ms);
    setup.ledger.put_worker(ledger::Worker { revoked: true, ..row }).await.expect("written");
    for identity in [&third, &short] {
        assert_eq!(code(setup.worker(identity).await), Code::WorkerRevoked);
        assert_eq!(code(renew(identity).await), Code::WorkerRevoked);
    }
}

#[tokio::test]
async fn a_join_token_for_the_name_leaves_none_of_the_old_certificates_good() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    let first = setup.enroll(&join, "w1").await.expect("enrolled");
    let peer = Peer { address: FROM, certificate: Some(Arc::new(first.clone())) };
    let (csr, _) = tls::csr(&WorkerName::new("w1").expect("a name")).expect("a request");
    setup.auth.renew(&peer, &csr).await.expect("renewed");
    let (_, join) = setup.create(&admin, Role::Worker, &[]).await.expect("created");
    setup.enroll(&join, "w1").await.expect("enrolled again");
    assert_eq!(code(setup.worker(&first).await), Code::AuthInvalid);
}

#[tokio::test]
async fn invariant_10_a_join_token_takes_no_connected_workers_name() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let join = async |name: &str| setup.join_token(&admin, name).await;
    let first = setup.enroll(&join("any").await, "w1").await.expect("a new name");
    let second = setup.enroll(&join("any").await, "w1").await.expect("the first answer was lost");
    assert_eq!(code(setup.worker(&first).await), Code::AuthInvalid);
    let row = setup.ledger.workers().await.expect("read").swap_remove(0);
    setup.ledger.put_worker(ledger::Worker { last_seen_at: now(), ..row }).await.expect("written");
    let thief = join("any").await;
    let error = setup.enroll(&thief, "w1").await.expect_err("the name is taken");
    assert_eq!(error.code, Code::AuthDenied);
    assert!(error.hint.contains("worker token --name w1"), "{error}");
    setup.worker(&second).await.expect("still the worker");
    setup.enroll(&thief, "w2").await.expect("the token was left unused");
    let third = setup.enroll(&join("w1").await, "w1").await.expect("made for it");
    setup.worker(&third).await.expect("the newest");
    assert_eq!(code(setup.worker(&second).await), Code::AuthInvalid);
}

#[tokio::test]
async fn a_worker_that_is_refused_is_told_what_the_broker_takes() {
    let setup = setup().await;
    let admin = setup.admin().await;
    let join = async |name: &str| setup.join_token(&admin, name).await;
    let first = setup.enroll(&join("w1").await, "w1").await.expect("enrolled");
    let second = setup.enroll(&join("w1").await, "w1").await.expect("enrolled again");
    let peer = |identity: Identity| Peer { address: FROM, certificate: Some(Arc::new(identity)) };
    let error = setup.auth.worker(&peer(first)).await.expect_err("replaced");
    assert!(error.hint.contains("worker token --name w1 |"), "{error}");
    let row = setup.ledger.workers().await.expect("read").swap_remove(0);
    setup.ledger.put_worker(ledger::Worker { revoked: true, ..row }).await.expect("written");
    let shown = setup.auth.worker(&peer(second)).await.expect_err("revoked");
    let asked = setup.enroll(&join("w1").await, "w1").await.expect_err("the name is gone");
    for error in [shown, asked] {
        assert_eq!(error.code, Code::WorkerRevoked);
        assert!(error.hint.contains("worker token |") && error.hint.contains("--name OTHER"), "{error}");
    }
    setup.enroll(&join("any").await, "w2").await.expect("what the hint says");
}
