//! Upper bounds of all whole numbers of a recipe, and the range of all others, in one place.
//!
//! A number beyond them is a slip of the keyboard or an attack: it is refused before anything is multiplied by it or allocated for it.
//! They are far above what is used in practice; whether a stage fits in memory is the plan's question.

use serde::Serialize;
use serde_json::Value;

use crate::error::Problem;

/// What a number may be at most, by key.
const LIMITS: [(&[&str], u64); 9] = [
    // Layers and steps of a method, not of training.
    (
        &[
            "encoder_num_layers",
            "ns_steps",
            "passes",
            "word_order",
            "max_rounds",
        ],
        1_000,
    ),
    (
        &[
            "concurrency",
            "max_retries",
            "retries",
            "top_logprobs",
            "highest",
            "num_revisions",
            "sub_outputs",
        ],
        1_000,
    ),
    // Widths.
    (
        &[
            "rank",
            "rank_pattern",
            "size",
            "num_virtual_tokens",
            "encoder_hidden_size",
            "num_ppo_epochs",
            "num_iterations",
            "iterations",
            "generation_batch_size",
        ],
        1 << 14,
    ),
    (
        &[
            "batch_size",
            "num_responses",
            "num_generations",
            "num_mini_batches",
            "num_samples",
            "epochs",
        ],
        1 << 16,
    ),
    // Rows that are made up, in memory.
    (&["rows"], 1_000_000),
    // Lengths of one row.
    (
        &[
            "response_length",
            "max_prompt_length",
            "critique_length",
            "max_tokens",
            "target",
            "beyond",
        ],
        1 << 24,
    ),
    // Bounds, which the rows themselves keep far below.
    (&["max_length", "micro_batch_tokens"], 1 << 28),
    // Of no cost: "never" and "all" are often written as a large number.
    (
        &[
            "skip",
            "limit",
            "eval_steps",
            "save_steps",
            "save_total_limit",
            "warmup_steps",
            "decay_steps",
            "timescale",
            "horizon",
            "after",
            "max_pairs",
        ],
        1 << 40,
    ),
    // Not sizes.
    (
        &["seed", "projection_prng_key", "alpha", "alpha_pattern"],
        u64::MAX,
    ),
];

/// What a number under any other key may be at most.
const OTHERS: u64 = 100_000_000;

/// Values of a key whose content is the user's own.
const FREE: [&str; 1] = ["chat_template_kwargs"];

/// A problem for every whole number of `settings` that is above its bound and every other one that 32-bit floats, in which is trained,
/// make infinite or 0, at its key path. Names of variants are no part of paths.
pub(crate) fn problems(settings: &impl Serialize) -> Vec<Problem> {
    let mut problems = Vec::new();
    match serde_json::to_value(settings) {
        Ok(value) => walk(&value, "", "", &mut problems),
        Err(error) => problems.push(Problem::new(
            "",
            format!("cannot be written as JSON: {error}"),
        )),
    }
    problems
}

/// `key` is the nearest key of a field above `value`.
fn walk(value: &Value, path: &str, key: &str, problems: &mut Vec<Problem>) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Number(number) => {
            let largest = largest(key);
            if let Some(found) = number.as_u64().filter(|found| *found > largest) {
                let message = format!("must be at most {largest}, found {found}");
                problems.push(Problem::new(path, message));
            } else if let Some(found) = number.as_f64().filter(|found| !fits_f32(*found)) {
                let message = format!(
                    "must fit a 32-bit float, 0 or a size from 1e-45 to 3.4e38, found {found:e}"
                );
                problems.push(Problem::new(path, message));
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                walk(value, &below(&index.to_string()), key, problems);
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                let is_variant =
                    map.len() == 1 && name.starts_with(|c: char| c.is_ascii_uppercase());
                if is_variant {
                    walk(value, path, key, problems);
                } else if !FREE.contains(&name.as_str()) {
                    // Entries of a map by pattern are numbers of the map's kind.
                    let key = match key.ends_with("_pattern") {
                        true => key,
                        false => name,
                    };
                    walk(value, &below(name), key, problems);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Whether a number stays finite, and no 0 if it is none, when it is rounded.
pub(crate) fn fits_f32(number: f64) -> bool {
    let rounded = number as f32;
    rounded.is_finite() && (rounded != 0.0 || number == 0.0)
}

fn largest(key: &str) -> u64 {
    let limit = LIMITS.iter().find(|(keys, _)| keys.contains(&key));
    limit.map_or(OTHERS, |(_, largest)| *largest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(value: Value) -> Vec<String> {
        problems(&value).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn numbers_are_bounded_by_their_keys() {
        for (value, expected) in [
            (
                json!({"Sft": {"data": {"source": {"Posts": {"rows": 1_000_000_000, "seed": u64::MAX}}}}}),
                &["data.source.rows: must be at most 1000000, found 1000000000"][..],
            ),
            (
                json!({"peft": {"Lora": {"rank": u64::MAX, "rank_pattern": {"q_proj": 1 << 30, "Wqkv": 4}}}}),
                &[
                    "peft.rank: must be at most 16384, found 18446744073709551615",
                    "peft.rank_pattern.q_proj: must be at most 16384, found 1073741824",
                ],
            ),
            (
                json!({"source": {"Mix": [[0.5, {"source": {"Posts": {"rows": 2, "seed": 1}}}], [0.5, {"source": {"Posts": {"rows": u64::MAX, "seed": 1}}}]]}}),
                &["source.1.1.source.rows: must be at most 1000000, found 18446744073709551615"],
            ),
            (
                json!({"a_key_of_tomorrow": 1_000_000_000, "format": {"chat_template_kwargs": {"id": u64::MAX}}}),
                &["a_key_of_tomorrow: must be at most 100000000, found 1000000000"],
            ),
            (
                json!({"optim": {"eps": 1e-60, "lr": 1e39}, "reward": {"Sum": [[-1e308, "Gold"]]}}),
                &[
                    "optim.eps: must fit a 32-bit float, 0 or a size from 1e-45 to 3.4e38, found 1e-60",
                    "optim.lr: must fit a 32-bit float, 0 or a size from 1e-45 to 3.4e38, found 1e39",
                    "reward.0.0: must fit a 32-bit float, 0 or a size from 1e-45 to 3.4e38, found -1e308",
                ],
            ),
            (
                json!({"limit": 1_000_000_000, "max_length": 100_000_000, "lr": 1e38, "eps": 1e-45, "beta1": 0.0, "seed": u64::MAX, "skip": null, "n": -1}),
                &[],
            ),
        ] {
            assert_eq!(said(value), expected);
        }
    }
}
