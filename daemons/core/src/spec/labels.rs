//! What tells workers apart, and what a job asks of one.

use crate::{Code, Error};

/// More labels than these choose no worker that there is.
pub const MAX_LABELS: usize = 100;

/// Refuses labels that no worker can have, or that would do a terminal harm.
pub fn validate_labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Error> {
    if labels.len() > MAX_LABELS {
        return Err(
            Error::new(Code::JobInvalid, format!("there are at most {MAX_LABELS} labels")).at("labels")
        );
    }
    for (name, value) in labels {
        let name_ok = (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if !name_ok || !(value.is_empty() || crate::ids::is_plain_text(value, 200)) {
            return Err(Error::new(
                Code::JobInvalid,
                "a label's name has 1 to 100 of a-z, A-Z, 0-9, `-`, `_`, `.` and `/`, its value at most 200 printable characters",
            )
            .at(format!("labels.{}", crate::ids::shown(name))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn there_are_at_most_as_many_labels_as_any_worker_has() {
        let mut labels: BTreeMap<_, _> = (0..MAX_LABELS).map(|n| (format!("l{n}"), String::new())).collect();
        assert_eq!(validate_labels(labels.iter()), Ok(()));
        labels.insert("one-more".into(), String::new());
        assert_eq!(validate_labels(labels.iter()).expect_err("too many").place, "labels");
    }
}
