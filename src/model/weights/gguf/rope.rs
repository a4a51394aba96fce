//! RoPE scalings in a file: keys of the metadata, and factors by which wavelengths are longer.

use serde_json::{Value as Json, json};

use super::config::Description;
use super::file::Value;
use super::header::{MetadataValue, shortest};
use super::layout::Architecture;
use crate::model::GatedDecoderConfig;
use crate::model::config::{LongRope, RopeScaling, Yarn};

/// Factors of all rows, `[rotary_dim / 2]`.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Factors of rows within the original context.
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Factors of longer rows.
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// What a file says of a RoPE scaling.
#[derive(Default)]
pub(super) struct StoredScaling {
    /// Keys without the architecture before them.
    pub(super) metadata: Vec<(&'static str, Value)>,
    /// Names and values of tensors.
    pub(super) factors: Vec<(&'static str, Vec<f32>)>,
}

impl StoredScaling {
    /// The scaling of a model, or why llama.cpp cannot be told.
    pub(super) fn new(
        architecture: Architecture,
        config: &GatedDecoderConfig,
    ) -> Result<Self, String> {
        let text = |key, text: &str| (key, Value::Text(text.into()));
        let number = |key, x: f64| (key, Value::F32(x as f32));
        let context = |tokens: usize| ("original_context_length", Value::U32(tokens as u32));
        let metadata = |metadata| Self {
            metadata,
            factors: Vec::new(),
        };
        let Some(scaling) = &config.rope_scaling else {
            return Ok(Self::default());
        };
        match scaling {
            RopeScaling::Linear { factor } => Ok(metadata(vec![
                text("type", "linear"),
                number("factor", *factor),
            ])),
            RopeScaling::Yarn(yarn) if as_proposed(yarn) => Ok(metadata(vec![
                text("type", "yarn"),
                number("factor", yarn.factor),
                context(yarn.original_max_position_embeddings),
            ])),
            RopeScaling::LongRope(long) if architecture == Architecture::Phi3 => Ok(Self {
                metadata: vec![
                    number("attn_factor", long.attention_factor),
                    context(long.original_max_position_embeddings),
                ],
                factors: vec![
                    (LONG_FACTORS, in_f32(&long.long_factor)),
                    (SHORT_FACTORS, in_f32(&long.short_factor)),
                ],
            }),
            RopeScaling::Llama3(llama3) if architecture == Architecture::Llama => {
                let longer = |frequency: f32| frequency / llama3.scaled(frequency);
                let factors = frequencies(config).map(longer).collect();
                Ok(Self {
                    metadata: Vec::new(),
                    factors: vec![(FACTORS, factors)],
                })
            }
            // A file of Llama 3 without config.json is read as this.
            RopeScaling::LongRope(long)
                if architecture == Architecture::Llama && is_one_list(long) =>
            {
                Ok(Self {
                    metadata: Vec::new(),
                    factors: vec![(FACTORS, in_f32(&long.short_factor))],
                })
            }
            RopeScaling::Yarn(_) => Err(
                "RoPE scaling yarn with attention_factor, beta_fast, beta_slow or truncate of its own".into(),
            ),
            other => Err(format!("{} with RoPE scaling {}", architecture.name(), other.name())),
        }
    }
}

/// Whether llama.cpp would choose the same factor of scores and the same ramp.
fn as_proposed(yarn: &Yarn) -> bool {
    yarn.attention_factor == Yarn::proposed_attention_factor(yarn.factor, None)
        && (yarn.beta_fast, yarn.beta_slow, yarn.truncate) == (32.0, 1.0, true)
}

/// Whether the factors are those of all rows, and scores stay as they are.
fn is_one_list(long: &LongRope) -> bool {
    long.short_factor == long.long_factor && long.attention_factor == 1.0
}

fn in_f32(factors: &[f64]) -> Vec<f32> {
    factors.iter().map(|&factor| factor as f32).collect()
}

/// Radians per position of each pair, unscaled.
fn frequencies(config: &GatedDecoderConfig) -> impl Iterator<Item = f32> {
    let (theta, width) = (config.rope_theta, config.head_dim);
    let exponent = move |pair: usize| 2.0 * pair as f64 / width as f64;
    (0..width / 2).map(move |pair| theta.powf(-exponent(pair)) as f32)
}

/// The scaling that a file says, as `rope_scaling` of a `config.json`; `None` if there is none.
pub(super) fn rope_scaling(file: &Description<'_>) -> Result<Option<Json>, String> {
    let key = |key: &str| file.key(&format!("rope.scaling.{key}"));
    let number = |name: &str| file.number(&format!("rope.scaling.{name}"));
    let context = || {
        let own = key("original_context_length").or_else(|| file.key("context_length"));
        let tokens = own.and_then(MetadataValue::as_u64);
        tokens.ok_or("the GGUF metadata has no usable original context length")
    };
    let factors = |name: &str| -> Result<Option<Vec<f64>>, String> {
        if !file.has(name) {
            return Ok(None);
        }
        let factors = (file.read)(name)?;
        if let Some(factor) = factors.iter().find(|factor| !factor.is_finite()) {
            return Err(format!("{name} must have finite factors, found {factor}"));
        }
        Ok(Some(factors.into_iter().map(shortest).collect()))
    };
    let (mut short, mut long) = (factors(SHORT_FACTORS)?, factors(LONG_FACTORS)?);
    // Those of Llama 3 as the factors that they are.
    if let Some(all) = factors(FACTORS)? {
        (short, long) = (Some(all.clone()), Some(all));
    }
    if let (Some(short), Some(long)) = (short, long) {
        return Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": number("attn_factor").unwrap_or(1.0),
            "original_max_position_embeddings": context()?,
        })));
    }
    // Older files have a factor under another name, and none the kind; llama.cpp takes it as linear.
    let factor = number("factor").or_else(|| file.number("rope.scale_linear"));
    let factor = factor.filter(|factor| *factor > 0.0);
    let kind = key("type")
        .and_then(MetadataValue::as_str)
        .unwrap_or("linear");
    let is = |name: &str, value: f64| number(name).is_none_or(|found| found == value);
    let plain = ["attn_factor", "yarn_attn_factor", "yarn_ext_factor"]
        .iter()
        .all(|name| is(name, 1.0))
        && is("yarn_log_multiplier", 0.0);
    match (kind, factor) {
        ("none", _) | ("linear", None) => Ok(None),
        ("linear", Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        ("yarn", Some(factor)) if plain => {
            let mut scaling = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": context()?,
            });
            for name in ["beta_fast", "beta_slow"] {
                if let Some(beta) = number(&format!("yarn_{name}")) {
                    scaling[name] = json!(beta);
                }
            }
            Ok(Some(scaling))
        }
        _ => Err(format!(
            "RoPE scaling \"{kind}\" cannot be read from this GGUF metadata"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The scaling of a llama with these keys.
    fn read(keys: &[(&str, MetadataValue)]) -> Result<Option<Json>, String> {
        let context = ("context_length", MetadataValue::Unsigned(4096));
        let metadata: BTreeMap<String, MetadataValue> = ([context].iter().chain(keys))
            .map(|(key, value)| (format!("llama.{key}"), value.clone()))
            .collect();
        rope_scaling(&Description {
            architecture: Architecture::Llama,
            metadata: &metadata,
            num_tensors: 0,
            shape: &|_| None,
            read: &|name| Err(format!("{name} is not there")),
        })
    }

    #[test]
    fn keys_of_older_files_and_yarns_own_are_read() {
        let (float, text) = (MetadataValue::Float, |text: &str| {
            MetadataValue::String(text.into())
        });
        let four = ("rope.scaling.factor", float(4.0));
        let linear = Ok(Some(json!({"rope_type": "linear", "factor": 4.0})));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("rope.scale_linear", float(4.0))]), linear);
        assert_eq!(read(std::slice::from_ref(&four)), linear);
        assert_eq!(
            read(&[("rope.scaling.type", text("none")), four.clone()]),
            Ok(None)
        );
        let yarn = ("rope.scaling.type", text("yarn"));
        let fast = ("rope.scaling.yarn_beta_fast", float(16.0));
        assert_eq!(
            read(&[yarn.clone(), four.clone(), fast]),
            Ok(Some(json!({
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0
            })))
        );
        let other = ("rope.scaling.yarn_ext_factor", float(0.5));
        assert!(read(&[yarn, four, other]).is_err());
    }
}
