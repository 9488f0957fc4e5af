//! Sockets that systemd opened and holds (`Sockets=`, `FileDescriptorName=`): they outlive the daemon, so that a client which
//! comes during a restart waits and is not refused.

use std::{collections::BTreeMap, net::TcpListener};

use codering_core::{Code, Error, ids::shown};
use listenfd::ListenFd;

/// What this process was handed, by name.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, Vec<TcpListener>>);

impl Inherited {
    /// Takes them out of the environment, once; call it before there are threads. `names` are those that this daemon knows.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] for a socket that is no TCP listener, or of a name that it does not know.
    pub fn take(names: &[&str]) -> Result<Self, Error> {
        // The crate takes sockets meant for another process too, where LISTEN_PID was taken away.
        let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        if !ours {
            return Ok(Self::default());
        }
        let given = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut given = given.split(':');
        let mut sockets = ListenFd::from_env();
        let mut found: BTreeMap<String, Vec<TcpListener>> = BTreeMap::new();
        for number in 0..sockets.len() {
            let name = given.next().unwrap_or_default();
            let refuse = |what: String| {
                Error::new(Code::ConfigInvalid, what)
                    .at("LISTEN_FDNAMES")
                    .hint(format!("FileDescriptorName= of the socket unit is one of {}", names.join(", ")))
            };
            if !names.contains(&name) {
                return Err(refuse(format!("systemd handed over a socket called `{}`", shown(name))));
            }
            let socket = sockets
                .take_tcp_listener(number)
                .map_err(|e| refuse(format!("the socket `{name}` is no TCP listener: {e}")))?;
            found.entry(name.to_owned()).or_default().extend(socket);
        }
        Ok(Self(found))
    }

    /// Those of a name; none where systemd holds none.
    pub fn of(&mut self, name: &str) -> Vec<TcpListener> {
        self.0.remove(name).unwrap_or_default()
    }
}
