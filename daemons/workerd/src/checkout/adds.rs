//! `ADD` of an address, which Docker's builder fetches itself: from the machine's own network, its loopback included, and
//! whatever network the build may have. So it is refused before Docker sees it.

/// The line of the first `ADD` that fetches, or that may: what it names must be plain to see.
pub(super) fn remote(dockerfile: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(dockerfile);
    // Which of the two joins lines is said by a directive that is easily misread; so both count, and none.
    [Some('\\'), Some('`'), None].into_iter().filter_map(|escape| first(&text, escape)).min()
}

fn first(text: &str, escape: Option<char>) -> Option<usize> {
    let (mut whole, mut begun) = (String::new(), 1);
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let comment = line.trim_start().starts_with('#');
        if whole.is_empty() {
            begun = number + 1;
        }
        let line = if comment { "" } else { line.trim_end() };
        if let Some(part) = escape.and_then(|escape| line.strip_suffix(escape)) {
            whole.push_str(part);
            continue;
        }
        // A comment or nothing at all does not end a line that goes on.
        if line.is_empty() && !whole.is_empty() {
            continue;
        }
        whole.push_str(line);
        if fetches(&whole) {
            return Some(begun);
        }
        whole.clear();
    }
    fetches(&whole).then_some(begun)
}

fn fetches(line: &str) -> bool {
    let mut rest = line.trim_start();
    loop {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        match word.to_ascii_uppercase().as_str() {
            "ONBUILD" => {}
            "ADD" => break,
            _ => return false,
        }
    }
    let plain: String = rest.chars().filter(|c| !matches!(c, '\\' | '`' | '"' | '\'')).collect();
    rest.contains('$') || plain.contains("://") || (rest.contains('[') && rest.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_add_of_an_address_is_found_however_it_is_written() {
        for text in [
            "FROM x\nADD http://127.0.0.1/ /x",
            "FROM x\n  add --chown=1 https://host/a /x",
            "FROM x\nONBUILD ADD http://h /x",
            "FROM x\nADD \\\n  # why\n\n http://h /x",
            "FROM x\nA\\\nDD http://h /x",
            "# escape=`\nFROM x\nADD `\nhttp://h /x",
            "FROM x\nRUN a `\nADD http://h /x",
            "FROM x\nADD [\"\\u0068ttp\\u003a\\u002f\\u002fh\", \"/x\"]",
            "FROM x\nADD ht\\tp:\"//\"h /x",
            "FROM x\nARG A=http:\nADD $A//h /x",
        ] {
            assert!(remote(text.as_bytes()).is_some(), "{text}");
        }
        assert_eq!(remote(b"FROM x\nRUN a\nADD http://h /x\n"), Some(3));
    }

    #[test]
    fn what_comes_from_the_repository_may_be_added() {
        for text in [
            "FROM x\nADD app.tar.gz /app",
            "RUN echo ADD http://h",
            "# ADD http://h /x",
            "COPY $A /b",
            "ADD [\"a\", \"/b\"]",
        ] {
            assert_eq!(remote(text.as_bytes()), None, "{text}");
        }
    }
}
