#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| autocvd::fuzzing::claim_records(bytes));
