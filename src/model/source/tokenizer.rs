//! The tokenizer of a model and its adapters.

use std::path::{Path, PathBuf};

use super::ModelSource;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::weights;

impl ModelSource {
    /// The tokenizer, from layered folders: the outermost adapter's first, the base's last. Where none of them has a vocabulary, that
    /// inside of a GGUF file.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load_layered`]; `Error::Format` for a tokenizer with an id that the model has no
    /// embedding for.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let folders: Vec<&Path> = self
            .adapters
            .iter()
            .rev()
            .chain([&self.dir])
            .map(PathBuf::as_path)
            .collect();
        let beside = folders.iter().any(|folder| Tokenizer::is_in(folder));
        let inside = match beside || !self.is_whole() {
            true => None,
            false => weights::open(&self.weights)?.tokenizer()?,
        };
        let tokenizer = match inside {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::load_layered(&folders)?,
        };
        let tokenizer = match self.tables.resized {
            true => tokenizer.with_embeddings(self.config.vocab_size())?,
            false => tokenizer,
        };
        tokenizer.check_embedding(self.config.vocab_size())?;
        Ok(tokenizer)
    }
}
