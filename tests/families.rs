//! Every model family against transformers' numbers, on every CPU backend.

#[path = "support/families.rs"]
mod checks;

macro_rules! on_backends {
    ($($check:ident),* $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $check() { super::checks::$check::<burn::backend::Flex>(Default::default()); })*
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $check() { super::checks::$check::<burn::backend::NdArray>(Default::default()); })*
        }
    };
}

on_backends!(forward, gradients, scores, generation, lora);
