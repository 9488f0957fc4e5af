//! `coderingctl`: drives codering from a terminal or a script, over gRPC and TLS.
//!
//! - [`cli`]: the command line; one file a verb under [`verbs`].
//! - [`context`]: what every verb is given: [`output`] and the way to the broker ([`client`], [`contexts`]).
//! - [`push`]: the files of a directory become a commit; [`history`]: what was submitted and seen from here.
//!
//! Data goes to stdout and all else to stderr, only through [`output`]. It never speaks to RabbitMQ,
//! to Docker or to the ledger.

mod cli;
mod client;
mod context;
mod contexts;
mod history;
mod jobfile;
#[cfg(test)]
mod jobfile_fuzz;
mod output;
mod push;
mod verbs;

fn main() -> std::process::ExitCode {
    cli::main()
}
