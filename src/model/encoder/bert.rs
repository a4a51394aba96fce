//! BERT: token types, and a pooler with `tanh` on the first token.

use super::EncoderSizes;
use super::config::{Activation, Family, HeadNames, LayerNames};
use crate::error::Result;
use crate::model::config::keys::Keys;

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    classifier: "BertForSequenceClassification",
    embeddings: "bert.embeddings",
    layers: "bert.encoder.layer",
    layer: &LAYER,
    head: HeadNames {
        dense: "bert.pooler.dense",
        activation: Activation::Tanh,
        out: "classifier",
    },
    unused: &["cls."],
    read: |keys| read(keys, false),
};

/// Names inside a layer.
pub(super) const LAYER: LayerNames = LayerNames {
    qkv: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

/// Reads BERT's keys; `after_padding`: positions begin after the padding token's id.
pub(super) fn read(keys: &Keys<'_>, after_padding: bool) -> Result<EncoderSizes> {
    keys.must_be("is_decoder", false)?;
    keys.must_be("add_cross_attention", false)?;
    keys.one_of("position_embedding_type", "absolute", &["absolute"])?;
    // transformers' default of each family.
    let padding = match after_padding {
        // An id of 32 bits: positions begin after it.
        true => match keys.whole("pad_token_id")?.unwrap_or(1) {
            padding if u32::try_from(padding).is_ok() => Some(padding),
            padding => return Err(keys.mismatch("pad_token_id", "a token id", &padding.into())),
        },
        false => None,
    };
    let (hidden_size, heads) = (
        keys.count("hidden_size")?,
        keys.count("num_attention_heads")?,
    );
    keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?;
    let type_vocab_size = keys.optional_count("type_vocab_size")?.unwrap_or(2);
    Ok(EncoderSizes {
        vocab_size: keys.count("vocab_size")?,
        hidden_size,
        num_hidden_layers: keys.count("num_hidden_layers")?,
        num_attention_heads: heads,
        intermediate_size: keys.count("intermediate_size")?,
        max_position_embeddings: keys.count("max_position_embeddings")?,
        type_vocab_size,
        // RoBERTa's tokenizers give all tokens one type.
        reads_types: type_vocab_size > 1 && !after_padding,
        hidden_act: keys.activation("hidden_act", "gelu")?,
        layer_norm_eps: keys.positive("layer_norm_eps", 1e-12)?,
        padding_idx: padding,
    })
}
