//! How far the broker's clock is from this machine's.

use codering_core::{Error, time::Millis};
use codering_proto::status::from_status;
use time::{PrimitiveDateTime, macros::format_description};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::MetadataMap,
};

use super::finding::Finding;
use crate::{
    client::{Broker, Target},
    context::now,
    verbs::words,
};

/// Clocks further apart than this are worth a look: tokens and certificates begin to end at other times.
const SKEW_MS: i64 = 10_000;

/// The skew as far as a caller learns it who has no token: every answer has a date, that to a probe too.
pub async fn look(target: &Target) -> Finding {
    match probe(target).await {
        Ok(Some((date, before, after))) => apart(date, before, after),
        Ok(None) => Finding::skipped("clock", "the broker's answer has no date"),
        Err(error) => {
            Finding::skipped("clock", format!("the broker did not tell the time: {}", error.message))
        }
    }
}

/// The date of an answer, and when it was asked for and there.
async fn probe(target: &Target) -> Result<Option<(Millis, Millis, Millis)>, Error> {
    let mut grpc = Grpc::new(Broker::connect(target.clone()).await?.channel());
    grpc.ready().await.map_err(|error| from_status(&Status::from_error(error.into())))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let before = now();
    // As a stream, the answer is there with its head, and the message, which is of no interest, is never read.
    let answer = grpc.server_streaming(Request::new(()), path, Empty).await;
    let after = now();
    let answer = answer.map_err(|status| from_status(&status))?;
    Ok(date(answer.metadata()).map(|date| (date, before, after)))
}

/// A message without a field.
struct Empty;

impl Codec for Empty {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Empty {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Empty {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}

/// When an answer was given, by the clock of who gave it.
pub fn date(head: &MetadataMap) -> Option<Millis> {
    http_date(head.get("date")?.to_str().ok()?)
}

/// How far apart the clocks are; `date` has a resolution of a second.
pub fn apart(date: Millis, before: Millis, after: Millis) -> Finding {
    let middle = before + (after - before) / 2;
    let skew = date + 500 - middle;
    match skew.abs() {
        0..=1000 => Finding::good("clock", "the broker's is within a second of this one"),
        apart if apart <= SKEW_MS => {
            Finding::good("clock", format!("the broker's is {:.1} s from this one", skew as f64 / 1000.0))
        }
        apart => Finding::warning(
            "clock",
            format!(
                "the broker's is {} {} this one",
                words::ago(now() - apart, now()),
                if skew > 0 { "ahead of" } else { "behind" }
            ),
            "on the machine that is wrong: sudo timedatectl set-ntp true",
        ),
    }
}

/// `Sat, 21 Nov 2026 11:20:03 GMT`.
fn http_date(text: &str) -> Option<Millis> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let at = PrimitiveDateTime::parse(text, format).ok()?;
    Some(at.assume_utc().unix_timestamp() * 1000)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read_and_a_clock_far_off_is_told() {
        let date = http_date("Sat, 21 Nov 2026 11:20:03 GMT").expect("a date");
        assert_eq!(codering_core::time::rfc3339(date), "2026-11-21T11:20:03Z");
        assert_eq!(apart(date, date, date + 900).verdict, Verdict::Good);
        let off = apart(date, date + 60_000, date + 60_010);
        assert_eq!(off.verdict, Verdict::Warning);
        assert!(off.finding.contains("behind"), "{off:?}");
        assert!(apart(date, date - 60_000, date - 60_000).finding.contains("ahead of"));
    }
}
