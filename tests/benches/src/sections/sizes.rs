//! The release binaries' sizes.

use std::fs;

use codering_tests::binary;

use super::Section;
use crate::{Bench, measure::megabytes, table::Row};

/// See the module.
pub const SECTION: Section = Section { name: "sizes", about: "the binaries on disk", run };

const BINARIES: [&str; 3] = ["codering-brokerd", "codering-workerd", "coderingctl"];

fn run(_: &Bench) -> Vec<Row> {
    let size = |name: &&str| {
        let file = binary(name);
        fs::metadata(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).len()
    };
    let sizes: Vec<_> = BINARIES.iter().map(|name| (*name, size(name))).collect();
    let shown: Vec<_> = sizes.iter().map(|(name, size)| format!("{name} {}", megabytes(*size))).collect();
    vec![Row::new("release binaries, stripped", shown.join(", ")).from(sizes.into_iter().collect())]
}
