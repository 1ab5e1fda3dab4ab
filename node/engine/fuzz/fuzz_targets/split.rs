//! Super-packets from the host, told truly or with lies, into packets.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_engine_fuzz::split::check(data));
