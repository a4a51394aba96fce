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

/// A response, or the rest of one from some place on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    /// Index of its prompt.
    pub(super) prompt: usize,
    /// All tokens of the response.
    pub(super) response: &'a [u32],
    /// The first token of the rest; those before it belong to the input.
    pub(super) from: usize,
    /// Whether it fits the instruction.
    pub(super) fits: bool,
}

/// Places within a response of `len` tokens, `count` or fewer, evenly spread.
pub(super) fn cuts(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let places: BTreeSet<usize> = (1..=count).map(|i| len * i / (count + 1)).collect();
    places.into_iter().filter(|&from| from > 0)
}

/// An output under both prompts: the one whose instruction it fits, and the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relabelled {
    /// The prompt that it fits, and the response.
    pub(super) own: Vec<u32>,
    /// The other prompt, and the response.
    pub(super) other: Vec<u32>,
    /// Tokens of the output, at the end of both.
    pub(super) len: usize,
}

/// Outputs under the instruction that each fits: `p*, q, o_0 .. o_(i-1)` is the input and `o_i .. o_L` is learned. Of equal outputs of a
/// prompt one is kept.
pub(super) fn relabelled(prompts: &[InstructedPrompt], outputs: &[Output<'_>]) -> Vec<Relabelled> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for output in outputs {
        if !seen.insert((output.prompt, output.response, output.from)) {
            continue;
        }
        let InstructedPrompt { correct, wrong } = &prompts[output.prompt];
        let (own, other) = match output.fits {
            true => (correct, wrong),
            false => (wrong, correct),
        };
        kept.push(Relabelled {
            own: [own.ids.as_slice(), output.response].concat(),
            other: [other.ids.as_slice(), output.response].concat(),
            len: output.response.len() - output.from,
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
        let output = |response, from, fits| Output {
            prompt: 0,
            response,
            from,
            fits,
        };
        let got = relabelled(
            &prompts,
            &[
                output(responses[0], 0, true),
                output(responses[1], 0, false),
                output(responses[2], 0, true),
                // The rest of the second one fits.
                output(responses[1], 2, true),
            ],
        );
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
            Relabelled {
                own: vec![1, 5, 8, 9, 0],
                other: vec![2, 2, 5, 8, 9, 0],
                len: 1,
            },
        ];
        assert_eq!(got, expected);
        assert_eq!(prompts[0].longest(), 3);
    }

    #[test]
    fn places_are_spread_within_a_response() {
        let of = |len, count| cuts(len, count).collect::<Vec<_>>();
        assert_eq!(of(12, 3), [3, 6, 9]);
        assert_eq!(of(12, 0), [0; 0]);
        // A short response has fewer places.
        assert_eq!(of(2, 3), [1]);
        assert_eq!(of(1, 3), [0; 0]);
    }
}
