//! A language model of the recipe as a judge.

use std::sync::Arc;

use super::labels::own_logprob;
use super::{Judge, LabelAnswer, Question};
use crate::collective;
use crate::data::{ChatOptions, Tokenizer, own_micro_batches};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::host::{indices, read};
use crate::model::{CausalLm, LanguageModel};
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::tokens::{TokenBatch, packed_len};

/// A judge by a model's log-probabilities: all tokens of a label count, whatever the vocabulary makes of it.
#[derive(Debug)]
pub struct LocalJudge<B: ModelBackend> {
    name: String,
    model: LanguageModel<B>,
    tokenizer: Arc<Tokenizer>,
    /// Most tokens of a row.
    max_positions: usize,
    micro_batch_tokens: usize,
    batch_size: usize,
    device: B::Device,
}

impl<B: ModelBackend> LocalJudge<B> {
    /// The judge `name`, with at most `micro_batch_tokens` tokens in one forward pass and `batch_size` texts written at once;
    /// `max_positions`: the model's table of positions, if it has one.
    pub fn new(
        name: String,
        model: LanguageModel<B>,
        tokenizer: Arc<Tokenizer>,
        max_positions: Option<usize>,
        micro_batch_tokens: usize,
        batch_size: usize,
        device: B::Device,
    ) -> Self {
        Self {
            name,
            model,
            tokenizer,
            max_positions: max_positions.unwrap_or(usize::MAX),
            micro_batch_tokens,
            batch_size,
            device,
        }
    }

    /// Token ids of a question followed by `answer`.
    fn ids(&self, question: &Question, answer: &str) -> Result<Vec<u32>> {
        match question {
            Question::Text(text) => {
                // A label is a word of its own, as after the examples.
                let space = match answer.is_empty() || text.ends_with(char::is_whitespace) {
                    true => "",
                    false => " ",
                };
                self.tokenizer
                    .encode_start(&format!("{text}{space}{answer}"))
            }
            Question::Messages(messages) => {
                let options = ChatOptions::default().with_generation_prompt(true);
                let text = self.tokenizer.chat()?.render(messages, &options)?;
                let ids = self.tokenizer.encode(&format!("{text}{answer}"), false)?;
                self.tokenizer.check_bos(&ids)?;
                Ok(ids)
            }
        }
    }

    fn check(&self, len: usize) -> Result<()> {
        match len <= self.max_positions {
            true => Ok(()),
            false => Err(Error::Reward {
                name: format!("judge {}", self.name),
                message: format!(
                    "a question has {len} tokens, and the model's table of positions takes at most {}: shorten prompts, responses or examples",
                    self.max_positions
                ),
            }),
        }
    }
}

/// Rows of one question with each label, and where they begin to differ (at least 1: nothing predicts a first token).
struct LabelRows {
    rows: Vec<Vec<u32>>,
    from: usize,
}

impl LabelRows {
    fn new(rows: Vec<Vec<u32>>) -> Self {
        let first = &rows[0];
        let shared = rows[1..].iter().map(|row| {
            let same = first.iter().zip(row).take_while(|(a, b)| a == b);
            same.count()
        });
        let from = shared.min().unwrap_or(0).max(1);
        Self { rows, from }
    }

    /// Log-probability of each label, given that of its tokens.
    fn own_logprobs(&self, begins: &[f64]) -> Vec<f64> {
        let own = |i: usize| {
            let row = &self.rows[i];
            let longer = (0..self.rows.len())
                .filter(|&j| self.rows[j].len() > row.len() && self.rows[j].starts_with(row));
            own_logprob(begins, i, longer)
        };
        (0..self.rows.len()).map(own).collect()
    }
}

impl<B: ModelBackend> Judge for LocalJudge<B> {
    fn answer(&mut self, questions: &[Question], labels: &[String]) -> Result<Vec<LabelAnswer>> {
        let mut groups = Vec::with_capacity(questions.len());
        for question in questions {
            let rows = labels.iter().map(|label| self.ids(question, label));
            let group = LabelRows::new(rows.collect::<Result<_>>()?);
            let longest = group.rows.iter().map(Vec::len).max();
            self.check(longest.unwrap_or(0))?;
            groups.push(group);
        }
        let lens: Vec<usize> = groups.iter().map(|group| packed_len(&group.rows)).collect();
        let mut logprobs = vec![Vec::new(); groups.len()];
        let own = own_micro_batches(&lens, self.micro_batch_tokens);
        for part in &own {
            let packed: Vec<Vec<&[u32]>> = (part.iter())
                .map(|&i| groups[i].rows.iter().map(Vec::as_slice).collect())
                .collect();
            let (batch, spans) = TokenBatch::<B>::from_groups(&packed, &self.device);
            let mut spans = spans.iter();
            let (mut positions, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
            for &i in part {
                let LabelRows { rows, from } = &groups[i];
                for (row, span) in rows.iter().zip(spans.by_ref()) {
                    // A label that the others begin with has no token of its own.
                    let from = (*from).min(row.len());
                    positions.extend((from..row.len()).map(|token| span.token(token - 1)));
                    targets.extend(&row[from..]);
                    counts.push(row.len() - from);
                }
            }
            let hidden =
                self.model
                    .states_at(&batch, Some(indices(&positions, &self.device)), None, None);
            let (values, _) = self.model.logprobs(hidden, &Arc::new(targets), 1.0);
            let mut values = read(values).into_iter().map(f64::from);
            let mut counts = counts.into_iter();
            for &i in part {
                let begins: Vec<f64> = (counts.by_ref().take(labels.len()))
                    .map(|count| values.by_ref().take(count).sum())
                    .collect();
                logprobs[i] = groups[i].own_logprobs(&begins);
            }
        }
        collective::share(&mut logprobs, own.concat());
        let answer = |logprobs: Vec<f64>| LabelAnswer {
            logprobs: Some(logprobs),
            text: String::new(),
            without_probabilities: false,
        };
        Ok(logprobs.into_iter().map(answer).collect())
    }

    fn write(
        &mut self,
        questions: &[Question],
        max_tokens: usize,
        seed: Seed,
    ) -> Result<Vec<String>> {
        let prompts: Vec<Vec<u32>> = (questions.iter())
            .map(|question| self.ids(question, ""))
            .collect::<Result<_>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        self.check(longest + max_tokens)?;
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let options = GenerateOptions {
            max_new_tokens: max_tokens,
            sampling: SamplingConfig::default(),
            repetition_penalty: 1.0,
            stop_ids: self.tokenizer.stop_ids().to_vec(),
            truncate: None,
            batch_size: self.batch_size,
        };
        let device = &self.device;
        let responses = generate(
            &self.model,
            &prompts,
            &options,
            seed,
            device,
            &mut |_, _| {},
        );
        (responses.iter())
            .map(|response| self.tokenizer.decode(&response.ids, true))
            .collect()
    }
}
