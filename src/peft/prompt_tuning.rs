//! Prompt tuning: trained embeddings before every row.
//!
//! # Source
//! Lester, Al-Rfou and Constant 2021, arXiv:2104.08691; files: PEFT 0.21, `PromptTuningConfig`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::{AdapterConfig, Keys, is_off};
use super::virtual_tokens::{
    self, DecoderShape, PROMPT_EMBEDDINGS, PromptMethod, PromptStart, PromptTokens,
};
use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// What the embeddings of virtual tokens begin as.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum PromptInit {
    /// Drawn from `N(0, 1)`.
    #[default]
    Random,
    /// The embeddings of tokens drawn from the vocabulary.
    SampleVocab,
    /// The embeddings of this text's tokens: the first of them, or all of them over and over.
    Text(String),
}

/// Trained embeddings before every row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptTuningConfig {
    /// Virtual tokens before every row.
    pub num_virtual_tokens: usize,
    /// What their embeddings begin as.
    pub prompt_tuning_init: PromptInit,
}

impl Default for PromptTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptInit::default(),
        }
    }
}

/// Numbers from `N(0, 1)`, PyTorch's start of an embedding.
pub(super) fn normal<B: Backend>(
    shape: [usize; 2],
    seed: Seed,
    device: &B::Device,
) -> Tensor<B, 2> {
    let values = (0..shape[0] * shape[1]).map(|i| seed.normal(i as u64) as f32);
    Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), device)
}

impl PromptMethod for PromptTuningConfig {
    type Tokens<B: Backend> = PromptEmbeddings<B>;

    const PEFT_TYPE: &'static str = "PROMPT_TUNING";

    fn problems(&self, settings: &mut Settings) {
        settings.positive("num_virtual_tokens", self.num_virtual_tokens);
        if matches!(&self.prompt_tuning_init, PromptInit::Text(text) if text.is_empty()) {
            let problem = Problem::new("prompt_tuning_init", "the text is empty");
            settings.note(problem.with_help("e.g. `Text(\"Summarise the post:\")`, or `Random`"));
        }
    }

    fn num_virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn num_params(&self, shape: &DecoderShape) -> usize {
        self.num_virtual_tokens * shape.embedding
    }

    fn fresh<B: ModelBackend>(
        &self,
        start: &PromptStart<'_, B>,
        seed: Seed,
    ) -> Result<PromptEmbeddings<B>> {
        let count = self.num_virtual_tokens;
        let embeddings = match &self.prompt_tuning_init {
            PromptInit::Random => normal([count, start.shape.embedding], seed, start.device),
            PromptInit::SampleVocab => {
                let ids = (0..count).map(|i| seed.below(i as u64, start.shape.vocab) as u32);
                (start.embed)(&ids.collect::<Vec<u32>>())
            }
            PromptInit::Text(text) => {
                let ids = (start.encode)(text)?;
                if ids.is_empty() {
                    return Err(Error::Usage(format!(
                        "prompt_tuning_init: the text {text:?} has no tokens"
                    )));
                }
                let ids: Vec<u32> = ids.into_iter().cycle().take(count).collect();
                (start.embed)(&ids)
            }
        };
        Ok(self.stored(start.shape, embeddings))
    }

    fn stored<B: Backend>(&self, _: &DecoderShape, tensor: Tensor<B, 2>) -> PromptEmbeddings<B> {
        PromptEmbeddings {
            embeddings: Param::initialized(ParamId::new(), tensor.detach()),
        }
    }

    fn read(keys: &Keys<'_>, num_virtual_tokens: usize) -> Result<Self, String> {
        let text = keys.read("prompt_tuning_init_text", None, |value| {
            Some(Some(value.as_str()?.to_owned()))
        })?;
        let prompt_tuning_init =
            keys.read(
                "prompt_tuning_init",
                PromptInit::Random,
                |value| match value.as_str()? {
                    "RANDOM" => Some(PromptInit::Random),
                    "SAMPLE_VOCAB" => Some(PromptInit::SampleVocab),
                    "TEXT" => Some(PromptInit::Text(text.clone().unwrap_or_default())),
                    _ => None,
                },
            )?;
        Ok(Self {
            num_virtual_tokens,
            prompt_tuning_init,
        })
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        match key {
            // How the tokens came about; what they are is in the file.
            "prompt_tuning_init" | "prompt_tuning_init_text" | "tokenizer_name_or_path" => {
                Some(true)
            }
            "tokenizer_kwargs" => Some(is_off(value) || value.is_object()),
            _ => virtual_tokens::accepts(key, value),
        }
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        let (init, text) = match &self.prompt_tuning_init {
            PromptInit::Random => ("RANDOM", None),
            PromptInit::SampleVocab => ("SAMPLE_VOCAB", None),
            PromptInit::Text(text) => ("TEXT", Some(text)),
        };
        // PEFT asks for a tokenizer where there is a text, also of tokens that are trained already.
        let tokenizer = text.and(config.base_model_name_or_path.as_ref());
        let own = json!({
            "prompt_tuning_init": if text.is_some() && tokenizer.is_none() { "RANDOM" } else { init },
            "prompt_tuning_init_text": text,
            "tokenizer_kwargs": null,
            "tokenizer_name_or_path": tokenizer,
        });
        virtual_tokens::with(
            virtual_tokens::write(self.num_virtual_tokens, config, false),
            own,
        )
    }
}

/// Trained embeddings.
#[derive(Module, Debug)]
pub struct PromptEmbeddings<B: Backend> {
    /// `[tokens, embedding]`.
    pub embeddings: Param<Tensor<B, 2>>,
}

impl<B: Backend> PromptTokens<B> for PromptEmbeddings<B> {
    fn count(&self) -> usize {
        self.embeddings.val().dims()[0]
    }

    fn embeddings(&self, _: Option<Seed>) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        Some(self.embeddings.val())
    }

    fn to_stored(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        self.embeddings.val()
    }

    fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let [_, width] = self.embeddings.val().dims();
        let meta = ParamMeta::single(ParamKind::Adapter, PROMPT_EMBEDDINGS, width, false);
        visit(&meta, ParamSlot::Matrix(&mut self.embeddings));
    }
}
