#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| borealis_fuzz::archive_object(data));
