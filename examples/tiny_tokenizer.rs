//! Writes the tokenizer and configuration of `models/tiny`: a byte-level BPE of 768 tokens learnt from the embedded
//! posts, and a llama of 0.82 million parameters. The weights come from `recipes/tiny-pretrain.ron`.
//!
//! Run from the project's root: `cargo run --release --example tiny_tokenizer [folder]`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempering::data::posts::posts;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// The only special token: ends a text, and is id 0.
const EOS: &str = "<|endoftext|>";
/// A multiple of 64 just below the 796 at which the posts hold no further merge.
const VOCAB: usize = 768;
/// Rows that the merges are learnt from; no stage of a recipe uses their seed.
const ROWS: usize = 20_000;
const SEED: u64 = 1_000_003;

fn main() -> tokenizers::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("models/tiny"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;

    let texts: Vec<String> = posts(SEED, ROWS)
        .iter()
        .filter_map(|row| Some(row.get("text")?.as_str()?.to_string()))
        .collect();
    let tokenizer = train(&texts)?;
    for text in texts.iter().take(1000).chain(&hard_texts()) {
        let ids = tokenizer.encode(text.as_str(), false)?;
        let back = tokenizer.decode(ids.get_ids(), false)?;
        if &back != text {
            return Err(format!("{text:?} comes back as {back:?}").into());
        }
    }
    if tokenizer.get_vocab_size(true) != VOCAB || tokenizer.token_to_id(EOS) != Some(0) {
        let found = tokenizer.get_vocab_size(true);
        return Err(format!("expected {VOCAB} tokens and {EOS} first, got {found} tokens").into());
    }
    tokenizer.save(folder.join("tokenizer.json"), true)?;
    write(&folder.join("tokenizer_config.json"), &tokenizer_config())?;
    write(&folder.join("config.json"), &model_config())?;
    write(&folder.join("generation_config.json"), &generation_config())?;
    Ok(())
}

fn train(texts: &[String]) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    // No prefix space: a text decodes to exactly itself.
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level));
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(VOCAB)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(EOS, true)])
            .build(),
    );
    tokenizer.train(&mut trainer, texts.iter().map(String::as_str))?;
    Ok(tokenizer)
}

/// Texts that no post holds, which must come back byte for byte all the same.
fn hard_texts() -> Vec<String> {
    [
        "",
        " two  blanks ",
        "tab\tline\r\n\n",
        "na\u{ef}ve \u{1f600} \u{4f60}\u{597d} 'll 12345",
    ]
    .map(String::from)
    .to_vec()
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
    })
}

/// Parameters: 768 * 128 embeddings (tied), 4 layers of 128 * (128 + 64 + 64 + 128) + 3 * 128 * 344 + 256, norm 128.
fn model_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.08,
        "intermediate_size": 344,
        "max_position_embeddings": 512,
        "mlp_bias": false,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": VOCAB,
    })
}

fn generation_config() -> Value {
    json!({
        "bos_token_id": 0,
        "eos_token_id": 0,
        "do_sample": true,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    })
}

fn write(path: &Path, value: &Value) -> tokenizers::Result<()> {
    std::fs::write(path, format!("{value:#}\n"))?;
    Ok(())
}
