//! libFuzzer over `targets::TARGETS`, "rows".
#![no_main]

#[path = "../harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness::call("rows", input));
