#![doc = "Supervised fine-tuning from Rust: a recipe in the program, on rows of a file if one is named."]
#![allow(clippy::print_stdout, reason = "the results go to stdout")]

use std::path::Path;

use burn::backend::Flex;
use tempering::error::Result;
use tempering::recipe::{self, RunOptions};
use tempering::report::{Interrupt, ReporterKind, reporter};

fn main() -> Result<()> {
    let data = match std::env::args().nth(1) {
        Some(file) => format!("{file:?}"),
        None => "(source: Posts(rows: 64, seed: 1))".into(),
    };
    let text = format!(
        "(name: \"from-rust\", model: \"tiny\", stages: [
            Sft(name: \"sft\", data: {data}, peft: Lora(rank: 8), optim: (lr: 1e-3), batch_size: 8, max_steps: 8),
        ])"
    );
    let options = RunOptions {
        fetch: true,
        ..RunOptions::default()
    };
    // All problems of recipe, data and model are found here, before a weight is loaded.
    let checked = recipe::check(
        recipe::load_text(Path::new("sft.ron"), &text, &[])?,
        &options,
    )?;
    println!("{}", recipe::table(&checked.plans, None));
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
