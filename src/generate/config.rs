//! The sampling keys of a recipe.

use serde::{Deserialize, Serialize};

/// How tokens are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Logits are divided by this; 0 takes the most probable token.
    pub temperature: f64,
    /// Only the k most probable tokens; 0 means all.
    pub top_k: usize,
    /// The smallest set of tokens whose probability reaches this; 1 means all.
    pub top_p: f64,
    /// Only tokens at least this many times as probable as the most probable one; 0 means all.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_p: f64,
}

/// Keys of methods that are not used are not written: recipes that were resolved before the key existed stay the same.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// A token that ends a response as EOS does, from some index on.
///
/// # Source
/// `truncate_token` and `truncate_after` of lm-human-preferences: `.` from index 16 on, so that a continuation ends with a
/// sentence. There the tokens after it are sampled and then cut off; here generation stops, with the same result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truncate {
    /// The token's text; must be one token of the vocabulary.
    pub token: String,
    /// 0-based index in the response before which the token does not end it.
    pub after: usize,
}
