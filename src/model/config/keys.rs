//! Reads the keys of a `config.json` and refuses what this code does not compute.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::activation::Activation;

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

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn mismatch(&self, key: &str, expected: &str, found: &Value) -> Error {
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

    /// Refuses a switch that stands otherwise than what is computed.
    pub(super) fn must_be(&self, key: &str, computed: bool) -> Result<()> {
        if self.boolean(key, computed)? == computed {
            return Ok(());
        }
        Err(self.error(format!("\"{key}\": {} is not supported", !computed)))
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

    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let found = self.string(key)?.unwrap_or(default);
        Activation::named(found).map_err(|known| {
            self.error(format!(
                "\"{key}\": \"{found}\" is not supported; supported are {known}"
            ))
        })
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

    /// Refuses layers that attend to a window only. As in transformers, `layer_types` decides where it is given;
    /// otherwise the layers from `max_window_layers` on have the window if `use_sliding_window` is set.
    pub(super) fn full_attention(&self, num_layers: usize) -> Result<()> {
        if let Some(Value::Array(kinds)) = self.get("layer_types") {
            return match kinds.iter().find(|k| k.as_str() != Some("full_attention")) {
                None => Ok(()),
                Some(other) => Err(self.error(format!(
                    "\"layer_types\": {other} is not supported; supported is full_attention"
                ))),
            };
        }
        let no_window = self.raw.get("sliding_window").is_some_and(Value::is_null);
        let first = self.get("max_window_layers").and_then(Value::as_u64);
        if no_window || first.unwrap_or(28) >= num_layers as u64 {
            return Ok(());
        }
        self.must_be("use_sliding_window", false)
    }
}
