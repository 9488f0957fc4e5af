//! Reading a job file, and showing an error at its line.

use std::{fs, ops::Range, path::Path};

use codering_core::{
    Code, Error,
    jobfile::{JobFile, explained},
};
use toml::de::DeTable;

/// A job file and its text, which errors are shown in.
pub struct Written {
    /// What it says.
    pub job: JobFile,
    name: String,
    text: String,
}

/// A job file is written by hand, or lists its tasks; the latter may be long.
const MAX_BYTES: u64 = 256 << 20;

impl Written {
    /// Nothing but the command line.
    pub fn empty() -> Self {
        Self { job: JobFile::default(), name: String::new(), text: String::new() }
    }

    /// From a file; `.json` is JSON and anything else TOML.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let unreadable = |why: String| Error::new(Code::InvalidInput, why).at(&name);
        let length = fs::metadata(path).map_err(|error| unreadable(told(&error)))?.len();
        if length > MAX_BYTES {
            return Err(Error::new(Code::TooLarge, "is too long for a job file")
                .at(&name)
                .hint("name the tasks in a file of their own: --tasks FILE"));
        }
        let text = fs::read_to_string(path).map_err(|error| unreadable(told(&error)))?;
        let job = match path.extension() {
            Some(extension) if extension == "json" => {
                JobFile::from_json(text.as_bytes()).map_err(|mut error| {
                    error.place = format!("{name}:{}", error.place.trim_start_matches("line "));
                    error
                })?
            }
            _ => toml::from_str(&text).map_err(|error| {
                let said = explained(error.message());
                match error.span() {
                    Some(span) => shown_at(said, &name, &text, span),
                    None => said.at(&name),
                }
            })?,
        };
        Ok(Self { job, name, text })
    }

    /// An error of the job's meaning, shown where the file says it.
    pub fn locate(&self, error: Error) -> Error {
        if self.name.is_empty() {
            return error;
        }
        if error.place.is_empty() {
            return error.at(&self.name);
        }
        match span_of(&self.text, &error.place) {
            Some(span) => {
                let place = error.place.clone();
                let mut error = error;
                if !self.text[span.clone()].contains(place.rsplit('.').next().unwrap_or_default()) {
                    error.message = format!("{place}: {}", error.message);
                }
                shown_at(error, &self.name, &self.text, span)
            }
            None => {
                let place = format!("{}: {}", self.name, error.place);
                error.at(place)
            }
        }
    }
}

fn told(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        _ => format!("cannot be read: {error}"),
    }
}

/// The error with its line of the file under it, and the hint beside the carets.
fn shown_at(error: Error, name: &str, text: &str, span: Range<usize>) -> Error {
    let start = span.start.min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let from = text[line_start..start].chars().count();
    let end = span.end.min(line_start + line.len()).max(start);
    let width = text.get(start..end).map_or(1, |marked| marked.chars().count()).max(1);
    let margin = " ".repeat(number.to_string().len());
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    let marks = format!("{}{} {}", " ".repeat(from), "^".repeat(width), error.hint);
    let hint = format!("{number} | {line}\n{margin} | {}", marks.trim_end());
    error.at(format!("{name}:{number}")).hint(hint)
}

/// Where the file says the key of this path, such as `limits.memory` or `tasks[3].id`; of a path that
/// it does not hold whole, the part that it does.
fn span_of(text: &str, path: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let mut here = table.get_ref();
    let mut found = None;
    for part in path.split('.') {
        let (name, number) = match part.split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let key = here.iter().find(|(key, _)| {
            let key: &str = key.get_ref();
            key == name || (name == "tasks" && key == "task")
        });
        let Some((key, value)) = key else { break };
        found = Some(key.span());
        let value = match number {
            Some(number) => {
                let item = value.get_ref().as_array().and_then(|items| items.get(number));
                found = item.map(toml::Spanned::span).or(found);
                item
            }
            None => Some(value),
        };
        match value.and_then(|value| value.get_ref().as_table()) {
            Some(table) => here = table,
            None => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Written, Error> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        Written::read(&path).map_err(|error| {
            let place = error.place.replace(&format!("{}/", dir.path().display()), "");
            error.at(place)
        })
    }

    #[test]
    fn an_unknown_key_is_shown_at_its_line_with_what_was_probably_meant() {
        let text =
            "project = \"demo\"\nname = \"x\"\ngit = \"https://h/p\"\n\ncomand = \"python3 count.py {}\"\n";
        let error = read("job.toml", text).map(drop).expect_err("unknown");
        assert_eq!((error.code, error.place.as_str()), (Code::JobUnknownField, "job.toml:5"));
        assert_eq!(error.message, "unknown key `comand`");
        assert_eq!(error.hint, "5 | comand = \"python3 count.py {}\"\n  | ^^^^^^ did you mean `command`?");
    }

    #[test]
    fn a_wrong_value_and_a_broken_file_are_shown_at_their_line() {
        let error =
            read("job.toml", "name = \"x\"\n[limits]\ntimeout = \"soon\"\n").map(drop).expect_err("wrong");
        assert_eq!(error.place, "job.toml:3");
        assert!(error.message.contains("a duration such as"), "{error}");
        assert!(error.hint.contains("3 | timeout = \"soon\"\n  |           ^^^^^^"), "{}", error.hint);
        let error = read("job.toml", "name = \"x\"\ngit = \n").map(drop).expect_err("broken");
        assert_eq!(error.place, "job.toml:2");
        let error = read("job.json", "{\n\"comand\": 1}").map(drop).expect_err("unknown");
        assert_eq!((error.place.as_str(), error.hint.as_str()), ("job.json:2", "did you mean `command`?"));
    }

    #[test]
    fn a_fault_found_later_is_shown_where_the_file_says_it() {
        let text = "project = \"p\"\ngit = \"https://h/p\"\ncommand = \"x\"\n[[task]]\n[[task]]\nid = \"a\"\n\
            [task.limits]\nmemory = 1\n";
        let written = read("job.toml", text).expect("reads");
        let error = written.job.clone().job(None).expect_err("too little memory");
        assert_eq!(error.place, "tasks[1].limits.memory");
        let error = written.locate(error);
        assert!(error.place.ends_with("job.toml:8"), "{}", error.place);
        assert!(error.hint.starts_with("8 | memory = 1\n  | ^^^^^^"), "{}", error.hint);
    }
}
