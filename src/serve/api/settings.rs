//! The fields that chat and text completions share.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, expected};
use crate::generate::{Penalties, SamplingConfig};

/// Most choices of one prompt.
const MAX_CHOICES: usize = 128;
/// Most stop strings, and the most bytes of one.
const MAX_STOPS: (usize, usize) = (16, 1024);
/// Fields that cannot change the answer; they are taken and not used.
const IGNORED: [&str; 5] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
];

/// How many choices, how they are sampled, and how they are sent.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Choices of each prompt.
    pub(crate) n: usize,
    pub(crate) sampling: SamplingConfig,
    pub(crate) penalties: Penalties,
    pub(crate) stops: Arc<[String]>,
    /// Whether stop tokens are sampled like others.
    pub(crate) ignore_eos: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Settings {
    /// Reads the shared fields; `vocab` is the size of the model's vocabulary.
    ///
    /// # Errors
    /// For a field of another type, out of range or not supported.
    pub(crate) fn take(fields: &mut Fields, vocab: usize) -> Result<Self, ApiError> {
        fields.ignore(&IGNORED);
        let n = fields.count("n", 1, MAX_CHOICES)?.unwrap_or(1);
        let sampling = SamplingConfig {
            temperature: fields.number("temperature", 0.0, 100.0)?.unwrap_or(1.0),
            top_p: top_p(fields)?,
            top_k: top_k(fields)?,
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        };
        let penalties = Penalties {
            repetition: (fields.number("repetition_penalty", 0.01, 100.0)?).unwrap_or(1.0),
            frequency: (fields.number("frequency_penalty", -2.0, 2.0)?).unwrap_or(0.0),
            presence: (fields.number("presence_penalty", -2.0, 2.0)?).unwrap_or(0.0),
            bias: bias(fields, vocab)?,
        };
        let stops = stops(fields.take("stop"))?;
        let stream = fields.flag("stream")?;
        Ok(Self {
            n,
            sampling,
            penalties,
            stops,
            ignore_eos: fields.flag("ignore_eos")?,
            seed: seed(fields)?,
            include_usage: include_usage(fields, stream)?,
            stream,
        })
    }
}

fn top_p(fields: &mut Fields) -> Result<f64, ApiError> {
    match fields.number("top_p", 0.0, 1.0)? {
        Some(0.0) => Err(expected(
            "top_p",
            "a number above 0 and at most 1",
            &json!(0),
        )),
        top_p => Ok(top_p.unwrap_or(1.0)),
    }
}

/// vLLM's clients write -1 for all tokens.
fn top_k(fields: &mut Fields) -> Result<usize, ApiError> {
    match fields.take("top_k") {
        None => Ok(0),
        Some(value) if value == json!(-1) => Ok(0),
        Some(value) => {
            let k = value.as_u64().and_then(|k| usize::try_from(k).ok());
            k.ok_or_else(|| expected("top_k", "a whole number of at least 0", &value))
        }
    }
}

/// Any whole number: negative ones are as good.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match (value.as_u64(), value.as_i64()) {
            (Some(seed), _) => Ok(Some(seed)),
            (None, Some(seed)) => Ok(Some(seed as u64)),
            (None, None) => Err(expected("seed", "a whole number", &value)),
        },
    }
}

fn stops(value: Option<Value>) -> Result<Arc<[String]>, ApiError> {
    let (most, bytes) = MAX_STOPS;
    let wrong = |found: &Value| {
        expected(
            "stop",
            &format!("a text or up to {most} texts, each of 1 to {bytes} bytes"),
            found,
        )
    };
    let list = match value {
        None => Vec::new(),
        Some(Value::Array(list)) if list.len() <= most => list,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(wrong(&other)),
    };
    list.into_iter()
        .map(|stop| match stop {
            Value::String(text) if !text.is_empty() && text.len() <= bytes => Ok(text),
            other => Err(wrong(&other)),
        })
        .collect()
}

fn bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = fields.object("logit_bias")?;
    entries
        .into_iter()
        .map(|(id, value)| {
            let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab);
            let bias = value.as_f64().filter(|bias| bias.abs() <= 100.0);
            match (id, bias) {
                (Some(id), Some(bias)) => Ok((id, bias as f32)),
                _ => Err(expected(
                    "logit_bias",
                    &format!("token ids below {vocab} with numbers from -100 to 100"),
                    &value,
                )),
            }
        })
        .collect()
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let options = fields.object("stream_options")?;
    if !options.is_empty() && !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "`stream_options` is for `stream: true`",
        ));
    }
    let mut include = false;
    for (name, value) in options {
        match (name.as_str(), &value) {
            ("include_usage", Value::Bool(flag)) => include = *flag,
            // Padding against side channels, which is not added: there is nothing to leave out.
            ("include_obfuscation", Value::Bool(false)) => {}
            _ => {
                return Err(ApiError::invalid(
                    "stream_options",
                    format!(
                        "`stream_options.{name}`: expected `include_usage`, true or false, found {value}"
                    ),
                ));
            }
        }
    }
    Ok(include)
}

/// The message of a request that does not fit the model's context.
pub(crate) fn too_long(prompt: usize, new: usize, most: usize, param: &'static str) -> ApiError {
    ApiError::invalid(
        param,
        format!(
            "{prompt} tokens of prompt and up to {new} new ones: the model takes at most {most} together"
        ),
    )
    .with_code("context_length_exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(value: &Value) -> Result<Settings, String> {
        let mut fields = Fields::parse(value.to_string().as_bytes()).unwrap();
        let settings = Settings::take(&mut fields, 40);
        let text = |e: ApiError| e.body()["error"]["message"].as_str().unwrap().to_owned();
        let settings = settings.map_err(text)?;
        fields.finish().map_err(text)?;
        Ok(settings)
    }

    #[test]
    fn settings_are_read() {
        let found = take(&json!({
            "n": 2, "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "stop": "x", "seed": -1,
            "frequency_penalty": -0.5, "presence_penalty": 1, "logit_bias": {"3": -100}, "user": "me",
            "stream": true, "stream_options": {"include_usage": true}
        }))
        .unwrap();
        assert_eq!(
            (found.n, found.seed, &found.stops[..]),
            (2, Some(u64::MAX), &["x".to_owned()][..])
        );
        assert_eq!(found.sampling.top_k, 0);
        assert_eq!(found.penalties.bias, [(3, -100.0)]);
        assert!(found.stream && found.include_usage);
        let plain = take(&json!({})).unwrap();
        assert_eq!(plain.sampling, SamplingConfig::default());
        assert_eq!(plain.penalties, Penalties::default());
        assert!(plain.stops.is_empty() && !plain.stream && plain.seed.is_none());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (field, value) in [
            ("n", json!(0)),
            ("temperature", json!(-1)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("top_k", json!(-2)),
            ("min_p", json!("0")),
            ("seed", json!(0.5)),
            ("stop", json!([""])),
            ("stop", json!([1])),
            ("logit_bias", json!({"40": 1})),
            ("logit_bias", json!({"3": 101})),
            ("frequency_penalty", json!(3)),
            ("stream_options", json!({"include_usage": true})),
        ] {
            let message = take(&json!({ field: value })).unwrap_err();
            assert!(message.starts_with(&format!("`{field}")), "{message}");
        }
    }
}
