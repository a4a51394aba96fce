//! Speed of sampling, prompts included, for `benches/compare.sh`: new tokens per second, the best of three, and the time
//! from the start of the program to the beginning of the first.
//!
//! `cargo run --release --example generation_speed MODEL ROWS.jsonl BATCH NEW_TOKENS
//! f32|bf16|int8|nf4|stored f32|bf16`: how the base is kept, and how it is multiplied; rows have a `prompt`. No response ends early.

#![allow(clippy::print_stdout, reason = "the results go to stdout")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn::backend::Flex;

use tempering::data::{DataConfig, DataContext, DataSource, Tokenizer, encode_prompts, read_rows};
use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{Fetch, Finder, LanguageModel, ModelConfig, weights};
use tempering::ops::Numerics;
use tempering::rng::Seed;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tempering::start::keep_freed_memory();
    tempering::start::in_pool(None, run)?
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let start = Instant::now();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, rows, batch, new_tokens, storage, matmul] = args.as_slice() else {
        return Err(
            "usage: generation_speed MODEL ROWS.jsonl BATCH NEW_TOKENS BASE PRODUCTS".into(),
        );
    };
    let numerics = Numerics {
        storage: serde_json::from_value(storage.as_str().into())?,
        matmul: serde_json::from_value(matmul.as_str().into())?,
    };
    let (batch, max_new_tokens) = (batch.parse()?, new_tokens.parse()?);
    let device = Default::default();
    let files = Finder::new(Fetch::All).files(name)?;
    let config = ModelConfig::load(&files.weights)?;
    let source = weights::open(&files.weights)?;
    let model = LanguageModel::<Flex>::load_as(&config, source.as_ref(), numerics, &device)?;
    let data = DataConfig {
        limit: Some(batch),
        ..DataConfig::of(DataSource::Jsonl(PathBuf::from(rows)))
    };
    let rows = read_rows(&data, &DataContext::default())?;
    let tokenizer = Tokenizer::load(&files.dir)?;
    let prompts = encode_prompts(&rows, &tokenizer, &data.format, usize::MAX)?.items;
    let prompts: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
    let options = GenerateOptions {
        max_new_tokens,
        sampling: SamplingConfig::default(),
        repetition_penalty: 1.0,
        stop_ids: Vec::new(),
        truncate: None,
        batch_size: batch,
    };
    let first = start.elapsed().as_secs_f64();
    let mut best = f64::INFINITY;
    for run in 0..3 {
        let begin = Instant::now();
        generate(
            &model,
            &prompts,
            &options,
            Seed::new(run),
            &device,
            &mut |_, _| {},
        );
        best = best.min(begin.elapsed().as_secs_f64());
    }
    println!(
        "RATE {:.1} FIRST {first:.1}",
        (batch * max_new_tokens) as f64 / best
    );
    Ok(())
}
