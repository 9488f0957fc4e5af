//! Keeps RabbitMQ connected for as long as it takes: makes both connections, waits until either fails,
//! and makes both anew. lapin's own recovery stays off: it forgets prefetch, gives up, and leaves
//! channel errors alone.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{Channel, Connection, ConnectionProperties, Event, options::ConfirmSelectOptions, uri::AMQPUri};
use rustls::ClientConfig;
use tokio::{sync::mpsc, time::timeout};

use super::{
    QueueConfig, encrypted,
    link::Link,
    publisher::{self, Put},
    shared::{Shared, State},
};

const CONNECT: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Where RabbitMQ is. Never shown: it holds the password.
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    /// With `amqps`.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

async fn connection(address: &Address, purpose: &str) -> Result<Connection, String> {
    let properties =
        ConnectionProperties::default().with_connection_name(format!("codering-brokerd {purpose}").into());
    let uri = address.uri.clone();
    let made = async {
        match &address.tls {
            None => Connection::connect_uri(uri, properties).await,
            Some(tls) => encrypted::connect(uri, tls.clone(), properties).await,
        }
    };
    match timeout(CONNECT, made).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {} s", CONNECT.as_secs())),
    }
}

async fn publishing(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn connect(address: &Address) -> Result<(Connection, Channel, Arc<Link>), String> {
    let out = connection(address, "publish").await?;
    let channel = timeout(CONNECT, publishing(&out))
        .await
        .map_err(|_| "no channel in time".to_owned())?
        .map_err(|e| e.to_string())?;
    let link = Link::new(connection(address, "take").await?);
    Ok((out, channel, Arc::new(link)))
}

/// Follows one connection's events until it is lost, and says why.
async fn lost(connection: &Connection, shared: &Shared) -> String {
    let mut events = Box::pin(connection.events_listener());
    loop {
        match timeout(Duration::from_secs(1), events.next()).await {
            Ok(Some(Event::ConnectionBlocked(reason))) => {
                tracing::warn!(%reason, "RabbitMQ blocks publishers");
                shared.blocked.send_replace(Some(reason));
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                tracing::info!("RabbitMQ takes messages again");
                shared.blocked.send_replace(None);
            }
            // Channel errors come here as well; the connection's state tells them apart.
            Ok(Some(Event::Error(error))) if !connection.status().connected() => return error.to_string(),
            Ok(None) => return "the connection ended".to_owned(),
            Ok(Some(_)) => {}
            Err(_) if !connection.status().connected() => return "the connection was closed".to_owned(),
            Err(_) => {}
        }
    }
}

/// Runs until the backend is closed.
pub(super) async fn run(shared: Arc<Shared>, config: QueueConfig, mut waiting: mpsc::Receiver<Put>) {
    let mut closing = shared.closing.subscribe();
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    while !*closing.borrow() {
        let connected = match super::address(&config) {
            Ok(address) => connect(&address).await,
            Err(error) => Err(error.to_string()),
        };
        let why = match connected {
            Ok((out, channel, link)) => {
                tracing::info!("connected to RabbitMQ");
                pause = FIRST_PAUSE;
                said.clear();
                shared.blocked.send_replace(None);
                shared.state.send_replace(State::Up(link.clone()));
                shared.bell.ring_all();
                let is_blocked = || shared.blocked.borrow().is_some();
                let why = tokio::select! {
                    why = publisher::run(&channel, &mut waiting, closing.clone(), is_blocked) => why,
                    why = lost(&out, &shared) => why,
                    why = lost(link.connection(), &shared) => why,
                };
                shared.blocked.send_replace(None);
                shared.state.send_replace(State::Down(why.clone()));
                close(&out).await;
                close(link.connection()).await;
                why
            }
            Err(why) => why,
        };
        if *closing.borrow() {
            break;
        }
        shared.state.send_replace(State::Down(why.clone()));
        if why != said {
            tracing::warn!(error = %why, "RabbitMQ is not connected; trying again until it is");
            said = why;
        }
        let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
        tokio::select! { () = tokio::time::sleep(jittered) => {} _ = closing.changed() => {} }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    shared.state.send_replace(State::Down("the queue backend is closed".to_owned()));
    shared.closed.send_replace(true);
}

async fn close(connection: &Connection) {
    if connection.status().connected() {
        // What does not close in time is closed by being dropped.
        let _ = timeout(CLOSE, connection.close(200, "bye".into())).await;
    }
}
