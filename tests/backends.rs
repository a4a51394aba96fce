//! Everything that is generic over the backend, on every CPU backend (`tests/gpu.rs` runs the same checks on a GPU). One
//! program, because the framework is compiled anew for each backend in every program that uses it.

mod stages;
mod support;

macro_rules! on_backend {
    ($feature:literal, $backend:ident, $($module:ident: $($check:ident),*;)*) => {$(
        mod $module {$(
            #[cfg(feature = $feature)]
            #[test]
            fn $check() {
                crate::support::$module::$check::<burn::backend::$backend>(Default::default());
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
    ops: rms_norm, layer_norm, gelu, rope, residual, gated_unit, attention, masked_attention, token_logprob, replaced_token_logprob, extreme_logits, lora_linear,
        lora_linear_of, low_rank_linear, adamw, adamw_of_a_view, cache, cache_write;
    losses: gradients;
    families: forward, gradients, mixed, recomputed, frozen, scores, generation, cached, lora;
    rope_scalings: one_pass, cached;
    encoders: classifiers;
    model_files: what_is_loaded_is_saved, shards_are_one_file, gguf_is_safetensors, half_precision_is_exact;
    resized: tables, written;
    peft: adapters, classifiers, written, misfits, spellings, other_files, trained, many_rows, combined;
    bottlenecks: forward, gradients, fresh;
    prompts: forward, classifiers, files, gradients, shared, misfits;
    shared_prefix: states, gradients, scores, responses;
    together: models_in_one_pass;
    reduced: products, blocks, bf16_models, nf4_models, int8_models, bitsandbytes_files;
    mixed: mixed_products, mixed_logprobs;
    trajectories: sft, reward, dpo, cpo, orpo, kto, distill;
    divergence: gradients;
    optimisers: twenty_steps;
    ppo: rollout_and_update;
    group: methods;
    pipeline: every_stage;
);

/// The kernels against the portable bodies.
#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn flex_equals_ndarray() {
    use burn::backend::{Flex, NdArray};
    support::ops::large::<Flex, NdArray>(&Default::default(), &Default::default(), 1e-5);
}
