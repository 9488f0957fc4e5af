//! `codering-brokerd`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    codering_brokerd::start::main()
}
