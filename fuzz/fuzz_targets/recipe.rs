//! libFuzzer over `targets::TARGETS`, "recipe".
#![no_main]

#[path = "../harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness::call("recipe", input));
