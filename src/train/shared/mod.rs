//! Parts shared by the stages' loops.

mod optimise;
mod training;

pub use optimise::NonFinite;
pub(super) use optimise::{Accumulator, finite, optimise};
pub(super) use training::Training;
