//! `temper doctor`.

use super::args::{ComputeArgs, DoctorArgs};
use super::output::print;
use super::parity::{self, Difference, Parity, Shapes};
use super::precision::PrecisionCost;
use crate::backend::{self, BackendChoice, Task, dispatch};
use crate::collective::{self, Ranks};
use crate::error::{Error, Result};
use crate::ops::{ModelBackend, Numerics};
use crate::recipe::{self, RunOptions};
use crate::report::table;

/// Most devices per backend to look for.
const MAX_DEVICES: usize = 16;

/// Prints the available backends and devices, and the largest differences between the chosen backend's numbers and the reference
/// backend's. For a recipe with reduced precision, also measures its cost.
///
/// # Errors
/// `Error::Backend` when a difference is larger than [`parity::TOLERANCE`]; `Error::Usage` when the backend cannot run;
/// those of the recipe.
pub(super) fn run(args: &DoctorArgs, compute: &ComputeArgs) -> Result<()> {
    let mut checks = vec![("", Shapes::default())];
    let checked = match &args.recipe {
        Some(file) => Some(recipe::check(
            recipe::load_with_places(file, &[])?,
            &RunOptions {
                memory: backend::memory(compute.backend, compute.device),
                ..RunOptions::default()
            },
        )?),
        None => None,
    };
    if let Some(checked) = &checked {
        checks.push((", at the recipe's sizes", Shapes::of_plans(&checked.plans)));
    }
    let ranks = collective::ranks();
    let mut text = format!("temper {}\n\n", env!("CARGO_PKG_VERSION"));
    if !ranks.is_alone() {
        let device = dispatch(compute.backend, compute.device, NameAndDevice)?;
        text.push_str(&super::ranks::survey(&device));
        if !ranks.is_first() {
            return Ok(());
        }
    }
    // What follows is rank 0's own.
    let _alone = collective::enter(Ranks::default());
    print(&format!("{text}{}\n", devices()))?;
    for (which, shapes) in &checks {
        let (name, found) = dispatch(compute.backend, compute.device, Parity { shapes })?;
        let (reference, differences) = match parity::against_reference(name, &found, shapes) {
            Ok(compared) => compared,
            // A build without a reference backend can run, but cannot be checked.
            Err(error @ Error::Usage(_)) => {
                return print(&format!("parity of {name} was not checked: {error}\n"));
            }
            Err(error) => return Err(error),
        };
        let text = verdicts(&differences);
        print(&format!(
            "parity of {name} with {reference}, forward and backward{which}\n\n{text}\n"
        ))?;
        parity::require(name, &differences)?;
    }
    let recipe = checked.map(|checked| checked.recipe);
    if let Some(recipe) = recipe
        && let Some(model) = &recipe.model
        && recipe.numerics() != Numerics::default()
    {
        let cost = PrecisionCost {
            model,
            numerics: recipe.numerics(),
        };
        let cost = dispatch(compute.backend, compute.device, cost)?;
        print(&format!("{cost}\n"))?;
    }
    Ok(())
}

/// The differences as a table.
fn verdicts(differences: &[Difference]) -> String {
    let rows: Vec<Vec<String>> = differences
        .iter()
        .map(|difference| {
            let verdict = if difference.is_wrong() { "WRONG" } else { "ok" };
            vec![
                difference.case.clone(),
                format!("{:.1e}", difference.largest),
                difference.worst.clone(),
                verdict.into(),
            ]
        })
        .collect();
    table(
        &[
            "operation and shape",
            "largest relative difference",
            "of",
            "verdict",
        ],
        &rows,
    )
}

/// The backends as a table.
fn devices() -> String {
    let choices = [
        ("cuda", BackendChoice::Cuda),
        ("wgpu", BackendChoice::Wgpu),
        ("flex", BackendChoice::Flex),
        ("ndarray", BackendChoice::NdArray),
    ];
    let mut rows = Vec::new();
    for (name, choice) in choices {
        for index in 0..MAX_DEVICES {
            let (number, text) = match dispatch(choice, index, DeviceName) {
                Ok(device) => (index.to_string(), device),
                // Devices are counted without gaps: the first failure ends the list.
                Err(_) if index > 0 => break,
                Err(error) => ("-".to_owned(), error.to_string()),
            };
            let missing = number == "-";
            rows.push(vec![name.to_owned(), number, text]);
            if missing {
                break;
            }
        }
    }
    table(&["backend", "device", "what it is"], &rows)
}

/// The name of a backend and of its device.
struct NameAndDevice;

impl Task for NameAndDevice {
    type Output = String;

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<String> {
        Ok(format!("{name} {device:?}"))
    }
}

/// Queries the backend's name for a device.
struct DeviceName;

impl Task for DeviceName {
    type Output = String;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<String> {
        Ok(format!("{device:?}"))
    }
}
