//! Every fused operation on every CPU backend (`tests/wgpu.rs` runs the same checks on a GPU).

#[path = "support/ops.rs"]
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

on_backends!(
    rms_norm,
    rope,
    swiglu,
    attention,
    token_logprob,
    extreme_logits,
    lora_linear,
    adamw,
    adamw_of_a_view,
    cache,
    cache_write,
);

/// The kernels against the portable bodies.
#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn flex_equals_ndarray() {
    use burn::backend::{Flex, NdArray};
    checks::large::<Flex, NdArray>(&Default::default(), &Default::default(), 1e-5);
}
