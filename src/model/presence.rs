//! Whether a folder holds a whole model.

use std::fs;
use std::path::{Path, PathBuf};

use super::weights::{self, gguf, safetensors};
use crate::data::Tokenizer;
use crate::peft::files::{ADAPTER_CONFIG, weights_file};

/// Whether a folder holds a model with configuration, tokenizer and weights, or an adapter with its weights. A GGUF file holds all.
pub(super) fn is_whole(folder: &Path) -> bool {
    if folder.join(ADAPTER_CONFIG).is_file() {
        return weights_file(folder).is_ok();
    }
    has_gguf(folder) || has_model(folder) && Tokenizer::is_in(folder)
}

/// Whether a folder holds a model's configuration and weights.
pub(super) fn has_model(folder: &Path) -> bool {
    has_gguf(folder) || has(folder, "config.json") && has_safetensors(folder)
}

/// Whether a folder holds weights in safetensors, all shards of them.
fn has_safetensors(folder: &Path) -> bool {
    if has(folder, "model.safetensors") {
        return true;
    }
    let shards = safetensors::shards(&folder.join(INDEX));
    shards.is_ok_and(|shards| shards.iter().all(|shard| has(folder, shard)))
}

/// Whether a folder holds one GGUF file, or all parts of one.
fn has_gguf(folder: &Path) -> bool {
    let full = |file: PathBuf| fs::metadata(file).is_ok_and(|data| data.len() > 0);
    let gguf = weights::only_gguf(folder).ok().flatten();
    gguf.is_some_and(|file| gguf::paths_of(&file).into_iter().all(full))
}

/// The file that says which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Whether a folder holds a file that is not empty.
pub(super) fn has(folder: &Path, file: &str) -> bool {
    fs::metadata(folder.join(file)).is_ok_and(|data| data.is_file() && data.len() > 0)
}
