//! The time left of a run, from the stages that are done and the one in progress.

use super::plan::StagePlan;

/// Share of a stage's forward passes below which its sampling is neglected, and the other way round.
const NEGLIGIBLE: f64 = 0.02;
/// Passes that count as much as the forward pass: forward and backward with frozen weights, and with trained ones.
const FROZEN_PASSES: f64 = 2.0;
const TRAINED_PASSES: f64 = 3.0;

/// How much a stage computes, in numbers that can be compared among stages: tokens times parameters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Load {
    /// Forward passes, with backward passes as multiples of them.
    passes: f64,
    /// Sampling, token by token.
    sampled: f64,
}

impl Load {
    fn of(plan: &StagePlan) -> Self {
        let per_token = match plan.shape.trains_base {
            true => TRAINED_PASSES,
            false => FROZEN_PASSES,
        };
        let recomputed = f64::from(u8::from(plan.shape.gradient_checkpointing));
        let params = plan.total_params as f64;
        Self {
            passes: params * (plan.work.forward + plan.work.trained * (per_token + recomputed)),
            sampled: params * plan.work.sampled,
        }
    }

    /// What is left of it if parts are too small to matter.
    fn rounded(self) -> Self {
        Self {
            passes: match self.passes > NEGLIGIBLE * self.sampled {
                true => self.passes,
                false => 0.0,
            },
            sampled: match self.sampled > NEGLIGIBLE * self.passes {
                true => self.sampled,
                false => 0.0,
            },
        }
    }

    fn part(self, share: f64) -> Self {
        Self {
            passes: share * self.passes,
            sampled: share * self.sampled,
        }
    }
}

/// The clock of a run.
#[derive(Debug, Clone, Default)]
pub struct RunClock {
    /// The stages that are still to run after the present one.
    later: Vec<Load>,
    present: Load,
    /// What was measured: loads and their seconds.
    measured: Vec<(Load, f64)>,
    place: Option<(usize, usize)>,
}

impl RunClock {
    /// Begins a stage: the `number`-th, from 1, of `total`. `later`: plans of the stages that run after it.
    pub fn begin(&mut self, number: usize, total: usize, plan: &StagePlan, later: &[&StagePlan]) {
        self.place = Some((number, total));
        self.present = Load::of(plan).rounded();
        self.later = later.iter().map(|plan| Load::of(plan).rounded()).collect();
    }

    /// Notes that a stage took `seconds`.
    pub fn finished(&mut self, plan: &StagePlan, seconds: f64) {
        self.measured.push((Load::of(plan).rounded(), seconds));
    }

    /// The number of the present stage, from 1, and of all stages.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.place
    }

    /// Estimated seconds until the end of the run, if `share` of the present stage took `seconds` and `left` of it is still to do.
    /// `None` where a later stage does something that has not been measured yet.
    pub fn left(&self, share: f64, left: f64, seconds: f64) -> Option<f64> {
        if !(share > 0.0 && seconds > 0.0) {
            return None;
        }
        let own = seconds / share * left;
        let mut measured = self.measured.clone();
        measured.push((self.present.part(share), seconds));
        let (pass, sample) = paces(&measured);
        let cost = |load: &Load| {
            let of = |amount: f64, pace: Option<f64>| match amount > 0.0 {
                true => Some(amount * pace?),
                false => Some(0.0),
            };
            Some(of(load.passes, pass)? + of(load.sampled, sample)?)
        };
        let later: Option<f64> = self.later.iter().map(cost).sum();
        Some(own + later?)
    }
}

/// Seconds per unit of passes and of sampling: the least squares of the relative errors, neither below zero. `None` where nothing
/// tells.
fn paces(measured: &[(Load, f64)]) -> (Option<f64>, Option<f64>) {
    let rows: Vec<(f64, f64)> = (measured.iter())
        .filter(|(load, seconds)| *seconds > 0.0 && load.passes + load.sampled > 0.0)
        .map(|(load, seconds)| (load.passes / seconds, load.sampled / seconds))
        .collect();
    let sum = |f: fn(&(f64, f64)) -> f64| rows.iter().map(f).sum::<f64>();
    let (aa, ab, bb) = (sum(|r| r.0 * r.0), sum(|r| r.0 * r.1), sum(|r| r.1 * r.1));
    let (a, b) = (sum(|r| r.0), sum(|r| r.1));
    let alone = |first: f64, second: f64| (first > 0.0).then(|| second / first);
    if ab == 0.0 {
        return (alone(aa, a), alone(bb, b));
    }
    let determinant = aa * bb - ab * ab;
    // One mixture alone tells nothing of its parts.
    if determinant <= 1e-6 * aa * bb {
        return (None, None);
    }
    let pass = (a * bb - b * ab) / determinant;
    let sample = (b * aa - a * ab) / determinant;
    match (pass > 0.0, sample > 0.0) {
        (true, true) => (Some(pass), Some(sample)),
        (false, _) => (Some(0.0), alone(bb, b)),
        (true, false) => (alone(aa, a), Some(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(passes: f64, sampled: f64) -> Load {
        Load { passes, sampled }
    }

    #[test]
    fn paces_are_told_apart_where_the_stages_differ() {
        // 0.01 s a pass and 0.5 s a sampled token.
        let mixed = [(load(1000.0, 0.0), 10.0), (load(1000.0, 100.0), 60.0)];
        let (pass, sample) = paces(&mixed);
        assert!((pass.unwrap() - 0.01).abs() < 1e-9, "{pass:?}");
        assert!((sample.unwrap() - 0.5).abs() < 1e-9, "{sample:?}");
        assert_eq!(paces(&mixed[..1]), (Some(0.01), None));
        assert_eq!(paces(&mixed[1..]), (None, None));
        assert_eq!(paces(&[]), (None, None));
    }

    #[test]
    fn the_time_left_is_known_once_all_kinds_of_work_were_measured() {
        let mut clock = RunClock {
            present: load(1000.0, 0.0),
            later: vec![load(500.0, 0.0)],
            ..RunClock::default()
        };
        // A quarter took 5 s: 15 s of this stage, and half as much as all of it.
        assert!((clock.left(0.25, 0.75, 5.0).unwrap() - 25.0).abs() < 1e-9);
        assert_eq!(clock.left(0.0, 1.0, 5.0), None);
        clock.later.push(load(0.0, 100.0));
        assert_eq!(clock.left(0.25, 0.75, 5.0), None);
        clock.measured.push((load(0.0, 50.0), 8.0));
        assert!((clock.left(0.25, 0.75, 5.0).unwrap() - 41.0).abs() < 1e-9);
    }

    #[test]
    fn small_parts_are_neglected() {
        assert_eq!(load(1000.0, 1.0).rounded(), load(1000.0, 0.0));
        assert_eq!(load(1.0, 1000.0).rounded(), load(0.0, 1000.0));
        assert_eq!(load(500.0, 1000.0).rounded(), load(500.0, 1000.0));
    }
}
