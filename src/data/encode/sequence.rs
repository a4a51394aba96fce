//! Prompt and completion as one sequence of token ids: where the one ends, and where a turn does.

use std::ops::Range;

use serde_json::Value;

use crate::data::rows::Row;
use crate::data::{AssistantSpans, ChatOptions, Tokenizer};
use crate::error::Result;

/// Prompt and completion as one sequence.
pub(super) struct Joint {
    pub(super) ids: Vec<u32>,
    pub(super) prompt_len: usize,
    /// A token spans the end of the prompt.
    pub(super) merged: bool,
    /// An EOS is due at the end.
    pub(super) should_end: bool,
}

impl Joint {
    pub(super) fn of_text(
        tokenizer: &Tokenizer,
        prompt: &str,
        completion: &str,
        append_eos: bool,
    ) -> Result<Self> {
        let prompt_ids = tokenizer.encode_document(prompt)?;
        let mut ids = tokenizer.encode_document(&format!("{prompt}{completion}"))?;
        let (prompt_len, merged) = boundary(&prompt_ids, &ids);
        end_with_eos(&mut ids, tokenizer, append_eos);
        Ok(Self {
            ids,
            prompt_len,
            merged,
            should_end: append_eos,
        })
    }

    pub(super) fn of_messages(
        row: &Row,
        tokenizer: &Tokenizer,
        options: &ChatOptions,
        prompt: &[Value],
        completion: &[Value],
    ) -> Result<Self> {
        let chat = tokenizer.chat()?;
        let prompt_text = chat.render(prompt, &options.with_generation_prompt(true))?;
        let messages = [prompt, completion].concat();
        let text = chat.render(&messages, options)?;
        if !text.starts_with(&prompt_text) {
            return Err(row.error(
                "the chat template does not start the conversation with its own rendering of the prompt: \
                 what the assistant wrote cannot be told apart. Give `messages` and a template with {% generation %}",
            ));
        }
        let prompt_ids = encode_chat(tokenizer, &prompt_text)?;
        let mut ids = encode_chat(tokenizer, &text)?;
        let (prompt_len, merged) = boundary(&prompt_ids, &ids);
        let end = end_of_turn(tokenizer, &ids, prompt_len..ids.len())?;
        ids.truncate(end);
        Ok(Self {
            ids,
            prompt_len,
            merged,
            should_end: true,
        })
    }

    pub(super) fn lacks_eos(&self, tokenizer: &Tokenizer) -> bool {
        self.should_end && !ends_with_stop(tokenizer, &self.ids)
    }
}

/// Tokens of the prompt at the start of the joint ids, and whether the tokenizer merged across its end.
fn boundary(prompt_ids: &[u32], ids: &[u32]) -> (usize, bool) {
    let shared = prompt_ids
        .iter()
        .zip(ids)
        .take_while(|(a, b)| a == b)
        .count();
    (shared, shared < prompt_ids.len())
}

/// Tokens of a rendered conversation: the template has written the special tokens itself.
pub(super) fn encode_chat(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, false)?;
    tokenizer.check_bos(&ids)?;
    Ok(ids)
}

/// Tokens of a conversation, and which of them hold something that the assistant wrote.
///
/// Where the template marks its turns the marks are followed to the letter, as transformers' `assistant_masks` does.
/// (It leaves out a span's last bytes where its last character has several tokens; here they are in.) Otherwise a turn
/// ends with its end-of-turn token, without the white space that the template writes after it.
pub(super) fn encode_spans(
    tokenizer: &Tokenizer,
    spoken: &AssistantSpans,
) -> Result<(Vec<u32>, Vec<bool>)> {
    let tokens = tokenizer.encode_with_offsets(&spoken.text)?;
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    tokenizer.check_bos(&ids)?;
    let mut trained = vec![false; ids.len()];
    for span in &spoken.spans {
        // Offsets rise, so the tokens that lie in the span, in whole or in part, are neighbours.
        let from = tokens.partition_point(|(_, bytes)| bytes.end <= span.start);
        let to = tokens.partition_point(|(_, bytes)| bytes.start < span.end);
        let end = match spoken.marked {
            true => to,
            false => end_of_turn(tokenizer, &ids, from..to)?,
        };
        trained[from..end.max(from)].fill(true);
    }
    Ok((ids, trained))
}

/// End of a turn's tokens without the white space that the template writes after its last special token: generation
/// stops before it.
fn end_of_turn(tokenizer: &Tokenizer, ids: &[u32], turn: Range<usize>) -> Result<usize> {
    let last = ids[turn.clone()]
        .iter()
        .rposition(|&id| tokenizer.is_special(id));
    let Some(last) = last else {
        return Ok(turn.end);
    };
    let end = turn.start + last + 1;
    let rest = tokenizer.decode(&ids[end..turn.end], false)?;
    Ok(if rest.trim().is_empty() {
        end
    } else {
        turn.end
    })
}

pub(super) fn ends_with_stop(tokenizer: &Tokenizer, ids: &[u32]) -> bool {
    ids.last()
        .is_some_and(|id| tokenizer.stop_ids().contains(id))
}

pub(super) fn end_with_eos(ids: &mut Vec<u32>, tokenizer: &Tokenizer, append: bool) {
    if append && ids.last() != Some(&tokenizer.eos_id()) {
        ids.push(tokenizer.eos_id());
    }
}
