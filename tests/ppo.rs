//! PPO against plain torch, array by array, on every CPU backend.

#[path = "support/parity.rs"]
mod parity;
#[path = "support/ppo.rs"]
mod ppo;

#[cfg(feature = "flex")]
#[test]
fn rollout_and_update_on_flex() {
    ppo::rollout_and_update::<burn::backend::Flex>(Default::default());
}

#[cfg(feature = "ndarray")]
#[test]
fn rollout_and_update_on_ndarray() {
    ppo::rollout_and_update::<burn::backend::NdArray>(Default::default());
}
