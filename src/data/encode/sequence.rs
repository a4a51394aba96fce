//! Prompt and completion as one sequence of token ids, with the ends of prompt and turns.

use std::ops::Range;

use serde_json::Value;

use crate::data::rows::Row;
use crate::data::{AssistantSpans, ChatOptions, Tokenizer, check_ids};
use crate::error::Result;

/// Prompt and completion as one sequence.
pub(super) struct PromptCompletion {
    pub(super) ids: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Whether a token spans the end of the prompt.
    pub(super) merged: bool,
    /// End of the prompt with the generation prompt, where the whole conversation lacks it.
    pub(super) opening: Option<String>,
    /// Whether the sequence should end with EOS.
    pub(super) should_end: bool,
}

impl PromptCompletion {
    /// Encodes both as one text, with the tokenizer's special tokens around it. With an empty completion nothing is added after the
    /// prompt.
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

    /// Encodes both as one conversation. As in TRL, the completion starts where the tokens of the prompt with the generation prompt
    /// diverge from those of the whole conversation: some templates end a prompt with text that a finished turn lacks (`<think>`).
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

/// Length of the common prefix.
pub(super) fn shared_len(prompt_ids: &[u32], ids: &[u32]) -> usize {
    let pairs = prompt_ids.iter().zip(ids);
    pairs.take_while(|(a, b)| a == b).count()
}

/// Token ids of a rendered conversation, without special tokens added: the template has written them.
pub(super) fn encode_chat(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, false)?;
    tokenizer.check_bos(&ids)?;
    Ok(ids)
}

/// An encoded conversation.
pub(super) struct ConversationTokens {
    pub(super) ids: Vec<u32>,
    /// Whether each token overlaps a span of the assistant.
    pub(super) trained: Vec<bool>,
    /// As in [`PromptCompletion`], for the first turn that has it.
    pub(super) opening: Option<String>,
}

/// Encodes a conversation and marks the assistant's tokens.
///
/// Spans marked by the template are followed exactly, as by transformers' `assistant_masks`. (That omits a span's last bytes if
/// its last character has several tokens; here they are included.) Otherwise a turn ends with its end-of-turn token, without the
/// white space after it.
pub(super) fn encode_spans(
    tokenizer: &Tokenizer,
    spoken: &AssistantSpans,
) -> Result<ConversationTokens> {
    let tokens = tokenizer.encode_with_offsets(&spoken.text)?;
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    tokenizer.check_bos(&ids)?;
    let mut trained = vec![false; ids.len()];
    let mut opening = None;
    for (index, span) in spoken.spans.iter().enumerate() {
        // Offsets are ascending, so the tokens that overlap the span are contiguous.
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
    Ok(ConversationTokens {
        ids,
        trained,
        opening,
    })
}

/// End of a turn without the white space after its last special token: generation stops before it.
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

/// Refuses ids of a row without an embedding. (Ids without a token are allowed: a model with a padded vocabulary may have
/// generated them.)
pub(super) fn check_row_ids(row: &Row, tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    match tokenizer.embeddings() {
        Some(rows) => check_ids(ids, rows).map_err(|message| row.error(message)),
        None => Ok(()),
    }
}

/// The last token of a conversation, if it is special but not a stop token.
pub(super) fn no_stop(tokenizer: &Tokenizer, last: Option<&u32>) -> Option<u32> {
    last.copied()
        .filter(|&id| tokenizer.is_special(id) && !tokenizer.stop_ids().contains(&id))
}

/// The last token of a conversation, ignoring white space after its last special token.
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
