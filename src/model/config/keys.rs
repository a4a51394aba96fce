//! Reads the keys of a `config.json` and refuses what this code does not compute.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::RopeScaling;
use crate::error::{Error, Result};

/// Typed access to the keys of a `config.json`; JSON null counts as absent.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) raw: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::Format {
            path: PathBuf::from(self.path),
            message: message.into(),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|v| !v.is_null())
    }

    fn mismatch(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("\"{key}\" must be {expected}, found {found}"))
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|v| v.as_str().ok_or_else(|| self.mismatch(key, "a string", v)))
            .transpose()
    }

    pub(super) fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool()
                .ok_or_else(|| self.mismatch(key, "true or false", v))
        })
    }

    pub(super) fn must_be_false(&self, key: &str) -> Result<()> {
        if self.boolean(key, false)? {
            return Err(self.error(format!("\"{key}\": true is not supported")));
        }
        Ok(())
    }

    pub(super) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|v| {
                v.as_u64()
                    // The bound keeps products of two sizes inside 64 bits.
                    .filter(|&n| n > 0 && n <= u64::from(u32::MAX))
                    .map(|n| n as usize)
                    .ok_or_else(|| self.mismatch(key, "a positive whole number", v))
            })
            .transpose()
    }

    pub(super) fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| self.error(format!("no \"{key}\"; expected a positive whole number")))
    }

    pub(super) fn positive(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_f64()
                .filter(|x| *x > 0.0)
                .ok_or_else(|| self.mismatch(key, "a positive number", v))
        })
    }

    pub(super) fn one_of(&self, key: &str, default: &str, accepted: &[&str]) -> Result<()> {
        let found = self.string(key)?.unwrap_or(default);
        if accepted.contains(&found) {
            return Ok(());
        }
        Err(self.error(format!(
            "\"{key}\": \"{found}\" is not supported; supported are {}",
            accepted.join(", ")
        )))
    }

    pub(super) fn divide(&self, key: &str, n: usize, by_key: &str, by: usize) -> Result<usize> {
        if n.is_multiple_of(by) {
            return Ok(n / by);
        }
        Err(self.error(format!(
            "\"{key}\" ({n}) must be a multiple of \"{by_key}\" ({by})"
        )))
    }

    pub(super) fn even(&self, key: &str, n: usize) -> Result<usize> {
        if n.is_multiple_of(2) {
            return Ok(n);
        }
        Err(self.error(format!("\"{key}\" ({n}) must be even for rotary positions")))
    }

    pub(super) fn kv_heads(&self, heads: usize) -> Result<usize> {
        let kv_heads = self.optional_count("num_key_value_heads")?.unwrap_or(heads);
        self.divide(
            "num_attention_heads",
            heads,
            "num_key_value_heads",
            kv_heads,
        )?;
        Ok(kv_heads)
    }

    /// Refuses what llama and Qwen3 files may ask for and this code does not compute.
    pub(super) fn gated_decoder_features(&self) -> Result<()> {
        self.one_of("hidden_act", "silu", &["silu"])?;
        self.must_be_false("attention_bias")?;
        if let Some(factor) = self
            .rope("partial_rotary_factor")
            .filter(|v| v.as_f64() != Some(1.0))
        {
            return Err(self.mismatch("partial_rotary_factor", "1", factor));
        }
        if let Some(Value::Array(kinds)) = self.get("layer_types")
            && let Some(other) = kinds
                .iter()
                .find(|k| k.as_str().is_some_and(|k| k != "full_attention"))
        {
            return Err(self.error(format!(
                "\"layer_types\": {other} is not supported; supported is full_attention"
            )));
        }
        Ok(())
    }

    /// A key of RoPE, wherever transformers keeps it: `rope_parameters` (5.x), `rope_scaling` or the top level (4.x).
    fn rope(&self, key: &str) -> Option<&'a Value> {
        ["rope_parameters", "rope_scaling"]
            .iter()
            .filter_map(|place| self.get(place)?.as_object()?.get(key))
            .chain(self.get(key))
            .find(|v| !v.is_null())
    }

    pub(super) fn rope_theta(&self) -> Result<f64> {
        self.rope("rope_theta").map_or(Ok(10_000.0), |v| {
            v.as_f64()
                .filter(|x| *x > 0.0)
                .ok_or_else(|| self.mismatch("rope_theta", "a positive number", v))
        })
    }

    pub(super) fn rope_scaling(&self) -> Result<Option<RopeScaling>> {
        let kind = self.rope("rope_type").or_else(|| {
            // The older spelling lives in rope_scaling only; "type" at the top level means nothing.
            self.get("rope_scaling")?
                .as_object()?
                .get("type")
                .filter(|v| !v.is_null())
        });
        match kind.map(|v| v.as_str().unwrap_or("not a string")) {
            None if self.get("rope_scaling").is_some() => {
                Err(self.error("\"rope_scaling\" has no \"rope_type\""))
            }
            None | Some("default") => Ok(None),
            Some("llama3") => {
                let number = |key: &str| {
                    self.rope(key)
                        .and_then(Value::as_f64)
                        .filter(|x| *x > 0.0)
                        .ok_or_else(|| {
                            self.error(format!("RoPE scaling llama3 needs a positive \"{key}\""))
                        })
                };
                let scaling = RopeScaling {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_max_position_embeddings: number("original_max_position_embeddings")?
                        as usize,
                };
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    return Err(self.error(
                        "RoPE scaling llama3 needs \"high_freq_factor\" above \"low_freq_factor\"",
                    ));
                }
                Ok(Some(scaling))
            }
            Some(other) => Err(self.error(format!(
                "RoPE scaling \"{other}\" is not supported; supported are default and llama3"
            ))),
        }
    }
}
