//! Parts shared by the stages' loops.

mod optimise;
mod replicas;
mod row_log;
mod training;

pub use optimise::NonFinite;
pub(super) use optimise::{Accumulator, finite, optimise};
pub(super) use replicas::compare_weights;
pub(super) use row_log::{RowLog, num_held_out};
pub(super) use training::Training;
