//! `array`: one argument a task.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use super::{MAX_TASKS, read::Scalar};

/// `"1-100"` or `["a-f", "g-m"]`.
pub fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Option::<Array>::deserialize(from)?.map(|array| array.0))
}

/// The numbers of a range such as `1-100`; `001-100` keeps the zeros. The error is the rule.
pub fn range(text: &str) -> Result<Vec<String>, String> {
    let rule = || format!("`{}`: expected a range such as \"1-100\"", crate::ids::shown(text));
    let (low, high) = text.split_once('-').ok_or_else(rule)?;
    let digits =
        |text: &str| (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(low) || !digits(high) {
        return Err(rule());
    }
    let first: u64 = low.parse().map_err(|_| rule())?;
    let last: u64 = high.parse().map_err(|_| rule())?;
    if first > last {
        return Err(format!("`{}` is empty: it begins after its end", crate::ids::shown(text)));
    }
    if last - first >= MAX_TASKS as u64 {
        return Err(format!(
            "`{}` is too long: a job has at most {MAX_TASKS} tasks",
            crate::ids::shown(text)
        ));
    }
    let width = if low.len() > 1 && low.starts_with('0') { low.len() } else { 0 };
    Ok((first..=last).map(|n| format!("{n:0width$}")).collect())
}

/// Of one end of a range. Its zeros are in every argument: a thousand of them, a million times, are a gigabyte.
const MAX_DIGITS: usize = 20;

struct Array(Vec<String>);

impl<'de> Deserialize<'de> for Array {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Array;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a range such as \"1-100\", or a list with one argument a task")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Array, E> {
                range(text).map(Array).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Array, A::Error> {
                let mut args = Vec::new();
                while let Some(Scalar(arg)) = list.next_element()? {
                    if args.len() == MAX_TASKS {
                        return Err(de::Error::custom(format!("a job has at most {MAX_TASKS} tasks")));
                    }
                    args.push(arg);
                }
                Ok(Array(args))
            }
        }
        from.deserialize_any(Visit)
    }
}
