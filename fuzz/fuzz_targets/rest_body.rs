#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| codering_brokerd::fuzz::rest_body(data));
