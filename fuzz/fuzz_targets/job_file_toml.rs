#![no_main]

// coderingctl is a program without a library.
#[allow(dead_code)]
#[path = "../../ctl/src/jobfile.rs"]
mod jobfile;
#[path = "../../ctl/src/jobfile_fuzz.rs"]
mod jobfile_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobfile_fuzz::job_file_toml(data));
