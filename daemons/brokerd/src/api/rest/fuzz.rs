//! Bodies and queries as the handlers read them, for `crate::fuzz`.

use axum::{extract::Query, http::Uri};
use codering_core::{
    Code, Error,
    jobfile::{JobFile, ReduceFile, explained},
    quota::Quota,
};
use serde::de::DeserializeOwned;

use super::{
    input::{not_of_the_shape, parsed},
    jobs, projects, queues, rabbit, streams, tasks, tokens,
};

/// A body or query of the `which`th kind.
pub(crate) fn body(which: u8, data: &[u8]) -> Result<(), Error> {
    match which % 16 {
        0 | 1 => {
            let file: JobFile = parsed(data, explained)?;
            file.job(None).map(drop)
        }
        2 => jobs::reduce_of(parsed::<ReduceFile>(data, not_of_the_shape)?)
            .and_then(|reduce| reduce.validate()),
        3 => parsed::<projects::Create>(data, not_of_the_shape).map(drop),
        4 => parsed::<Quota>(data, not_of_the_shape).map(drop),
        5 => parsed::<projects::Requeue>(data, not_of_the_shape).map(drop),
        6 => parsed::<tokens::Create>(data, not_of_the_shape).map(drop),
        7 => parsed::<rabbit::Create>(data, not_of_the_shape).map(drop),
        8 => parsed::<rabbit::Put>(data, not_of_the_shape).map(drop),
        9 => query::<jobs::List>(data),
        10 => query::<tasks::List>(data),
        11 => query::<streams::Results>(data),
        12 => query::<streams::Log>(data),
        13 => query::<projects::Delete>(data),
        14 => query::<queues::Of>(data),
        _ => tasks::outcomes(&String::from_utf8_lossy(data)).map(drop),
    }
}

pub(crate) fn shown(data: &[u8]) -> Vec<u8> {
    rabbit::shown(data)
}

fn query<T: DeserializeOwned>(data: &[u8]) -> Result<(), Error> {
    let Ok(uri) = Uri::try_from([b"/x?", data].concat()) else { return Ok(()) };
    match Query::<T>::try_from_uri(&uri) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(Code::InvalidInput, error.body_text())),
    }
}
