//! The `[queue]` table of `brokerd.toml`.

use std::{fmt, fs, path::PathBuf};

use serde::Deserialize;

use super::{QueueError, Result};

/// Which backend, where, and its bounds. The address is a secret (it may hold a password): `Debug` hides it.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// `embedded` or `rabbitmq`; by default RabbitMQ where an address is given.
    pub backend: Option<Backend>,
    /// `amqp://user:password@host:5672/vhost` or `amqps://…`. Prefer `url_file`.
    pub url: Option<String>,
    /// A file that holds the address.
    pub url_file: Option<PathBuf>,
    /// PEM file of the authorities that `amqps` trusts; Debian's bundle unless given.
    pub ca_file: Option<PathBuf>,
    /// What the names of queues start with on RabbitMQ, where a virtual host is shared.
    pub prefix: String,
    /// Where the embedded backend keeps `queue.db`; brokerd's own `data_dir` unless given.
    pub data_dir: Option<PathBuf>,
    /// What the embedded backend leaves free on its disk: `min_free_disk` of the whole configuration.
    #[serde(skip)]
    pub min_free_disk: u64,
    /// The most messages on one queue of the embedded backend.
    pub max_messages: u64,
    /// The most bytes of messages on one queue of the embedded backend.
    #[serde(deserialize_with = "size")]
    pub max_bytes: u64,
    /// The most bytes of one message, at least 13 MiB. RabbitMQ 4 refuses more than 16 MiB by default.
    #[serde(deserialize_with = "size")]
    pub max_message_bytes: u64,
}

/// A backend's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// SQLite in brokerd's own data directory.
    Embedded,
    /// RabbitMQ 3.10 or newer.
    Rabbitmq,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            backend: None,
            url: None,
            url_file: None,
            ca_file: None,
            prefix: String::new(),
            data_dir: None,
            min_free_disk: 0,
            max_messages: 5_000_000,
            max_bytes: 8 << 30,
            max_message_bytes: 16 << 20,
        }
    }
}

impl fmt::Debug for QueueConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueConfig")
            .field("backend", &self.chosen())
            .field("url", &self.url.as_ref().map(|_| "(hidden)"))
            .field("url_file", &self.url_file)
            .field("ca_file", &self.ca_file)
            .field("prefix", &self.prefix)
            .field("data_dir", &self.data_dir)
            .field("max_messages", &self.max_messages)
            .field("max_bytes", &self.max_bytes)
            .field("max_message_bytes", &self.max_message_bytes)
            .finish()
    }
}

impl QueueConfig {
    /// The backend asked for, or the one that the rest implies.
    pub fn chosen(&self) -> Backend {
        let has_url = self.url.is_some() || self.url_file.is_some();
        self.backend.unwrap_or(if has_url { Backend::Rabbitmq } else { Backend::Embedded })
    }

    /// The address, from where it is kept.
    pub(super) fn address(&self) -> Result<String> {
        let refuse = |why: String| QueueError::Unavailable(why);
        match (&self.url, &self.url_file) {
            (Some(_), Some(_)) => Err(refuse("queue.url and queue.url_file exclude each other".into())),
            (Some(url), None) => Ok(url.trim().to_owned()),
            (None, Some(path)) => fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|e| refuse(format!("queue.url_file {}: {e}", path.display()))),
            (None, None) => {
                Err(refuse("queue.backend = \"rabbitmq\" needs queue.url or queue.url_file".into()))
            }
        }
    }
}

fn size<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<u64, D::Error> {
    let bytes = codering_core::units::read_size(from)?;
    bytes.ok_or_else(|| serde::de::Error::custom("expected a size such as \"8G\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_chooses_rabbitmq_and_is_never_shown() {
        let config: QueueConfig =
            serde_json::from_str(r#"{"url": "amqp://u:hunter2@h/", "max_bytes": "1M"}"#).expect("valid");
        assert_eq!((config.chosen(), config.max_bytes), (Backend::Rabbitmq, 1 << 20));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(QueueConfig::default().chosen(), Backend::Embedded);
        assert!(serde_json::from_str::<QueueConfig>(r#"{"ulr": ""}"#).is_err());
    }
}
