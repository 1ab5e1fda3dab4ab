//! The parser of inner packets, and what is built from its views.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_engine_fuzz::packet::check(data));
