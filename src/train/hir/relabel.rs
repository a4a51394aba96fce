//! Prompts under an instruction, and responses under the instruction that they fit.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::config::Instructions;
use crate::data::{Conversation, Prompt, Tokenizer};
use crate::error::Result;

/// A prompt under both instructions.
#[derive(Debug, Clone)]
pub(super) struct InstructedPrompt {
    pub(super) correct: Prompt,
    pub(super) wrong: Prompt,
}

impl InstructedPrompt {
    /// `prompt` under the two instructions.
    ///
    /// # Errors
    /// Those of tokenizer and chat template.
    pub(super) fn new(
        prompt: &Prompt,
        instructions: &Instructions,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        Ok(Self {
            correct: instructed(prompt, &instructions.correct, tokenizer)?,
            wrong: instructed(prompt, &instructions.wrong, tokenizer)?,
        })
    }

    /// The longer of both in tokens.
    pub(super) fn longest(&self) -> usize {
        self.correct.ids.len().max(self.wrong.ids.len())
    }
}

/// The prompt after a line with the instruction; of a conversation, its last message.
fn instructed(prompt: &Prompt, instruction: &str, tokenizer: &Tokenizer) -> Result<Prompt> {
    let Some(conversation) = &prompt.conversation else {
        let text = format!("{instruction}\n{}", prompt.text);
        return Ok(Prompt {
            ids: tokenizer.encode_start(&text)?,
            text,
            ..prompt.clone()
        });
    };
    let mut messages = conversation.messages.clone();
    if let Some(last) = messages.last_mut()
        && let Some(content) = last["content"].as_str()
    {
        last["content"] = Value::String(format!("{instruction}\n{content}"));
    }
    let options = conversation.options.with_generation_prompt(true);
    let text = tokenizer.chat()?.render(&messages, &options)?;
    let ids = tokenizer.encode(&text, false)?;
    tokenizer.check_bos(&ids)?;
    Ok(Prompt {
        ids,
        text,
        conversation: Some(Arc::new(Conversation {
            messages,
            options: conversation.options.clone(),
        })),
        row: prompt.row.clone(),
    })
}

/// A response with both prompts: the one whose instruction it fits, and the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relabelled {
    /// The prompt that it fits, and the response.
    pub(super) own: Vec<u32>,
    /// The other prompt, and the response.
    pub(super) other: Vec<u32>,
    /// Tokens of the response.
    pub(super) len: usize,
}

/// Responses under the instruction that each fits. Of equal responses to a prompt one is kept.
///
/// `of_prompt[i]` is the prompt of `responses[i]`.
pub(super) fn relabelled(
    prompts: &[InstructedPrompt],
    of_prompt: &[usize],
    responses: &[&[u32]],
    fits: &[bool],
) -> Vec<Relabelled> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for ((&prompt, &response), &fits) in of_prompt.iter().zip(responses).zip(fits) {
        if !seen.insert((prompt, response)) {
            continue;
        }
        let InstructedPrompt { correct, wrong } = &prompts[prompt];
        let (own, other) = match fits {
            true => (correct, wrong),
            false => (wrong, correct),
        };
        kept.push(Relabelled {
            own: [own.ids.as_slice(), response].concat(),
            other: [other.ids.as_slice(), response].concat(),
            len: response.len(),
        });
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn responses_are_put_under_what_they_fit_once() {
        let prompt = |ids: &[u32]| Prompt {
            ids: ids.to_vec(),
            text: String::new(),
            conversation: None,
            row: Map::new(),
        };
        let prompts = [InstructedPrompt {
            correct: prompt(&[1, 5]),
            wrong: prompt(&[2, 2, 5]),
        }];
        let responses: [&[u32]; 3] = [&[7, 0], &[8, 9, 0], &[7, 0]];
        let got = relabelled(&prompts, &[0, 0, 0], &responses, &[true, false, true]);
        let expected = [
            Relabelled {
                own: vec![1, 5, 7, 0],
                other: vec![2, 2, 5, 7, 0],
                len: 2,
            },
            Relabelled {
                own: vec![2, 2, 5, 8, 9, 0],
                other: vec![1, 5, 8, 9, 0],
                len: 3,
            },
        ];
        assert_eq!(got, expected);
        assert_eq!(prompts[0].longest(), 3);
    }
}
