//! Output heads and score heads as stored in files, which may differ from `config.json`.

use std::path::{Path, PathBuf};

use super::{Dtype, WeightSource, resolve};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::ops::Blocks;

/// Name of a score head in a classification checkpoint.
pub const SCORE: &str = "score.weight";

/// How a file stores embedding and output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredHead {
    /// As configured: one tensor for a tied pair, two for an untied one.
    AsConfigured,
    /// The configuration ties them, but the stored head differs from the embedding: it is used.
    Untied,
    /// The configuration ties them, and only the head is stored: it is the embedding too.
    HeadOnly,
}

/// Compares the stored tensors with `tie_word_embeddings`.
///
/// # Errors
/// `Error::Io` if tensors cannot be read for comparison.
///
/// # Source
/// transformers 5.23, `PreTrainedModel.tie_weights`: if both tensors are stored they are tied only if all values are equal; if one
/// is stored the other is tied to it.
pub fn stored_head(config: &ModelConfig, source: &dyn WeightSource) -> Result<StoredHead> {
    let Some((embedding, head)) = tied_pair(config) else {
        return Ok(StoredHead::AsConfigured);
    };
    let (embedding, head) = (resolve(source, &embedding), resolve(source, &head));
    Ok(match (embedding, head) {
        (None, Some(_)) => StoredHead::HeadOnly,
        // A head of another shape is an error, which the check of all tensors reports.
        (Some(embedding), Some(head))
            if source.shape(&embedding) == source.shape(&head)
                && !source.same_values(&embedding, &head)? =>
        {
            StoredHead::Untied
        }
        _ => StoredHead::AsConfigured,
    })
}

/// Names of embedding and output head, if the configuration ties them.
pub fn tied_pair(config: &ModelConfig) -> Option<(String, String)> {
    let head = config.tensors().pop()?;
    Some((head.tied_to?, head.name))
}

/// A weight source in which one tensor has a second name: the embedding that is the output head, too, under the name that the file
/// lacks.
pub(crate) struct SecondName {
    pub(crate) inner: Box<dyn WeightSource>,
    /// The second name.
    pub(crate) name: String,
    /// The name in the file.
    pub(crate) stored: String,
}

impl SecondName {
    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        if name == self.name {
            &self.stored
        } else {
            name
        }
    }
}

impl WeightSource for SecondName {
    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.push(self.name.clone());
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(self.stored(name))
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.inner.dtype(self.stored(name))
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.inner.read(self.stored(name))
    }

    fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        self.inner.read_blocks(self.stored(name))
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.inner.files()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::weights::{open, write_safetensors};

    fn config(tied: bool) -> ModelConfig {
        ModelConfig::from_value(json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3, "max_position_embeddings": 8,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": tied
        }))
        .unwrap()
    }

    /// The result for a file with this embedding and head.
    fn found(tied: bool, embedding: Option<f32>, head: Option<f32>) -> StoredHead {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |name: &str, last: f32| {
            let mut values = vec![0.5; 12];
            values[11] = last;
            (name.to_owned(), vec![3, 4], values)
        };
        let tensors: Vec<_> = [
            embedding.map(|last| tensor("embed_tokens.weight", last)),
            head.map(|last| tensor("lm_head.weight", last)),
        ]
        .into_iter()
        .flatten()
        .collect();
        write_safetensors(folder.path().join("model.safetensors"), &tensors).unwrap();
        let source = open(folder.path()).unwrap();
        stored_head(&config(tied), source.as_ref()).unwrap()
    }

    #[test]
    fn a_stored_head_counts_where_its_values_are_others() {
        assert_eq!(found(true, Some(1.0), Some(2.0)), StoredHead::Untied);
        for (tied, embedding, head) in [
            (true, Some(1.0), Some(1.0)),
            (true, Some(1.0), None),
            (false, Some(1.0), Some(2.0)),
            (false, None, Some(2.0)),
        ] {
            let got = found(tied, embedding, head);
            assert_eq!(got, StoredHead::AsConfigured, "{embedding:?} {head:?}");
        }
        assert_eq!(found(true, None, Some(2.0)), StoredHead::HeadOnly);
    }
}
