//! Encoders with a classification head: BERT, DistilBERT and RoBERTa score texts, and generate none.
//!
//! They are read and not trained. Each family has a file with the names of its tensors and keys; the network is one for all.

mod bert;
mod classifier;
mod config;
mod distilbert;
mod labels;
mod network;
mod roberta;
mod source;

pub use classifier::EncoderClassifier;
pub use config::EncoderConfig;
pub use labels::{Label, LabelOutput, Labels, ProblemType};
pub use source::ClassifierSource;
pub(super) use source::has_encoder;

use config::{EncoderSizes, Family};

/// All supported families.
const FAMILIES: [&Family; 4] = [
    &bert::FAMILY,
    &distilbert::FAMILY,
    &roberta::FAMILY,
    &roberta::XLM_FAMILY,
];

/// The supported values of `model_type`.
pub(super) fn encoder_families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// Whether `model_type` is an encoder's.
pub(super) fn is_encoder(model_type: &str) -> bool {
    encoder_families().any(|known| known == model_type)
}
