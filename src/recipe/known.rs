//! Models that a recipe names, without their weights.

use std::path::Path;

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, manifest, weights};
use crate::peft::AdapterConfig;
use crate::peft::files::ADAPTER_CONFIG;

/// A model as far as plans need it.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
}

/// Opens a model's files without reading a tensor: configuration, tokenizer, and every tensor's name and shape.
pub(super) fn open_model(name: &str) -> Result<Known> {
    let files = manifest::find(name)?;
    let config = ModelConfig::load(&files.weights)?;
    let source = weights::open(&files.weights)?;
    weights::check(source.as_ref(), &config.tensors())?;
    let tokenizer = Tokenizer::load(&files.dir)?;
    if tokenizer.vocab_size() > config.vocab_size() {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size());
        return Err(Error::format(
            &files.dir,
            format!("the tokenizer has {tokens} tokens and the model {rows} embeddings"),
        ));
    }
    Ok(Known { config, tokenizer })
}

/// As [`open_model`]; an adapter's folder stands for the base that it names, and its configuration is read.
pub(super) fn open_folder(folder: &Path) -> Result<Known> {
    if !folder.join(ADAPTER_CONFIG).exists() {
        // Not a known model's name: a folder is meant.
        std::fs::metadata(folder).map_err(Error::io("open", folder))?;
        return open_model(&folder.to_string_lossy());
    }
    let known = open_model(&manifest::adapter_base(folder)?)?;
    AdapterConfig::load(folder)?;
    Ok(known)
}
