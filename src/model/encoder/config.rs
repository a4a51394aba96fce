//! `config.json` of an encoder with a classification head.

use std::path::Path;

use burn_ndarray::NdArray;
use serde_json::Value;

use super::labels::Labels;
use super::{EncoderClassifier, FAMILIES, encoder_families};
use crate::data::lfs_pointer;
use crate::error::{Error, Result};
use crate::model::activation;
use crate::model::config::TensorSpec;
use crate::model::config::keys::Keys;
use crate::ops::HeadLayout;
use crate::outside;
use crate::params::Parameters;

/// An encoder family: transformers' names, and its reader of `config.json`.
#[derive(Debug)]
pub(super) struct Family {
    /// Value of `model_type`.
    pub(super) model_type: &'static str,
    /// Class of the sequence classifier.
    pub(super) classifier: &'static str,
    /// Path of the embeddings.
    pub(super) embeddings: &'static str,
    /// Path of the list of layers.
    pub(super) layers: &'static str,
    /// Names inside a layer.
    pub(super) layer: &'static LayerNames,
    /// The head on the first token.
    pub(super) head: HeadNames,
    /// Beginnings of tensors that files may hold and the classifier does not read: heads of pre-training.
    pub(super) unused: &'static [&'static str],
    /// Reads the sizes; refuses unsupported values.
    pub(super) read: fn(&Keys<'_>) -> Result<EncoderSizes>,
}

/// By identity: there is one static value per family.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// Names of a layer's modules, below the layer.
#[derive(Debug)]
pub(super) struct LayerNames {
    pub(super) qkv: [&'static str; 3],
    pub(super) attention_out: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) output_norm: &'static str,
}

/// Names of the head's two linear layers, and the function between them.
#[derive(Debug)]
pub(super) struct HeadNames {
    pub(super) dense: &'static str,
    pub(super) activation: Activation,
    pub(super) out: &'static str,
}

/// The function between the head's two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Tanh,
    Relu,
}

/// Sizes of an encoder, under BERT's names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EncoderSizes {
    /// Rows of the token embedding.
    pub(super) vocab_size: usize,
    /// Width of the residual stream.
    pub(super) hidden_size: usize,
    /// Number of layers.
    pub(super) num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub(super) num_attention_heads: usize,
    /// Width of the MLP.
    pub(super) intermediate_size: usize,
    /// Rows of the position table.
    pub(super) max_position_embeddings: usize,
    /// Rows of the table of token types; 0 without one.
    pub(super) type_vocab_size: usize,
    /// Whether the second text of a pair has a type of its own.
    pub(super) reads_types: bool,
    /// Activation of the MLP.
    pub(super) hidden_act: activation::Activation,
    /// Added to the variance inside LayerNorm.
    pub(super) layer_norm_eps: f64,
    /// The padding token of a family whose positions begin after its id.
    pub(super) padding_idx: Option<usize>,
}

/// Configuration of an encoder with a classification head.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub(super) family: &'static Family,
    pub(super) sizes: EncoderSizes,
    labels: Labels,
}

impl EncoderConfig {
    /// Reads the `config.json` in a folder, or beside a weight file.
    ///
    /// # Errors
    /// `Error::Io` and `Error::Format`, as in [`EncoderConfig::from_value`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = match path.is_dir() {
            true => path.join("config.json"),
            false => path.with_file_name("config.json"),
        };
        Self::parse(&file, read_json(&file)?)
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// `Error::Format` for another family than an encoder's, another head than that of a sequence classifier, a missing or ill-typed
    /// key, inconsistent sizes, and unsupported features that would change the numbers.
    pub fn from_value(value: Value) -> Result<Self> {
        Self::parse(Path::new("config.json"), value)
    }

    fn parse(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(raw) = value else {
            return Err(Error::format(path, "expected a JSON object"));
        };
        let keys = Keys { path, raw: &raw };
        keys.check_numbers()?;
        keys.check_quantization(keys.get("quantization_config"))?;
        let name = keys.string("model_type")?.unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.model_type == name);
        let family: &'static Family = family.ok_or_else(|| {
            let known: Vec<&str> = encoder_families().collect();
            keys.error(format!(
                "model_type \"{name}\" is no encoder that is read; supported are {}. A score head on a language model is `Learned(stage: \"..\")`",
                known.join(", ")
            ))
        })?;
        check_class(&keys, family)?;
        let sizes = (family.read)(&keys)?;
        let first = sizes.first_position();
        if sizes.max_position_embeddings <= first {
            return Err(keys.error(format!(
                "\"max_position_embeddings\" ({}) must be above {first}: positions begin after \"pad_token_id\"",
                sizes.max_position_embeddings
            )));
        }
        Ok(Self {
            family,
            labels: Labels::read(&keys)?,
            sizes,
        })
    }

    /// The value of `model_type`.
    pub fn family(&self) -> &'static str {
        self.family.model_type
    }

    /// The class in transformers, e.g. `BertForSequenceClassification`.
    pub fn class(&self) -> &'static str {
        self.family.classifier
    }

    /// The labels, one for each number that the head gives.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    /// Longest row in tokens, special ones included.
    pub fn max_positions(&self) -> usize {
        self.sizes.max_position_embeddings - self.sizes.first_position()
    }

    /// The parameters with Hugging Face's names and shapes.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        // An unfilled model holds no numbers, so the backend does not matter.
        let mut model = EncoderClassifier::<NdArray>::new(self, &Default::default());
        let mut specs = Vec::new();
        model.for_each_parameter(&mut |meta, slot| {
            let tensors = meta.file_tensors(&slot.shape()).into_iter();
            specs.extend(tensors.map(|(name, shape)| TensorSpec {
                name,
                shape,
                kind: meta.kind,
                tied_to: None,
            }));
        });
        specs
    }

    /// Number of parameters.
    pub fn num_params(&self) -> usize {
        let tensors = self.tensors();
        tensors
            .iter()
            .map(|t| t.shape.iter().product::<usize>())
            .sum()
    }

    /// Whether a file may hold the tensor `name` that the classifier does not read: heads of pre-training, and indices that old files
    /// store.
    pub(super) fn leaves_out(&self, name: &str) -> bool {
        let unused = self.family.unused.iter();
        unused.into_iter().any(|start| name.starts_with(start)) || name.ends_with(".position_ids")
    }
}

impl EncoderSizes {
    /// Row of the position table for a row's first token.
    pub(super) fn first_position(&self) -> usize {
        self.padding_idx.map_or(0, |padding| padding + 1)
    }

    /// Attention heads.
    pub(super) fn layout(&self) -> HeadLayout {
        let heads = self.num_attention_heads;
        HeadLayout {
            heads,
            kv_heads: heads,
            head_dim: self.hidden_size / heads,
        }
    }
}

/// Refuses the class of another head than a sequence classifier's.
fn check_class(keys: &Keys<'_>, family: &Family) -> Result<()> {
    let classes = keys.get("architectures").and_then(Value::as_array);
    let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
    match classes.next() {
        Some(class) if class != family.classifier => Err(keys.error(format!(
            "the model is a {class}, an encoder without a head for labels; expected {}, an encoder that was tuned to classify texts",
            family.classifier
        ))),
        _ => Ok(()),
    }
}

/// The JSON in a file.
pub(super) fn read_json(file: &Path) -> Result<Value> {
    let text = outside::read_text(file, outside::SETTINGS)?;
    if let Some(error) = lfs_pointer(file, text.as_bytes()) {
        return Err(error);
    }
    serde_json::from_str(&text).map_err(|e| Error::format(file, format!("not valid JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bert() -> Value {
        json!({
            "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 30522, "hidden_size": 768,
            "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12
        })
    }

    fn distilbert() -> Value {
        json!({
            "model_type": "distilbert", "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
            "max_position_embeddings": 512, "activation": "gelu"
        })
    }

    fn roberta() -> Value {
        json!({
            "model_type": "roberta", "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
            "layer_norm_eps": 1e-5
        })
    }

    #[test]
    fn parameters_and_positions_are_the_published_ones() {
        // transformers' classifiers of two labels: bert-base-uncased, distilbert-base-uncased, roberta-base.
        for (value, params, positions) in [
            (bert(), 109_483_778, 512),
            (distilbert(), 66_955_010, 512),
            (roberta(), 124_647_170, 512),
        ] {
            let config = EncoderConfig::from_value(value).unwrap();
            assert_eq!(config.num_params(), params, "{}", config.family());
            assert_eq!(config.max_positions(), positions, "{}", config.family());
        }
    }

    #[test]
    fn what_would_change_the_numbers_is_refused() {
        for (key, value, part) in [
            (
                "position_embedding_type",
                json!("relative_key"),
                "relative_key",
            ),
            (
                "is_decoder",
                json!(true),
                "\"is_decoder\": true is not supported",
            ),
            ("hidden_act", json!("mish"), "\"mish\" is not supported"),
            ("num_attention_heads", json!(7), "must be a multiple of"),
            (
                "architectures",
                json!(["BertModel"]),
                "the model is a BertModel, an encoder without a head",
            ),
            (
                "model_type",
                json!("deberta-v2"),
                "\"deberta-v2\" is no encoder that is read",
            ),
            (
                "problem_type",
                json!("ranking"),
                "\"ranking\" is not supported",
            ),
        ] {
            let mut config = bert();
            config[key] = value;
            let message = EncoderConfig::from_value(config).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let mut few = roberta();
        few["max_position_embeddings"] = json!(2);
        let message = EncoderConfig::from_value(few).unwrap_err().to_string();
        assert!(message.contains("must be above 2"), "{message}");
    }
}
