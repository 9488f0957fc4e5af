//! `completions`: what a shell needs to complete verbs, options and, from the broker, names.

use clap::{Args, ValueEnum};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use codering_core::{Code, Error};

use crate::{cli, context::Context};

/// The binary's name, and the variable by which the shell's script asks it for candidates.
const NAME: &str = "coderingctl";
/// As `CompleteEnv` in main reads it.
pub const VARIABLE: &str = "COMPLETE";

/// Print a script that completes verbs, options, projects, jobs, queues and workers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    coderingctl completions bash > ~/.local/share/bash-completion/completions/coderingctl\n  \
    coderingctl completions zsh > ~/.zfunc/_coderingctl")]
pub struct Completions {
    /// For this shell.
    shell: Shell,
    /// Verbs and options only, without ever asking the broker.
    #[arg(long = "static")]
    fixed: bool,
}

/// A shell.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs the verb.
pub fn run(ctx: &Context, completions: &Completions) -> Result<(), Error> {
    let mut script = Vec::new();
    if completions.fixed {
        let shell = match completions.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        clap_complete::generate(shell, &mut cli::command(), NAME, &mut script);
    } else {
        let shell: &dyn EnvCompleter = match completions.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
        };
        let written = shell.write_registration(VARIABLE, NAME, NAME, NAME, &mut script);
        written.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    }
    ctx.out.bytes(&script)
}
