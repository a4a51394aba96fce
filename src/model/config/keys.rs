//! Reads the keys of a `config.json` and refuses unsupported values.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::limits::{beyond_f32, largest};
use crate::error::{Error, Result};
use crate::model::activation::Activation;
use crate::ops::{Gate, Gelu, Mask};

/// Typed access to the keys of a `config.json`; JSON null counts as absent.
pub(in crate::model) struct Keys<'a> {
    pub(in crate::model) path: &'a Path,
    pub(in crate::model) raw: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(in crate::model) fn error(&self, message: impl Into<String>) -> Error {
        Error::Format {
            path: PathBuf::from(self.path),
            message: message.into(),
        }
    }

    pub(in crate::model) fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|v| !v.is_null())
    }

    pub(in crate::model) fn mismatch(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("\"{key}\" must be {expected}, found {found}"))
    }

    pub(in crate::model) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|v| v.as_str().ok_or_else(|| self.mismatch(key, "a string", v)))
            .transpose()
    }

    pub(in crate::model) fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool()
                .ok_or_else(|| self.mismatch(key, "true or false", v))
        })
    }

    /// Refuses a switch with another value than the supported one.
    pub(in crate::model) fn must_be(&self, key: &str, computed: bool) -> Result<()> {
        if self.boolean(key, computed)? == computed {
            return Ok(());
        }
        Err(self.error(format!("\"{key}\": {} is not supported", !computed)))
    }

    /// Refuses weights that are stored in fewer bits in another way than bitsandbytes' NF4; what matrices really are the weight
    /// file says.
    pub(in crate::model) fn check_quantization(&self, config: Option<&Value>) -> Result<()> {
        let Some(config) = config.filter(|config| !config.is_null()) else {
            return Ok(());
        };
        let is = |key: &str, expected: Value| config.get(key) == Some(&expected);
        let nf4 = is("quant_method", "bitsandbytes".into())
            && is("load_in_4bit", true.into())
            && is("bnb_4bit_quant_type", "nf4".into());
        match nf4 {
            true => Ok(()),
            false => Err(self.error(format!(
                "\"quantization_config\" is not supported; supported is bitsandbytes in 4 bits, \"bnb_4bit_quant_type\": \"nf4\"; found {config}"
            ))),
        }
    }

    /// Refuses numbers that computing in f32 would turn into infinity.
    pub(in crate::model) fn check_numbers(&self) -> Result<()> {
        match beyond_f32(self.raw) {
            Some((key, found)) => {
                Err(self.mismatch(&key, "a number that a float of 32 bits can hold", found))
            }
            None => Ok(()),
        }
    }

    pub(in crate::model) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|v| {
                let largest = largest(key);
                match v.as_u64().filter(|&n| n > 0) {
                    Some(n) if n <= largest => Ok(n as usize),
                    Some(_) => Err(self.mismatch(key, &format!("at most {largest}"), v)),
                    None => Err(self.mismatch(key, "a positive whole number", v)),
                }
            })
            .transpose()
    }

    pub(in crate::model) fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| self.error(format!("no \"{key}\"; expected a positive whole number")))
    }

    pub(in crate::model) fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|v| {
                v.as_f64()
                    .filter(|x| *x > 0.0)
                    .ok_or_else(|| self.mismatch(key, "a positive number", v))
            })
            .transpose()
    }

    pub(in crate::model) fn positive(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A positive number; `None` if the value is null, `default` if the key is absent.
    pub(in crate::model) fn positive_or_null(
        &self,
        key: &str,
        default: f64,
    ) -> Result<Option<f64>> {
        match self.raw.get(key) {
            Some(Value::Null) => Ok(None),
            _ => self.positive(key, default).map(Some),
        }
    }

    pub(in crate::model) fn one_of(
        &self,
        key: &str,
        default: &str,
        accepted: &[&str],
    ) -> Result<()> {
        let found = self.string(key)?.unwrap_or(default);
        if accepted.contains(&found) {
            return Ok(());
        }
        Err(self.error(format!(
            "\"{key}\": \"{found}\" is not supported; supported are {}",
            accepted.join(", ")
        )))
    }

    pub(in crate::model) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let found = self.string(key)?.unwrap_or(default);
        Activation::named(found).map_err(|known| {
            self.error(format!(
                "\"{key}\": \"{found}\" is not supported; supported are {known}"
            ))
        })
    }

    /// The activation of a gated unit.
    pub(in crate::model) fn gate(&self, key: &str, default: &str) -> Result<Gate> {
        match self.string(key)?.unwrap_or(default) {
            "silu" => Ok(Gate::Silu),
            _ => match self.activation(key, default)? {
                Activation::Gelu => Ok(Gate::Gelu(Gelu::Erf)),
                Activation::GeluTanh => Ok(Gate::Gelu(Gelu::Tanh)),
                Activation::Relu => Err(self.error(format!(
                    "\"{key}\": \"relu\" is not supported; supported are silu and the forms of gelu"
                ))),
            },
        }
    }

    pub(in crate::model) fn divide(
        &self,
        key: &str,
        n: usize,
        by_key: &str,
        by: usize,
    ) -> Result<usize> {
        if n.is_multiple_of(by) {
            return Ok(n / by);
        }
        Err(self.error(format!(
            "\"{key}\" ({n}) must be a multiple of \"{by_key}\" ({by})"
        )))
    }

    pub(in crate::model) fn even(&self, key: &str, n: usize) -> Result<usize> {
        if n.is_multiple_of(2) {
            return Ok(n);
        }
        Err(self.error(format!("\"{key}\" ({n}) must be even for rotary positions")))
    }

    pub(in crate::model) fn kv_heads(&self, heads: usize) -> Result<usize> {
        let kv_heads = self.optional_count("num_key_value_heads")?.unwrap_or(heads);
        self.divide(
            "num_attention_heads",
            heads,
            "num_key_value_heads",
            kv_heads,
        )?;
        Ok(kv_heads)
    }

    /// A whole number, 0 included.
    pub(in crate::model) fn whole(&self, key: &str) -> Result<Option<usize>> {
        let whole = |v: &Value| {
            let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| self.mismatch(key, "a whole number", v))
        };
        self.get(key).map(whole).transpose()
    }

    /// A positive whole number; `None` if the value is null, `default` if the key is absent.
    pub(in crate::model) fn count_or_null(
        &self,
        key: &str,
        default: usize,
    ) -> Result<Option<usize>> {
        match self.raw.contains_key(key) {
            true => self.optional_count(key),
            false => Ok(Some(default)),
        }
    }

    /// The mask of each layer: by `layer_types` if given, otherwise a window for the layers chosen by `windowed`, if there is one.
    pub(in crate::model) fn masks(
        &self,
        num_layers: usize,
        window: Option<usize>,
        windowed: impl Fn(usize) -> bool,
    ) -> Result<Vec<Mask>> {
        let Some(kinds) = self.get("layer_types") else {
            let mask = |layer| match window.filter(|_| windowed(layer)) {
                Some(window) => Mask::Window(window),
                None => Mask::Causal,
            };
            return Ok((0..num_layers).map(mask).collect());
        };
        let kinds = kinds.as_array().filter(|kinds| kinds.len() == num_layers);
        let Some(kinds) = kinds else {
            return Err(self.error(format!(
                "\"layer_types\" must be a list of one name for each of the {num_layers} layers"
            )));
        };
        let mask = |kind: &Value| {
            match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(Mask::Causal),
            (Some("sliding_attention"), Some(window)) => Ok(Mask::Window(window)),
            (Some("sliding_attention"), None) => Err(self.error(
                "\"layer_types\" names sliding_attention, and the file sets no \"sliding_window\" that this family uses",
            )),
            _ => Err(self.error(format!(
                "\"layer_types\": {kind} is not supported; supported are full_attention and sliding_attention"
            ))),
        }
        };
        kinds.iter().map(mask).collect()
    }
}
