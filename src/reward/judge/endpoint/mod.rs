//! A server with OpenAI's chat completions as a judge: requests on several threads, answers kept on disk.

mod answer;
mod client;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{EndpointConfig, Judge, LabelAnswer, Question, Usage};
use crate::error::{Error, Result};
use crate::report::Interrupt;
use crate::rng::Seed;
use answer::Answer;
use client::Client;
use store::AnswerStore;

/// Most tokens of an answer that is a label: `(A)` may be three.
const LABEL_TOKENS: usize = 4;

/// A judge behind an address. What it has answered once is not asked again, in later runs of the same folder either.
pub struct Endpoint {
    config: EndpointConfig,
    client: Client,
    store: AnswerStore,
    usage: Usage,
}

impl Endpoint {
    /// The judge of `config`, whose answers are kept in the file `answers`. `interrupt` ends its waits.
    ///
    /// # Errors
    /// `Error::Usage` if the environment variable of the key is not set; `Error::Io`.
    pub fn new(config: &EndpointConfig, answers: &Path, interrupt: &Interrupt) -> Result<Self> {
        Ok(Self {
            client: Client::new(config, interrupt)?,
            store: AnswerStore::open(answers)?,
            config: config.clone(),
            usage: Usage::default(),
        })
    }

    fn request(&self, question: &Question, max_tokens: usize, seed: Option<u64>) -> Result<Value> {
        let Question::Messages(messages) = question else {
            return Err(Error::Usage(format!(
                "the endpoint {} takes messages, and the question is plain text",
                self.config.url
            )));
        };
        let mut body = json!({
            "model": self.config.model,
            "messages": messages,
            "max_tokens": max_tokens,
        });
        match seed {
            // Below 2^53: numbers of JSON are f64 in many servers.
            Some(seed) => {
                body["temperature"] = 1.0.into();
                body["seed"] = (seed >> 11).into();
            }
            None => {
                body["temperature"] = 0.0.into();
                if self.config.logprobs {
                    body["logprobs"] = true.into();
                    body["top_logprobs"] = self.config.top_logprobs.into();
                }
            }
        }
        Ok(body)
    }

    /// The answers to `bodies`, in order: those of the store, and the others by request.
    fn ask(&mut self, bodies: &[Value]) -> Result<Vec<Answer>> {
        let keys: Vec<String> = (bodies.iter())
            .map(|body| store::key(&self.config.url, body))
            .collect();
        // Equal questions are asked once.
        let mut open: Vec<usize> = (0..bodies.len())
            .filter(|&i| self.store.get(&keys[i]).is_none())
            .collect();
        open.sort_by(|&a, &b| keys[a].cmp(&keys[b]).then(a.cmp(&b)));
        open.dedup_by(|b, a| keys[*a] == keys[*b]);
        open.sort_unstable();
        self.usage.asked += open.len() as u64;
        self.usage.cached += (bodies.len() - open.len()) as u64;
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (failure, store) = (Mutex::new(None), Mutex::new(&mut self.store));
        let work = || {
            while let Some(&i) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = self.client.complete(&bodies[i]).and_then(|answer| {
                    match store.lock() {
                        Ok(mut store) => store.add(&keys[i], answer),
                        // Another thread has panicked, which is reported there.
                        Err(_) => Ok(()),
                    }
                });
                if let Err(error) = outcome {
                    stopped.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.config.concurrency.min(open.len()) {
                scope.spawn(work);
            }
        });
        if let Some(error) = failure
            .into_inner()
            .unwrap_or_else(|poison| poison.into_inner())
        {
            return Err(self.kept(error));
        }
        let mut answers = Vec::with_capacity(bodies.len());
        for key in &keys {
            let answer = self.store.get(key).cloned().unwrap_or_default();
            self.usage
                .count_tokens(answer.prompt_tokens, answer.completion_tokens);
            answers.push(answer);
        }
        Ok(answers)
    }

    /// The error, with what is not lost.
    fn kept(&self, error: Error) -> Error {
        match error {
            Error::Endpoint { place, message } => Error::Endpoint {
                place,
                message: format!(
                    "{message}. The {} answers so far are kept in {}: the same command with --resume asks for the others alone",
                    self.store.len(),
                    self.store.path().display()
                ),
            },
            other => other,
        }
    }

    /// The file of the answers.
    pub fn answers(&self) -> PathBuf {
        self.store.path().to_path_buf()
    }
}

impl Judge for Endpoint {
    fn reads_messages_only(&self) -> bool {
        true
    }

    fn answer(&mut self, questions: &[Question], labels: &[String]) -> Result<Vec<LabelAnswer>> {
        let bodies: Vec<Value> = (questions.iter())
            .map(|question| self.request(question, LABEL_TOKENS, None))
            .collect::<Result<_>>()?;
        let answers = self.ask(&bodies)?;
        Ok(answers
            .iter()
            .map(|answer| answer.of_labels(labels))
            .collect())
    }

    fn write(
        &mut self,
        questions: &[Question],
        max_tokens: usize,
        seed: Seed,
    ) -> Result<Vec<String>> {
        let bodies: Vec<Value> = (questions.iter().enumerate())
            .map(|(i, question)| self.request(question, max_tokens, Some(seed.bits(i as u64))))
            .collect::<Result<_>>()?;
        let answers = self.ask(&bodies)?;
        Ok(answers.into_iter().map(|answer| answer.text).collect())
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn report(&self) -> Option<String> {
        let Usage {
            asked,
            cached,
            prompt_tokens,
            completion_tokens,
        } = self.usage;
        let cost = match self.config.price {
            Some(price) => format!(", cost {:.4}", price.of(prompt_tokens, completion_tokens)),
            None => String::new(),
        };
        Some(format!(
            "{} at {}: {asked} answers asked for, {cached} from {}, {prompt_tokens} tokens read and {completion_tokens} written{cost}",
            self.config.model,
            self.config.url,
            self.store.path().display()
        ))
    }
}
