//! One TOML file: its unknown keys and wrong values with their lines, its values into the whole.

use std::{collections::BTreeMap, ops::Range, path::Path};

use codering_core::{Error, error::nearest, ids::shown};
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::{Key, Kind, invalid};

/// Reads `text`, the content of `path`, over `merged`; `places` learns where each key was written.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    known: &[Key],
    merged: &mut toml::Table,
    places: &mut BTreeMap<String, String>,
) -> Result<(), Error> {
    let document = Document { path, text, known };
    let tree = DeTable::parse(text).map_err(|e| document.refused(&e, &[]))?;
    let mut written = Vec::new();
    document.walk(tree.get_ref(), "", &mut written)?;
    // The type is asked for this file alone first: only here is the place of a wrong value known.
    toml::from_str::<T>(text).map_err(|e| document.refused(&e, &written))?;
    let table = toml::from_str(text).map_err(|e| document.refused(&e, &written))?;
    merge(merged, table);
    places.extend(written.into_iter().map(|w| (w.path, document.place(w.key.start))));
    Ok(())
}

struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    known: &'a [Key],
}

/// A key in the file.
struct Written {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

impl Document<'_> {
    fn place(&self, offset: usize) -> String {
        let line =
            1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|b| **b == b'\n').count();
        format!("{}:{line}", self.path.display())
    }

    fn walk(&self, table: &DeTable<'_>, above: &str, written: &mut Vec<Written>) -> Result<(), Error> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") };
            let is_table = self.known.iter().any(|k| below(&path, &k.path).is_some());
            let Some(leaf) = self.known.iter().find(|k| k.path == path) else {
                match value.get_ref() {
                    _ if !is_table => return Err(self.unknown(above, name, key.span().start)),
                    DeValue::Table(inner) => self.walk(inner, &path, written)?,
                    _ => {
                        return Err(invalid(format!("`{path}` is a table"))
                            .at(self.place(key.span().start))
                            .hint(format!("write `[{path}]` on a line of its own and its keys below")));
                    }
                }
                continue;
            };
            if let (Kind::Map, DeValue::Table(inner)) = (leaf.kind, value.get_ref()) {
                for (key, value) in inner {
                    let path = format!("{path}.{}", key.get_ref());
                    written.push(Written { path, key: key.span(), value: value.span() });
                }
            }
            written.push(Written { path, key: key.span(), value: value.span() });
        }
        Ok(())
    }

    fn unknown(&self, above: &str, name: &str, offset: usize) -> Error {
        let what = if above.is_empty() { String::new() } else { format!(" in [{above}]") };
        let error = invalid(format!("unknown key `{}`{what}", shown(name))).at(self.place(offset));
        let beside = self.known.iter().filter_map(|k| below(above, &k.path)?.split('.').next());
        // Written under the wrong table, it is still known by its last name.
        let last = |key: &Key| key.path.rsplit('.').next().map(str::to_owned).unwrap_or_default();
        let elsewhere = || {
            let names: Vec<_> = self.known.iter().map(last).collect();
            let meant = nearest(name, names.iter().map(String::as_str))?;
            self.known.iter().find(|key| last(key) == meant)
        };
        match nearest(name, beside) {
            Some(meant) => error.hint(format!("did you mean `{meant}`?")),
            None => match elsewhere() {
                Some(key) => error.hint(format!("did you mean `{}`?", key.path)),
                None => error,
            },
        }
    }

    fn refused(&self, error: &toml::de::Error, written: &[Written]) -> Error {
        let span = error.span().unwrap_or_default();
        // The innermost key whose value holds the mistake.
        let key = written
            .iter()
            .filter(|w| w.value.start <= span.start && span.end <= w.value.end)
            .min_by_key(|w| w.value.len());
        match key {
            Some(key) => {
                invalid(format!("`{}`: {}", key.path, error.message())).at(self.place(key.key.start))
            }
            None => invalid(error.message()).at(self.place(span.start)),
        }
    }
}

/// What follows `above` in `path`, if `path` is below it.
fn below<'a>(above: &str, path: &'a str) -> Option<&'a str> {
    if above.is_empty() { Some(path) } else { path.strip_prefix(above)?.strip_prefix('.') }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
