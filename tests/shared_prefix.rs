//! Rows that begin alike hold their beginning once, and nothing else changes.

#[path = "support/shared_prefix.rs"]
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

on_backends!(states, gradients, scores, responses);
