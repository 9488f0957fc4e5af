//! A worker joins: from the administrator's token in a file to a call that its certificate alone allows.

mod running;

use std::sync::Arc;

use codering_core::{Code, WorkerName};
use codering_kit::{connect, tls};
use codering_proto::{
    status::from_status,
    v1::{self, tokens_client::TokensClient, workers_client::WorkersClient},
};
use running::{Place, Running};
use tonic::transport::Channel;

fn channel(place: &Place, config: rustls::ClientConfig) -> Channel {
    connect::channel(&format!("https://localhost:{}", place.grpc.port()), Arc::new(config))
        .expect("an address")
}

fn trusting(place: &Place, identity: Option<(&[u8], &[u8])>) -> Channel {
    let ca = std::fs::read(place.path("data/ca/ca.pem")).expect("made");
    channel(place, tls::client_config(&ca, identity).expect("valid"))
}

async fn join_token(place: &Place) -> String {
    let admin = std::fs::read_to_string(place.path("data/admin.token")).expect("made");
    let mut request = tonic::Request::new(v1::CreateTokenRequest {
        name: "w1".into(),
        role: v1::Role::Worker.into(),
        projects: Vec::new(),
        ttl_seconds: 0,
    });
    let bearer = format!("Bearer {}", admin.trim()).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    let created = TokensClient::new(trusting(place, None)).create(request).await.expect("created");
    created.into_inner().secret
}

async fn pin(channel: Channel) -> Code {
    let request = v1::PinCommitRequest { token: "0".repeat(32), commit: "0".repeat(40) };
    from_status(&WorkersClient::new(channel).pin_commit(request).await.expect_err("no such lease")).code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_all_that_a_worker_needs() {
    tls::install_provider();
    let place = Place::new("");
    let mut brokerd = Running::start(&mut place.command());
    place.until_ready();
    let join = join_token(&place).await;
    let (_, fingerprint) = join.split_once('.').expect("the CA's fingerprint");

    let name = WorkerName::new("w1").expect("a name");
    let (csr_pem, key) = tls::csr(&name).expect("a request");
    let pinned = channel(&place, tls::pinned_client_config(fingerprint).expect("valid"));
    let request =
        v1::EnrollRequest { join_token: join.clone(), worker: name.to_string(), csr_pem: csr_pem.clone() };
    let enrolled = WorkersClient::new(pinned).enroll(request.clone()).await.expect("enrolled").into_inner();
    assert_eq!(enrolled.ca_pem, std::fs::read_to_string(place.path("data/ca/ca.pem")).expect("made"));

    let identity = Some((enrolled.certificate_pem.as_bytes(), key.as_bytes()));
    assert_eq!(pin(trusting(&place, identity)).await, Code::LeaseFenced, "it is known as a worker");
    assert_eq!(pin(trusting(&place, None)).await, Code::AuthMissing, "nobody is, without a certificate");
    let again = WorkersClient::new(trusting(&place, None)).enroll(request).await.expect_err("used up");
    assert_eq!(from_status(&again).code, Code::AuthInvalid);
    brokerd.terminate();
    assert_eq!(brokerd.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_ca_gets_no_join_token() {
    tls::install_provider();
    let place = Place::new("");
    let _brokerd = Running::start(&mut place.command());
    place.until_ready();
    let other = channel(&place, tls::pinned_client_config(&"0".repeat(64)).expect("valid"));
    let refused =
        WorkersClient::new(other).enroll(v1::EnrollRequest::default()).await.expect_err("not trusted");
    assert_eq!(from_status(&refused).code, Code::BrokerUnreachable);
}
