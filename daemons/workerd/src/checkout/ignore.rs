//! `.dockerignore`, which Docker leaves to its clients: the rules of moby's `patternmatcher`.

/// No more of the file is looked at.
const MAX_BYTES: usize = 64 << 10;
/// No more patterns are.
const MAX_PATTERNS: usize = 1000;

/// What a build context leaves out.
#[derive(Debug, Default)]
pub(crate) struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    tokens: Vec<Token>,
    exception: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Name,
    /// `**/`
    Directories,
    /// `**` at the end
    All,
    /// `[a-z]`, `[^a-z]`
    Class(Vec<(u8, u8)>, bool),
}

impl Ignore {
    pub fn parse(file: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&file[..file.len().min(MAX_BYTES)]).into_owned();
        let lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(Pattern::parse).take(MAX_PATTERNS).collect())
    }

    /// Whether a path, with `/` between its parts and none at its ends, is left out. The last pattern that fits it or a
    /// directory above it decides.
    pub fn leaves_out(&self, path: &[u8]) -> bool {
        self.0.iter().fold(false, |out, pattern| match pattern.fits_at_or_above(path) {
            true => !pattern.exception,
            false => out,
        })
    }

    /// Whether something below a directory that is left out may be there all the same.
    pub fn has_exceptions(&self) -> bool {
        self.0.iter().any(|pattern| pattern.exception)
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let (exception, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in line.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        let tokens = tokens(parts.join("/").as_bytes());
        (!tokens.is_empty()).then_some(Self { tokens, exception })
    }

    /// In time proportional to both lengths, whatever the pattern.
    fn fits_at_or_above(&self, path: &[u8]) -> bool {
        // at[i]: the tokens so far fit the first i bytes.
        let mut at = vec![false; path.len() + 1];
        at[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; path.len() + 1];
            let mut before = false;
            for i in 0..=path.len() {
                let last = i.checked_sub(1).map(|i| path[i]);
                let stepped = i > 0 && at[i - 1];
                next[i] = match token {
                    Token::Byte(b) => stepped && last == Some(*b),
                    Token::One => stepped && last != Some(b'/'),
                    Token::Class(ranges, negated) => {
                        let within = |b: u8| ranges.iter().any(|(low, high)| (*low..=*high).contains(&b));
                        stepped && last.is_some_and(|b| b != b'/' && within(b) != *negated)
                    }
                    Token::Name => at[i] || (i > 0 && next[i - 1] && last != Some(b'/')),
                    Token::All => at[i] || (i > 0 && next[i - 1]),
                    Token::Directories => at[i] || (before && last == Some(b'/')),
                };
                before |= at[i];
            }
            at = next;
            if !at.contains(&true) {
                return false;
            }
        }
        at[path.len()] || path.iter().zip(&at).any(|(byte, fits)| *byte == b'/' && *fits)
    }
}

fn tokens(mut text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let [first, rest @ ..] = text {
        text = rest;
        tokens.push(match first {
            b'*' if rest.first() == Some(&b'*') => {
                text = &rest[1..];
                match text.strip_prefix(b"/") {
                    Some(after) => {
                        text = after;
                        Token::Directories
                    }
                    None => Token::All,
                }
            }
            b'*' => Token::Name,
            b'?' => Token::One,
            b'[' => match class(rest) {
                Some((class, after)) => {
                    text = after;
                    class
                }
                None => Token::Byte(b'['),
            },
            b'\\' if !rest.is_empty() => {
                text = &rest[1..];
                Token::Byte(rest[0])
            }
            byte => Token::Byte(*byte),
        });
    }
    tokens
}

fn class(text: &[u8]) -> Option<(Token, &[u8])> {
    let end = text.iter().skip(1).position(|b| *b == b']')? + 1;
    let (inner, after) = (&text[..end], &text[end + 1..]);
    let (negated, mut inner) = match inner.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, inner),
    };
    let mut ranges = Vec::new();
    while let [low, rest @ ..] = inner {
        match rest {
            [b'-', high, more @ ..] => {
                ranges.push((*low, *high));
                inner = more;
            }
            more => {
                ranges.push((*low, *low));
                inner = more;
            }
        }
    }
    Some((Token::Class(ranges, negated), after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(file: &str, path: &str) -> bool {
        Ignore::parse(file.as_bytes()).leaves_out(path.as_bytes())
    }

    #[test]
    fn patterns_fit_as_they_do_for_docker() {
        for (pattern, path, fits) in [
            ("*.md", "a.md", true),
            ("*.md", "dir/a.md", false),
            ("**/*.md", "dir/sub/a.md", true),
            ("**/*.md", "a.md", true),
            ("/dir/", "dir/x", true),
            ("./dir", "dir", true),
            ("dir/../other", "other/x", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("# no", "# no", false),
        ] {
            assert_eq!(left_out(pattern, path), fits, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let file = "*.md\n!README*.md\nREADME-secret.md\n";
        assert!(left_out(file, "notes.md"));
        assert!(!left_out(file, "README.md"));
        assert!(left_out(file, "README-secret.md"));
        assert!(!left_out("dir\n!dir/keep\n", "dir/keep"));
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let began = std::time::Instant::now();
        assert!(!left_out(&"*a".repeat(200), &"a".repeat(190)));
        assert!(began.elapsed().as_secs() < 5);
    }
}
