//! Embedding and output head with a row for every token of a tokenizer that has grown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::ModelConfig;
use super::source::ModelSource;
use super::stored_tables::StoredTables;
use super::weights::{Dtype, WeightSource, resolve};
use crate::data::Tokenizer;
use crate::error::Result;
use crate::ops::Blocks;
use crate::peft::files::weights_file;
use crate::peft::{AdapterConfig, TokenName};

/// A model's tokenizer and configuration after tokens were added.
#[derive(Debug, Clone)]
pub struct WithTokens {
    /// The tokenizer with the new tokens.
    pub tokenizer: Tokenizer,
    /// The configuration, with rows for them.
    pub config: ModelConfig,
    /// Texts that were tokens before, with their ids.
    pub present: Vec<(String, u32)>,
}

impl ModelConfig {
    /// The same model with tables of `rows` rows, which are not those of the base's files.
    ///
    /// # Errors
    /// As [`ModelConfig::from_value`].
    pub fn with_vocab_size(&self, rows: usize) -> Result<Self> {
        let mut raw = self.raw().clone();
        raw.insert("vocab_size".into(), json!(rows));
        let mut resized = Self::from_value(Value::Object(raw))?;
        resized.own_rows_from = self.own_rows_from.or(Some(self.vocab_size()));
        Ok(resized)
    }

    /// Whether embedding and head are not those of the base's files: an adapter's files then hold them, or all of their new rows.
    pub fn has_own_tables(&self) -> bool {
        self.own_rows_from.is_some()
    }

    /// The same model beside a base whose files hold its embedding and head.
    pub fn with_tables_of_base(&self) -> Self {
        let mut config = self.clone();
        config.own_rows_from = None;
        config
    }

    /// Adds special tokens to the model's tokenizer. Rows that no token has are used first, with the values that they have; the
    /// tables grow for what is left.
    ///
    /// # Errors
    /// As [`Tokenizer::with_added_tokens`].
    pub fn add_tokens(&self, tokenizer: &Tokenizer, texts: &[String]) -> Result<WithTokens> {
        let (tokenizer, present) = tokenizer.with_added_tokens(texts)?;
        let rows = tokenizer.id_limit() as usize;
        let config = match rows > self.vocab_size() {
            true => self.with_vocab_size(rows)?,
            false => self.clone(),
        };
        Ok(WithTokens {
            tokenizer,
            config,
            present,
        })
    }
}

impl ModelSource {
    /// Gives the model the tables that `config` says, which is its own but for their rows.
    pub fn resize(&mut self, config: ModelConfig) {
        self.tables.resized |= config.vocab_size() != self.config.vocab_size();
        self.config = config;
    }

    /// Takes over the size of the tables that adapters' files hold, or that rows of new tokens imply. A file that cannot be read is reported by
    /// [`ModelSource::check`].
    ///
    /// # Errors
    /// As [`ModelConfig::with_vocab_size`].
    pub(super) fn resize_as_stored(&mut self) -> Result<()> {
        let mut own = None;
        for folder in self.adapters.clone() {
            let (whole, grown) = stored_rows(&folder, &self.config);
            own = match whole {
                Some(_) => Some(0),
                None => grown.map(|_| self.config.vocab_size()),
            };
            if let Some(rows) = (whole.or(grown)).filter(|&rows| rows != self.config.vocab_size()) {
                let config = self.config.with_vocab_size(rows)?;
                self.resize(config);
            }
        }
        // Those of an adapter below are part of what the outermost one names as its base.
        self.config.own_rows_from = own;
        Ok(())
    }
}

/// Rows of the embedding in an adapter's file, if it holds one; or else of one that has grown by the tokens whose rows it holds, if
/// it holds those of all of them.
fn stored_rows(folder: &Path, config: &ModelConfig) -> (Option<usize>, Option<usize>) {
    let whole = || {
        let source = super::weights::open(weights_file(folder).ok()?).ok()?;
        StoredTables::find(source.as_ref(), config).rows(source.as_ref(), config)
    };
    let grown = || {
        let (adapter, _) = AdapterConfig::load(folder).ok()?;
        let rows = adapter.spec.token_rows()?;
        let tokens = rows.tables.iter().flat_map(|(_, tokens)| *tokens);
        let new: BTreeSet<usize> = (tokens.filter_map(TokenName::id))
            .map(|id| id as usize)
            .filter(|&id| id >= config.vocab_size())
            .collect();
        let end = config.vocab_size() + new.len();
        new.last().filter(|&&last| last + 1 == end).map(|_| end)
    };
    (whole(), grown())
}

/// Weights whose embedding and output head have another number of rows than their file: the first ones of it, or all of it and
/// then rows that each are their mean.
///
/// # Source
/// transformers 5.23, `resize_token_embeddings(rows, mean_resizing=True)`, which draws new rows from a normal distribution around the
/// mean, with a billionth of the old rows' covariance; here they are the mean itself.
pub(super) struct ResizedTables {
    inner: Box<dyn WeightSource>,
    /// The tables as stored.
    names: Vec<String>,
    rows: usize,
}

impl ResizedTables {
    /// The tables of `config` in these weights.
    pub(super) fn new(inner: Box<dyn WeightSource>, config: &ModelConfig) -> Self {
        let tables = config.tables();
        let names = tables
            .into_iter()
            .filter_map(|name| resolve(inner.as_ref(), name));
        Self {
            names: names.collect(),
            rows: config.vocab_size(),
            inner,
        }
    }
}

impl WeightSource for ResizedTables {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let shape = self.inner.shape(name)?;
        Some(
            match (
                shape.as_slice(),
                self.names.iter().any(|table| table == name),
            ) {
                ([_, width], true) => vec![self.rows, *width],
                _ => shape,
            },
        )
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.inner.dtype(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.inner.read(name)?;
        Ok(match self.shape(name).as_deref() {
            Some([rows, width]) if self.names.iter().any(|table| table == name) => {
                with_rows(values, *rows, *width)
            }
            _ => values,
        })
    }

    fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        match self.names.iter().any(|table| table == name) {
            // A new row is none of the stored ones.
            true => Ok(None),
            false => self.inner.read_blocks(name),
        }
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.inner.files()
    }
}

/// A table `[any, width]` with as many `rows`; rows that it lacks are the mean of those that it has, summed in f64.
pub(super) fn with_rows(mut values: Vec<f32>, rows: usize, width: usize) -> Vec<f32> {
    let present = values.len() / width.max(1);
    if present < rows {
        let mut sums = vec![0f64; width];
        for row in values.chunks_exact(width) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
        let mean: Vec<f32> = (sums.iter())
            .map(|sum| (sum / present.max(1) as f64) as f32)
            .collect();
        for _ in present..rows {
            values.extend_from_slice(&mean);
        }
    }
    values.truncate(rows * width);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::{open, write_safetensors};

    fn config(vocab: usize) -> ModelConfig {
        ModelConfig::from_value(json!({
            "model_type": "llama", "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": vocab, "max_position_embeddings": 8,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": false
        }))
        .unwrap()
    }

    #[test]
    fn new_rows_are_the_mean_of_the_old_ones() {
        let table = vec![1.0, -2.0, 4.0, 0.5, 1.0, 3.0];
        let grown = with_rows(table.clone(), 5, 2);
        // (1 + 4 + 1) / 3 and (-2 + 0.5 + 3) / 3.
        assert_eq!(grown[..6], table);
        assert_eq!(grown[6..], [2.0, 0.5, 2.0, 0.5]);
        assert_eq!(with_rows(table, 1, 2), [1.0, -2.0]);
    }

    #[test]
    fn only_the_tables_are_resized() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |name: &str| {
            (
                name.to_owned(),
                vec![3, 2],
                vec![1.0, 0.0, 2.0, 0.0, 6.0, 3.0],
            )
        };
        let tensors = [
            tensor("embed_tokens.weight"),
            tensor("lm_head.weight"),
            tensor("layers.0.mlp.up_proj.weight"),
        ];
        write_safetensors(folder.path().join("model.safetensors"), &tensors).unwrap();
        let source = ResizedTables::new(open(folder.path()).unwrap(), &config(4));
        for name in ["embed_tokens.weight", "lm_head.weight"] {
            assert_eq!(source.shape(name).unwrap(), [4, 2]);
            assert_eq!(source.read(name).unwrap()[4..], [6.0, 3.0, 3.0, 1.0]);
        }
        let other = "layers.0.mlp.up_proj.weight";
        assert_eq!(source.shape(other).unwrap(), [3, 2]);
        assert_eq!(source.read(other).unwrap().len(), 6);
    }

    #[test]
    fn a_configuration_knows_that_its_tables_are_its_own() {
        let config = config(4);
        let grown = config.with_vocab_size(6).unwrap();
        assert_eq!((grown.vocab_size(), grown.has_own_tables()), (6, true));
        assert_eq!(grown.to_json(false)["vocab_size"], json!(6));
        assert!(!config.has_own_tables() && !grown.with_tables_of_base().has_own_tables());
    }
}
