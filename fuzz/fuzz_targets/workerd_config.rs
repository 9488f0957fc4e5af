#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| codering_workerd::fuzz::workerd_config(data));
