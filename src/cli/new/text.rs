//! The text of a new recipe.

use std::path::{Path, PathBuf};

use super::NewKind;
use super::lengths::Lengths;

/// Reductions of memory, from none on, until the plan fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    micro_batch_tokens: usize,
    gradient_checkpointing: bool,
    base_precision: Option<&'static str>,
}

impl Fit {
    /// What to try, what costs least first.
    pub(super) fn in_order() -> impl Iterator<Item = Self> {
        let plain = Self {
            micro_batch_tokens: 4096,
            gradient_checkpointing: false,
            base_precision: None,
        };
        let short = Self {
            micro_batch_tokens: 1024,
            ..plain
        };
        let recomputed = Self {
            gradient_checkpointing: true,
            ..short
        };
        let reduced = |precision| Self {
            base_precision: Some(precision),
            ..recomputed
        };
        let all = [
            plain,
            short,
            recomputed,
            reduced("bf16"),
            reduced("int8"),
            reduced("nf4"),
        ];
        all.into_iter()
    }
}

/// A data set, looked at.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// As the user named it.
    pub(super) path: PathBuf,
    /// Whether its texts are messages for the model's chat template.
    pub(super) chat: bool,
    /// Lengths of its rows.
    pub(super) lengths: Lengths,
    /// Whether there are rows enough to hold some out.
    pub(super) holds_out: bool,
}

impl Layout {
    /// The data set under its name.
    fn named(&self, name: &str) -> String {
        let source = quoted(&self.path);
        let chat = match self.chat {
            true => ", format: (chat: true)",
            false => "",
        };
        let held_out = match self.holds_out {
            true => ", valid_fraction: 0.05",
            false => "",
        };
        format!("        \"{name}\": (source: {source}{chat}{held_out}),\n")
    }

    /// The key with the rows to measure on, if any are held out; `more` goes behind the source.
    fn eval_data(&self, name: &str, more: &str) -> String {
        match self.holds_out {
            true => format!("            eval_data: (source: HeldOut(\"{name}\"){more}),\n"),
            false => String::new(),
        }
    }

    /// What is said of the limit.
    fn limit_comment(&self) -> String {
        let rows = self.lengths.count();
        match self.lengths.cut() {
            0 => format!("// the longest of the first {rows} rows fits"),
            cut => format!(
                "// cuts {cut} of the first {rows} rows, which are much longer than the others"
            ),
        }
    }
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish<'a> {
    pub(super) kind: NewKind,
    pub(super) name: &'a str,
    pub(super) model: &'a str,
    pub(super) data: Layout,
    pub(super) preferences: Option<Layout>,
    pub(super) file: &'a Path,
}

/// The recipe.
pub(super) fn recipe_text(wish: &Wish<'_>, fit: Fit) -> String {
    let mut text = format!(
        "// Written by `temper new`. Every key is explained in docs/recipes.md.\n\
         //\n\
         // Check:    temper recipe {file} --dry-run\n\
         // Look:     temper inspect {file}\n\
         // Run:      temper recipe {file}\n\
         (\n    name: \"{name}\",\n    model: {model},\n",
        file = wish.file.display(),
        name = wish.name,
        model = quoted(Path::new(wish.model)),
    );
    if let Some(precision) = fit.base_precision {
        text.push_str(&format!(
            "    base_precision: {precision},           // the base in fewer bits, so that the run fits into memory\n"
        ));
    }
    text.push_str(match wish.data.holds_out {
        true => "    // 5 % of the rows are held out to measure on; which ones depends on their contents alone.\n",
        false => "    // So few rows are all trained on; with a hundred different prompts, some would be held out to measure on.\n",
    });
    text.push_str("    data: {\n");
    text.push_str(&wish.data.named("data"));
    if let Some(preferences) = &wish.preferences {
        text.push_str(&preferences.named("preferences"));
    }
    text.push_str("    },\n    stages: [\n");
    match wish.kind {
        NewKind::Sft => text.push_str(&sft(wish, fit)),
        NewKind::Dpo => text.push_str(&dpo(wish, fit)),
        NewKind::Kto => text.push_str(&kto(wish, fit)),
        NewKind::Reward => text.push_str(&reward(&wish.data, "data", "Base", fit)),
        NewKind::Pipeline => {
            text.push_str(&sft(wish, fit));
            if let Some(preferences) = &wish.preferences {
                text.push_str(&reward(preferences, "preferences", "Stage(\"sft\")", fit));
            }
            text.push_str(&ppo(wish, fit));
        }
    }
    text.push_str("    ],\n)\n");
    text
}

/// Rows of a step: few rows make many small steps.
fn batch_size(rows: usize) -> usize {
    match rows {
        0..400 => 4,
        400..2_000 => 8,
        _ => 16,
    }
}

/// Passes over the data: a small set is read more often.
fn epochs(rows: usize) -> usize {
    match rows {
        0..1_000 => 3,
        1_000..2_000 => 2,
        _ => 1,
    }
}

const LORA: &str = r#"peft: Lora(rank: 16, alpha: 32.0, target_modules: ["all-linear"]),   // `Full` trains every weight"#;

/// The keys that bound memory and say how often to measure and save.
fn ending(layout: &Layout, fit: Fit) -> String {
    let Fit {
        micro_batch_tokens,
        gradient_checkpointing,
        ..
    } = fit;
    let (rows, limit) = (layout.lengths.count(), layout.lengths.limit());
    let (epochs, batch_size) = (epochs(rows), batch_size(rows));
    let micro_batch_tokens = micro_batch_tokens.max(limit);
    let limit_comment = layout.limit_comment();
    let checkpointing = match gradient_checkpointing {
        true => {
            "\n            gradient_checkpointing: true,          // less memory, about half more time"
        }
        false => "",
    };
    format!(
        r#"            epochs: {epochs},
            batch_size: {batch_size},                         // rows of an optimiser step
            micro_batch_tokens: {micro_batch_tokens},              // tokens that pass through the model at once; lower it to save memory{checkpointing}
            max_length: {limit},                       {limit_comment}
            cadence: (eval_steps: 50, save_steps: 50),
        ),
"#
    )
}

fn sft(wish: &Wish<'_>, fit: Fit) -> String {
    let (eval_data, ending) = (wish.data.eval_data("data", ""), ending(&wish.data, fit));
    format!(
        r#"        Sft(
            name: "sft",
            data: (source: Data("data")),
{eval_data}            {LORA}
            optim: (lr: 2e-4, schedule: Cosine(warmup_ratio: 0.03)),
{ending}"#
    )
}

fn dpo(wish: &Wish<'_>, fit: Fit) -> String {
    let (eval_data, ending) = (wish.data.eval_data("data", ""), ending(&wish.data, fit));
    format!(
        r#"        Dpo(
            name: "dpo",
            init: Base,
            data: (source: Data("data")),
{eval_data}            {LORA}
            beta: 0.1,                             // how near to the reference the policy stays; higher is nearer
            optim: (lr: 2e-5, schedule: Linear(warmup_ratio: 0.1)),
{ending}"#
    )
}

fn kto(wish: &Wish<'_>, fit: Fit) -> String {
    let (eval_data, ending) = (wish.data.eval_data("data", ""), ending(&wish.data, fit));
    format!(
        r#"        Kto(
            name: "kto",
            init: Base,
            data: (source: Data("data")),
{eval_data}            {LORA}
            beta: 0.1,                             // how near to the reference the policy stays; higher is nearer
            optim: (lr: 2e-5, schedule: Linear(warmup_ratio: 0.1)),
{ending}"#
    )
}

fn reward(layout: &Layout, data: &str, init: &str, fit: Fit) -> String {
    let (eval_data, ending) = (layout.eval_data(data, ""), ending(layout, fit));
    format!(
        r#"        RewardModel(
            name: "rm",
            init: {init},
            data: (source: Data("{data}")),
{eval_data}            {LORA}
            optim: (lr: 1e-4, schedule: Linear(warmup_ratio: 0.05)),
{ending}"#
    )
}

fn ppo(wish: &Wish<'_>, fit: Fit) -> String {
    let lengths = &wish.data.lengths;
    let response = lengths.response.next_multiple_of(16).clamp(16, 256);
    let left = lengths.limit().saturating_sub(response).max(16);
    let prompt = left.min(lengths.prompt.max(16));
    let micro_batch_tokens = fit.micro_batch_tokens.max(lengths.limit());
    let checkpointing = match fit.gradient_checkpointing {
        true => "\n            gradient_checkpointing: true,",
        false => "",
    };
    let eval_data = wish.data.eval_data("data", ", limit: 32");
    let compared = match wish.data.holds_out {
        true => r#"HeldOut("data")"#,
        false => r#"Data("data")"#,
    };
    format!(
        r#"        Ppo(
            name: "ppo",
            init: Stage("sft"),
            data: (source: Data("data")),
{eval_data}            reward: Learned(stage: "rm"),
            {LORA}
            optim: (lr: 2e-5, schedule: Constant()),
            total_episodes: 2048,
            batch_size: 32,
            response_length: {response},                   // most tokens of a response
            max_prompt_length: {prompt},
            kl_coef: 0.05,                         // the leash: higher stays nearer to `sft`
            missing_eos: Subtract(1.0),            // a response that does not end costs this much
            micro_batch_tokens: {micro_batch_tokens},{checkpointing}
            cadence: (eval_steps: 8, save_steps: 8),
        ),
        Compare(
            name: "compare",
            data: (source: {compared}, limit: 100),
            policies: [Base, Stage("sft"), Stage("ppo")],
            reference: Stage("sft"),
            rewards: {{"reward": Learned(stage: "rm")}},
            response_length: {response},
            max_prompt_length: {prompt},
            sampling: (temperature: 0.0),
        ),
"#
    )
}

/// A path as a RON string.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}
