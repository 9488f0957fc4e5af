//! One caller of each kind.

use std::net::SocketAddr;

use codering_kit::tls;
use codering_proto::v1::{self, workers_client::WorkersClient};
use serde_json::json;
use tonic::transport::Channel;

use super::super::rig::{Rig, job, until};
use crate::ledger::Role;

/// Someone who calls.
///
/// | letter | who |
/// |---|---|
/// | `A` `a` | administrator everywhere, of project pi |
/// | `S` `s` | submitter everywhere, of project pi |
/// | `V` `v` | viewer everywhere, of project pi |
/// | `o` | administrator of another project |
/// | `J` | the bearer of a join token |
/// | `W` | a worker with its certificate and no token |
/// | `-` | nobody: see `name` |
pub(super) struct Caller {
    pub letter: char,
    pub name: &'static str,
    pub token: Option<String>,
    pub channel: Channel,
    /// How a user's call is refused to it.
    pub as_user: &'static str,
    /// How a worker's call is refused to it.
    pub as_worker: &'static str,
}

/// All of them, and what they ask for.
pub(super) struct People {
    pub rig: Rig,
    pub callers: Vec<Caller>,
    /// A job of project pi that never runs, and one that is over.
    pub job: String,
    pub over: String,
    /// The id of a token of project pi that was revoked.
    pub spare: String,
}

impl People {
    pub async fn gather() -> Self {
        let rig = Rig::new().await;
        let address = rig.serve().await;
        assert_eq!(rig.post("/api/v1/projects", json!({"name": "other"})).await.status, 201);
        let (job_id, over) = (submitted(&rig).await, submitted(&rig).await);
        rig.post(&format!("/api/v1/jobs/{over}/cancel"), json!({})).await;
        until("the second job is over", async || {
            (rig.get(&format!("/api/v1/jobs/{over}")).await.json()["state"] == "cancelled").then_some(())
        })
        .await;
        for queue in ["pi.mine", "pi.purged"] {
            assert_eq!(rig.post("/rabbit", json!({"name": queue})).await.status, 201);
        }
        for n in 0..40 {
            assert_eq!(rig.post("/rabbit/pi.mine", json!({"message": n})).await.status, 201);
        }
        let plain = rig.channel(address, None);
        let mut callers = Vec::new();
        for (letter, role, projects) in [
            ('A', Role::Admin, &[][..]),
            ('a', Role::Admin, &["pi"]),
            ('S', Role::Submitter, &[]),
            ('s', Role::Submitter, &["pi"]),
            ('V', Role::Viewer, &[]),
            ('v', Role::Viewer, &["pi"]),
            ('o', Role::Admin, &["other"]),
            ('J', Role::Worker, &[]),
        ] {
            callers.push(Caller {
                letter,
                name: "a live token",
                token: Some(rig.token(role, projects).await),
                channel: plain.clone(),
                as_user: "auth.denied",
                as_worker: "auth.missing",
            });
        }
        let (spare, revoked) = revoked_token(&rig).await;
        let unknown = format!("cdr_{}_{}", "0".repeat(12), "0".repeat(64));
        let wrong = format!("cdr_{spare}_{}", "0".repeat(64));
        for (name, text) in [
            ("no token", None),
            ("malformed", Some("letmein".to_owned())),
            ("an unknown id", Some(unknown)),
            ("a wrong secret", Some(wrong)),
            ("revoked", Some(revoked)),
            ("expired", Some(expired_token(&rig).await)),
        ] {
            let as_user = if text.is_none() { "auth.missing" } else { "auth.invalid" };
            let channel = plain.clone();
            callers.push(Caller {
                letter: '-',
                name,
                token: text,
                channel,
                as_user,
                as_worker: "auth.missing",
            });
        }
        callers.extend(workers(&rig, address).await);
        Self { rig, callers, job: job_id, over, spare }
    }

    pub fn of(&self, letter: char) -> &Caller {
        self.callers.iter().find(|caller| caller.letter == letter).expect("there is one")
    }
}

async fn submitted(rig: &Rig) -> String {
    rig.post("/api/v1/jobs", job(2)).await.json()["job_id"].as_str().expect("an id").to_owned()
}

/// Its id and its text.
async fn revoked_token(rig: &Rig) -> (String, String) {
    let text = rig.token(Role::Admin, &["pi"]).await;
    let id = text.split('_').nth(1).expect("an id").to_owned();
    let revoked = rig.post(&format!("/api/v1/tokens/{id}/revoke"), json!({})).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    (id, text)
}

async fn expired_token(rig: &Rig) -> String {
    let asked = json!({"name": "short", "role": "admin", "ttl_seconds": 1});
    let text =
        rig.post("/api/v1/tokens", asked).await.json()["secret"].as_str().expect("a secret").to_owned();
    until("the token expires", async || {
        let answer = rig.ask(axum::http::Method::GET, "/api/v1/whoami").token(&text).send().await;
        rig.auth.forgive_all();
        (answer.status == 401).then_some(())
    })
    .await;
    text
}

/// One that is let in, one that was revoked, one whose certificate was replaced.
async fn workers(rig: &Rig, address: SocketAddr) -> Vec<Caller> {
    let live = certified(rig, address, "w1").await;
    let revoked = certified(rig, address, "w2").await;
    assert_eq!(rig.post("/api/v1/workers/w2/revoke", json!({})).await.status, 200);
    let superseded = certified(rig, address, "w3").await;
    certified(rig, address, "w3").await;
    let caller = |letter, name, channel, as_worker| Caller {
        letter,
        name,
        token: None,
        channel,
        as_user: "auth.missing",
        as_worker,
    };
    vec![
        caller('W', "a worker", live, ""),
        caller('-', "a revoked worker", revoked, "worker.revoked"),
        caller('-', "a superseded certificate", superseded, "auth.invalid"),
    ]
}

/// A channel with a certificate that was enrolled for under this name.
pub(super) async fn certified(rig: &Rig, address: SocketAddr, name: &str) -> Channel {
    let join_token = rig.token(Role::Worker, &[]).await;
    let (csr_pem, key) = tls::csr(&name.parse().expect("valid")).expect("made");
    let request = v1::EnrollRequest { join_token, worker: name.into(), csr_pem };
    let enrolled = WorkersClient::new(rig.channel(address, None)).enroll(request).await.expect("enrolled");
    rig.channel(address, Some((&enrolled.into_inner().certificate_pem, &key)))
}
