//! Every model family against transformers' numbers, and every kind of file it is loaded from, on every CPU backend.

#[path = "support/families.rs"]
mod checks;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/model_files.rs"]
mod model_files;
#[path = "support/parity.rs"]
mod parity;

macro_rules! on_backends {
    ($($module:ident: $($check:ident),*;)*) => {
        #[cfg(feature = "flex")]
        mod flex {
            $($(#[test] fn $check() { crate::$module::$check::<burn::backend::Flex>(Default::default()); })*)*
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $($(#[test] fn $check() { crate::$module::$check::<burn::backend::NdArray>(Default::default()); })*)*
        }
    };
}

on_backends! {
    checks: forward, gradients, scores, generation, cached, lora;
    model_files: what_is_loaded_is_saved, shards_are_one_file, gguf_is_safetensors, half_precision_is_exact;
}
