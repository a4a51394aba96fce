//! Checks of the settings that the on-policy stages share.

use crate::rl::MissingEos;
use crate::train::checks::Checks;

/// Settings common to the on-policy stages, which update on batches of their own responses.
pub(in crate::train) struct OnPolicy {
    pub(in crate::train) total_episodes: usize,
    pub(in crate::train) batch_size: usize,
    pub(in crate::train) num_mini_batches: usize,
    pub(in crate::train) micro_batch_tokens: usize,
    pub(in crate::train) max_prompt_length: usize,
    pub(in crate::train) response_length: usize,
    pub(in crate::train) temperature: f64,
    pub(in crate::train) kl_coef: f64,
    pub(in crate::train) missing_eos: MissingEos,
    pub(in crate::train) ema_decay: Option<f64>,
}

/// Checks the settings common to the on-policy stages.
pub(in crate::train) fn check_on_policy(checks: &mut Checks, path: &str, of: &OnPolicy) {
    for (key, value) in [
        ("total_episodes", of.total_episodes),
        ("num_mini_batches", of.num_mini_batches),
    ] {
        checks.positive(path, key, value);
    }
    let batch_size = format!("{path}.batch_size");
    if of.num_mini_batches >= 1 && !of.batch_size.is_multiple_of(of.num_mini_batches) {
        checks.problem(
            format!("{path}.num_mini_batches"),
            format!(
                "must divide batch_size {}, found {}",
                of.batch_size, of.num_mini_batches
            ),
        );
        checks.depends_on(&batch_size);
    }
    if of.batch_size >= 1 && of.total_episodes >= 1 {
        let total = of.total_episodes;
        if total < of.batch_size || !total.is_multiple_of(of.batch_size) {
            checks.problem(
                format!("{path}.total_episodes"),
                format!(
                    "must be a multiple of batch_size {}, found {total}",
                    of.batch_size
                ),
            );
            let nearest = total.div_ceil(of.batch_size) * of.batch_size;
            checks.help(format!(
                "e.g. {nearest}, which is {} updates",
                nearest / of.batch_size
            ));
            checks.depends_on(&batch_size);
        }
    }
    let longest = of.max_prompt_length.saturating_add(of.response_length);
    if of.micro_batch_tokens < longest {
        checks.problem(
            format!("{path}.micro_batch_tokens"),
            format!(
                "must be at least max_prompt_length + response_length = {longest}, found {}",
                of.micro_batch_tokens
            ),
        );
        checks.depends_on(format!("{path}.max_prompt_length"));
        checks.depends_on(format!("{path}.response_length"));
    }

    checks.temperature(path, "temperature", of.temperature);
    checks.not_negative(path, "kl_coef", of.kl_coef);
    match of.missing_eos {
        MissingEos::Keep => {}
        MissingEos::Replace(score) => {
            checks.must(
                format!("{path}.missing_eos"),
                score.is_finite(),
                "finite",
                score,
            );
        }
        MissingEos::Subtract(penalty) => checks.not_negative(path, "missing_eos", penalty),
    }
    if let Some(decay) = of.ema_decay {
        checks.below_one(path, "ema_decay", decay);
    }
}
