//! How the learning rate moves over the steps of a stage.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::settings::Settings;

/// Learning-rate schedule. Every one begins with a linear warm-up from zero (`Constant`: from `warmup_start`) of `max(warmup_steps, warmup_ratio * steps)` steps.
/// Ratios are fractions of the stage's optimiser steps; `floor` is a fraction of `lr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Schedule {
    /// Warm-up, then constant.
    Constant {
        /// Fraction of all steps spent rising linearly.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// The learning rate that the warm-up begins with, as a fraction of the peak; InstructGPT's is 0.1 (arXiv:2203.02155, C.4).
        #[serde(default)]
        warmup_start: f64,
    },
    /// Warm-up, then linear to the floor.
    Linear {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
    /// Warm-up, then half a cosine to the floor.
    Cosine {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
    /// Warm-up, then half cosines to the floor, each of which begins again at the peak.
    CosineWithRestarts {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// Half cosines.
        #[serde(default = "one")]
        num_cycles: usize,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
    /// Warm-up, then a power of what is left of the run to the floor.
    Polynomial {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// The power; 1 is `Linear`.
        #[serde(default = "unit")]
        power: f64,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
    /// Warm-up, then one over the root of the steps done.
    InverseSqrt {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// Steps over which the rate falls to `1 / sqrt 2` of the peak; the warm-up's length if absent, 10,000 without one.
        #[serde(default)]
        timescale: Option<usize>,
    },
    /// Warm-up, stable, decay: constant but for the last steps, in which it falls to the floor.
    Wsd {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        warmup_steps: usize,
        /// Fraction of all steps spent falling.
        #[serde(default)]
        decay_ratio: f64,
        /// The least number of steps spent so.
        #[serde(default)]
        decay_steps: usize,
        /// How it falls.
        #[serde(default)]
        decay_type: Decay,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
}

/// How the learning rate of [`Schedule::Wsd`] falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// `1 - sqrt(p)`: fast at first.
    OneMinusSqrt,
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant {
            warmup_ratio: 0.0,
            warmup_steps: 0,
            warmup_start: 0.0,
        }
    }
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

/// At least `steps`, and `ratio` of all steps, rounded up.
fn share(ratio: f64, steps: usize, total_steps: usize) -> usize {
    steps.max((ratio * total_steps as f64).ceil() as usize)
}

impl Schedule {
    /// Fraction of all steps, and number of steps, that the warm-up takes at least.
    fn warmup(&self) -> (f64, usize) {
        match *self {
            Self::Constant {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::Linear {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::Cosine {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::CosineWithRestarts {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::Polynomial {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::InverseSqrt {
                warmup_ratio,
                warmup_steps,
                ..
            }
            | Self::Wsd {
                warmup_ratio,
                warmup_steps,
                ..
            } => (warmup_ratio, warmup_steps),
        }
    }

    /// Fraction of the peak that the schedule does not fall below after the warm-up.
    fn floor(&self) -> f64 {
        match *self {
            Self::Constant { .. } => 1.0,
            Self::InverseSqrt { .. } => 0.0,
            Self::Linear { floor, .. }
            | Self::Cosine { floor, .. }
            | Self::CosineWithRestarts { floor, .. }
            | Self::Polynomial { floor, .. }
            | Self::Wsd { floor, .. } => floor,
        }
    }

    /// Steps of the warm-up of a stage of `total_steps`.
    pub fn warmup_steps(&self, total_steps: usize) -> usize {
        let (ratio, steps) = self.warmup();
        share(ratio, steps, total_steps)
    }

    /// Settings that cannot be; `place` is the key below the schedule.
    pub fn problems(&self) -> Vec<Problem> {
        let mut settings = Settings::default();
        settings.fraction("warmup_ratio", self.warmup().0);
        settings.fraction("floor", self.floor());
        match *self {
            Self::Wsd {
                decay_ratio,
                decay_steps,
                ..
            } => {
                settings.fraction("decay_ratio", decay_ratio);
                if decay_ratio == 0.0 && decay_steps == 0 {
                    let problem = Problem::new(
                        "",
                        "never decays: neither `decay_ratio` nor `decay_steps` is above 0",
                    );
                    settings.note(problem.with_help(
                        "e.g. `Wsd(warmup_steps: 10, decay_ratio: 0.1)`, or `Constant(..)`",
                    ));
                }
            }
            Self::Constant { warmup_start, .. } => {
                settings.fraction("warmup_start", warmup_start);
            }
            Self::Polynomial { power, .. } => settings.above_zero("power", power),
            Self::CosineWithRestarts { num_cycles, .. } => {
                settings.positive("num_cycles", num_cycles);
            }
            Self::InverseSqrt {
                timescale: Some(steps),
                ..
            } => settings.must("timescale", steps >= 1, "at least 1, or `None`", steps),
            _ => {}
        }
        settings.into_problems()
    }
}

/// Learning rate of the optimiser step numbered `step` (0-based, the step about to be taken) of `total_steps`.
///
/// Warm-up takes `w = max(warmup_steps, ceil(warmup_ratio * total_steps))` steps. With `p = (step - w) / (total_steps - w)` after
/// it, at most 1:
///
/// | phase | factor on `peak` |
/// |---|---|
/// | warm-up (`step < w`) | `step / w`: the very first step of a warm-up has rate 0 |
/// | `Constant` | `1` |
/// | `Linear` | `floor + (1 - floor) (1 - p)` |
/// | `Cosine` | `floor + (1 - floor) (1 + cos(pi p)) / 2` |
/// | `CosineWithRestarts` | the same with the fraction of `num_cycles p` for `p`; `floor` at `p = 1` |
/// | `Polynomial` | `floor + (1 - floor) (1 - p)^power` |
/// | `InverseSqrt` | `sqrt(timescale / (step - w + timescale))` |
/// | `Wsd` | `1` up to the last `d = max(decay_steps, ceil(decay_ratio * total_steps))` steps; in those, with the fraction `q` of them done, `floor + (1 - floor) (1 + cos(pi q)) / 2`, or with `1 - q` or `1 - sqrt(q)` |
///
/// The floor is met at `step = total_steps`, one step after the last one taken; steps beyond stay there.
/// `Linear` without warm-up or floor is the annealing of the N+ PPO code, `1 - update / num_updates`.
///
/// # Source
/// `get_*_schedule*` of transformers 5.23: constant and linear with warm-up, cosine with minimum rate, cosine with hard restarts,
/// polynomial (whose `lr_end` is `floor * lr`), inverse root, WSD (whose warm-up begins at its floor; ours at 0).
pub fn lr_at(config: &Schedule, peak: f64, step: usize, total_steps: usize) -> f64 {
    let warmup_steps = config.warmup_steps(total_steps);
    if step < warmup_steps {
        if let Schedule::Constant { warmup_start, .. } = *config
            && warmup_start > 0.0
        {
            let risen = (1.0 - warmup_start) * step as f64 / warmup_steps as f64;
            return peak * (warmup_start + risen);
        }
        return peak * step as f64 / warmup_steps as f64;
    }
    let decay_steps = total_steps.saturating_sub(warmup_steps).max(1);
    let progress = ((step - warmup_steps) as f64 / decay_steps as f64).min(1.0);
    let half_cosine = |progress: f64| 0.5 * (1.0 + (PI * progress).cos());
    let shape = match *config {
        Schedule::Constant { .. } => 1.0,
        Schedule::Linear { .. } => 1.0 - progress,
        Schedule::Cosine { .. } => half_cosine(progress),
        Schedule::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
        Schedule::CosineWithRestarts { num_cycles, .. } => {
            half_cosine((num_cycles as f64 * progress).fract())
        }
        Schedule::Polynomial { power, .. } => (1.0 - progress).powf(power),
        Schedule::InverseSqrt { timescale, .. } => {
            let timescale = timescale.unwrap_or(match warmup_steps {
                0 => 10_000,
                steps => steps,
            });
            let timescale = timescale as f64;
            1.0 / (((step - warmup_steps) as f64 + timescale) / timescale).sqrt()
        }
        Schedule::Wsd {
            decay_ratio,
            decay_steps,
            decay_type,
            ..
        } => {
            let decay_steps = share(decay_ratio, decay_steps, total_steps);
            let first = total_steps.saturating_sub(decay_steps).max(warmup_steps);
            let done = step.saturating_sub(first) as f64 / decay_steps.max(1) as f64;
            let done = done.min(1.0);
            match decay_type {
                Decay::Cosine => half_cosine(done),
                Decay::Linear => 1.0 - done,
                Decay::OneMinusSqrt => 1.0 - done.sqrt(),
            }
        }
    };
    let floor = config.floor();
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
            warmup_steps: 0,
            floor: 0.0,
        };
        let want = [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25, 0.0];
        assert_close(&curve(&config, 10.0, 10), &want);
    }

    #[test]
    fn constant_with_warmup_is_transformers() {
        // 4 steps of warm-up: 0, 2.5, 5, 7.5, then 10.
        let config = Schedule::Constant {
            warmup_ratio: 0.4,
            warmup_steps: 0,
            warmup_start: 0.0,
        };
        let want = [0.0, 2.5, 5.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        assert_close(&curve(&config, 10.0, 10), &want);
        assert_eq!(lr_at(&Schedule::default(), 3e-6, 0, 1), 3e-6);
    }

    #[test]
    fn cosine_with_warmup_is_transformers() {
        let config = Schedule::Cosine {
            warmup_ratio: 0.2,
            warmup_steps: 0,
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
            warmup_steps: 0,
            floor: 0.1,
        };
        // 0.1 + 0.9 * (1 - s / 4)
        assert_close(&curve(&linear, 1.0, 4), &[1.0, 0.775, 0.55, 0.325, 0.1]);
        let cosine = Schedule::Cosine {
            warmup_ratio: 0.0,
            warmup_steps: 0,
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
            warmup_steps: 0,
            floor: 0.0,
        };
        assert_close(&curve(&config, 3e-6, 3), &[3e-6, 2e-6, 1e-6, 0.0]);
    }

    #[test]
    fn a_warm_up_may_begin_above_zero() {
        let config = Schedule::Constant {
            warmup_ratio: 0.0,
            warmup_steps: 3,
            warmup_start: 0.1,
        };
        // 0.1 + 0.9 k / 3.
        assert_close(&curve(&config, 2.0, 4), &[0.2, 0.8, 1.4, 2.0, 2.0]);
        assert!(config.problems().is_empty());
    }

    #[test]
    fn warmup_steps_round_up_and_may_fill_the_run() {
        // ceil(0.03 * 10) = 1: step 0 has rate 0, step 1 the peak.
        let config = Schedule::Constant {
            warmup_ratio: 0.03,
            warmup_steps: 0,
            warmup_start: 0.0,
        };
        assert_close(&curve(&config, 2.0, 2), &[0.0, 2.0, 2.0]);
        let all = Schedule::Cosine {
            warmup_ratio: 1.0,
            warmup_steps: 0,
            floor: 0.0,
        };
        assert_close(&curve(&all, 1.0, 4), &[0.0, 0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn warmup_is_a_share_with_a_minimum() {
        // Llama 2: 3 %, at least 5.
        let config = |warmup_ratio, warmup_steps| Schedule::Cosine {
            warmup_ratio,
            warmup_steps,
            floor: 0.1,
        };
        let steps = |total| config(0.03, 5).warmup_steps(total);
        assert_eq!([steps(20), steps(167), steps(1000)], [5, 6, 30]);
        assert_eq!(config(0.0, 7).warmup_steps(1000), 7);
        assert_eq!(lr_at(&config(0.03, 5), 2.0, 3, 20), 2.0 * 3.0 / 5.0);
    }

    /// The curves that transformers gives, of tests/reference/optimisers.py.
    #[test]
    fn schedules_are_those_of_transformers() {
        #[derive(Deserialize)]
        struct Curve {
            name: String,
            schedule: String,
            peak: f64,
            steps: usize,
            lr: Vec<f64>,
        }
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/reference/optimisers/schedules.json"
        );
        let text = std::fs::read_to_string(file).unwrap();
        let curves: Vec<Curve> = serde_json::from_str(&text).unwrap();
        assert_eq!(curves.len(), 14);
        for curve in curves {
            let schedule: Schedule = ron::from_str(&curve.schedule).unwrap();
            assert_eq!(schedule.problems(), []);
            assert!(curve.lr.len() > curve.steps, "steps beyond the end");
            for (step, want) in curve.lr.iter().enumerate() {
                let got = lr_at(&schedule, curve.peak, step, curve.steps);
                let place = &curve.name;
                assert!(
                    (got - want).abs() <= 1e-14 * curve.peak,
                    "{place}, step {step}: {got}, expected {want}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let said = |text: &str| -> Vec<String> {
            let schedule: Schedule = ron::from_str(text).unwrap();
            let problems = schedule.problems().into_iter();
            problems
                .map(|p| format!("{}: {}", p.place, p.message))
                .collect()
        };
        assert_eq!(
            said("Wsd(floor: 2.0)"),
            [
                "floor: must be between 0 and 1, found 2.0",
                ": never decays: neither `decay_ratio` nor `decay_steps` is above 0"
            ]
        );
        assert_eq!(
            said("Polynomial(power: 0.0)"),
            ["power: must be above 0 and finite, found 0.0"]
        );
        assert_eq!(
            said("CosineWithRestarts(num_cycles: 0)"),
            ["num_cycles: must be at least 1, found 0"]
        );
        assert_eq!(
            said("InverseSqrt(timescale: Some(0), warmup_ratio: -0.5)"),
            [
                "warmup_ratio: must be between 0 and 1, found -0.5",
                "timescale: must be at least 1, or `None`, found 0"
            ]
        );
    }
}
