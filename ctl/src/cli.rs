//! The command line: global options, the verbs, and how a verb's end becomes an exit code.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};
use codering_core::{Code, Error, units};

use crate::{
    context::Context,
    output::{Format, Out, calm, exit},
    verbs,
};

/// Code on demand on your own machines: submit jobs of many tasks, watch them, collect one answer.
#[derive(Debug, Parser)]
#[command(name = "coderingctl", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done; 1 the job or task failed; 2 wrong usage or input; 3 not found; \
    4 denied; 5 broker unreachable; 6 timed out; 130 interrupted.\n\n\
    Examples:\n  coderingctl dev --data-dir ./dev\n  coderingctl submit --push examples/wordcount --watch")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The broker of an endpoints.json, as `coderingctl dev` writes it.
    #[arg(long, global = true, env = "CODERING_ENDPOINTS", value_name = "FILE", value_parser = path_or_none)]
    pub endpoints: Option<PathBuf>,
    /// The broker of this name, see `coderingctl login`.
    #[arg(long, global = true, env = "CODERING_CONTEXT", value_name = "NAME", add = verbs::complete::contexts())]
    pub context: Option<String>,
    /// How data is written to stdout.
    #[arg(long, short, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Nothing on stderr but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a broker and workers of your own here, until Ctrl-C.
    Dev(Box<verbs::dev::Args>),
    /// Submit a job.
    Submit(Box<verbs::submit::Args>),
    /// Show a job's progress until it ends.
    Watch(verbs::watch::Args),
    /// Print a job's results, or its answer.
    Results(verbs::results::Args),
    /// Run a command over a job's results, and keep what it prints as the job's answer.
    Reduce(verbs::reduce::Args),
    /// Create, list, show and delete projects, and set their quotas.
    #[command(subcommand)]
    Project(verbs::project::Verb),
    /// List and show jobs; cancel, retry, pause and resume them.
    #[command(subcommand)]
    Job(verbs::job::Verb),
    /// List and show tasks, print their output, cancel and retry them.
    #[command(subcommand)]
    Task(verbs::task::Verb),
    /// Put messages into queues and take them out.
    #[command(subcommand)]
    Queue(verbs::queue::Verb),
    /// List and show workers; pause, drain and revoke them.
    #[command(subcommand)]
    Worker(verbs::worker::Verb),
    /// Create, list and revoke tokens.
    #[command(subcommand)]
    Token(verbs::token::Verb),
    /// Check the broker's ledger, back it up, and restore it.
    #[command(subcommand)]
    Ledger(verbs::ledger::Verb),
    /// Keep brokers by name, and switch between them.
    Login(verbs::login::Login),
    /// What was submitted and seen from here; needs no broker.
    History(verbs::history::Args),
    /// Look for what is wrong between here and a running task.
    Doctor(verbs::doctor::Doctor),
    /// Print a shell's completion script.
    Completions(verbs::completions::Completions),
    /// Write a manual page for every verb.
    Man(verbs::man::Man),
}

impl Verb {
    async fn run(self, ctx: &Context) -> Result<(), Error> {
        match self {
            Self::Dev(args) => verbs::dev::run(ctx, *args).await,
            Self::Submit(args) => verbs::submit::run(ctx, *args).await,
            Self::Watch(args) => verbs::watch::run(ctx, args).await,
            Self::Results(args) => verbs::results::run(ctx, args).await,
            Self::Reduce(args) => verbs::reduce::run(ctx, args).await,
            Self::Project(verb) => verbs::project::run(ctx, verb).await,
            Self::Job(verb) => verbs::job::run(ctx, verb).await,
            Self::Task(verb) => verbs::task::run(ctx, verb).await,
            Self::Queue(verb) => verbs::queue::run(ctx, verb).await,
            Self::Worker(verb) => verbs::worker::run(ctx, verb).await,
            Self::Token(verb) => verbs::token::run(ctx, verb).await,
            Self::Ledger(verb) => verbs::ledger::run(ctx, verb).await,
            Self::Login(login) => verbs::login::run(ctx, login).await,
            Self::History(args) => verbs::history::run(ctx, args).await,
            Self::Doctor(doctor) => verbs::doctor::run(ctx, doctor).await,
            Self::Completions(completions) => verbs::completions::run(ctx, &completions),
            Self::Man(man) => verbs::man::run(ctx, man),
        }
    }
}

const FIRST_FIVE: &str = "\
coderingctl runs code on demand on your own machines. Five verbs to start with:

  coderingctl dev --data-dir ./dev          a broker and a worker of your own, here
  coderingctl submit --push DIR --watch     a job from a directory with Dockerfile, code and job.toml
  coderingctl watch JOB                     how far it is
  coderingctl results JOB                   what came out
  coderingctl job show JOB                  its whole story, and what went wrong

All verbs: coderingctl --help";

/// Parses, runs one verb, says how it ended.
pub fn main() -> ExitCode {
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A shell that asks for candidates is answered here, and the process ends.
    clap_complete::CompleteEnv::with_factory(command).var(verbs::completions::VARIABLE).complete();
    let cli = match command().try_get_matches().and_then(parsed) {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let out = Out::new(cli.global.output, cli.global.quiet);
    let ctx = Context::new(out, cli.global);
    let Some(verb) = cli.verb else {
        return ended(&ctx, ctx.out.line(FIRST_FIVE));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return ended(&ctx, Err(Error::new(Code::Internal, error.to_string()))),
    };
    let end = runtime.block_on(Box::pin(verb.run(&ctx)));
    // A read of a terminal that nobody answers must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended(&ctx, end)
}

fn ended(ctx: &Context, end: Result<(), Error>) -> ExitCode {
    match end {
        Ok(()) => ExitCode::from(ctx.exit_code()),
        // `coderingctl … | head`: the reader has what it wanted.
        Err(_) if ctx.out.reader_is_gone() => ExitCode::SUCCESS,
        Err(error) => {
            ctx.tell(&error);
            ExitCode::from(exit::of(error.code))
        }
    }
}

/// What clap says of a wrong command line. It repeats what was typed, or what a script took from elsewhere.
fn misused(error: &clap::Error) -> ExitCode {
    let told = error.render().to_string();
    let calmed = calm::line(&told, false);
    if calmed == told {
        error.exit();
    }
    eprint!("{calmed}");
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// A broker named on the command line goes over one that the environment names, whichever way.
fn parsed(matches: ArgMatches) -> Result<Cli, clap::Error> {
    let mut cli = Cli::from_arg_matches(&matches)?;
    let typed = |option| matches.value_source(option) == Some(ValueSource::CommandLine);
    match (typed("endpoints"), typed("context")) {
        (true, true) => {
            let both = "`--endpoints` and `--context` both name a broker; name one";
            return Err(command().error(clap::error::ErrorKind::ArgumentConflict, both));
        }
        (false, true) => cli.global.endpoints = None,
        _ => {}
    }
    Ok(cli)
}

/// The whole command line, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// A path; an empty variable is one that is not set.
fn path_or_none(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

/// For `value_parser`: `90s`, `10m`, `2h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    units::duration_ms(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration such as 90s, 10m or 2h".to_owned())
}

/// For `value_parser`: `512M`, `2G`, or plain bytes.
pub fn size(text: &str) -> Result<u64, String> {
    units::size_bytes(text).ok_or_else(|| "expected a size such as 512M, 2G or a number of bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_named_on_the_command_line_goes_over_the_environment_s() {
        let named = |words: &[&str]| {
            // As the environment would: a default of lower rank than what is typed.
            let command =
                command().mut_arg("endpoints", |option| option.env(None::<&str>).default_value("env.json"));
            let cli = parsed(command.try_get_matches_from(words).expect("valid"))?;
            let file = cli.global.endpoints.map(|path| path.display().to_string());
            Ok::<_, clap::Error>((file, cli.global.context))
        };
        let of = |words: &[&str]| named(words).expect("one broker");
        assert_eq!(of(&["coderingctl", "doctor"]).0.as_deref(), Some("env.json"));
        let lab = (None, Some("lab".to_owned()));
        assert_eq!(of(&["coderingctl", "job", "list", "--context", "lab"]), lab);
        assert_eq!(of(&["coderingctl", "--context", "lab", "job", "list"]), lab);
        assert!(named(&["coderingctl", "--context", "lab", "doctor", "--endpoints", "a.json"]).is_err());
    }

    #[test]
    fn the_command_line_is_free_of_contradictions() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_s_help_ends_with_two_examples() {
        fn check(command: &clap::Command, path: &str) {
            let mut leaf = true;
            for sub in command.get_subcommands() {
                leaf = false;
                check(sub, &format!("{path} {}", sub.get_name()));
            }
            if leaf {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                let examples = help.split("Examples:").nth(1).unwrap_or_default();
                let count = examples.lines().filter(|line| line.contains("coderingctl ")).count();
                assert!(count >= 2, "{path} has {count} examples: {help:?}");
            }
        }
        check(&command(), "coderingctl");
    }
}
