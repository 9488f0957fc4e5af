#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| codering_core::fuzz::ids(data));
