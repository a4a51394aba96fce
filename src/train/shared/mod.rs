//! What the stages' loops have in common, once.

mod optimise;
mod training;

pub use optimise::NonFinite;
pub(super) use optimise::{Accumulator, finite, optimise};
pub(super) use training::Training;
