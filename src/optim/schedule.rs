//! The learning rate of a step.

use std::f64::consts::PI;

use super::Schedule;

/// Learning rate of the optimiser step numbered `step` (0-based, the step about to be taken) of `total_steps`.
///
/// Warm-up takes `w = ceil(warmup_ratio * total_steps)` steps. With `p = (step - w) / (total_steps - w)` after it:
///
/// | phase | factor on `peak` |
/// |---|---|
/// | warm-up (`step < w`) | `step / w`: the very first step of a warm-up has rate 0 |
/// | `Constant` | `1` |
/// | `Linear` | `floor + (1 - floor) (1 - p)` |
/// | `Cosine` | `floor + (1 - floor) (1 + cos(pi p)) / 2` |
///
/// The floor is met at `step = total_steps`, one step after the last one taken; steps beyond stay there.
/// `Linear` without warm-up or floor is the annealing of the N+ PPO code, `1 - update / num_updates`.
///
/// # Source
/// `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup` of transformers.
pub fn lr_at(config: &Schedule, peak: f64, step: usize, total_steps: usize) -> f64 {
    let (warmup_ratio, floor) = match *config {
        Schedule::Constant { warmup_ratio } => (warmup_ratio, 1.0),
        Schedule::Linear {
            warmup_ratio,
            floor,
        }
        | Schedule::Cosine {
            warmup_ratio,
            floor,
        } => (warmup_ratio, floor),
    };
    let warmup_steps = (warmup_ratio * total_steps as f64).ceil() as usize;
    if step < warmup_steps {
        return peak * step as f64 / warmup_steps as f64;
    }
    let decay_steps = total_steps.saturating_sub(warmup_steps).max(1);
    let progress = ((step - warmup_steps) as f64 / decay_steps as f64).min(1.0);
    let shape = match config {
        Schedule::Constant { .. } => 1.0,
        Schedule::Linear { .. } => 1.0 - progress,
        Schedule::Cosine { .. } => 0.5 * (1.0 + (PI * progress).cos()),
    };
    peak * (floor + (1.0 - floor) * shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(config: &Schedule, peak: f64, total: usize) -> Vec<f64> {
        (0..=total)
            .map(|step| lr_at(config, peak, step, total))
            .collect()
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (step, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() < 1e-12, "step {step}: {g}, expected {w}");
        }
    }

    // The expected curves of this and the next two tests are those of transformers' own
    // tests/optimization: peak 10, 10 steps, 2 of warm-up.
    #[test]
    fn linear_with_warmup_is_transformers() {
        let config = Schedule::Linear {
            warmup_ratio: 0.2,
            floor: 0.0,
        };
        let want = [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25, 0.0];
        assert_close(&curve(&config, 10.0, 10), &want);
    }

    #[test]
    fn constant_with_warmup_is_transformers() {
        // 4 steps of warm-up: 0, 2.5, 5, 7.5, then 10.
        let config = Schedule::Constant { warmup_ratio: 0.4 };
        let want = [0.0, 2.5, 5.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        assert_close(&curve(&config, 10.0, 10), &want);
        assert_eq!(lr_at(&Schedule::default(), 3e-6, 0, 1), 3e-6);
    }

    #[test]
    fn cosine_with_warmup_is_transformers() {
        let config = Schedule::Cosine {
            warmup_ratio: 0.2,
            floor: 0.0,
        };
        let want = [
            0.0, 5.0, 10.0, 9.619, 8.536, 6.913, 5.0, 3.087, 1.464, 0.381, 0.0,
        ];
        for (g, w) in curve(&config, 10.0, 10).iter().zip(want) {
            assert!((g - w).abs() < 1e-3, "{g}, expected {w}");
        }
    }

    #[test]
    fn the_floor_is_where_the_schedule_ends() {
        let linear = Schedule::Linear {
            warmup_ratio: 0.0,
            floor: 0.1,
        };
        // 0.1 + 0.9 * (1 - s / 4)
        assert_close(&curve(&linear, 1.0, 4), &[1.0, 0.775, 0.55, 0.325, 0.1]);
        let cosine = Schedule::Cosine {
            warmup_ratio: 0.0,
            floor: 0.2,
        };
        // 0.2 + 0.8 * (1 + cos(pi s / 2)) / 2
        assert_close(&curve(&cosine, 1.0, 2), &[1.0, 0.6, 0.2]);
        assert_eq!(lr_at(&cosine, 1.0, 100, 2), 0.2);
    }

    #[test]
    fn ppo_annealing_reaches_one_step_above_zero() {
        // N+: frac = 1 - (update - 1) / num_updates, update from 1.
        let config = Schedule::Linear {
            warmup_ratio: 0.0,
            floor: 0.0,
        };
        assert_close(&curve(&config, 3e-6, 3), &[3e-6, 2e-6, 1e-6, 0.0]);
    }

    #[test]
    fn warmup_steps_round_up_and_may_fill_the_run() {
        // ceil(0.03 * 10) = 1: step 0 has rate 0, step 1 the peak.
        let config = Schedule::Constant { warmup_ratio: 0.03 };
        assert_close(&curve(&config, 2.0, 2), &[0.0, 2.0, 2.0]);
        let all = Schedule::Cosine {
            warmup_ratio: 1.0,
            floor: 0.0,
        };
        assert_close(&curve(&all, 1.0, 4), &[0.0, 0.25, 0.5, 0.75, 1.0]);
    }
}
