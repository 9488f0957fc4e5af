#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| codering_proto::fuzz::requests(data));
