//! DistilBERT: no token types, and a head with ReLU on the first token.

use super::EncoderSizes;
use super::config::{Activation, Family, HeadNames, LayerNames};

pub(super) const FAMILY: Family = Family {
    model_type: "distilbert",
    classifier: "DistilBertForSequenceClassification",
    embeddings: "distilbert.embeddings",
    layers: "distilbert.transformer.layer",
    layer: &LayerNames {
        qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        attention_out: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        output_norm: "output_layer_norm",
    },
    head: HeadNames {
        dense: "pre_classifier",
        activation: Activation::Relu,
        out: "classifier",
    },
    unused: &["vocab_transform.", "vocab_layer_norm.", "vocab_projector."],
    read: |keys| {
        let (width, heads) = (keys.count("dim")?, keys.count("n_heads")?);
        keys.divide("dim", width, "n_heads", heads)?;
        Ok(EncoderSizes {
            vocab_size: keys.count("vocab_size")?,
            hidden_size: width,
            num_hidden_layers: keys.count("n_layers")?,
            num_attention_heads: heads,
            intermediate_size: keys.count("hidden_dim")?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            type_vocab_size: 0,
            reads_types: false,
            hidden_act: keys.activation("activation", "gelu")?,
            // Its files have no key for it.
            layer_norm_eps: 1e-12,
            padding_idx: None,
        })
    },
};
