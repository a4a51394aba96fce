//! Run folders, lineage and atomic checkpoints.

pub mod atomic;
mod git;
pub mod run_dir;
pub mod step;
pub mod tensor_map;

pub use atomic::{write_atomic, write_dir_atomic};
pub use run_dir::{FileHash, ModelLineage, ModelRole, RunDir, RunInfo, StageLineage};
pub use step::{
    CHECKPOINTS, StepCheckpoint, all, clear, latest, load_best, of_states, prune, save, save_best,
    set_aside,
};
pub use tensor_map::{TensorMap, read_tensor_map};
