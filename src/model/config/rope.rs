//! The keys of rotary positions in all layouts of transformers.

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::error::Result;
use crate::model::rope_scaling::{DynamicNtk, Llama3, LongRope, RopeScaling, Yarn};
use crate::suggest::did_you_mean;

/// The supported values of `rope_type`.
const KINDS: [&str; 6] = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"];

/// Where a family's files have the settings of rotary positions, and what holds where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct RopeKeys {
    /// Key of the base beside the dictionary.
    pub(in crate::model) theta: &'static str,
    /// The base if no key has it.
    pub(in crate::model) default_theta: f64,
    /// How much of a head is rotated.
    pub(in crate::model) rotated: Rotated,
}

/// How much of a head a family can rotate.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) enum Rotated {
    /// All of it.
    Whole,
    /// The fraction that the key beside the dictionary, or `partial_rotary_factor` in it, says.
    Part { key: &'static str, default: f64 },
}

/// The settings of rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct Rope {
    pub(in crate::model) theta: f64,
    /// Number of rotated entries of a head; even.
    pub(in crate::model) rotary_dim: usize,
    pub(in crate::model) scaling: Option<RopeScaling>,
}

impl RopeKeys {
    /// Of families that rotate whole heads and follow transformers' defaults.
    pub(in crate::model) const WHOLE: Self = Self {
        theta: "rope_theta",
        default_theta: 10_000.0,
        rotated: Rotated::Whole,
    };

    /// Reads `rope_scaling` (transformers 4), which has precedence as in transformers, or `rope_parameters` (5). Base and rotated
    /// fraction may also be beside them.
    pub(in crate::model) fn read(&self, keys: &Keys<'_>, head_dim: usize) -> Result<Rope> {
        let place = dictionary(keys, "rope_scaling")?.or(dictionary(keys, "rope_parameters")?);
        if let Some((place, dict)) = place
            && let Some((key, _)) = dict.iter().find(|(_, value)| value.is_object())
        {
            return Err(keys.error(format!(
                "\"{place}\": values by kind of layer (\"{key}\") are not supported"
            )));
        }
        self.read_from(keys, place, head_dim)
    }

    /// Reads a dictionary of the given name, or the keys beside it alone.
    pub(in crate::model) fn read_from(
        &self,
        keys: &Keys<'_>,
        place: Option<(&str, &Map<String, Value>)>,
        head_dim: usize,
    ) -> Result<Rope> {
        let values = RopeValues {
            keys,
            dict: place.map(|(_, dict)| dict),
        };
        let theta = values.number("rope_theta", Some(self.theta))?;
        let theta = theta.unwrap_or(self.default_theta);
        let rotary_dim = self.rotary_dim(&values, head_dim)?;
        let scaling = match place {
            Some((place, _)) => values.scaling(place, theta, rotary_dim)?,
            None => None,
        };
        Ok(Rope {
            theta,
            rotary_dim,
            scaling,
        })
    }

    fn rotary_dim(&self, values: &RopeValues<'_, '_>, head_dim: usize) -> Result<usize> {
        let (key, keys) = ("partial_rotary_factor", values.keys);
        let Rotated::Part {
            key: beside,
            default,
        } = self.rotated
        else {
            return match values.number(key, Some(key))? {
                Some(factor) if factor != 1.0 => Err(keys.mismatch(key, "1", &factor.into())),
                _ => Ok(head_dim),
            };
        };
        let factor = values.number(key, Some(beside))?.unwrap_or(default);
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            let or = if beside == key {
                ""
            } else {
                " or \"partial_rotary_factor\""
            };
            return Err(keys.error(format!(
                "\"{beside}\"{or} rotates {rotary_dim} of a head's {head_dim} entries; expected an even number between 2 and \
                 {head_dim}"
            )));
        }
        Ok(rotary_dim)
    }
}

/// The values of a dictionary of rotary positions, and of the keys beside it.
struct RopeValues<'k, 'a> {
    keys: &'k Keys<'a>,
    dict: Option<&'k Map<String, Value>>,
}

impl<'k> RopeValues<'k, '_> {
    /// A value of the dictionary; null counts as absent.
    fn get(&self, key: &str) -> Option<&'k Value> {
        self.dict?.get(key).filter(|value| !value.is_null())
    }

    /// A positive number of the dictionary, or of the key `beside` it.
    fn number(&self, key: &str, beside: Option<&str>) -> Result<Option<f64>> {
        match self.get(key).or_else(|| self.keys.get(beside?)) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(self.keys.mismatch(key, "a positive number", value)),
            },
        }
    }

    fn needed(&self, kind: &str, key: &str) -> Result<f64> {
        self.number(key, None)?.ok_or_else(|| {
            let message = format!("RoPE scaling {kind} needs a positive \"{key}\"");
            self.keys.error(message)
        })
    }

    /// One positive number for each pair.
    fn factors(&self, key: &str, pairs: usize) -> Result<Vec<f64>> {
        let expected = format!("a list of {pairs} positive numbers, one for each rotated pair");
        let value = self.get(key).ok_or_else(|| {
            let message = format!("RoPE scaling longrope needs \"{key}\", {expected}");
            self.keys.error(message)
        })?;
        let list = value
            .as_array()
            .ok_or_else(|| self.keys.mismatch(key, &expected, value))?;
        let numbers = list.iter().filter_map(Value::as_f64).filter(|x| *x > 0.0);
        let numbers: Vec<f64> = numbers.collect();
        if numbers.len() != list.len() || list.len() != pairs {
            let positive = numbers.len();
            return Err(self.keys.error(format!(
                "\"{key}\" must be {expected}, found {} entries, {positive} of them positive numbers",
                list.len()
            )));
        }
        Ok(numbers)
    }

    /// The context length of pretraining. As in transformers, the key beside the dictionary overrides the one inside.
    fn original_context(&self) -> Result<usize> {
        let key = "original_max_position_embeddings";
        if let Some(count) = self.keys.optional_count(key)? {
            return Ok(count);
        }
        let Some(value) = self.get(key) else {
            return self.keys.count("max_position_embeddings");
        };
        let whole = value.as_f64().filter(|x| *x >= 1.0 && x.fract() == 0.0);
        let whole = whole.filter(|x| *x <= f64::from(u32::MAX));
        whole
            .map(|x| x as usize)
            .ok_or_else(|| self.keys.mismatch(key, "a positive whole number", value))
    }

    /// The factor of the scaling; without one, that by which the context is longer than the original.
    fn factor(&self, original: usize) -> Result<f64> {
        match self.number("factor", None)? {
            Some(factor) => Ok(factor),
            None => Ok(self.keys.count("max_position_embeddings")? as f64 / original as f64),
        }
    }

    fn scaling(&self, place: &str, theta: f64, rotary_dim: usize) -> Result<Option<RopeScaling>> {
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        let Some(kind) = kind else {
            return match place == "rope_scaling" && self.get("factor").is_some() {
                true => Err(self.keys.error("\"rope_scaling\" has no \"rope_type\"")),
                false => Ok(None),
            };
        };
        Ok(Some(match kind.as_str().unwrap_or("not a string") {
            "default" => return Ok(None),
            "linear" => RopeScaling::Linear {
                factor: self.needed("linear", "factor")?,
            },
            "dynamic" => self.dynamic(rotary_dim)?,
            "yarn" => self.yarn(theta)?,
            "longrope" => self.longrope(rotary_dim)?,
            "llama3" => self.llama3()?,
            other => {
                let near =
                    did_you_mean(other, KINDS).map_or(String::new(), |near| format!("; {near}"));
                return Err(self.keys.error(format!(
                    "RoPE scaling \"{other}\" is not supported; supported are {}{near}",
                    KINDS.join(", ")
                )));
            }
        }))
    }

    fn dynamic(&self, rotary_dim: usize) -> Result<RopeScaling> {
        if rotary_dim < 4 {
            return Err(self.keys.error(format!(
                "RoPE scaling dynamic needs at least 4 rotated entries in a head, found {rotary_dim}"
            )));
        }
        Ok(RopeScaling::Dynamic(DynamicNtk {
            factor: self.needed("dynamic", "factor")?,
            max_position_embeddings: self.keys.count("max_position_embeddings")?,
        }))
    }

    fn yarn(&self, theta: f64) -> Result<RopeScaling> {
        if theta <= 1.0 {
            return Err(self.keys.error(format!(
                "RoPE scaling yarn needs a \"rope_theta\" above 1, found {theta}"
            )));
        }
        let original_max_position_embeddings = self.original_context()?;
        let factor = self.factor(original_max_position_embeddings)?;
        let mscale = self.number("mscale", None)?;
        let mscales = mscale.zip(self.number("mscale_all_dim", None)?);
        let attention_factor = match self.number("attention_factor", None)? {
            Some(factor) => factor,
            None => Yarn::proposed_attention_factor(factor, mscales.map(<[f64; 2]>::from)),
        };
        let truncate = match self.get("truncate") {
            None => true,
            Some(value) => (value.as_bool())
                .ok_or_else(|| self.keys.mismatch("truncate", "true or false", value))?,
        };
        let beta_fast = self.number("beta_fast", None)?.unwrap_or(32.0);
        let beta_slow = self.number("beta_slow", None)?.unwrap_or(1.0);
        if beta_fast < beta_slow {
            return Err(self.keys.error(format!(
                "RoPE scaling yarn needs \"beta_fast\" of at least \"beta_slow\" ({beta_slow}), found {beta_fast}"
            )));
        }
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings,
        }))
    }

    fn longrope(&self, rotary_dim: usize) -> Result<RopeScaling> {
        let original = self.original_context()?;
        if original < 2 {
            return Err(self.keys.error(format!(
                "RoPE scaling longrope needs \"original_max_position_embeddings\" above 1, found {original}"
            )));
        }
        let attention_factor = match self.number("attention_factor", None)? {
            Some(factor) => factor,
            None => LongRope::proposed_attention_factor(self.factor(original)?, original),
        };
        Ok(RopeScaling::LongRope(LongRope {
            short_factor: self.factors("short_factor", rotary_dim / 2)?,
            long_factor: self.factors("long_factor", rotary_dim / 2)?,
            attention_factor,
            original_max_position_embeddings: original,
        }))
    }

    fn llama3(&self) -> Result<RopeScaling> {
        let scaling = Llama3 {
            factor: self.needed("llama3", "factor")?,
            low_freq_factor: self.needed("llama3", "low_freq_factor")?,
            high_freq_factor: self.needed("llama3", "high_freq_factor")?,
            original_max_position_embeddings: self.original_context()?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(self.keys.error(
                "RoPE scaling llama3 needs \"high_freq_factor\" above \"low_freq_factor\"",
            ));
        }
        Ok(RopeScaling::Llama3(scaling))
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
