//! `man`: a manual page for every verb.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use codering_core::{Code, Error};
use serde::Serialize;

use crate::{cli, context::Context};

/// Write a manual page for every verb.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    coderingctl man --dir ~/.local/share/man/man1\n  \
    sudo coderingctl man --dir /usr/local/share/man/man1 && man coderingctl-job-show")]
pub struct Man {
    /// Where to; it is made where it is not there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// The answer.
#[derive(Serialize)]
struct Written {
    dir: PathBuf,
    pages: usize,
}

/// Runs the verb.
pub fn run(ctx: &Context, man: Man) -> Result<(), Error> {
    let wrong = |error: std::io::Error| {
        Error::new(Code::InvalidInput, error.to_string()).at(man.dir.display().to_string())
    };
    std::fs::create_dir_all(&man.dir).map_err(wrong)?;
    let mut command = cli::command();
    command.build();
    let mut pages = 0;
    write(&command, None, &man.dir, &mut pages).map_err(wrong)?;
    let dir = man.dir.display().to_string();
    ctx.out
        .one(&Written { dir: man.dir.clone(), pages }, || vec![format!("wrote    {pages} pages into {dir}")])
}

fn write(command: &Command, above: Option<&str>, dir: &Path, pages: &mut usize) -> std::io::Result<()> {
    let name = match above {
        Some(above) => format!("{above}-{}", command.get_name()),
        None => command.get_name().to_owned(),
    };
    let page = clap_mangen::Man::new(command.clone().display_name(name.clone()))
        .title(name.to_uppercase())
        .manual("codering")
        .source(concat!("codering ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(dir.join(format!("{name}.1")), sections(&String::from_utf8_lossy(&text)))?;
    *pages += 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, Some(&name), dir, pages)?;
    }
    Ok(())
}

/// What stands at the end of the help as sections of their own, the examples line by line.
fn sections(page: &str) -> String {
    page.replace("\n.SH EXTRA\nExamples:\n", "\n.SH EXAMPLES\n.nf\n")
        .replace("\n.SH EXTRA\nExit codes: ", "\n.SH EXIT STATUS\n")
        .replace("\nExamples:\n", "\n.SH EXAMPLES\n.nf\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_with_its_examples() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = cli::command();
        command.build();
        let mut pages = 0;
        write(&command, None, dir.path(), &mut pages).expect("written");
        assert!(pages > 50, "{pages}");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a page");
        let page = read("coderingctl-task-logs.1");
        assert!(page.contains(".SH EXAMPLES\n.nf\n") && page.contains("coderingctl task logs j"), "{page}");
        assert!(!page.contains("EXTRA"), "{page}");
        let page = read("coderingctl.1");
        assert!(page.contains(".SH EXIT STATUS\n0 done") && page.contains(".SH EXAMPLES"), "{page}");
    }
}
