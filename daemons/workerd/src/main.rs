//! codering's worker; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    codering_workerd::main()
}
