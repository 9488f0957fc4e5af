//! What a terminal is shown of foreign texts: nothing that moves its cursor, changes its state or reorders its line.
//!
//! Names, messages and reasons come from other people and from their programs. Bytes that a verb hands over as data
//! (`results --answer`, `task logs`) are the user's own and pass by here untouched.

use std::borrow::Cow;

use codering_core::ids::reorders;

use super::style::CODES;

/// Stands for what was taken out.
const TAKEN_OUT: char = '\u{fffd}';

fn harms(c: char) -> bool {
    c.is_control() || reorders(c)
}

/// A line that may hold colours of our own, where `colour` says so.
pub fn line(text: &str, colour: bool) -> Cow<'_, str> {
    if !text.chars().any(harms) {
        return text.into();
    }
    let mut calm = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(code) = CODES.iter().find(|code| colour && rest.starts_with(**code)) {
            calm.push_str(code);
            rest = &rest[code.len()..];
            continue;
        }
        calm.push(if harms(c) && !matches!(c, '\n' | '\t') { TAKEN_OUT } else { c });
        rest = &rest[c.len_utf8()..];
    }
    calm.into()
}

/// One foreign text on one line: a tab is four spaces, a line's end one.
pub fn text(foreign: &str) -> Cow<'_, str> {
    if !foreign.chars().any(harms) {
        return foreign.into();
    }
    let mut calm = String::with_capacity(foreign.len());
    for c in foreign.chars() {
        match c {
            '\t' => calm.push_str("    "),
            '\n' | '\r' => calm.push(' '),
            c if harms(c) => calm.push(TAKEN_OUT),
            c => calm.push(c),
        }
    }
    calm.into()
}

/// JSON says the same with escapes: serde_json leaves DEL, the C1 controls and direction marks as they are.
pub fn json(written: String) -> String {
    let harms = |c: char| harms(c) && c != '\n';
    if !written.chars().any(harms) {
        return written;
    }
    let mut calm = String::with_capacity(written.len() + 16);
    for c in written.chars() {
        if harms(c) {
            // All of them are in the basic plane.
            calm.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            calm.push(c);
        }
    }
    calm
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\x1b[2J\x1b]0;title\x07b\r\u{9b}31m\u{202e}c\u{7f}";

    #[test]
    fn a_foreign_text_reaches_a_terminal_without_what_would_steer_it() {
        assert_eq!(text(EVIL), "a\u{fffd}[2J\u{fffd}]0;title\u{fffd}b \u{fffd}31m\u{fffd}c\u{fffd}");
        assert_eq!(text("größe\t1"), "größe    1");
    }

    #[test]
    fn colours_of_our_own_stay_where_there_are_colours_and_only_there() {
        let painted = "\x1b[32msucceeded\x1b[0m \x1b[2Jx\ny\tz";
        assert_eq!(line(painted, true), "\x1b[32msucceeded\x1b[0m \u{fffd}[2Jx\ny\tz");
        assert_eq!(line(painted, false), "\u{fffd}[32msucceeded\u{fffd}[0m \u{fffd}[2Jx\ny\tz");
    }

    #[test]
    fn json_keeps_every_character_and_shows_none_that_steers() {
        let written = json(serde_json::to_string(&EVIL).expect("JSON"));
        assert!(!written.contains(harms), "{written:?}");
        assert_eq!(serde_json::from_str::<String>(&written).expect("JSON"), EVIL);
    }
}
