//! What a method that trains virtual tokens says of itself: its settings, what stands before every row, and its files.
//!
//! Virtual tokens take the first positions of a row, and what follows moves up by as many.
//!
//! # Source
//! PEFT 0.21, `PromptLearningConfig` and `PeftModelForCausalLM`: positions, and the file's one tensor.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde_json::{Value, json};

use super::VirtualTokens;
use super::files::{AdapterConfig, Keys};
use super::projection::ColumnOrder;
use crate::error::{Error, Result};
use crate::ops::{HeadLayout, ModelBackend};
use crate::params::{ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// Name in files of what the virtual tokens are to the model.
pub const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

/// The sizes of a decoder that virtual tokens have to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderShape {
    /// Width of a token's embedding.
    pub embedding: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Attention heads.
    pub layout: HeadLayout,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest row in tokens.
    pub max_positions: usize,
    /// Order of a layer's key columns where it is another than in files.
    pub key_order: ColumnOrder,
}

/// What fresh virtual tokens may be made from.
pub struct PromptStart<'a, B: Backend> {
    /// Sizes of the model.
    pub shape: &'a DecoderShape,
    /// Ids of a text, as the model's tokenizer gives them for a whole text.
    pub encode: Encode<'a>,
    /// Embeddings of tokens, `[ids, embedding]`.
    pub embed: &'a dyn Fn(&[u32]) -> Tensor<B, 2>,
    /// Where the model is.
    pub device: &'a B::Device,
}

/// Ids of a text.
pub type Encode<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>>;

/// What encodes no text, where there is no tokenizer.
///
/// # Errors
/// Always.
pub fn no_text(text: &str) -> Result<Vec<u32>> {
    Err(Error::Usage(format!(
        "the text {text:?} cannot be encoded: there is no tokenizer"
    )))
}

/// The settings of a method that puts trained virtual tokens before every row of a frozen model.
///
/// A method is one file with one type that implements this and one that implements [`PromptTokens`], and one line in the list of
/// [`crate::peft`].
pub trait PromptMethod: Clone + PartialEq {
    /// The trained part.
    type Tokens<B: Backend>: PromptTokens<B>;

    /// PEFT's `peft_type`.
    const PEFT_TYPE: &'static str;

    /// Notes settings that cannot be, as far as they show without a model.
    fn problems(&self, settings: &mut Settings);

    /// Virtual tokens before every row.
    fn num_virtual_tokens(&self) -> usize;

    /// Parameters that are trained.
    fn num_params(&self, shape: &DecoderShape) -> usize;

    /// Probability with which training drops what passes inside an encoder.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// Columns of the file's tensor, which has a row for each virtual token.
    fn stored_width(&self, shape: &DecoderShape) -> usize {
        shape.embedding
    }

    /// The tokens as training begins.
    ///
    /// # Errors
    /// Those of encoding a text.
    fn fresh<B: ModelBackend>(
        &self,
        start: &PromptStart<'_, B>,
        seed: Seed,
    ) -> Result<Self::Tokens<B>>;

    /// The tokens of a file, `[num_virtual_tokens, stored_width]`.
    fn stored<B: Backend>(&self, shape: &DecoderShape, tensor: Tensor<B, 2>) -> Self::Tokens<B>;

    /// From the keys of `adapter_config.json`; `num_virtual_tokens` is one of them.
    ///
    /// # Errors
    /// With the key and the value that cannot be used.
    fn read(keys: &Keys<'_>, num_virtual_tokens: usize) -> Result<Self, String>;

    /// Whether a key of `adapter_config.json` may hold this value: `None` if it is no key of this method, `false` if the value
    /// changes what the tokens compute and is not implemented.
    fn accepts(key: &str, value: &Value) -> Option<bool>;

    /// The object with the keys of `adapter_config.json` that are this method's own.
    fn write(&self, config: &AdapterConfig) -> Value;
}

/// The trained part of a method with virtual tokens: it stands before every row as embeddings, or as each layer's keys and values.
pub trait PromptTokens<B: Backend> {
    /// Whether they stand in attention alone, as keys and values, and not among the states.
    const IN_ATTENTION: bool = false;

    /// Number of tokens.
    fn count(&self) -> usize;

    /// Embeddings, `[tokens, embedding]`; `None` where keys and values stand in their place. `dropout` gives the masks of
    /// training; `None` drops nothing.
    fn embeddings(&self, dropout: Option<Seed>) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        let _ = dropout;
        None
    }

    /// What the keys and values of all layers are computed from, once a pass.
    fn encoded(&self) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        None
    }

    /// Keys and values of one layer side by side, `[tokens, 2 kv_width]`, keys after rotation; `None` where embeddings stand in
    /// their place.
    fn keys_values(&self, encoded: Option<&Tensor<B, 2>>, layer: usize) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        let _ = (encoded, layer);
        None
    }

    /// The file's tensor, `[tokens, stored_width]`.
    fn to_stored(&self) -> Tensor<B, 2>
    where
        B: ModelBackend;

    /// Walks the trained parameters.
    fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>));
}

impl<B: ModelBackend> VirtualTokens<B> {
    /// The file's tensor: name, shape, numbers. Reads the device.
    pub fn host_tensor(&self) -> (String, Vec<usize>, Vec<f32>) {
        let tensor = self.to_stored();
        let shape = tensor.dims().to_vec();
        (PROMPT_EMBEDDINGS.into(), shape, crate::host::read(tensor))
    }
}

/// Keys of `adapter_config.json` that all these methods have.
pub(super) fn accepts(key: &str, value: &Value) -> Option<bool> {
    match key {
        // Sizes of the model, which the tensor's shape is held against.
        "num_attention_heads" | "num_layers" | "token_dim" | "num_virtual_tokens" => Some(true),
        // An encoder and a decoder have one each.
        "num_transformer_submodules" => Some(value.is_null() || value.as_u64() == Some(1)),
        _ => None,
    }
}

/// The number of virtual tokens that a file says.
pub(super) fn read_count(keys: &Keys<'_>) -> Result<usize, String> {
    let count = keys.read("num_virtual_tokens", 0, |value| {
        usize::try_from(value.as_u64()?).ok().filter(|&n| n > 0)
    })?;
    match count {
        0 => Err("no \"num_virtual_tokens\"".into()),
        count => Ok(count),
    }
}

/// What [`accepts`] names, as PEFT fills it in; `width` is `token_dim`, `heads` `num_attention_heads`.
pub(super) fn write(count: usize, config: &AdapterConfig, keys_and_values: bool) -> Value {
    let shape = config.shape.as_ref();
    let heads = |shape: &DecoderShape| match keys_and_values {
        true => shape.layout.kv_heads,
        false => shape.layout.heads,
    };
    let width = |shape: &DecoderShape| match keys_and_values {
        true => shape.layout.kv_width(),
        false => shape.embedding,
    };
    json!({
        "num_attention_heads": shape.map(heads),
        "num_layers": shape.map(|shape| shape.num_layers),
        "num_transformer_submodules": 1,
        "num_virtual_tokens": count,
        "token_dim": shape.map(width),
    })
}

/// `values` of both; those of `more` count where keys are the same.
pub(super) fn with(keys: Value, more: Value) -> Value {
    match (keys, more) {
        (Value::Object(mut keys), Value::Object(more)) => {
            keys.extend(more);
            Value::Object(keys)
        }
        (keys, _) => keys,
    }
}

/// Why virtual tokens stay beside their model.
pub(super) fn not_mergeable(count: usize) -> Error {
    Error::Usage(format!(
        "{count} virtual tokens stand before every row, where no weight can stand for them: they cannot be merged into the model; \
         use the model with the adapter beside it"
    ))
}
