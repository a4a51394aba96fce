//! Prompt and completion as one sequence of token ids: where the one ends, and where a turn does.

use std::ops::Range;

use serde_json::Value;

use crate::data::rows::Row;
use crate::data::{AssistantSpans, ChatOptions, Tokenizer, check_ids};
use crate::error::Result;

/// Prompt and completion as one sequence.
pub(super) struct Joint {
    pub(super) ids: Vec<u32>,
    pub(super) prompt_len: usize,
    /// A token spans the end of the prompt.
    pub(super) merged: bool,
    /// What the prompt ends with when a response is asked for, where the template leaves it out before the completion.
    pub(super) opening: Option<String>,
    /// An EOS is due at the end.
    pub(super) should_end: bool,
}

impl Joint {
    /// Both as one text, with what the tokenizer puts around a text. An empty completion is a prompt that goes on.
    pub(super) fn of_text(
        tokenizer: &Tokenizer,
        prompt: &str,
        completion: &str,
        append_eos: bool,
    ) -> Result<Self> {
        let prompt_ids = tokenizer.encode_start(prompt)?;
        let text = format!("{prompt}{completion}");
        let mut ids = match completion.is_empty() {
            true => tokenizer.encode_start(&text)?,
            false => tokenizer.encode_document(&text)?,
        };
        let prompt_len = shared_len(&prompt_ids, &ids);
        end_with_eos(&mut ids, tokenizer, append_eos);
        Ok(Self {
            ids,
            prompt_len,
            merged: prompt_len < prompt_ids.len(),
            opening: None,
            should_end: append_eos,
        })
    }

    /// Both as one conversation. The completion starts where the tokens of the prompt, rendered for a response, and those
    /// of the whole conversation part, as in TRL: some templates end a prompt with what a finished turn lacks (`<think>`).
    pub(super) fn of_messages(
        tokenizer: &Tokenizer,
        options: &ChatOptions,
        prompt: &[Value],
        completion: &[Value],
    ) -> Result<Self> {
        let chat = tokenizer.chat()?;
        let prompt_text = chat.render(prompt, &options.with_generation_prompt(true))?;
        let messages = [prompt, completion].concat();
        let text = chat.render(&messages, options)?;
        let prompt_ids = encode_chat(tokenizer, &prompt_text)?;
        let mut ids = encode_chat(tokenizer, &text)?;
        let prompt_len = shared_len(&prompt_ids, &ids);
        let end = end_of_turn(tokenizer, &ids, prompt_len..ids.len())?;
        ids.truncate(end);
        let starts = text.starts_with(&prompt_text);
        Ok(Self {
            ids,
            prompt_len,
            merged: starts && prompt_len < prompt_ids.len(),
            opening: match starts {
                true => None,
                false => Some(tokenizer.decode(&prompt_ids[prompt_len..], false)?),
            },
            should_end: true,
        })
    }

    pub(super) fn lacks_eos(&self, tokenizer: &Tokenizer) -> bool {
        self.should_end && !ends_with_stop(tokenizer, &self.ids)
    }
}

/// Tokens at the start that both have.
fn shared_len(prompt_ids: &[u32], ids: &[u32]) -> usize {
    let pairs = prompt_ids.iter().zip(ids);
    pairs.take_while(|(a, b)| a == b).count()
}

/// Tokens of a rendered conversation: the template has written the special tokens itself.
pub(super) fn encode_chat(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, false)?;
    tokenizer.check_bos(&ids)?;
    Ok(ids)
}

/// A conversation as tokens.
pub(super) struct Spoken {
    pub(super) ids: Vec<u32>,
    /// Which tokens hold something that the assistant wrote.
    pub(super) trained: Vec<bool>,
    /// As of [`Joint`]: of the first turn that has it.
    pub(super) opening: Option<String>,
}

/// Tokens of a conversation, and which of them hold something that the assistant wrote.
///
/// Where the template marks its turns the marks are followed to the letter, as transformers' `assistant_masks` does.
/// (It leaves out a span's last bytes where its last character has several tokens; here they are in.) Otherwise a turn
/// ends with its end-of-turn token, without the white space that the template writes after it.
pub(super) fn encode_spans(tokenizer: &Tokenizer, spoken: &AssistantSpans) -> Result<Spoken> {
    let tokens = tokenizer.encode_with_offsets(&spoken.text)?;
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    tokenizer.check_bos(&ids)?;
    let mut trained = vec![false; ids.len()];
    let mut opening = None;
    for (index, span) in spoken.spans.iter().enumerate() {
        // Offsets rise, so the tokens that lie in the span, in whole or in part, are neighbours.
        let mut from = tokens.partition_point(|(_, bytes)| bytes.end <= span.start);
        let to = tokens.partition_point(|(_, bytes)| bytes.start < span.end);
        if let Some(prompt) = spoken.prompts.get(&index) {
            let prompt_ids = encode_chat(tokenizer, prompt)?;
            from = shared_len(&prompt_ids, &ids);
            if opening.is_none() {
                opening = Some(tokenizer.decode(&prompt_ids[from..], false)?);
            }
        }
        let end = match spoken.marked {
            true => to,
            false => end_of_turn(tokenizer, &ids, from..to)?,
        };
        trained[from..end.max(from)].fill(true);
    }
    Ok(Spoken {
        ids,
        trained,
        opening,
    })
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

/// Refuses ids of a row that the model has no embedding for. (One with a padded vocabulary may have answered with ids that no
/// token has.)
pub(super) fn check_row_ids(row: &Row, tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    match tokenizer.embeddings() {
        Some(rows) => check_ids(ids, rows).map_err(|message| row.error(message)),
        None => Ok(()),
    }
}

/// The last token of a conversation, if it is a special one at which generation does not stop.
pub(super) fn no_stop(tokenizer: &Tokenizer, last: Option<&u32>) -> Option<u32> {
    last.copied()
        .filter(|&id| tokenizer.is_special(id) && !tokenizer.stop_ids().contains(&id))
}

/// A conversation without the white space that the template writes after its last special token.
pub(super) fn turn_end<'a>(tokenizer: &Tokenizer, ids: &'a [u32]) -> Result<Option<&'a u32>> {
    let end = end_of_turn(tokenizer, ids, 0..ids.len())?;
    Ok(ids[..end].last())
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
