//! Training trajectories against TRL's numbers, on every CPU backend.

#[path = "support/parity.rs"]
mod parity;
#[path = "support/trajectories.rs"]
mod trajectories;

macro_rules! on_backends {
    ($($check:ident),* $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $check() { super::trajectories::$check::<burn::backend::Flex>(Default::default()); })*
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $check() { super::trajectories::$check::<burn::backend::NdArray>(Default::default()); })*
        }
    };
}

on_backends!(sft, reward, dpo);
