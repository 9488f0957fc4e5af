//! The two outside interfaces over the same verbs. A handler reads what came, asks what the caller may do,
//! calls a verb and shows what it answered; no state is held here but the bounds of what runs at once.
//!
//! - [`access`]: the one table of who may call what; [`call`]: the only way from a handler to the broker.
//! - [`views`]: the broker's rows as `codering.v1` messages, the shapes of gRPC and of REST's JSON.
//! - [`rooms`]: bounds; [`follow`]: results and logs as streams, for both.
//! - [`grpc`] and [`rest`].

pub mod access;
mod call;
mod follow;
pub mod grpc;
pub mod rest;
mod rooms;
pub(crate) mod views;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::http::{HeaderMap, header::AUTHORIZATION};
use codering_core::Error;
use codering_kit::{listen::Peer, shutdown::Shutdown};

use self::{
    access::Access,
    call::{Call, Who},
    rooms::{Place, Rooms},
};
use crate::{auth::Auth, broker::Broker};

/// What both interfaces stand on. A handle; clones share one state.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

struct Parts {
    broker: Broker,
    auth: Auth,
    shutdown: Shutdown,
    rooms: Rooms,
}

impl Api {
    /// Over this broker; `auth` says who calls. Streams end when the drain begins.
    pub fn new(broker: Broker, auth: Auth, shutdown: Shutdown) -> Self {
        Self(Arc::new(Parts { broker, auth, shutdown, rooms: Rooms::default() }))
    }

    /// Lets a call in: who it is, whether that is enough for `access`, and a place among what runs at once.
    async fn admit(&self, access: Access, peer: &Peer, headers: &HeaderMap) -> Result<(Call, Place), Error> {
        // What is no text is no token either, and counts as a wrong one.
        let bearer = headers.get(AUTHORIZATION).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let (who, place) = match access {
            Access::Open => (Who::Anyone, self.0.rooms.anyone()?),
            Access::Certificate => {
                let name = self.0.auth.worker(peer).await?;
                (Who::Worker(name), self.0.rooms.worker()?)
            }
            _ => {
                let caller = self.0.auth.authenticate(bearer.as_deref(), peer.address).await?;
                if let Access::Everywhere(role) = access {
                    caller.may_everywhere(role)?;
                }
                let place = self.0.rooms.caller(&caller.token().id)?;
                (Who::Caller(caller), place)
            }
        };
        Ok((Call::new(self.clone(), access, who, peer.clone()), place))
    }
}
