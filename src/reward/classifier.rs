//! The score of a label by an encoder that classifies texts.

use serde_json::Value;

use super::{ClassifierInput, Completion, RewardSource};
use crate::data::{CutSide, EncodedText, EncoderTokenizer};
use crate::error::{Error, Result, count};
use crate::model::{ClassifierSource, EncoderClassifier, Label, LabelOutput};
use crate::ops::{ModelBackend, Numerics};

/// What stands between the messages of a conversation, where a classifier reads them as one text.
const BETWEEN_MESSAGES: &str = "\n\n";

/// A classifier of texts as a source: the score of one of its labels.
///
/// # Source
/// The sentiment of continuations in Ziegler et al. 2019, arXiv:1909.08593, section 3.1; TRL's examples on it take the logit of `POSITIVE`.
#[derive(Debug)]
pub struct Classifier<B: ModelBackend> {
    name: String,
    model: EncoderClassifier<B>,
    texts: Texts,
    label: usize,
    output: LabelOutput,
    micro_batch_tokens: usize,
    device: B::Device,
}

/// Encodes what a classifier reads of completions, and counts what is too long.
#[derive(Debug)]
struct Texts {
    tokenizer: EncoderTokenizer,
    reads: ClassifierInput,
    read: usize,
    cut: usize,
}

/// Which label of a classifier is the score, and what it reads.
#[derive(Debug, Clone, Copy)]
pub struct ClassifierSettings<'a> {
    /// The label.
    pub label: Option<&'a Label>,
    /// Which number of it.
    pub output: LabelOutput,
    /// What the classifier reads.
    pub reads: ClassifierInput,
}

impl<B: ModelBackend> Classifier<B> {
    /// A source with at most `micro_batch_tokens` tokens in one forward pass. The classifier is stored in f32, whatever the storage
    /// of `numerics` says; its products have that precision.
    ///
    /// # Errors
    /// `Error::Reward` for a label that it does not have; those of loading.
    pub fn load(
        source: &ClassifierSource,
        settings: ClassifierSettings<'_>,
        numerics: Numerics,
        micro_batch_tokens: usize,
        device: &B::Device,
    ) -> Result<Self> {
        let labels = source.config.labels();
        let index = labels.index(settings.label);
        let refused = |message| Error::Reward {
            name: source.name.clone(),
            message,
        };
        let label = index.map_err(refused)?;
        labels.check_output(settings.output).map_err(refused)?;
        let numerics = Numerics {
            matmul: numerics.matmul,
            ..Numerics::default()
        };
        Ok(Self {
            name: source.name.clone(),
            texts: Texts {
                // Of a long row the beginning of the prompt is left out, and not the response.
                tokenizer: source.tokenizer()?.cutting(CutSide::First)?,
                reads: settings.reads,
                read: 0,
                cut: 0,
            },
            model: source.load(numerics, device)?,
            label,
            output: settings.output,
            micro_batch_tokens,
            device: device.clone(),
        })
    }
}

impl<B: ModelBackend> RewardSource for Classifier<B> {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let texts = self.texts.encode(completions)?;
        let logits = (self.model).logits(
            &texts,
            self.micro_batch_tokens,
            &self.device,
            &mut |_, _| {},
        );
        let labels = self.model.labels();
        Ok(logits
            .iter()
            .map(|logits| labels.score(logits, self.label, self.output))
            .collect())
    }

    fn warnings(&self) -> Vec<String> {
        let Texts { read, cut, .. } = self.texts;
        match cut {
            0 => Vec::new(),
            cut => vec![format!(
                "the classifier {}: {} of {read} had more than {} tokens, and it did not read their beginning",
                self.name,
                count(cut, "text"),
                self.texts.tokenizer.max_length()
            )],
        }
    }
}

impl Texts {
    fn encode(&mut self, completions: &[Completion]) -> Result<Vec<EncodedText>> {
        let texts: Vec<EncodedText> = completions
            .iter()
            .map(|completion| self.reads.encode(&self.tokenizer, completion))
            .collect::<Result<_>>()?;
        self.read += texts.len();
        self.cut += texts.iter().filter(|text| text.is_cut).count();
        Ok(texts)
    }
}

impl ClassifierInput {
    /// What a classifier reads of a completion.
    ///
    /// # Errors
    /// As [`EncoderTokenizer::encode`].
    pub fn encode(
        self,
        tokenizer: &EncoderTokenizer,
        completion: &Completion,
    ) -> Result<EncodedText> {
        let response = completion.response.as_str();
        match self {
            Self::Response => tokenizer.encode(response, None),
            Self::PromptAndResponse => tokenizer.encode(&joint(completion), None),
            Self::Pair => tokenizer.encode(&prompt(completion), Some(response)),
        }
    }
}

/// The prompt without the marks of a chat template.
fn prompt(completion: &Completion) -> String {
    let Some(conversation) = &completion.conversation else {
        return completion.prompt.clone();
    };
    let contents = conversation.messages.iter();
    let contents: Vec<&str> = contents
        .filter_map(|message| message.get("content").and_then(Value::as_str))
        .collect();
    contents.join(BETWEEN_MESSAGES)
}

/// Prompt and response as one text.
fn joint(completion: &Completion) -> String {
    let between = match completion.conversation {
        Some(_) => BETWEEN_MESSAGES,
        None => "",
    };
    format!("{}{between}{}", prompt(completion), completion.response)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::data::Conversation;

    #[test]
    fn a_conversation_is_read_without_its_template() {
        let mut completion = Completion {
            prompt: "<|user|>hi<|assistant|>".into(),
            response: "hello".into(),
            ..Completion::default()
        };
        assert_eq!(joint(&completion), "<|user|>hi<|assistant|>hello");
        completion.conversation = Some(Arc::new(Conversation {
            messages: vec![
                json!({"role": "system", "content": "Be brief."}),
                json!({"role": "user", "content": "hi"}),
            ],
            options: Default::default(),
        }));
        assert_eq!(prompt(&completion), "Be brief.\n\nhi");
        assert_eq!(joint(&completion), "Be brief.\n\nhi\n\nhello");
    }
}
