//! Every gRPC method and every REST route against every kind of caller. Which may what is written down here a second
//! time, by hand: the table that the broker goes by must not be its own proof. The rows are held against the services' own
//! descriptors and REST's own routes, so that what is added without a row fails.

mod callers;
mod grpc;
mod leases;
mod rest;

use std::collections::BTreeSet;

use self::callers::{Caller, People};

/// One method or route.
struct Row {
    /// `codering.v1.Jobs/Submit`, or `POST /api/v1/jobs`.
    name: &'static str,
    /// Who may, by their letters: see [`callers`]. `*` is everybody.
    may: &'static str,
    /// How it is answered to them: `ok`, or the code of an error that has nothing to do with who asks.
    answer: &'static str,
    /// How it is refused to the administrator of another project.
    other: &'static str,
}

const fn row(name: &'static str, may: &'static str, answer: &'static str, other: &'static str) -> Row {
    Row { name, may, answer, other }
}

impl Row {
    /// What this caller must be answered.
    fn expected(&self, caller: &Caller) -> &'static str {
        if self.may == "*" || self.may.contains(caller.letter) {
            return self.answer;
        }
        // The right of a worker is its certificate: nobody looks at tokens there.
        if self.may == "W" {
            return caller.as_worker;
        }
        if caller.letter == 'o' { self.other } else { caller.as_user }
    }
}

fn names(rows: &[Row]) -> BTreeSet<String> {
    let names: BTreeSet<_> = rows.iter().map(|row| row.name.to_owned()).collect();
    assert_eq!(names.len(), rows.len(), "a row is there twice");
    names
}
