//! `CODERING_*` variables over the files.

use std::{collections::BTreeMap, ffi::OsString};

use codering_core::{Error, error::nearest, ids::shown};
use serde::de::DeserializeOwned;
use toml::Value;

use super::{Key, Kind, invalid};

/// Variables that other programs of codering read, and which are therefore no mistake here. One that ends in `_`
/// stands for all that start so.
pub const OTHERS: &[&str] = &[
    "CODERING_CONTEXT",
    "CODERING_CTL_",
    "CODERING_ENDPOINTS",
    "CODERING_LOG",
    "CODERING_OUTPUT",
    "CODERING_PROJECT",
    "CODERING_TEST_",
    "CODERING_TOKEN_FILE",
];

/// Reads the variables over `merged`; `places` learns which keys they set.
pub(super) fn read<T: DeserializeOwned>(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    known: &[Key],
    merged: &mut toml::Table,
    places: &mut BTreeMap<String, String>,
) -> Result<(), Error> {
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|n| n.starts_with("CODERING_")) else { continue };
        let Some(key) = known.iter().find(|k| k.variable() == name) else {
            if is_of_another(name) {
                continue;
            }
            return Err(unknown(name, known));
        };
        let text = value.to_str().ok_or_else(|| invalid("is not UTF-8").at(name))?;
        let value = typed(text, key.kind).map_err(|e| e.at(name))?;
        let mut alone = toml::Table::new();
        set(&mut alone, &key.path, value.clone());
        T::deserialize(Value::Table(alone)).map_err(|e| invalid(e.message()).at(name))?;
        set(merged, &key.path, value);
        places.insert(key.path.clone(), name.to_owned());
    }
    Ok(())
}

fn is_of_another(name: &str) -> bool {
    OTHERS.iter().any(|other| *other == name || (other.ends_with('_') && name.starts_with(other)))
}

fn unknown(name: &str, known: &[Key]) -> Error {
    let variables: Vec<_> = known.iter().map(Key::variable).collect();
    let error = invalid("this variable sets no key").at(shown(name));
    match nearest(name, variables.iter().map(String::as_str).chain(OTHERS.iter().copied())) {
        Some(meant) => error.hint(format!("did you mean `{meant}`?")),
        None => error.hint("unset it; a variable is CODERING_ and the key's path joined by `_`"),
    }
}

fn typed(text: &str, kind: Kind) -> Result<Value, Error> {
    let wrong = |expected: &str| invalid(format!("`{}`: expected {expected}", shown(text)));
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Bool => Value::Boolean(text.parse().map_err(|_| wrong("true or false"))?),
        Kind::Integer => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
        Kind::Float => Value::Float(text.parse().map_err(|_| wrong("a number"))?),
        Kind::List => Value::Array(parts().map(|part| Value::String(part.to_owned())).collect()),
        Kind::Map => {
            let pair = |part: &str| {
                let (name, value) = part.split_once('=')?;
                Some((name.trim().to_owned(), Value::String(value.trim().to_owned())))
            };
            let table: Option<toml::Table> = parts().map(pair).collect();
            Value::Table(table.ok_or_else(|| wrong("pairs such as `a=1,b=2`"))?)
        }
    })
}

fn set(table: &mut toml::Table, path: &str, value: Value) {
    let Some((first, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return;
    };
    let inner = table.entry(first).or_insert_with(|| Value::Table(toml::Table::new()));
    if let Value::Table(inner) = inner {
        set(inner, rest, value);
    }
}
