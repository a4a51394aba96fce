//! Small computations, forward and backward, for comparing two backends.

mod model;
mod ops;
mod shapes;

pub(super) use shapes::Shapes;

use crate::backend::{BackendChoice, Task, dispatch};
use crate::error::{Error, Result};
use crate::ops::{Gate, Gelu, ModelBackend};

/// Largest allowed difference, relative to the reference's largest value.
pub(super) const TOLERANCE: f64 = 1e-3;

/// The results of one computation.
#[derive(Debug, Clone)]
pub(super) struct Case {
    name: String,
    /// Each result (output or gradient) by name, on the host.
    results: Vec<(String, Vec<f32>)>,
}

/// The difference of two backends in one computation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// The computation.
    pub(super) case: String,
    /// Largest difference over its results, each relative to the reference's largest value.
    pub(super) largest: f64,
    /// The result with this difference.
    pub(super) worst: String,
}

impl Difference {
    pub(super) fn is_wrong(&self) -> bool {
        self.largest > TOLERANCE
    }
}

/// Compares the same computations of two backends.
pub(super) fn compare(found: &[Case], reference: &[Case]) -> Vec<Difference> {
    found
        .iter()
        .zip(reference)
        .map(|(found, reference)| {
            let mut difference = Difference {
                case: found.name.clone(),
                largest: 0.0,
                worst: String::new(),
            };
            for ((name, values), (_, expected)) in found.results.iter().zip(&reference.results) {
                let relative = relative_difference(values, expected);
                if relative > difference.largest || difference.worst.is_empty() {
                    (difference.largest, difference.worst) = (relative, name.clone());
                }
            }
            difference
        })
        .collect()
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected
        .iter()
        .fold(0f64, |largest, &x| largest.max(f64::from(x).abs()))
        .max(1e-6);
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / largest);
    // `f64::max` ignores NaN.
    differences.fold(0.0, |worst: f64, x| {
        if x.is_nan() {
            f64::INFINITY
        } else {
            worst.max(x)
        }
    })
}

/// The reference backends by preference: Flex, whose kernels are tested against plain operations; for Flex itself, ndarray.
fn reference_of(name: &str) -> [BackendChoice; 2] {
    if name == "flex" {
        [BackendChoice::NdArray, BackendChoice::Flex]
    } else {
        [BackendChoice::Flex, BackendChoice::NdArray]
    }
}

/// The reference backend's name, and how far `found` is from it.
///
/// # Errors
/// `Error::Usage` if the build has no backend to compare with.
pub(super) fn against_reference(
    name: &str,
    found: &[Case],
    shapes: &Shapes,
) -> Result<(&'static str, Vec<Difference>)> {
    let mut result = Err(Error::Usage(
        "this build has no CPU backend to compare with".into(),
    ));
    for choice in reference_of(name) {
        match dispatch(choice, 0, Parity { shapes }) {
            // A build may lack one of them.
            Err(error @ Error::Usage(_)) => result = Err(error),
            other => {
                let (reference, expected) = other?;
                return Ok((reference, compare(found, &expected)));
            }
        }
    }
    result
}

/// Fails if a difference exceeds [`TOLERANCE`].
///
/// # Errors
/// `Error::Backend` that lists the computations.
pub(super) fn require(name: &str, differences: &[Difference]) -> Result<()> {
    let wrong: Vec<&str> = differences
        .iter()
        .filter(|d| d.is_wrong())
        .map(|d| d.case.as_str())
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::Backend(format!(
        "backend {name} computes wrong numbers (above {TOLERANCE:.0e} of the largest value): {}",
        wrong.join("; ")
    )))
}

/// All computations on one backend, with the backend's name.
pub(super) struct Parity<'a> {
    pub(super) shapes: &'a Shapes,
}

impl Task for Parity<'_> {
    type Output = (&'static str, Vec<Case>);

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        Ok((name, cases::<B>(self.shapes, &device)?))
    }
}

/// Runs the computations at `shapes` on one device.
pub(super) fn cases<B: ModelBackend>(shapes: &Shapes, device: &B::Device) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &(tokens, hidden) in &shapes.norms {
        cases.push(ops::rms_norm::<B>(tokens, hidden, device));
        cases.push(ops::layer_norm::<B>(tokens, hidden, device));
    }
    for &(tokens, heads, head_dim) in &shapes.rotations {
        cases.push(ops::rope::<B>(tokens, heads, head_dim, device));
    }
    for &(tokens, intermediate) in &shapes.gates {
        cases.push(ops::gated_unit::<B>(
            tokens,
            intermediate,
            Gate::Silu,
            device,
        ));
        for form in [Gelu::Erf, Gelu::Tanh] {
            let gate = Gate::Gelu(form);
            cases.push(ops::gated_unit::<B>(tokens, intermediate, gate, device));
            cases.push(ops::gelu::<B>(tokens, intermediate, form, device));
        }
    }
    for (layout, rows) in &shapes.attentions {
        cases.push(ops::attention::<B>(*layout, rows, device));
        cases.push(ops::decoding::<B>(*layout, device));
    }
    for &(tokens, hidden, vocab) in &shapes.heads {
        cases.push(ops::token_logprob::<B>(tokens, hidden, vocab, device));
    }
    for (tokens, inputs, widths, rank) in &shapes.linears {
        cases.push(ops::lora_linear::<B>(
            *tokens, *inputs, widths, *rank, device,
        ));
    }
    for &(shape, precision) in &shapes.reduced {
        cases.extend(ops::reduced_linear::<B>(shape, precision, device));
    }
    for &shape in &shapes.bf16 {
        cases.extend(ops::bf16_products::<B>(shape, device));
    }
    for &hidden in &shapes.scores {
        cases.push(ops::scalar_head::<B>(37, hidden, device));
    }
    cases.push(ops::adamw::<B>(1001, device));
    for &(tied, rank) in &shapes.models {
        cases.push(model::model::<B>(tied, rank, device)?);
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(values: &[f32]) -> Vec<Case> {
        vec![Case {
            name: "c".into(),
            results: vec![("output".into(), values.to_vec())],
        }]
    }

    #[test]
    fn differences_are_parts_of_the_largest_value() {
        let found = compare(&case(&[1.0, -4.0, 0.002]), &case(&[1.0, -4.0, 0.0]));
        assert_eq!(found.len(), 1);
        // 0.002 / 4
        assert!((found[0].largest - 0.0005).abs() < 1e-9, "{found:?}");
        assert!(!found[0].is_wrong());
        assert!(compare(&case(&[1.0, -4.1]), &case(&[1.0, -4.0]))[0].is_wrong());
    }

    #[test]
    fn what_is_no_number_or_missing_is_wrong() {
        assert!(compare(&case(&[f32::NAN, 1.0]), &case(&[1.0, 1.0]))[0].is_wrong());
        assert!(compare(&case(&[]), &case(&[1.0]))[0].is_wrong());
    }
}
