//! Checks that are generic over the backend, and what the test programs share. Each program uses a part.
#![allow(dead_code)]

pub(crate) mod bottlenecks;
pub(crate) mod divergence;
pub(crate) mod encoders;
pub(crate) mod endpoint;
pub(crate) mod families;
pub(crate) mod gguf;
pub(crate) mod group;
pub(crate) mod labeller;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod launches;
pub(crate) mod losses;
pub(crate) mod mixed;
pub(crate) mod model_files;
pub(crate) mod ops;
pub(crate) mod optimisers;
pub(crate) mod parity;
pub(crate) mod peft;
pub(crate) mod pipeline;
pub(crate) mod ppo;
pub(crate) mod prompts;
pub(crate) mod reduced;
pub(crate) mod reference;
pub(crate) mod resized;
pub(crate) mod rope_scalings;
pub(crate) mod shared_prefix;
pub(crate) mod text;
pub(crate) mod together;
pub(crate) mod tokens;
pub(crate) mod trajectories;
pub(crate) mod trl_rows;
