//! `codering-brokerd ledger …`: what needs a ledger that nobody has open. Answers are one line of JSON on stdout, for
//! `coderingctl ledger`, which shows them.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use codering_core::{Code, Error};
use serde_json::{Value, json};

use crate::{api::views, config::Config, ledger};

/// What is to be done.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Reads the ledger, or FILE, and says what does not fit together.
    Check {
        /// A ledger's file, or a backup.
        file: Option<PathBuf>,
        /// brokerd's directory, instead of the configuration's
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Puts a backup in the ledger's place, and keeps what is there aside.
    Restore {
        /// As `coderingctl ledger backup` wrote it.
        backup: PathBuf,
        /// brokerd's directory, instead of the configuration's
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

pub(super) fn main(verb: &Verb, config: Option<&Path>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(run(verb, config))),
        Err(error) => Err(Error::new(Code::Internal, format!("no runtime: {error}"))),
    };
    let (line, code) = match done {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => {
            let (code, place) = (error.code.as_str(), &error.place);
            let told = json!({"code": code, "message": error.message, "place": place, "hint": error.hint});
            (json!({ "error": told }), ExitCode::FAILURE)
        }
    };
    // Who closed it does not want to know.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
    code
}

async fn run(verb: &Verb, config: Option<&Path>) -> Result<Value, Error> {
    match verb {
        Verb::Check { file, data_dir } => {
            let path = match file {
                Some(file) => file.clone(),
                None => ledger_of(data_dir.as_deref(), config)?,
            };
            Ok(json!({ "report": views::ledger_report(ledger::inspect(&path).await?), "file": path }))
        }
        Verb::Restore { backup, data_dir } => {
            let path = ledger_of(data_dir.as_deref(), config)?;
            let restored = ledger::restore(&path, backup).await?;
            Ok(json!({
                "report": views::ledger_report(restored.report),
                "file": path, "aside": restored.aside, "checksum": restored.checksum,
            }))
        }
    }
}

fn ledger_of(data_dir: Option<&Path>, config: Option<&Path>) -> Result<PathBuf, Error> {
    let data_dir = match data_dir {
        Some(data_dir) => data_dir.to_owned(),
        None => Config::load(config)?.data_dir,
    };
    Ok(data_dir.join("ledger.db"))
}
