//! What the end-to-end tests stand on: the real binaries in a directory of the test's own.
//!
//! [`Dev`] is a running `coderingctl dev`, [`Fleet`] daemons that the test starts and kills itself, [`Dockerd`] a Docker of its own, [`Vhost`] a place of the test's own in the machine's RabbitMQ, [`fixture`] the
//! jobs. Nothing is mocked: a test that finds no Docker, no RabbitMQ or no binary fails and says what starts or builds it.

mod ctl;
mod dev;
pub mod disk;
pub mod dockerd;
mod faketime;
pub mod fixture;
pub mod fleet;
pub mod kept;
mod network;
mod process;
mod proxy;
mod rabbitmq;
pub mod rest;
pub mod secrets;
mod services;
pub mod storm;
pub mod verdict;

use std::path::{Path, PathBuf};

pub use ctl::Ctl;
pub use dev::{Backend, Dev};
pub use disk::SmallDisk;
pub use dockerd::Dockerd;
pub use faketime::Faketime;
pub use fleet::{Fleet, Setup, free_port};
pub use kept::Kept;
pub use network::Namespace;
pub use process::{Ran, run, wait_for};
pub use proxy::{Manner, Proxy, Way};
pub use rabbitmq::Node;
pub use services::Vhost;

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository").to_owned()
}

/// A binary of the workspace, built in the profile of the running test; or that of the directory `CODERING_TEST_BINARIES`.
pub fn binary(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("CODERING_TEST_BINARIES") {
        return PathBuf::from(directory).join(name);
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST-HASH
    let built = test.ancestors().nth(2).expect("cargo runs tests from target/PROFILE/deps").join(name);
    assert!(built.exists(), "{} is not built: make test, or cargo build --workspace --bins", built.display());
    built
}
