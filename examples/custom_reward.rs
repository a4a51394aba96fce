#![doc = "PPO from Rust against a reward source of the program: short responses that name no number."]
#![allow(clippy::print_stdout, reason = "the results go to stdout")]

use std::path::Path;

use burn::backend::Flex;
use tempering::error::Result;
use tempering::recipe::{self, RunOptions};
use tempering::report::{Interrupt, ReporterKind, reporter};
use tempering::reward::{Completion, CustomRewards};

/// 1 for a response without digits, and a tenth less for each word over eight.
fn score(completion: &Completion) -> f32 {
    let words = completion.response.split_whitespace().count();
    let no_digits = !completion.response.contains(|c: char| c.is_ascii_digit());
    f32::from(no_digits) - 0.1 * words.saturating_sub(8) as f32
}

fn main() -> Result<()> {
    let text = "(name: \"custom-reward\", model: \"tiny\", stages: [
        Ppo(
            name: \"ppo\",
            init: Base,
            data: (source: Posts(rows: 64, seed: 1)),
            reward: Custom(name: \"brief\"),
            peft: Lora(rank: 8),
            optim: (lr: 1e-3),
            total_episodes: 64,
            batch_size: 16,
            response_length: 16,
        ),
    ])";
    let options = RunOptions {
        rewards: CustomRewards::default().with("brief", || {
            |completions: &[Completion]| Ok(completions.iter().map(score).collect())
        }),
        ..RunOptions::default()
    };
    let checked = recipe::check(
        recipe::load_text(Path::new("custom_reward.ron"), text, &[])?,
        &options,
    )?;
    let mut shown = reporter(ReporterKind::Auto, &Interrupt::default())?;
    for (stage, outcome) in recipe::run::<Flex>(
        &checked,
        &options,
        Default::default(),
        "flex",
        shown.as_mut(),
    )? {
        println!(
            "{stage}: {} ({})",
            outcome.record.summary,
            checked.output.display()
        );
    }
    Ok(())
}
