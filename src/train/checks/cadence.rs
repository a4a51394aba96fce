//! Checks of when a stage evaluates and saves, and of what it keeps.

use super::Checks;
use crate::train::config::Cadence;

/// Checks the intervals, and that a choice among checkpoints has evaluations.
pub(super) fn check_cadence(checks: &mut Checks, path: &str, cadence: &Cadence) {
    for (key, steps) in [
        ("eval_steps", cadence.eval_steps),
        ("save_steps", cadence.save_steps),
    ] {
        checks.must(
            format!("{path}.cadence.{key}"),
            steps != Some(0),
            "at least 1, or `None`",
            0,
        );
    }
    checks.positive(path, "cadence.save_total_limit", cadence.save_total_limit);
    if let Some(keep) = &cadence.keep_best {
        checks.must(
            format!("{path}.cadence.keep_best.by"),
            !keep.by.is_empty(),
            "the name of a metric",
            &keep.by,
        );
        if cadence.eval_steps.is_none() {
            checks.problem(
                format!("{path}.cadence.keep_best"),
                "chooses among evaluations, and without `eval_steps` there is one, after the last step",
            );
            checks.help(
                "e.g. `cadence: (eval_steps: 50, keep_best: (by: \"eval/loss\", mode: Min))`",
            );
        }
    }
}
