//! Encodes a policy's response for a reward model with another tokenizer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::sequence::{PromptCompletion, encode_chat, shared_len};
use crate::data::{ChatOptions, Tokenizer};
use crate::error::Result;

/// The conversation that a prompt was rendered from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its messages.
    pub messages: Vec<Value>,
    /// The template's inputs beside the messages.
    pub options: ChatOptions,
}

/// Token ids of prompt and response in the form that a reward model with `tokenizer` was trained on; conversations are rendered
/// by its chat template. EOS is appended only if the response has `ended`.
///
/// # Errors
/// For a conversation where `tokenizer` has no chat template; as [`Tokenizer::encode`].
pub fn encode_for_reward_model(
    tokenizer: &Tokenizer,
    prompt: &str,
    conversation: Option<&Arc<Conversation>>,
    response: &str,
    ended: bool,
) -> Result<Vec<u32>> {
    encode_judged(tokenizer, prompt, conversation, response, ended).map(|(ids, _)| ids)
}

/// As [`encode_for_reward_model`], with the number of tokens before the response.
///
/// # Errors
/// As [`encode_for_reward_model`].
pub fn encode_judged(
    tokenizer: &Tokenizer,
    prompt: &str,
    conversation: Option<&Arc<Conversation>>,
    response: &str,
    ended: bool,
) -> Result<(Vec<u32>, usize)> {
    let Some(conversation) = conversation else {
        if !ended {
            let prompt_ids = tokenizer.encode_start(prompt)?;
            let ids = tokenizer.encode_start(&format!("{prompt}{response}"))?;
            let prompt_len = shared_len(&prompt_ids, &ids);
            return Ok((ids, prompt_len));
        }
        let joint = PromptCompletion::of_text(tokenizer, prompt, response, true)?;
        return Ok((joint.ids, joint.prompt_len));
    };
    let Conversation { messages, options } = conversation.as_ref();
    if !ended {
        let opened = options.with_generation_prompt(true);
        let prompt = tokenizer.chat()?.render(messages, &opened)?;
        let prompt_ids = encode_chat(tokenizer, &prompt)?;
        let ids = encode_chat(tokenizer, &format!("{prompt}{response}"))?;
        let prompt_len = shared_len(&prompt_ids, &ids);
        return Ok((ids, prompt_len));
    }
    let answer = [json!({"role": "assistant", "content": response})];
    let joint = PromptCompletion::of_messages(tokenizer, options, messages, &answer)?;
    Ok((joint.ids, joint.prompt_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing::{self, BOS, CHATML, EOS, IM_END, IM_START};

    #[test]
    fn text_gets_the_readers_own_bos_and_eos() {
        let tokenizer = testing::tokenizer(true, None);
        let read = |ended| encode_for_reward_model(&tokenizer, "a", None, "b", ended).unwrap();
        assert_eq!(read(true), [BOS, 97, 98, EOS]);
        assert_eq!(read(false), [BOS, 97, 98]);
    }

    #[test]
    fn a_conversation_is_rendered_by_the_readers_own_template() {
        let tokenizer = testing::tokenizer(false, Some(CHATML));
        let conversation = Arc::new(Conversation {
            messages: vec![json!({"role": "user", "content": "a"})],
            options: ChatOptions::default(),
        });
        let read = |ended| {
            encode_for_reward_model(&tokenizer, "unread", Some(&conversation), "b", ended).unwrap()
        };
        let whole = read(true);
        assert_eq!((whole[0], whole.last()), (IM_START, Some(&IM_END)));
        assert_eq!(whole[whole.len() - 2], 98);
        // A response that was cut off is followed by nothing.
        assert_eq!(read(false), whole[..whole.len() - 1]);
        let without = testing::tokenizer(false, None);
        let error =
            encode_for_reward_model(&without, "a", Some(&conversation), "b", true).unwrap_err();
        assert!(error.to_string().contains("no chat template"), "{error}");
    }
}
