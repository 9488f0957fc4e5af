//! Every verb's help ends with two examples at least, and each of them is a command line that parses.

use clap::Command;

use crate::cli;

/// The words of the first `coderingctl` call in a shell line, up to a pipe, a redirection or its end.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quote, mut started) = (None, false);
    for c in line[line.find("coderingctl").expect("a call")..].chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => words.last_mut().expect("one").push(c),
            (None, '\'' | '"') => (quote, started) = (Some(c), true),
            (None, '|' | '>' | '<' | ';' | '&' | ')' | '#') => break,
            (None, ' ') if started => {
                words.push(String::new());
                started = false;
            }
            (None, ' ') => {}
            (None, c) => {
                words.last_mut().expect("one").push(c);
                started = true;
            }
        }
    }
    if !started {
        words.pop();
    }
    words
}

/// The lines after `Examples:` in the help of `command`.
fn examples(command: &Command) -> Vec<String> {
    let help = command.get_after_long_help().or(command.get_after_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let after = help.split_once("Examples:").map(|(_, after)| after.to_owned()).unwrap_or_default();
    after.lines().filter(|line| line.contains("coderingctl ")).map(|line| line.trim().to_owned()).collect()
}

fn leaves(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    let path = format!("{path} {}", command.get_name()).trim().to_owned();
    // `login NAME` is a verb of its own beside `login list`.
    if !command.has_subcommands() || command.is_subcommand_negates_reqs_set() {
        found.push((path.clone(), command.clone()));
    }
    for below in command.get_subcommands() {
        leaves(below, &path, found);
    }
}

#[test]
fn every_example_parses_as_the_verb_whose_help_shows_it() {
    let mut all = Vec::new();
    leaves(&cli::command(), "", &mut all);
    assert!(all.len() > 40, "{} verbs", all.len());
    for (path, command) in all {
        let examples = examples(&command);
        assert!(examples.len() >= 2, "`{path} --help` has {} examples", examples.len());
        for example in examples {
            let words = words(&example);
            assert!(words.join(" ").starts_with(&path), "`{example}` is no example of `{path}`");
            if let Err(error) = cli::command().try_get_matches_from(words) {
                panic!("`{example}` in the help of `{path}` does not parse: {error}");
            }
        }
    }
}

#[test]
fn the_words_of_an_example_end_where_the_shell_would_end_them() {
    let expected = ["coderingctl", "queue", "put", "demo.mail", r#"{"to": "ann"}"#];
    assert_eq!(words(r#"x | coderingctl queue put demo.mail '{"to": "ann"}' | jq ."#), expected);
    assert_eq!(words("while coderingctl queue get a >> b; do :; done"), ["coderingctl", "queue", "get", "a"]);
}
