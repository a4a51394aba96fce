//! Estimates how long the stages of a recipe take, from a short measurement of their passes.

use std::path::PathBuf;

use super::CheckedRecipe;
use crate::checkpoint::RunDir;
use crate::error::Result;
use crate::guard;
use crate::ops::ModelBackend;
use crate::report::SilentReporter;
use crate::rng::Seed;
use crate::train::plan::{Pace, StagePlan};
use crate::train::{Session, Stage, measure};

/// Estimated seconds of each stage. Weights are loaded, so this comes after all checks; the run folder is not touched.
///
/// # Errors
/// Those of loading the models and of the device.
pub fn estimate_times<B: ModelBackend>(
    checked: &CheckedRecipe,
    device: B::Device,
) -> Result<Vec<f64>> {
    let _lock = guard::lock_gradients();
    let recipe = &checked.recipe;
    let scratch = Scratch::new();
    let run = RunDir::create(&scratch.0)?;
    let mut reporter = SilentReporter;
    let mut session = Session::<B>::new(device, &run, &mut reporter);
    session.seed = Seed::new(recipe.seed);
    session.model = recipe.model.clone();
    session.eos_token = recipe.eos_token.clone();
    session.add_tokens = recipe.add_tokens.clone();
    session.numerics = recipe.numerics();
    let mut known: Vec<(&StagePlan, &Stage, Pace)> = Vec::new();
    let mut times = Vec::new();
    for (stage, plan) in recipe.stages.iter().zip(&checked.plans) {
        let earlier = known.iter().find(|(other, measured, _)| {
            (other.shape, other.workload) == (plan.shape, plan.workload)
                && (other.work.sampled > 0.0) == (plan.work.sampled > 0.0)
                && measured.inputs().models == stage.inputs().models
        });
        let pace = match earlier {
            Some((_, _, pace)) => *pace,
            None => measure(&mut session, &recipe.stages, stage, plan)?,
        };
        known.push((plan, stage, pace));
        times.push(plan.work.seconds(&pace));
    }
    Ok(times)
}

/// A folder that is removed when it is no longer needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("temper-times-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is an empty folder in the system's temporary one.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
