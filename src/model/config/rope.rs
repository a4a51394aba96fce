//! The keys of rotary positions in all layouts of transformers.

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::error::Result;

/// Llama 3's scaling of long rotary wavelengths.
///
/// # Source
/// transformers, `modeling_rope_utils.py`, `rope_type` "llama3".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Factor for long wavelengths.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are unchanged.
    pub high_freq_factor: f64,
    /// Context length of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
}

/// The settings of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::model) struct Rope {
    pub(in crate::model) theta: f64,
    pub(in crate::model) scaling: Option<RopeScaling>,
    /// Fraction of each head that is rotated, if given.
    pub(in crate::model) partial_factor: Option<f64>,
}

/// Reads `rope_scaling` (transformers 4), which has precedence as in transformers, or `rope_parameters` (5). Base and rotated
/// fraction may also be under `theta_key` and `partial_key` beside them.
pub(in crate::model) fn read(keys: &Keys<'_>, theta_key: &str, partial_key: &str) -> Result<Rope> {
    let dict = dictionary(keys, "rope_scaling")?.or(dictionary(keys, "rope_parameters")?);
    let number = |key: &str, beside: Option<&str>| -> Result<Option<f64>> {
        let value = dict.and_then(|(_, dict)| dict.get(key));
        let value = value.filter(|v| !v.is_null());
        match value.or_else(|| keys.get(beside?)) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(keys.mismatch(key, "a positive number", value)),
            },
        }
    };
    let theta = number("rope_theta", Some(theta_key))?.unwrap_or(10_000.0);
    let partial_factor = number("partial_rotary_factor", Some(partial_key))?;
    let mut rope = Rope {
        theta,
        scaling: None,
        partial_factor,
    };
    let Some((place, dict)) = dict else {
        return Ok(rope);
    };
    if let Some((key, _)) = dict.iter().find(|(_, value)| value.is_object()) {
        return Err(keys.error(format!(
            "\"{place}\": values by kind of layer (\"{key}\") are not supported"
        )));
    }
    let kind = ["rope_type", "type"]
        .iter()
        .find_map(|key| dict.get(*key).filter(|v| !v.is_null()));
    match kind.map(|v| v.as_str().unwrap_or("not a string")) {
        None if place == "rope_scaling" && dict.contains_key("factor") => {
            Err(keys.error("\"rope_scaling\" has no \"rope_type\""))
        }
        None | Some("default") => Ok(rope),
        Some("llama3") => {
            let needed = |key: &str| {
                number(key, None)?.ok_or_else(|| {
                    keys.error(format!("RoPE scaling llama3 needs a positive \"{key}\""))
                })
            };
            let original = "original_max_position_embeddings";
            let original = match keys.optional_count(original)? {
                // As in transformers, the key beside the dictionary overrides the one inside.
                Some(count) => Some(count as f64),
                None => number(original, Some("max_position_embeddings"))?,
            };
            let scaling = RopeScaling {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_max_position_embeddings: original.unwrap_or(0.0) as usize,
            };
            if scaling.high_freq_factor <= scaling.low_freq_factor {
                return Err(keys.error(
                    "RoPE scaling llama3 needs \"high_freq_factor\" above \"low_freq_factor\"",
                ));
            }
            rope.scaling = Some(scaling);
            Ok(rope)
        }
        Some(other) => Err(keys.error(format!(
            "RoPE scaling \"{other}\" is not supported; supported are default and llama3"
        ))),
    }
}

/// A non-empty dictionary, with its key.
fn dictionary<'a>(
    keys: &Keys<'a>,
    place: &'static str,
) -> Result<Option<(&'static str, &'a Map<String, Value>)>> {
    match keys.get(place) {
        None => Ok(None),
        Some(Value::Object(dict)) => Ok(Some((place, dict)).filter(|_| !dict.is_empty())),
        Some(other) => Err(keys.mismatch(place, "a dictionary", other)),
    }
}
