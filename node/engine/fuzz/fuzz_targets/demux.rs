//! Datagrams of anybody's at two workers and the slow half.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_engine_fuzz::demux::check(data));
