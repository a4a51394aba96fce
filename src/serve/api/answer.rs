//! Answers of both kinds of completions: the JSON of whole ones and of their pieces.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::request::Request;
use crate::error::Result;
use crate::generate::TokenLogprobs;
use crate::serve::app::now;
use crate::serve::listener::{Piece, PieceEnd, SampledPiece};
use crate::serve::text::token_text;

/// The kind of an endpoint's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/completions`.
    Text,
    /// `/v1/chat/completions`.
    Chat,
}

/// A token as answers show it.
#[derive(Debug, Clone)]
struct TokenView {
    text: String,
    /// `None` of the first token of a repeated prompt, which nothing predicts.
    logprobs: Option<(f32, Vec<(String, f32)>)>,
    /// Characters before it.
    offset: usize,
}

/// What is known of a choice.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenView>,
    /// The last token so far.
    before: Option<u32>,
    /// Characters so far.
    offset: usize,
    sampled: usize,
    ending: Option<PieceEnd>,
}

/// Turns pieces into answers.
pub(crate) struct Writer {
    request: Request,
    kind: Kind,
    id: String,
    created: u64,
    choices: Vec<Choice>,
}

impl Writer {
    pub(crate) fn new(request: Request, kind: Kind) -> Self {
        let prefix = match kind {
            Kind::Text => "cmpl",
            Kind::Chat => "chatcmpl",
        };
        let created = now();
        let choice = |choice: usize| Choice {
            before: request.prompts[request.prompt_of(choice)]
                .ids
                .last()
                .copied(),
            ..Choice::default()
        };
        Self {
            choices: (0..request.num_choices()).map(choice).collect(),
            id: format!("{prefix}-{created:x}-{}", request.number),
            created,
            kind,
            request,
        }
    }

    /// Begins all choices with their prompts; `measured`: by prompt, the log-probabilities of its tokens but the first.
    ///
    /// # Errors
    /// Those of decoding.
    pub(crate) fn echo(&mut self, measured: Vec<Vec<TokenLogprobs>>) -> Result<()> {
        for (prompt, logprobs) in measured.into_iter().enumerate() {
            let ids = self.request.prompts[prompt].ids.clone();
            let mut shown = Choice::default();
            let all = [None].into_iter().chain(logprobs.into_iter().map(Some));
            for (&id, logprobs) in ids.iter().zip(all) {
                shown.add(&self.request, id, logprobs)?;
            }
            let n = self.request.settings.n;
            for choice in &mut self.choices[prompt * n..][..n] {
                choice.tokens.clone_from(&shown.tokens);
                choice.offset = shown.offset;
            }
        }
        for (at, choice) in self.choices.iter_mut().enumerate() {
            choice.text = self.request.prompts[self.request.prompt_of(at)]
                .text
                .clone();
        }
        Ok(())
    }

    /// Takes a piece. Returns whether all choices have ended.
    ///
    /// # Errors
    /// Those of decoding, and what made a choice fail.
    pub(crate) fn take(&mut self, piece: &mut Piece) -> Result<bool, ApiError> {
        let choice = &mut self.choices[piece.choice];
        choice.text.push_str(&piece.text);
        choice.sampled += piece.tokens.len();
        for SampledPiece { id, logprobs } in std::mem::take(&mut piece.tokens) {
            match logprobs {
                Some(logprobs) => choice.add(&self.request, id, Some(logprobs))?,
                None => choice.before = Some(id),
            }
        }
        choice.ending = piece.ending.take();
        if let Some(PieceEnd::Failed(message)) = &choice.ending {
            return Err(ApiError::failed(message.clone()));
        }
        Ok(self.choices.iter().all(|choice| choice.ending.is_some()))
    }

    /// Ends all choices: nothing is generated.
    pub(crate) fn end(&mut self) {
        for choice in &mut self.choices {
            choice.ending = Some(PieceEnd::Length);
        }
    }

    /// The whole answer.
    pub(crate) fn whole(&mut self) -> Value {
        let kind = self.kind;
        let usage = self.usage();
        let choices = self.choices.iter_mut().enumerate();
        let choices: Vec<Value> = choices
            .map(|(index, choice)| {
                let logprobs = choice.logprobs(&self.request, kind);
                let text = std::mem::take(&mut choice.text);
                let finish = choice.finish();
                match kind {
                    Kind::Text => json!({
                        "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish
                    }),
                    Kind::Chat => json!({
                        "index": index,
                        "message": {"role": "assistant", "content": text, "refusal": null},
                        "logprobs": logprobs,
                        "finish_reason": finish
                    }),
                }
            })
            .collect();
        let mut whole = self.frame(match kind {
            Kind::Text => "text_completion",
            Kind::Chat => "chat.completion",
        });
        whole.insert("choices".into(), choices.into());
        whole.insert("usage".into(), usage);
        Value::Object(whole)
    }

    /// Chunks that come before all tokens: the role of a chat's choices, and repeated prompts.
    pub(crate) fn first_chunks(&mut self) -> Vec<Value> {
        let choices = 0..self.choices.len();
        match self.kind {
            Kind::Chat => choices
                .map(|index| {
                    let delta = json!({"role": "assistant", "content": ""});
                    self.chunk(json!({
                        "index": index, "delta": delta, "logprobs": null, "finish_reason": null
                    }))
                })
                .collect(),
            Kind::Text if self.request.echo => {
                choices.map(|index| self.next_chunk(index)).collect()
            }
            Kind::Text => Vec::new(),
        }
    }

    /// The chunk of what has come of a choice since the last one.
    pub(crate) fn next_chunk(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        let logprobs = choice.logprobs(&self.request, self.kind);
        choice.tokens.clear();
        let text = std::mem::take(&mut choice.text);
        let finish = choice.finish();
        self.chunk(match self.kind {
            Kind::Text => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish
            }),
            Kind::Chat => {
                let delta = match text.is_empty() {
                    true => json!({}),
                    false => json!({"content": text}),
                };
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
        })
    }

    /// The chunk after all others, if the client wants the numbers of tokens.
    pub(crate) fn usage_chunk(&self) -> Option<Value> {
        self.request.settings.include_usage.then(|| {
            let mut chunk = self.frame(self.chunk_object());
            chunk.insert("choices".into(), json!([]));
            chunk.insert("usage".into(), self.usage());
            Value::Object(chunk)
        })
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.frame(self.chunk_object());
        chunk.insert("choices".into(), json!([choice]));
        if self.request.settings.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        Value::Object(chunk)
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Text => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        }
    }

    fn frame(&self, object: &str) -> Map<String, Value> {
        Map::from_iter([
            ("id".to_owned(), json!(self.id)),
            ("object".to_owned(), json!(object)),
            ("created".to_owned(), json!(self.created)),
            ("model".to_owned(), json!(self.request.served.name)),
        ])
    }

    /// Tokens of the prompts, each counted once, and of the responses, stop tokens included.
    fn usage(&self) -> Value {
        let prompts: usize = self.request.prompts.iter().map(|p| p.ids.len()).sum();
        let sampled: usize = self.choices.iter().map(|choice| choice.sampled).sum();
        json!({
            "prompt_tokens": prompts,
            "completion_tokens": sampled,
            "total_tokens": prompts + sampled
        })
    }
}

impl Choice {
    fn add(&mut self, request: &Request, id: u32, logprobs: Option<TokenLogprobs>) -> Result<()> {
        let tokenizer = &request.served.tokenizer;
        let text = token_text(tokenizer, self.before, id)?;
        let logprobs = match logprobs {
            None => None,
            Some(TokenLogprobs { logprob, top }) => {
                let top = top.into_iter().map(|(other, logprob)| {
                    Ok((token_text(tokenizer, self.before, other)?, logprob))
                });
                Some((logprob, top.collect::<Result<Vec<_>>>()?))
            }
        };
        let offset = self.offset;
        if !text.starts_with("token_id:") {
            self.offset += text.chars().count();
        }
        self.before = Some(id);
        self.tokens.push(TokenView {
            text,
            logprobs,
            offset,
        });
        Ok(())
    }

    fn finish(&self) -> Option<&'static str> {
        self.ending.as_ref().map(|ending| match ending {
            PieceEnd::Stop => "stop",
            PieceEnd::Length => "length",
            PieceEnd::Failed(_) => "error",
        })
    }

    fn logprobs(&self, request: &Request, kind: Kind) -> Value {
        let Some(num_top) = request.num_top else {
            return Value::Null;
        };
        match kind {
            Kind::Chat => {
                let tokens: Vec<Value> = self.tokens.iter().map(TokenView::chat).collect();
                json!({"content": tokens, "refusal": null})
            }
            Kind::Text => {
                let tokens = || self.tokens.iter();
                let texts: Vec<&str> = tokens().map(|token| token.text.as_str()).collect();
                let own = |token: &TokenView| token.logprobs.as_ref().map(|(own, _)| *own);
                let logprobs: Vec<Option<f32>> = tokens().map(own).collect();
                let offsets: Vec<usize> = tokens().map(|token| token.offset).collect();
                let top = (num_top > 0).then(|| tokens().map(TokenView::top).collect::<Vec<_>>());
                json!({
                    "tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets
                })
            }
        }
    }
}

impl TokenView {
    /// The most probable tokens and the token itself, by text.
    fn top(&self) -> Value {
        let Some((own, top)) = &self.logprobs else {
            return Value::Null;
        };
        let mut map = Map::new();
        for (text, logprob) in top {
            // Of two tokens with one text the more probable one, which comes first.
            map.entry(text.clone()).or_insert(json!(logprob));
        }
        map.entry(self.text.clone()).or_insert(json!(own));
        Value::Object(map)
    }

    fn chat(&self) -> Value {
        let entry = |text: &str, logprob: f32| {
            let bytes = (!text.starts_with("token_id:")).then_some(text.as_bytes());
            json!({"token": text, "logprob": logprob, "bytes": bytes})
        };
        let (own, top) = match &self.logprobs {
            Some((own, top)) => (*own, top.as_slice()),
            None => (0.0, &[][..]),
        };
        let mut shown = entry(&self.text, own);
        let top: Vec<Value> = top
            .iter()
            .map(|(text, logprob)| entry(text, *logprob))
            .collect();
        shown["top_logprobs"] = top.into();
        shown
    }
}
