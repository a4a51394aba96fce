//! A byte-level BPE whose ids are the bytes themselves, plus two merges and four special tokens.

use serde_json::{Map, Value, json};

use super::*;

/// First id after the 256 bytes: the merge `h` + `i`.
pub(crate) const HI: u32 = 256;
/// The merge `\n` + `\n`.
pub(crate) const NN: u32 = 257;
/// `<s>`
pub(crate) const BOS: u32 = 258;
/// `</s>`
pub(crate) const EOS: u32 = 259;
/// `<|im_start|>`
pub(crate) const IM_START: u32 = 260;
/// `<|im_end|>`
pub(crate) const IM_END: u32 = 261;

/// ChatML in the usual spelling, without a default system message.
pub(crate) const CHATML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n{%- endif %}\n";

/// The visible characters that byte-level BPE writes for the 256 bytes.
fn byte_chars() -> Vec<char> {
    let mut next = 256u32;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect()
}

/// `tokenizer.json` of the toy; with `bos`, its post-processor puts `<s>` first.
pub(crate) fn tokenizer_json(bos: bool) -> Vec<u8> {
    let chars = byte_chars();
    let mut vocab = Map::new();
    for (id, c) in chars.iter().enumerate() {
        vocab.insert(c.to_string(), json!(id));
    }
    let newline = chars[10];
    vocab.insert("hi".into(), json!(HI));
    vocab.insert(format!("{newline}{newline}"), json!(NN));
    let specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = specials
        .iter()
        .zip(BOS..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let post = bos.then(|| {
        json!({"type": "TemplateProcessing",
               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": post, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": ["h i", format!("{newline} {newline}")]},
    })
    .to_string()
    .into_bytes()
}

/// The toy's files.
pub(crate) fn files(bos: bool, chat: Option<&str>) -> BTreeMap<String, Vec<u8>> {
    let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "chat_template": chat});
    BTreeMap::from([
        ("tokenizer.json".to_owned(), tokenizer_json(bos)),
        (
            "tokenizer_config.json".to_owned(),
            config.to_string().into_bytes(),
        ),
        (
            "generation_config.json".to_owned(),
            br#"{"eos_token_id": [259, 261]}"#.to_vec(),
        ),
    ])
}

/// The toy.
pub(crate) fn tokenizer(bos: bool, chat: Option<&str>) -> Tokenizer {
    Tokenizer::from_files(files(bos, chat), Path::new("toy")).unwrap()
}
