//! A model that takes part in a conversation.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::conversation::Conversation;
use super::stop::Stop;
use super::{MAX_NEW_TOKENS, TEMPERATURE};
use crate::cli::args::SamplingArgs;
use crate::cli::model::UnloadedModel;
use crate::cli::{output, respond};
use crate::data::{ResponseText, Row, RowFormat, Tokenizer, encode_prompts};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Session};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::grouped;
use crate::rng::Seed;

/// How long prompts and answers may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most tokens of the conversation and the answer together.
    context: usize,
    /// Most tokens of an answer.
    answer: usize,
}

impl Limits {
    /// The limits of a model.
    ///
    /// # Errors
    /// `Error::Usage` if an answer alone is longer than the model's context.
    pub(super) fn of(model: &UnloadedModel, sampling: &SamplingArgs) -> Result<Self> {
        let context = model.max_row_tokens;
        // Half of a short context is for what was said before.
        let answer = sampling
            .max_new_tokens
            .unwrap_or(MAX_NEW_TOKENS.min(context / 2));
        match answer < context {
            true => Ok(Self { context, answer }),
            false => Err(Error::Usage(format!(
                "--max-new-tokens {answer}: model {} takes at most {context} tokens, the conversation among them",
                model.source.name
            ))),
        }
    }
}

/// What a model has said.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its text without special tokens.
    pub(super) text: String,
    /// Tokens, speed, and what was cut.
    pub(super) note: String,
}

/// A model, its conversation, and what it has read of it.
pub(super) struct Speaker<'a, B: ModelBackend> {
    /// What was said between the user and this model.
    pub(super) conversation: Conversation,
    source: &'a UnloadedModel,
    tokenizer: &'a Tokenizer,
    limits: Limits,
    model: LanguageModel<B>,
    session: Session<B>,
    bare: Option<LanguageModel<B>>,
    answers: u64,
}

impl<'a, B: ModelBackend> Speaker<'a, B> {
    /// Loads a model.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn load(
        source: &'a UnloadedModel,
        tokenizer: &'a Tokenizer,
        conversation: Conversation,
        limits: Limits,
        device: &B::Device,
    ) -> Result<Self> {
        let (model, bare) = source.with_and_without_adapter(device)?;
        Ok(Self {
            conversation,
            source,
            tokenizer,
            limits,
            model,
            session: Session::default(),
            bare,
            answers: 0,
        })
    }

    /// The user's name for the model.
    pub(super) fn name(&self) -> &str {
        &self.source.source.name
    }

    /// Whether there is an adapter to leave off.
    pub(super) fn has_bare(&self) -> bool {
        self.bare.is_some()
    }

    /// Answers the last message on stdout.
    ///
    /// # Errors
    /// Those of the template and the tokenizer; `Error::Backend` for numbers that are not finite.
    pub(super) fn answer(
        &mut self,
        sampling: &SamplingArgs,
        stop: &Stop,
        device: &B::Device,
    ) -> Result<Answer> {
        let ids = self.prompt()?;
        self.answers += 1;
        let heard = self.heard(ids, sampling);
        let (session, model) = (&mut self.session, &self.model);
        heard.answer(model, session, sampling, stop, device)
    }

    /// As [`Speaker::answer`], by the model without its adapter.
    ///
    /// # Errors
    /// As [`Speaker::answer`].
    pub(super) fn answer_bare(
        &self,
        sampling: &SamplingArgs,
        stop: &Stop,
        device: &B::Device,
    ) -> Result<Answer> {
        let model = self.bare.as_ref().unwrap_or(&self.model);
        let heard = self.heard(self.prompt()?, sampling);
        heard.answer(model, &mut Session::default(), sampling, stop, device)
    }

    /// A prompt with what the next answer needs.
    fn heard(&self, ids: Vec<u32>, sampling: &SamplingArgs) -> Heard<'a> {
        Heard {
            ids,
            seed: Seed::new(sampling.seed)
                .fork("chat")
                .fork_index(self.answers),
            source: self.source,
            tokenizer: self.tokenizer,
            limits: self.limits,
        }
    }

    /// The conversation as tokens, with room for an answer: the oldest exchanges are left out as needed, which is said.
    fn prompt(&self) -> Result<Vec<u32>> {
        let (questions, limits) = (self.conversation.questions(), self.limits);
        for dropped in 0..questions {
            let ids = self.encode(self.conversation.asked(dropped))?;
            if ids.len() + limits.answer <= limits.context {
                if dropped > 0 {
                    eprintln!(
                        "the model takes {} tokens: the first {dropped} of {questions} messages are left out",
                        grouped(limits.context as u64)
                    );
                }
                return Ok(ids);
            }
        }
        let last = self.encode(self.conversation.asked(questions.saturating_sub(1)))?;
        Err(Error::Usage(format!(
            "the message has {} tokens and the answer up to {}; the model takes {}. Say it shorter, or give --max-new-tokens",
            last.len(),
            limits.answer,
            limits.context
        )))
    }

    fn encode(&self, messages: Vec<Value>) -> Result<Vec<u32>> {
        let row = Row {
            columns: Map::from_iter([("prompt".to_owned(), json!(messages))]),
            path: PathBuf::from("conversation"),
            line: 0,
        };
        let encoded = encode_prompts(&[row], self.tokenizer, &RowFormat::default(), usize::MAX)?;
        let prompt = encoded.items.into_iter().next();
        Ok(prompt.map_or_else(Vec::new, |prompt| prompt.ids))
    }
}

/// A prompt, and what is needed to answer it.
struct Heard<'a> {
    ids: Vec<u32>,
    seed: Seed,
    source: &'a UnloadedModel,
    tokenizer: &'a Tokenizer,
    limits: Limits,
}

impl Heard<'_> {
    fn answer<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        session: &mut Session<B>,
        sampling: &SamplingArgs,
        stop: &Stop,
        device: &B::Device,
    ) -> Result<Answer> {
        let defaults = (self.limits.answer, TEMPERATURE);
        let config = &self.source.config;
        let options: GenerateOptions =
            respond::options(sampling, defaults, &[], Some(self.tokenizer), config);
        let mut text = ResponseText::new(self.tokenizer, &sampling.stop);
        let mut failure = None;
        let mut first = None;
        let begun = Instant::now();
        let mut token = |ids: &[u32]| {
            first.get_or_insert_with(|| begun.elapsed());
            let shown = text.set(ids).and_then(|stopped| {
                output::print(text.fresh(false))?;
                Ok(stopped)
            });
            match shown {
                Ok(stopped) => stopped || stop.asked(),
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        };
        let response = session.respond(model, &self.ids, &options, self.seed, device, &mut token);
        let took = begun.elapsed().saturating_sub(first.unwrap_or_default());
        if let Some(error) = failure {
            return Err(error);
        }
        if response.logprobs.iter().any(|logprob| !logprob.is_finite()) {
            return Err(Error::Backend(
                "the model gives log-probabilities that are not finite; the run that trained it has diverged"
                    .into(),
            ));
        }
        let rest = text.fresh(true).to_owned();
        output::print(&format!("{rest}\n"))?;
        let tokens = response.ids.len();
        let mut note = format!("[{tokens} tokens");
        if tokens > 1 && !took.is_zero() {
            let rate = (tokens - 1) as f64 / took.as_secs_f64();
            note.push_str(&format!(", {rate:.1} a second"));
        }
        let used = self.ids.len() + tokens;
        note.push_str(&format!(
            "; {} of {} in use",
            grouped(used as u64),
            grouped(self.limits.context as u64)
        ));
        if stop.asked() {
            note.push_str("; ended by Ctrl-C");
        } else if !response.stopped {
            note.push_str("; cut here, --max-new-tokens allows more");
        }
        note.push(']');
        Ok(Answer {
            text: text.text().to_owned(),
            note,
        })
    }
}
