//! `ledger`: is the broker's record whole, a backup of it, and a backup in its place. The running broker is asked for the
//! first two; what needs it stopped is done by `codering-brokerd ledger` on its own machine.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Subcommand;
use codering_core::{Code, Error, units::show_size};
use codering_proto::{
    status::from_status,
    v1::{BackupLedgerRequest, BackupPiece, CheckLedgerRequest, LedgerReport},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{
    client::said,
    context::Context,
    output::exit,
    verbs::{dev, words},
};

/// The broker's durable record of jobs, tasks and results.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read all of it and say what does not fit together; exit code 1 where something does not.
    #[command(after_help = "Examples:\n  \
        coderingctl ledger check\n  \
        coderingctl ledger check codering.backup\n  \
        coderingctl ledger check --data-dir /var/lib/codering/brokerd")]
    Check {
        /// A backup, or a ledger's file, on this machine; without it, that of the running broker.
        #[arg(conflicts_with = "data_dir")]
        file: Option<PathBuf>,
        /// The directory of a broker that does not run, on this machine.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Take a backup of the running broker's ledger into a file here, with its checksum beside it.
    #[command(
        after_help = "It holds every job and result, and the tokens' hashes: keep it as private as the broker's \
        disk. What it does not hold is the rest of the broker's data_dir: keep ca/ and admin.token too.\n\nExamples:\n  \
        coderingctl ledger backup codering.backup\n  \
        coderingctl ledger backup /backup/codering.1 --output json | jq -r .sha256"
    )]
    Backup {
        /// The file to make; nothing of this name may be there.
        file: PathBuf,
    },
    /// Put a backup in the ledger's place, on the broker's own machine, while the broker does not run.
    #[command(
        after_help = "What is there is kept aside. What was recorded after the backup is gone: jobs since then \
        have to be submitted again, tokens and workers that were revoked since are valid again, and results of later \
        attempts are fenced, so that their tasks run again.\n\nBefore: systemctl stop codering-brokerd.socket codering-brokerd-rest.socket codering-brokerd \
        (its sockets would start it again)\n\nExamples:\n  \
        coderingctl ledger restore codering.backup\n  \
        coderingctl ledger restore codering.backup --data-dir ./dev/brokerd --yes"
    )]
    Restore {
        /// As `coderingctl ledger backup` wrote it.
        backup: PathBuf,
        /// The broker's directory; without it, that of /etc/codering/brokerd.toml.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Check { file: None, data_dir: None } => {
            let broker = ctx.broker().await?;
            let report = said(broker.ledger().check(CheckLedgerRequest {}).await)?;
            tell(ctx, &report)
        }
        Verb::Check { file, data_dir } => {
            let answer = brokerd("check", file.as_deref(), data_dir.as_deref())?;
            tell(ctx, &answer.report)
        }
        Verb::Backup { file } => backup(ctx, &file).await,
        Verb::Restore { backup, data_dir, yes } => restore(ctx, &backup, data_dir.as_deref(), yes),
    }
}

fn tell(ctx: &Context, report: &LedgerReport) -> Result<(), Error> {
    if !report.sound {
        ctx.end_with(exit::FAILED);
    }
    ctx.out.one(report, || {
        let head = if report.sound { "sound" } else { "damaged" };
        let mut lines = vec![format!("{head}  {}", holds(report))];
        lines.extend(report.problems.iter().map(|problem| format!("  {}", words::harmless(problem))));
        lines
    })
}

fn holds(report: &LedgerReport) -> String {
    let (jobs, tasks, results) = (report.jobs, report.tasks, report.results);
    let size = show_size(report.bytes);
    let newest = if report.newest_at_ms > 0 { words::clock(report.newest_at_ms) } else { "-".into() };
    format!("{jobs} jobs, {tasks} tasks, {results} results in {size}; newest change {newest}")
}

/// A backup that was written.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    bytes: u64,
    sha256: String,
}

fn at(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot be written: {error}"))
        .at(path.display().to_string())
        .hint("no backup was made, and nothing of it is left; is there room, and may you write there?")
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

async fn backup(ctx: &Context, file: &Path) -> Result<(), Error> {
    let sum_file = beside(file, ".sha256");
    for there in [file, &sum_file] {
        if there.symlink_metadata().is_ok() {
            return Err(Error::new(Code::InvalidInput, "there is a file of this name already")
                .at(there.display().to_string())
                .hint("a backup overwrites nothing: name another file, or remove this one"));
        }
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // For its owner alone, and gone unless it is whole.
    let fail = |error: std::io::Error| at(file, &error);
    let mut new = NamedTempFile::new_in(directory).map_err(fail)?;
    let broker = ctx.broker().await?;
    let mut pieces = said(broker.ledger().backup(BackupLedgerRequest {}).await)?;
    let (mut sum, mut bytes, mut total, mut told) = (Sha256::new(), 0, 0, String::new());
    while let Some(piece) = pieces.message().await.map_err(|status| from_status(&status))? {
        let BackupPiece { total_bytes, data, sha256 } = piece;
        total = total.max(total_bytes);
        bytes += data.len() as u64;
        sum.update(&data);
        new.write_all(&data).map_err(fail)?;
        told = sha256;
    }
    let sha256: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sha256 != told || bytes != total {
        return Err(Error::new(
            Code::BrokerUnreachable,
            format!("the backup ended after {bytes} of {total} bytes"),
        )
        .hint("nothing of it is left; take it again"));
    }
    new.as_file().sync_all().map_err(fail)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut sums = NamedTempFile::new_in(directory).map_err(fail)?;
    writeln!(sums, "{sha256}  {name}").map_err(fail)?;
    sums.as_file().sync_all().map_err(fail)?;
    new.persist_noclobber(file).map_err(|error| fail(error.error))?;
    sums.persist_noclobber(&sum_file).map_err(|error| at(&sum_file, &error.error))?;
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(fail)?;
    let written = Written { file: file.to_owned(), bytes, sha256 };
    ctx.out.one(&written, || {
        vec![format!("{}  {}  sha256 {}", file.display(), show_size(bytes), written.sha256)]
    })
}

/// What `codering-brokerd ledger` prints.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Answer {
    report: LedgerReport,
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    aside: Option<PathBuf>,
    checksum: bool,
    #[serde(skip_serializing)]
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    code: String,
    message: String,
    place: String,
    hint: String,
}

/// Has it done by the daemon's own program: it knows the file.
fn brokerd(verb: &str, file: Option<&Path>, data_dir: Option<&Path>) -> Result<Answer, Error> {
    let mut command = Command::new(dev::found("codering-brokerd")?);
    command.args(["ledger", verb]).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(data_dir) = data_dir {
        command.arg("--data-dir").arg(data_dir);
    }
    // After `--`: a name may begin with a dash.
    command.args(file.map(|file| ["--".as_ref(), file.as_os_str()]).into_iter().flatten());
    let failed = |why: String| Error::new(Code::Internal, format!("codering-brokerd ledger {verb}: {why}"));
    let ran = command.output().map_err(|error| failed(error.to_string()))?;
    let answer: Answer =
        serde_json::from_slice(&ran.stdout).map_err(|_| failed(format!("no answer, {}", ran.status)))?;
    match answer.error {
        None => Ok(answer),
        Some(Told { code, message, place, hint }) => {
            Err(Error::new(Code::parse(&code).unwrap_or(Code::Internal), message).at(place).hint(hint))
        }
    }
}

fn restore(ctx: &Context, backup: &Path, data_dir: Option<&Path>, yes: bool) -> Result<(), Error> {
    let question = format!(
        "put {} in the place of the ledger, and lose what was recorded after it?",
        codering_core::ids::shown(&backup.display().to_string())
    );
    ctx.confirm(&question, yes)?;
    let answer = brokerd("restore", Some(backup), data_dir)?;
    let newest = answer.report.newest_at_ms;
    if newest > 0 {
        ctx.out.note(format!(
            "what was recorded after {} is gone: submit later jobs again; what was revoked since is valid again",
            words::clock(newest)
        ));
    }
    if !answer.checksum {
        ctx.out.note("there was no .sha256 file beside the backup: it is whole in itself, and was compared with nothing");
    }
    ctx.out.one(&answer, || {
        let mut lines = vec![format!("restored  {}  {}", answer.file.display(), holds(&answer.report))];
        lines.extend(answer.aside.iter().map(|aside| format!("kept      {}", aside.display())));
        lines.push("now start codering-brokerd".to_owned());
        lines
    })
}
