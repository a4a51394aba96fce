//! The dialogue of response, critiques and revisions, and the texts that a model continues.
//!
//! # Source
//! Bai et al. 2022, arXiv:2212.08073, section 3.1. There a later round follows all earlier ones; here it follows the prompt and the
//! newest revision, so that a request is no longer in the fourth round than in the first.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::{ChatOptions, Prompt, Tokenizer};
use crate::error::Result;

/// Headings in plain text.
const CRITIQUE_REQUEST: &str = "\n\nCritique request:";
const CRITIQUE: &str = "\n\nCritique:";
const REVISION_REQUEST: &str = "\n\nRevision request:";
const REVISION: &str = "\n\nRevision:";
/// Headings at which a text in plain text ends: a model that goes on with the dialogue writes them.
pub(super) const HEADINGS: [&str; 4] = [CRITIQUE_REQUEST, CRITIQUE, REVISION_REQUEST, REVISION];

/// A principle: what is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Principle {
    /// The request for a critique.
    pub(super) critique: String,
    /// The request for a revision.
    pub(super) revision: String,
}

/// A whole dialogue as an example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Example {
    prompt: String,
    response: String,
    critique_request: String,
    #[serde(default)]
    critique: Option<String>,
    revision_request: String,
    revision: String,
}

/// One round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Round {
    /// The principle, by index.
    pub(super) principle: usize,
    /// Empty if none was asked for.
    pub(super) critique: String,
    pub(super) revision: String,
}

/// All that was said about one prompt: a line of the stage's log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Dialogue {
    /// The prompt as a row: a text, or messages.
    pub(super) prompt: Value,
    pub(super) response: String,
    pub(super) rounds: Vec<Round>,
    /// Whether it ended early because the model's table of positions is too short for it.
    #[serde(default)]
    pub(super) too_long: bool,
}

impl Dialogue {
    /// `text` as a version of the response: with the white space that the response began with.
    pub(super) fn version(&self, text: &str) -> String {
        let start = self.response.len() - self.response.trim_start().len();
        match text.trim() {
            "" => String::new(),
            text => format!("{}{text}", &self.response[..start]),
        }
    }
}

/// What is asked for in a round.
pub(super) enum Request<'a> {
    /// A critique.
    Critique(&'a Principle),
    /// A revision, after this critique if there is one.
    Revision(&'a Principle, Option<&'a str>),
}

/// Builds requests.
pub(super) struct Requests<'a> {
    pub(super) examples: Vec<Example>,
    pub(super) tokenizer: &'a Tokenizer,
    /// Whether critiques are asked for.
    pub(super) critique: bool,
}

impl Requests<'_> {
    /// Token ids of a request about `response` to `prompt`, up to where the answer begins.
    pub(super) fn ids(
        &self,
        prompt: &Prompt,
        response: &str,
        request: &Request<'_>,
    ) -> Result<Vec<u32>> {
        let Some(conversation) = &prompt.conversation else {
            let text = format!(
                "{}{}",
                self.example_text(),
                asked(&prompt.text, response, request)
            );
            return self.tokenizer.encode_start(&text);
        };
        let mut messages = conversation.messages.clone();
        // Examples are turns before the conversation, behind its system message.
        let at = usize::from(
            messages
                .first()
                .is_some_and(|first| first["role"] == "system"),
        );
        messages.splice(at..at, self.example_messages());
        messages.push(says("assistant", response));
        messages.extend(turns(request));
        let options = ChatOptions {
            tools: None,
            ..conversation.options.with_generation_prompt(true)
        };
        let text = self.tokenizer.chat()?.render(&messages, &options)?;
        let ids = self.tokenizer.encode(&text, false)?;
        self.tokenizer.check_bos(&ids)?;
        Ok(ids)
    }

    fn example_text(&self) -> String {
        let mut text = String::new();
        for example in &self.examples {
            let Example {
                prompt, response, ..
            } = example;
            let principle = example.principle();
            let critique = example.critique.as_deref().filter(|_| self.critique);
            let request = Request::Revision(&principle, critique);
            text += &asked(prompt, response, &request);
            text += &format!(" {}\n\n", example.revision.trim());
        }
        text
    }

    fn example_messages(&self) -> Vec<Value> {
        let of_example = |example: &Example| {
            let principle = example.principle();
            let critique = example.critique.as_deref().filter(|_| self.critique);
            let mut messages = vec![
                says("user", &example.prompt),
                says("assistant", &example.response),
            ];
            messages.extend(turns(&Request::Revision(&principle, critique)));
            messages.push(says("assistant", &example.revision));
            messages
        };
        self.examples.iter().flat_map(of_example).collect()
    }
}

impl Example {
    fn principle(&self) -> Principle {
        Principle {
            critique: self.critique_request.clone(),
            revision: self.revision_request.clone(),
        }
    }
}

/// A request in plain text.
fn asked(prompt: &str, response: &str, request: &Request<'_>) -> String {
    let space =
        match prompt.ends_with(char::is_whitespace) || response.starts_with(char::is_whitespace) {
            true => "",
            false => " ",
        };
    let start = format!("{prompt}{space}{}", response.trim_end());
    match request {
        Request::Critique(principle) => {
            format!(
                "{start}{CRITIQUE_REQUEST} {}{CRITIQUE}",
                principle.critique.trim()
            )
        }
        Request::Revision(principle, critique) => {
            let critique = match critique {
                Some(critique) => format!(
                    "{CRITIQUE_REQUEST} {}{CRITIQUE} {}",
                    principle.critique.trim(),
                    critique.trim()
                ),
                None => String::new(),
            };
            format!(
                "{start}{critique}{REVISION_REQUEST} {}{REVISION}",
                principle.revision.trim()
            )
        }
    }
}

/// The turns of a request after the response.
fn turns(request: &Request<'_>) -> Vec<Value> {
    match request {
        Request::Critique(principle) => vec![says("user", &principle.critique)],
        Request::Revision(principle, None) => vec![says("user", &principle.revision)],
        Request::Revision(principle, Some(critique)) => vec![
            says("user", &principle.critique),
            says("assistant", critique.trim()),
            says("user", &principle.revision),
        ],
    }
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principle() -> Principle {
        Principle {
            critique: "What is unkind?".into(),
            revision: "Say it kindly.".into(),
        }
    }

    #[test]
    fn requests_follow_the_response() {
        let principle = principle();
        assert_eq!(
            asked("Q: hi\nA:", " go away \n", &Request::Critique(&principle)),
            "Q: hi\nA: go away\n\nCritique request: What is unkind?\n\nCritique:"
        );
        assert_eq!(
            asked(
                "Q: hi\nA:",
                "go away",
                &Request::Revision(&principle, Some(" It is rude.\n"))
            ),
            "Q: hi\nA: go away\n\nCritique request: What is unkind?\n\nCritique: It is rude.\n\nRevision request: Say it kindly.\n\nRevision:"
        );
        assert_eq!(
            asked("TL;DR:\n", "x", &Request::Revision(&principle, None)),
            "TL;DR:\nx\n\nRevision request: Say it kindly.\n\nRevision:"
        );
    }

    #[test]
    fn turns_alternate() {
        let principle = principle();
        let roles = |request: &Request<'_>| -> Vec<String> {
            let turns = turns(request);
            turns
                .iter()
                .map(|turn| turn["role"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(roles(&Request::Critique(&principle)), ["user"]);
        assert_eq!(roles(&Request::Revision(&principle, None)), ["user"]);
        assert_eq!(
            roles(&Request::Revision(&principle, Some("c"))),
            ["user", "assistant", "user"]
        );
    }

    #[test]
    fn a_revision_begins_as_the_response_did() {
        let dialogue = Dialogue {
            response: "\n go away".into(),
            ..Dialogue::default()
        };
        assert_eq!(dialogue.version("  hello \n"), "\n hello");
        assert_eq!(dialogue.version(" \n"), "");
    }
}
