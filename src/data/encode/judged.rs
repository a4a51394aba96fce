//! A response as a model reads it that did not draw it: the text, in its own tokens.

use std::sync::Arc;

use serde_json::{Value, json};

use super::sequence::{Joint, encode_chat};
use crate::data::{ChatOptions, Tokenizer};
use crate::error::Result;

/// The conversation that a prompt was rendered from.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Its messages.
    pub messages: Vec<Value>,
    /// What the template was given beside them.
    pub options: ChatOptions,
}

/// Token ids of prompt and response: as a reward model that was trained with `tokenizer` has seen them, by its chat
/// template where the prompt is a conversation. The end is marked only where the response has `ended`.
///
/// # Errors
/// For a conversation where `tokenizer` has no chat template; as [`Tokenizer::encode`].
pub fn encode_judged(
    tokenizer: &Tokenizer,
    prompt: &str,
    conversation: Option<&Arc<Conversation>>,
    response: &str,
    ended: bool,
) -> Result<Vec<u32>> {
    let Some(conversation) = conversation else {
        if !ended {
            return tokenizer.encode_start(&format!("{prompt}{response}"));
        }
        return Ok(Joint::of_text(tokenizer, prompt, response, true)?.ids);
    };
    let Conversation { messages, options } = conversation.as_ref();
    if !ended {
        let opened = options.with_generation_prompt(true);
        let prompt = tokenizer.chat()?.render(messages, &opened)?;
        return encode_chat(tokenizer, &format!("{prompt}{response}"));
    }
    let answer = [json!({"role": "assistant", "content": response})];
    let joint = Joint::of_messages(tokenizer, options, messages, &answer)?;
    Ok(joint.ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing::{self, BOS, CHATML, EOS, IM_END, IM_START};

    #[test]
    fn text_gets_the_readers_own_bos_and_eos() {
        let tokenizer = testing::tokenizer(true, None);
        let read = |ended| encode_judged(&tokenizer, "a", None, "b", ended).unwrap();
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
        let read =
            |ended| encode_judged(&tokenizer, "unread", Some(&conversation), "b", ended).unwrap();
        let whole = read(true);
        assert_eq!((whole[0], whole.last()), (IM_START, Some(&IM_END)));
        assert_eq!(whole[whole.len() - 2], 98);
        // A response that was cut off is followed by nothing.
        assert_eq!(read(false), whole[..whole.len() - 1]);
        let without = testing::tokenizer(false, None);
        let error = encode_judged(&without, "a", Some(&conversation), "b", true).unwrap_err();
        assert!(error.to_string().contains("no chat template"), "{error}");
    }
}
