//! RoBERTa and XLM-RoBERTa: BERT's layers, positions that begin after the padding token's id, and a dense head with `tanh`.

use super::bert;
use super::config::{Activation, Family, HeadNames};

pub(super) const FAMILY: Family = Family {
    model_type: "roberta",
    classifier: "RobertaForSequenceClassification",
    embeddings: "roberta.embeddings",
    layers: "roberta.encoder.layer",
    layer: &bert::LAYER,
    head: HeadNames {
        dense: "classifier.dense",
        activation: Activation::Tanh,
        out: "classifier.out_proj",
    },
    // Published classifiers keep the pooler of pre-training, which the head does not read.
    unused: &["lm_head.", "roberta.pooler."],
    read: |keys| bert::read(keys, true),
};

pub(super) const XLM_FAMILY: Family = Family {
    model_type: "xlm-roberta",
    classifier: "XLMRobertaForSequenceClassification",
    ..FAMILY
};
