//! `results`: what a job's tasks produced, or the answer that its reduce step made of it.

use std::io::IsTerminal;

use codering_core::{
    Code, Error, TaskResult,
    ids::shown,
    message::DoneMessage,
    units::{show_duration, show_size},
};
use codering_proto::{
    status::from_status,
    v1::{AnswerChunk, AnswerRequest, Outcome, ResultsRequest},
};

use crate::{client::said, context::Context, output::LongList, verbs::words::brief};

/// Print a job's results in the order of its tasks, or its answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    coderingctl results j-01jd8q --output jsonl | jq -r .stdout\n  \
    coderingctl results j-01jd8q --answer > counts.json")]
pub struct Args {
    /// Its id, or any unambiguous beginning of it.
    #[arg(add = crate::verbs::complete::jobs())]
    job: String,
    /// The bytes of the job's answer, as its reduce step wrote them.
    #[arg(long, conflicts_with = "failed")]
    answer: bool,
    /// Only of tasks that did not succeed.
    #[arg(long)]
    failed: bool,
}

/// Every outcome but success.
pub const FAILURES: [Outcome; 6] = [
    Outcome::Failed,
    Outcome::TimedOut,
    Outcome::OutOfMemory,
    Outcome::BuildFailed,
    Outcome::Cancelled,
    Outcome::InfrastructureError,
];

/// How much of a task's output a row shows.
const OUTPUT_CHARACTERS: usize = 60;

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    if args.answer {
        return answer(ctx, args.job).await;
    }
    let outcomes = if args.failed { FAILURES.map(|outcome| outcome as i32).to_vec() } else { Vec::new() };
    let request = ResultsRequest { job_id: args.job.clone(), outcomes };
    let mut results = said(ctx.broker().await?.jobs().results(request).await)?;
    let mut list = LongList::new(&ctx.out, &["TASK", "OUTCOME", "EXIT", "TRY", "WORKER", "RAN", "OUTPUT"]);
    while let Some(wire) = results.message().await.map_err(|status| from_status(&status))? {
        let result = TaskResult::try_from(wire)?;
        list.push(&DoneMessage::from(&result), || row(&result))?;
    }
    match (list.end()?, args.failed) {
        (0, true) => ctx.out.note("no recorded result is a failure"),
        (0, false) => ctx.out.note(format!(
            "no result is recorded yet (how far it is: coderingctl watch {})",
            shown(&args.job)
        )),
        _ => {}
    }
    Ok(())
}

fn row(result: &TaskResult) -> Vec<String> {
    let exit = match (result.exit_code, result.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => code.to_string(),
        (None, None) => "-".into(),
    };
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        result.task.to_string(),
        result.outcome.to_string(),
        exit,
        result.attempt.to_string(),
        dash(&result.worker),
        show_duration(result.phases.run),
        said_in_short(result),
    ]
}

/// Why it failed, or the first line of what it printed.
pub fn said_in_short(result: &TaskResult) -> String {
    if !result.message.is_empty() {
        return brief(&result.message, OUTPUT_CHARACTERS);
    }
    let stream = match (result.stdout.is_empty(), result.exit_code) {
        (false, Some(0)) => &result.stdout,
        _ if result.stderr.is_empty() => &result.stdout,
        _ => &result.stderr,
    };
    match std::str::from_utf8(stream) {
        Ok(text) => {
            let line = text.lines().find(|line| !line.trim().is_empty());
            brief(line.unwrap_or_default().trim(), OUTPUT_CHARACTERS)
        }
        Err(_) => format!("{} of bytes that are not text", show_size(stream.len() as u64)),
    }
}

async fn answer(ctx: &Context, job: String) -> Result<(), Error> {
    let request = AnswerRequest { job_id: job.clone() };
    let mut chunks = said(ctx.broker().await?.jobs().answer(request).await)?;
    let to_person = std::io::stdout().is_terminal();
    while let Some(AnswerChunk { name, data }) =
        chunks.message().await.map_err(|status| from_status(&status))?
    {
        if to_person && is_binary(&data) {
            let name = if name.is_empty() { "answer" } else { &name };
            return Err(Error::new(Code::InvalidInput, "the answer is not text, and stdout is a terminal")
                .hint(format!("coderingctl results {} --answer > {}", shown(&job), shown(name))));
        }
        ctx.out.bytes(&data)?;
    }
    Ok(())
}

/// Whether these bytes would do a terminal harm: control characters other than those of plain text.
pub fn is_binary(data: &[u8]) -> bool {
    data.iter().any(|byte| matches!(byte, 0..=8 | 14..=31 | 127))
}

#[cfg(test)]
mod tests {
    use codering_core::{JobId, Outcome, ProjectName, TaskId};

    use super::*;

    fn result(outcome: Outcome) -> TaskResult {
        TaskResult::without_attempt(
            ProjectName::new("demo").expect("valid"),
            JobId::at(1_763_722_560_000, 1),
            TaskId::new("a-f").expect("valid"),
            1,
            outcome,
            0,
            "",
        )
    }

    #[test]
    fn a_row_shows_output_of_a_success_and_the_error_of_a_failure() {
        let mut good = result(Outcome::Succeeded);
        (good.exit_code, good.stdout, good.stderr) = (Some(0), b"\n42\n".to_vec(), b"warning".to_vec());
        assert_eq!(said_in_short(&good), "42");
        let mut bad = result(Outcome::Failed);
        (bad.exit_code, bad.stdout, bad.stderr) = (Some(2), b"42".to_vec(), b"\x1b[2Jno".to_vec());
        assert_eq!(said_in_short(&bad), "\u{fffd}[2Jno");
        assert_eq!(row(&bad)[2], "2");
        bad.signal = Some(9);
        assert_eq!(row(&bad)[2], "signal 9");
    }

    #[test]
    fn a_picture_is_binary_and_text_is_not() {
        assert!(is_binary(b"\x89PNG\r\n\x1a\n"));
        assert!(!is_binary("größer\t1\r\n".as_bytes()));
    }
}
