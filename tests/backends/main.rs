//! Everything that is generic over the backend, on every CPU backend (`tests/gpu.rs` runs the same checks on a GPU). One
//! program, because the framework is compiled anew for each backend in every program that uses it.

mod dpo;
mod failures;
mod invariants;
mod only;
mod options;
mod ppo_details;
mod resume;
mod rollout;

#[path = "../support/families.rs"]
mod families;
#[path = "../support/gguf.rs"]
mod gguf;
#[path = "../support/losses.rs"]
mod losses;
#[path = "../support/mixed.rs"]
mod mixed;
#[path = "../support/model_files.rs"]
mod model_files;
#[path = "../support/ops.rs"]
mod operations;
#[path = "../support/parity.rs"]
mod parity;
#[path = "../support/peft.rs"]
mod peft;
#[path = "../support/pipeline.rs"]
mod pipeline;
#[path = "../support/ppo.rs"]
mod ppo;
#[path = "../support/reduced.rs"]
mod reduced;
#[path = "../support/shared_prefix.rs"]
mod shared_prefix;
#[path = "../support/together.rs"]
mod together;
#[path = "../support/trajectories.rs"]
mod trajectories;

macro_rules! on_backend {
    ($feature:literal, $backend:ident, $($module:ident: $($check:ident),*;)*) => {$(
        mod $module {$(
            #[cfg(feature = $feature)]
            #[test]
            fn $check() {
                crate::$module::$check::<burn::backend::$backend>(Default::default());
            }
        )*}
    )*};
}

macro_rules! on_backends {
    ($($checks:tt)*) => {
        mod flex { on_backend!("flex", Flex, $($checks)*); }
        mod ndarray { on_backend!("ndarray", NdArray, $($checks)*); }
    };
}

on_backends!(
    operations: rms_norm, layer_norm, gelu, rope, residual, gated_unit, attention, masked_attention, token_logprob, extreme_logits, lora_linear,
        lora_linear_of, adamw, adamw_of_a_view, cache, cache_write;
    losses: gradients;
    families: forward, gradients, mixed, recomputed, frozen, scores, generation, cached, lora;
    model_files: what_is_loaded_is_saved, shards_are_one_file, gguf_is_safetensors, half_precision_is_exact;
    peft: adapters, classifiers, written, misfits, spellings, other_files;
    shared_prefix: states, gradients, scores, responses;
    together: models_in_one_pass;
    reduced: products, bf16_models, int8_models;
    mixed: mixed_products, mixed_logprobs;
    trajectories: sft, reward, dpo;
    ppo: rollout_and_update;
    pipeline: every_stage;
);

/// The kernels against the portable bodies.
#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn flex_equals_ndarray() {
    use burn::backend::{Flex, NdArray};
    operations::large::<Flex, NdArray>(&Default::default(), &Default::default(), 1e-5);
}
