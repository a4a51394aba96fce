//! The keys of a recipe for judges.

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::model::Init;
use crate::web::url_problem;

/// Who judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum JudgeModel {
    /// A language model of the recipe, of a folder or of the hub.
    Model(Init),
    /// A server with OpenAI's chat completions.
    Endpoint(EndpointConfig),
}

/// A server that speaks OpenAI's protocol: `POST {url}/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// Address up to and with the version: `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key. The key itself is never written anywhere.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// Ask for log-probabilities; otherwise the label that the answer's text begins with counts as certain.
    #[serde(default = "yes")]
    pub logprobs: bool,
    /// Alternatives per token to ask for.
    #[serde(default = "twenty")]
    pub top_logprobs: usize,
    /// Seconds for one answer.
    #[serde(default = "minute")]
    pub timeout_s: f64,
    /// Repetitions of a request that fails for a while.
    #[serde(default = "five")]
    pub max_retries: u32,
    /// Seconds before the first repetition; doubled each time.
    #[serde(default = "one_second")]
    pub retry_wait_s: f64,
    /// Requests at once.
    #[serde(default = "four")]
    pub concurrency: usize,
    /// What tokens cost, to report it.
    #[serde(default)]
    pub price: Option<Price>,
}

/// Prices per million tokens, in any currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of tokens read.
    pub prompt: f64,
    /// Of tokens written.
    pub completion: f64,
}

/// The expected grade of a response as its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradedConfig {
    /// Who grades.
    pub judge: JudgeModel,
    /// What a good response is: the beginning of every question.
    #[serde(default)]
    pub instructions: Option<String>,
    /// The question, a jinja template over `prompt`, `response`, `highest` and `row` (the row's columns).
    #[serde(default)]
    pub template: Option<String>,
    /// The highest grade; the lowest one is 1.
    #[serde(default = "ten")]
    pub highest: usize,
    /// Ask by the model's chat template.
    #[serde(default)]
    pub chat: bool,
    /// Largest fraction of responses that the judge may give no grade; their score is 0.
    #[serde(default = "tenth")]
    pub max_unanswered: f64,
}

impl GradedConfig {
    /// The defaults with this judge.
    pub fn by(judge: JudgeModel) -> Self {
        Self {
            judge,
            instructions: None,
            template: None,
            highest: ten(),
            chat: false,
            max_unanswered: tenth(),
        }
    }
}

impl Price {
    /// The cost of some tokens.
    pub fn of(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        (self.prompt * prompt_tokens as f64 + self.completion * completion_tokens as f64) / 1e6
    }
}

impl JudgeModel {
    /// The model of the recipe, if it is none of a server.
    pub fn model(&self) -> Option<&Init> {
        match self {
            Self::Model(init) => Some(init),
            Self::Endpoint(_) => None,
        }
    }

    /// A short name for messages.
    pub fn name(&self) -> String {
        match self {
            Self::Model(Init::Base) => "base".into(),
            Self::Model(Init::Stage(stage)) => stage.clone(),
            Self::Model(Init::Folder(path) | Init::Random(path)) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                name.to_string_lossy().into_owned()
            }
            Self::Endpoint(endpoint) => endpoint.model.clone(),
        }
    }

    /// All problems of its settings, by key below it.
    pub fn problems(&self) -> Vec<Problem> {
        match self {
            Self::Model(Init::Random(_)) => vec![
                Problem::new("", "random weights cannot judge")
                    .with_help("e.g. `Model(Base)`, `Model(Stage(\"sft\"))` or `Model(Folder(\"owner/name\"))`"),
            ],
            Self::Model(_) => Vec::new(),
            Self::Endpoint(endpoint) => endpoint.problems(),
        }
    }
}

impl EndpointConfig {
    /// All problems of its settings, by key. Whether a server answers shows when it is asked.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut must = |key: &str, holds: bool, message: String| {
            if !holds {
                problems.push(Problem::new(key, message));
            }
        };
        let example = "http://127.0.0.1:8000/v1";
        if let Some(why) = url_problem(&self.url, example, "name a key by `api_key_env`") {
            must("url", false, why);
        }
        must(
            "url",
            !self.url.ends_with("/chat/completions"),
            "ends with `/chat/completions`, which is added: leave it out".into(),
        );
        must(
            "model",
            !self.model.is_empty(),
            "expected the name of a model of the server, found \"\"".into(),
        );
        if let Some(name) = &self.api_key_env {
            let key = std::env::var(name).unwrap_or_default();
            let set = !key.trim().is_empty();
            must(
                "api_key_env",
                !set || key.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                format!(
                    "the environment variable {name} holds a line break or another character that no key has"
                ),
            );
            must(
                "api_key_env",
                set,
                format!(
                    "the environment variable {name} is not set: it has to hold the endpoint's key"
                ),
            );
        }
        must(
            "top_logprobs",
            (1..=20).contains(&self.top_logprobs),
            format!("must be from 1 to 20, found {}", self.top_logprobs),
        );
        for (key, seconds) in [
            ("timeout_s", self.timeout_s),
            ("retry_wait_s", self.retry_wait_s),
        ] {
            must(
                key,
                seconds > 0.0 && seconds <= 86_400.0,
                format!("must be above 0 and at most a day of 86400 seconds, found {seconds}"),
            );
        }
        must(
            "max_retries",
            self.max_retries <= 20,
            format!("must be at most 20, found {}", self.max_retries),
        );
        must(
            "concurrency",
            (1..=256).contains(&self.concurrency),
            format!("must be from 1 to 256, found {}", self.concurrency),
        );
        if let Some(price) = self.price {
            must(
                "price",
                [price.prompt, price.completion]
                    .iter()
                    .all(|price| price.is_finite() && *price >= 0.0),
                format!("must be 0 or more per million tokens, found {price:?}"),
            );
        }
        problems
    }
}

fn yes() -> bool {
    true
}
fn ten() -> usize {
    10
}
fn twenty() -> usize {
    20
}
fn four() -> usize {
    4
}
fn five() -> u32 {
    5
}
fn minute() -> f64 {
    60.0
}
fn one_second() -> f64 {
    1.0
}
fn tenth() -> f64 {
    0.1
}
