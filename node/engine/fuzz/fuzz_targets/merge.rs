//! Batches of admitted packets into super-packets for the host.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_engine_fuzz::merge::check(data));
