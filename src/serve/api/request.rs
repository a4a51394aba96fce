//! A request for responses, checked and tokenised, on its way to the engine.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;
use super::settings::{Settings, too_long};
use crate::data::{Tokenizer, check_ids};
use crate::generate::TokenLogprobs;
use crate::generate::continuous::{Job, JobOptions};
use crate::serve::app::App;
use crate::serve::catalog::Served;
use crate::serve::desk::{PolicyPlace, Work};
use crate::serve::listener::{ChoiceListener, Piece};
use crate::serve::text::GrowingText;

/// Bytes of the longest tokens of usual vocabularies, runs of spaces.
const TOKEN_BYTES: usize = 128;
/// Bytes of text that any prompt may have.
const FREE_BYTES: usize = 1 << 20;

/// A prompt.
#[derive(Debug, Clone)]
pub(crate) struct PromptIds {
    pub(crate) ids: Arc<[u32]>,
    /// Its text, where it is to be repeated.
    pub(crate) text: String,
}

/// A request for responses.
pub(crate) struct Request {
    pub(crate) served: Arc<Served>,
    pub(crate) place: PolicyPlace,
    pub(crate) prompts: Vec<PromptIds>,
    pub(crate) settings: Settings,
    /// Most new tokens of a response; none with 0.
    pub(crate) max_tokens: usize,
    /// Most probable tokens to report; `None` reports no log-probabilities.
    pub(crate) num_top: Option<usize>,
    /// Whether responses begin with their prompts.
    pub(crate) echo: bool,
    /// Its number.
    pub(crate) number: u64,
}

/// What comes back from the engine.
pub(crate) struct Answers {
    /// Tokens of all choices, in no order of choices; dropping this ends them.
    pub(crate) pieces: mpsc::UnboundedReceiver<Piece>,
    /// Log-probabilities of each prompt's tokens but the first, where they are repeated.
    pub(crate) prompts: Vec<oneshot::Receiver<Vec<TokenLogprobs>>>,
}

impl Request {
    /// Choices of all prompts.
    pub(crate) fn num_choices(&self) -> usize {
        self.prompts.len() * self.settings.n
    }

    /// The prompt of a choice.
    pub(crate) fn prompt_of(&self, choice: usize) -> usize {
        choice / self.settings.n
    }

    /// Checks the tokens of the prompts, and that they leave room for the responses.
    ///
    /// # Errors
    /// For an empty prompt, an unknown token, or too many tokens.
    pub(crate) fn check(&self, param: &'static str) -> Result<(), ApiError> {
        for prompt in &self.prompts {
            if prompt.ids.is_empty() {
                return Err(ApiError::invalid(
                    param,
                    format!(
                        "`{param}`: a prompt without tokens, and the tokenizer has no BOS token to start from"
                    ),
                ));
            }
            check_ids(&prompt.ids, self.served.vocab_size)
                .map_err(|message| ApiError::invalid(param, format!("`{param}`: {message}")))?;
            let (len, most) = (prompt.ids.len(), self.served.max_length);
            if len.saturating_add(self.max_tokens) > most {
                return Err(too_long(len, self.max_tokens, most, param));
            }
        }
        Ok(())
    }

    /// Hands the request to the engine.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the server is about to end.
    pub(crate) fn submit(&self, app: &App) -> Result<Answers, ApiError> {
        let measured = match self.echo && self.num_top.is_some() {
            true => self.prompts.len(),
            false => 0,
        };
        let generated = match self.max_tokens {
            0 => 0,
            _ => self.num_choices(),
        };
        let count = measured + generated;
        if count > app.desk.limit() {
            return Err(ApiError::invalid(
                "n",
                format!(
                    "{count} responses at once; the server's queue takes {} (--max-queue)",
                    app.desk.limit()
                ),
            ));
        }
        let mut tickets = app.desk.reserve(count)?.into_iter();
        let (events, pieces) = mpsc::unbounded_channel();
        let mut work = Vec::with_capacity(count);
        let mut prompts = Vec::with_capacity(measured);
        let measure = self.prompts.iter().take(measured);
        for (prompt, ticket) in measure.zip(tickets.by_ref()) {
            let (reply, answer) = oneshot::channel();
            prompts.push(answer);
            work.push(Work::Measure {
                policy: self.place,
                ids: prompt.ids.clone(),
                num_top: self.num_top.unwrap_or(0),
                reply,
                ticket,
            });
        }
        let stop_ids = match self.settings.ignore_eos {
            true => Vec::new(),
            false => self.served.tokenizer.stop_ids().to_vec(),
        };
        for (choice, ticket) in (0..generated).zip(tickets) {
            let text = GrowingText::new(self.served.tokenizer.clone(), self.settings.stops.clone());
            let listener = ChoiceListener::new(
                choice,
                text,
                self.settings.stream,
                events.clone(),
                ticket,
                app.metrics.clone(),
            );
            work.push(Work::Generate {
                base: self.place.base,
                job: Job {
                    model: self.place.model,
                    prompt: self.prompts[self.prompt_of(choice)].ids.clone(),
                    options: JobOptions {
                        max_new_tokens: self.max_tokens,
                        sampling: self.settings.sampling.clone(),
                        penalties: self.settings.penalties.clone(),
                        stop_ids: stop_ids.clone(),
                        num_top: self.num_top,
                    },
                    seed: app.seed(self.settings.seed, self.number, choice),
                    listener: Box::new(listener),
                },
            });
        }
        app.desk.submit(work)?;
        Ok(Answers { pieces, prompts })
    }
}

/// Refuses a text that the model's context cannot hold before it is encoded, which takes hundreds of bytes for each of the text's.
///
/// # Errors
/// 400.
pub(crate) fn check_bytes(bytes: usize, most: usize, param: &'static str) -> Result<(), ApiError> {
    match bytes > most.saturating_mul(TOKEN_BYTES).max(FREE_BYTES) {
        true => Err(ApiError::invalid(
            param,
            format!(
                "{} MiB of text; the model takes at most {most} tokens",
                bytes >> 20
            ),
        )
        .with_code("context_length_exceeded")),
        false => Ok(()),
    }
}

/// The tokens that a text begins with: BOS where the tokenizer has one, no EOS.
///
/// # Errors
/// Those of the tokenizer.
pub(crate) fn encode_text(
    tokenizer: &Tokenizer,
    text: String,
    most: usize,
) -> Result<PromptIds, ApiError> {
    check_bytes(text.len(), most, "prompt")?;
    Ok(PromptIds {
        ids: tokenizer.encode_start(&text)?.into(),
        text,
    })
}
