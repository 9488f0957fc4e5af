//! Messages as lines of JSON, read one at a time: memory holds one line, however long the input is.

use codering_core::{Code, Error, message::MAX_MESSAGE_BYTES};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Reads lines and numbers them from 1; empty ones are passed over.
pub struct Lines<R> {
    reader: R,
    source: String,
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// Reads from `reader`, which errors call `source`.
    pub fn new(reader: R, source: impl Into<String>) -> Self {
        Self { reader, source: source.into(), number: 0 }
    }

    /// The next line that holds anything, with its number; an error says the line.
    pub async fn next(&mut self) -> Result<Option<(u64, String)>, Error> {
        loop {
            let mut line = Vec::new();
            let bound = MAX_MESSAGE_BYTES as u64 + 2;
            let mut bounded = (&mut self.reader).take(bound);
            let read = bounded.read_until(b'\n', &mut line).await.map_err(|error| {
                Error::new(Code::InvalidInput, format!("cannot be read: {error}")).at(&self.source)
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let place = format!("{}:{}", self.source, self.number);
            return message(text).map(|text| Some((self.number, text))).map_err(|error| error.at(place));
        }
    }
}

/// A message's text, checked to be JSON and within its bound before any of it is sent.
pub fn message(text: &[u8]) -> Result<String, Error> {
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(Error::new(Code::TooLarge, format!("a message has at most {MAX_MESSAGE_BYTES} bytes")));
    }
    let text = std::str::from_utf8(text)
        .map_err(|_| Error::new(Code::InvalidJson, "not UTF-8, and a message is JSON"))?;
    match serde_json::from_str::<&serde_json::value::RawValue>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err(Error::new(Code::InvalidJson, format!("a message is JSON, and this is not: {error}"))
                .hint("a plain text is JSON in double quotes: '\"hello\"'"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8]) -> Result<Vec<(u64, String)>, Error> {
        let mut lines = Lines::new(input, "-");
        let mut read = Vec::new();
        while let Some(line) = lines.next().await? {
            read.push(line);
        }
        Ok(read)
    }

    #[tokio::test]
    async fn lines_are_numbered_as_an_editor_does_and_the_last_needs_no_newline() {
        let read = all(b"{\"a\":1}\n\n  [2]\r\n\"x\"").await.expect("valid");
        let expected = [(1, "{\"a\":1}"), (3, "[2]"), (4, "\"x\"")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(read, expected);
    }

    #[tokio::test]
    async fn a_line_that_is_not_json_is_named() {
        let error = all(b"1\n2\nhello\n").await.expect_err("not JSON");
        assert_eq!((error.code, error.place.as_str()), (Code::InvalidJson, "-:3"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_at_the_bound() {
        let endless = vec![b'x'; MAX_MESSAGE_BYTES + 100];
        assert_eq!(all(&endless).await.expect_err("too long").code, Code::TooLarge);
    }
}
