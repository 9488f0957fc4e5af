//! A join token for a certificate, and a certificate for the next one.

use std::{net::SocketAddr, time::Instant};

use codering_core::{Code, Error, WorkerName, joining, time::Millis};
use codering_kit::{
    fault::{self, Point},
    listen::Peer,
    tls::SignedWorker,
};

use super::Auth;
use crate::{
    broker::now,
    ledger::{Role, Worker},
};

/// What a worker gets.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Its certificate, in PEM.
    pub certificate_pem: String,
    /// The CA's, in PEM.
    pub ca_pem: String,
    /// When its certificate expires.
    pub expires_at: Millis,
    /// Another machine had the name, and a stream with the certificate that is refused from now on.
    pub replaced: bool,
}

impl Auth {
    /// Makes `worker` a worker: signs its request, uses the join token up, and records the certificate's serial number,
    /// which is the only one accepted from then on.
    ///
    /// Any join token makes a worker of a new name, and of one that never connected: its answer was lost. A name that
    /// a worker goes by already takes a join token that is called like it, which an administrator made to replace
    /// that machine; with any other, a join token that lies around would be every worker's place. A revoked name
    /// is not given again.
    ///
    /// # Errors
    /// Those of [`Auth::authenticate`]; [`Code::AuthDenied`] for a token that is no join token, or not one for this
    /// name; [`Code::InvalidInput`] for a broken request and [`Code::WorkerRevoked`] for a revoked name. All
    /// leave the token unused.
    pub async fn enroll(
        &self,
        join_token: &str,
        worker: WorkerName,
        csr_pem: &str,
        from: SocketAddr,
    ) -> Result<Enrolled, Error> {
        let from = from.ip();
        let (text, fingerprint) = match join_token.trim().split_once('.') {
            Some((text, fingerprint)) => (text, Some(fingerprint)),
            None => (join_token.trim(), None),
        };
        if fingerprint.is_some_and(|f| !f.eq_ignore_ascii_case(&self.0.ca.fingerprint())) {
            if let Some(unsaid) = self.throttle().say(from, "another broker's join token", Instant::now()) {
                tracing::warn!(worker = %worker, address = %from, unsaid, "a join token for another broker: denied");
            }
            return Err(Error::new(Code::AuthInvalid, "this join token is for another broker's CA")
                .hint(format!("make one here: coderingctl worker token --name {worker}")));
        }
        let token = self.verify(text, from).await?;
        if token.role != Role::Worker {
            self.0.metrics.auth_refused("denied").inc();
            tracing::warn!(
                token = token.id, name = token.name, worker = %worker, address = %from,
                "not a join token: enrolment denied"
            );
            return Err(Error::new(Code::AuthDenied, format!("token `{}` is no join token", token.name))
                .hint(format!("coderingctl worker token --name {worker}")));
        }
        let signed = self.0.ca.issue_worker_for(csr_pem, &worker, *self.0.certificate_life.get())?;
        let _writing = self.0.writing.lock().await;
        let before = self.0.ledger.workers().await?.into_iter().find(|row| row.name == worker);
        if before.as_ref().is_some_and(|row| row.revoked) {
            self.0.metrics.auth_refused("worker").inc();
            tracing::warn!(
                token = token.id, name = token.name, worker = %worker, address = %from,
                "a revoked worker: enrolment denied"
            );
            return Err(Error::new(Code::WorkerRevoked, format!("a worker named {worker} was revoked"))
                .hint(another_name()));
        }
        if before.as_ref().is_some_and(|row| row.last_seen_at != 0) && token.name != worker.as_str() {
            self.0.metrics.auth_refused("denied").inc();
            tracing::warn!(
                token = token.id, name = token.name, worker = %worker, address = %from,
                "a join token for any new worker, and a name that is taken: enrolment denied"
            );
            return Err(Error::new(Code::AuthDenied, format!("there is a worker {worker}, which this would replace"))
                .hint(format!(
                    "enroll this machine under another name; or replace that one: coderingctl worker token --name {worker}"
                )));
        }
        let first = self.0.ledger.spend_token(&token.id, now()).await?;
        fault::reached(Point::JoinTokenSpent);
        if !first {
            return Err(self.wrong(&token.id, Some(&token.id), from, "a join token that was used before"));
        }
        let row = Worker {
            name: worker.clone(),
            certificate_serial: signed.identity.serial.clone(),
            previous_serial: String::new(),
            certificate_expires_at: signed.identity.not_after_ms,
            paused: before.as_ref().is_some_and(|row| row.paused),
            revoked: false,
            enrolled_at: now(),
            last_seen_at: before.as_ref().map_or(0, |row| row.last_seen_at),
        };
        self.0.ledger.put_worker(row).await?;
        fault::reached(Point::WorkerEnrolled);
        let replaced = before.is_some();
        tracing::info!(
            worker = %worker, token = token.id, name = token.name, address = %from, serial = signed.identity.serial,
            replaced = before.map(|row| row.certificate_serial), "a worker enrolled"
        );
        Ok(self.enrolled(signed, replaced))
    }

    /// A worker's next certificate, for the one that it shows. That one is accepted beside it, since this answer may be lost: until
    /// it expires, or until the worker renews again. The caller holds [`crate::broker::Broker::worker_rows`].
    ///
    /// # Errors
    /// [`Code::WorkerRevoked`], [`Code::AuthInvalid`] for a certificate that was replaced meanwhile, [`Code::InvalidInput`] for a
    /// broken request.
    pub async fn renew(&self, peer: &Peer, csr_pem: &str) -> Result<Enrolled, Error> {
        // Looked at again: it may have been revoked since the call was let in.
        let row = self.worker_row(peer).await?;
        let worker = row.name.clone();
        let shown = peer.certificate.as_ref().map(|shown| shown.serial.clone()).unwrap_or_default();
        let signed = self.0.ca.issue_worker_for(csr_pem, &worker, *self.0.certificate_life.get())?;
        let row = Worker {
            certificate_serial: signed.identity.serial.clone(),
            previous_serial: shown.clone(),
            certificate_expires_at: signed.identity.not_after_ms,
            ..row
        };
        self.0.ledger.put_worker(row).await?;
        fault::reached(Point::CertificateRenewed);
        tracing::info!(
            worker = %worker, address = %peer.address.ip(), serial = signed.identity.serial, renews = shown,
            "a worker's certificate was renewed"
        );
        Ok(self.enrolled(signed, false))
    }

    fn enrolled(&self, signed: SignedWorker, replaced: bool) -> Enrolled {
        Enrolled {
            certificate_pem: signed.certificate_pem,
            ca_pem: self.0.ca.pem().to_owned(),
            expires_at: signed.identity.not_after_ms,
            replaced,
        }
    }
}

/// What to do where a worker was revoked: its name is gone for good.
pub(super) fn another_name() -> String {
    let join = joining::renamed(joining::BROKER, joining::HOST);
    format!("a revoked name is not given again; enroll this machine under another, {join}")
}
