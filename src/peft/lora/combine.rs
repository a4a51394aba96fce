//! Several LoRA adapters as one, with weights.
//!
//! # Source
//! PEFT 0.21, `add_weighted_adapter` and `merge_utils`; task arithmetic: Ilharco et al. 2022, arXiv:2212.04089; TIES: Yadav et al. 2023,
//! arXiv:2306.01708; DARE: Yu et al. 2023, arXiv:2311.03099.

use std::collections::BTreeMap;

use super::combine_files::{BASE_LAYER, LowRank, layers_of, tables_of};
use super::{InitLoraWeights, LoraConfig};
use crate::error::{Error, Result};
use crate::params::HostTensor;
use crate::peft::files::{AdapterConfig, TaskType};
use crate::peft::keys::{saved_key, tensor_key};
use crate::peft::patterns::Patterns;
use crate::peft::{AdapterSpec, Bias};
use crate::rng::Seed;

/// How adapters become one; PEFT's `combination_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combination {
    /// What is done with the numbers.
    pub rule: Rule,
    /// Of what: the products of both matrices, brought to a low rank again by their largest singular values, or the matrices themselves.
    pub svd: bool,
}

/// What is done with the numbers of several adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The weighted sum.
    Linear,
    /// All matrices side by side: exact, of the sum of all ranks.
    Cat,
    /// The weighted mean of those that agree with the majority's sign, of each adapter's largest numbers.
    Ties,
    /// The weighted sum of each adapter's numbers, some of them left out by chance and the rest enlarged.
    DareLinear,
    /// The same, of those that agree with the majority's sign.
    DareTies,
    /// The weighted sum of each adapter's largest numbers.
    MagnitudePrune,
}

/// Whose sign is the majority's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// That of the sum.
    #[default]
    Total,
    /// That of most adapters.
    Frequency,
}

/// What is asked of a combination.
#[derive(Debug, Clone, PartialEq)]
pub struct CombineSettings {
    /// How.
    pub combination: Combination,
    /// A factor on each adapter; may be negative.
    pub weights: Vec<f64>,
    /// Share of each adapter's numbers that is kept.
    pub density: Option<f64>,
    /// For TIES.
    pub majority_sign: MajoritySign,
    /// Rank of what singular values are kept; the largest of the adapters' if `None`.
    pub svd_rank: Option<usize>,
    /// For what DARE leaves out.
    pub seed: Seed,
}

/// An adapter's files: configuration, and tensors by key.
pub type AdapterFiles = (AdapterConfig, BTreeMap<String, HostTensor>);

/// The largest singular values of a matrix given row by row with its shape, so many of them: the left vectors times the values
/// (`[rows, rank]`), and the right ones (`[rank, columns]`).
pub type LargestSingular<'a> = dyn Fn(&[f32], [usize; 2], usize) -> (Vec<f32>, Vec<f32>) + 'a;

impl Combination {
    /// Every one that there is, by PEFT's name.
    pub const ALL: [(&'static str, Self); 11] = {
        const fn of(rule: Rule, svd: bool) -> Combination {
            Combination { rule, svd }
        }
        [
            ("linear", of(Rule::Linear, false)),
            ("cat", of(Rule::Cat, false)),
            ("svd", of(Rule::Linear, true)),
            ("ties", of(Rule::Ties, false)),
            ("ties_svd", of(Rule::Ties, true)),
            ("dare_linear", of(Rule::DareLinear, false)),
            ("dare_linear_svd", of(Rule::DareLinear, true)),
            ("dare_ties", of(Rule::DareTies, false)),
            ("dare_ties_svd", of(Rule::DareTies, true)),
            ("magnitude_prune", of(Rule::MagnitudePrune, false)),
            ("magnitude_prune_svd", of(Rule::MagnitudePrune, true)),
        ]
    };

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(known, _)| *known == name).map(|(_, it)| *it)
    }

    /// Whether it keeps a share of the numbers only.
    pub fn needs_density(self) -> bool {
        !matches!(self.rule, Rule::Linear | Rule::Cat)
    }
}

/// One adapter's part in a layer.
struct Part<'a> {
    /// `[rank, in]`, as files hold it.
    a: &'a [f32],
    /// `[out, rank]`.
    b: &'a [f32],
    rank: usize,
    /// Factor on the product.
    scale: f64,
    /// The adapter's weight.
    weight: f64,
}

/// One adapter of several, of LoRA each: its configuration and tensors.
///
/// Its factor on the products is 1: `alpha` is its rank, and `use_rslora` is off, which PEFT leaves on and so scales the result once more.
/// Layers that only some of the adapters have get what those give. With one adapter every rule is the weighted sum, as in PEFT.
///
/// # Errors
/// `Error::Usage` for adapters that cannot be added, ranks that differ where they must not, and settings that do not fit.
pub fn combine(
    adapters: &[AdapterFiles],
    settings: &CombineSettings,
    largest_singular: &LargestSingular<'_>,
) -> Result<(AdapterConfig, Vec<HostTensor>)> {
    let mut low_rank = Vec::new();
    for (index, (config, tensors)) in adapters.iter().enumerate() {
        let refused = |what: String| Error::Usage(format!("adapter {}: {what}", index + 1));
        let AdapterSpec::Lora(lora) = &config.spec else {
            let method = config.spec.peft_type();
            return Err(refused(format!(
                "{method} adapters cannot be combined, only LoRA's can"
            )));
        };
        let what = match () {
            () if config.task_type == TaskType::SeqCls => {
                "it brings a score head, and heads cannot be combined (as in PEFT)"
            }
            () if lora.use_dora => "DoRA's norms (use_dora) are no sum that could be weighted",
            () if lora.lora_bias => "biases of adapters (lora_bias) are not combined",
            () if lora.bias != Bias::None => "trained biases of the base (bias) are not combined",
            () if lora.trainable_token_indices.is_some() => {
                "rows of single tokens (trainable_token_indices) are not combined"
            }
            () if lora.init_lora_weights.takes_of_weight() => {
                "it stands on what PiSSA or OLoRA left of the base (init_lora_weights)"
            }
            () => {
                if let Some(entry) = lora.modules_to_save.first() {
                    return Err(refused(format!(
                        "modules_to_save: \"{entry}\" is trained whole, and whole modules are not combined (PEFT refuses two of one module, \
                         and leaves out what one adapter alone has)"
                    )));
                }
                low_rank.push((lora, tensors));
                continue;
            }
        };
        return Err(refused(what.into()));
    }
    let tables = tables_of(&low_rank)?;
    let (lora, mut tensors, paths) = combine_low_rank(&low_rank, settings, largest_singular)?;
    for (path, (shape, values)) in tables {
        // PEFT puts a table that an adapter is on one level deeper.
        let base = if paths.contains(&path) {
            BASE_LAYER
        } else {
            ""
        };
        let key = saved_key(&format!("{path}{base}.weight"));
        tensors.push((key, shape.clone(), values.clone()));
    }
    let first = &adapters[0].0;
    let mut config = AdapterConfig::new(first.task_type, (&lora).into(), paths);
    config.base_model_name_or_path = first.base_model_name_or_path.clone();
    config.fan_in_fan_out = first.fan_in_fan_out;
    Ok((config, tensors))
}

fn combine_low_rank(
    adapters: &[LowRank<'_>],
    settings: &CombineSettings,
    largest_singular: &LargestSingular<'_>,
) -> Result<(LoraConfig, Vec<HostTensor>, Vec<String>)> {
    // See above.
    let combination = match adapters.len() {
        1 => Combination {
            rule: Rule::Linear,
            svd: false,
        },
        _ => settings.combination,
    };
    let layers = layers_of(adapters);
    let mut largest = Vec::new();
    for (lora, _) in adapters {
        let ranks = layers.keys().map(|path| lora.rank_of(path));
        largest.push(ranks.fold(lora.rank, usize::max));
    }
    let most = largest.iter().copied().max().unwrap_or(1);
    let rank = match combination {
        Combination { svd: true, .. } => settings.svd_rank.unwrap_or(most),
        Combination {
            rule: Rule::Cat, ..
        } => largest.iter().sum(),
        _ => most,
    };
    let mut tensors = Vec::new();
    for (path, (names, members)) in &layers {
        let mut parts = Vec::new();
        for &member in members {
            let (lora, stored) = adapters[member];
            let rank = lora.rank_of(path);
            let matrix = |name, at: usize| {
                let found = stored.get(&tensor_key(path, name));
                match found {
                    Some((_, shape, values)) if shape.len() == 2 && shape[at] == rank => {
                        Ok(values.as_slice())
                    }
                    _ => Err(Error::Usage(format!(
                        "adapter {}: {path}.{name}: expected a matrix of rank {rank}, found {:?}",
                        member + 1,
                        found.map_or(&[][..], |(_, shape, _)| shape)
                    ))),
                }
            };
            parts.push(Part {
                a: matrix(names[0], 0)?,
                b: matrix(names[1], 1)?,
                rank,
                scale: lora.scale_of(path),
                weight: settings.weights[member],
            });
        }
        let inputs = parts[0].a.len() / parts[0].rank;
        let outputs = parts[0].b.len() / parts[0].rank;
        let fits = |part: &Part<'_>| {
            part.a.len() == part.rank * inputs && part.b.len() == part.rank * outputs
        };
        if !parts.iter().all(fits) {
            return Err(Error::Usage(format!(
                "{path}: the adapters are for layers of different sizes"
            )));
        }
        let seed = settings.seed.fork(path);
        let (a, b) = match combination {
            Combination { svd: true, rule } => {
                if rank > inputs.min(outputs) {
                    return Err(Error::Usage(format!(
                        "{path}: {inputs} x {outputs} numbers have no {rank} singular values; take a smaller --svd-rank"
                    )));
                }
                let deltas: Vec<Vec<f32>> = parts.iter().map(Part::product).collect();
                let weights: Vec<f64> = parts.iter().map(|part| part.weight).collect();
                let delta = rule.apply(deltas, &weights, settings, seed);
                let (b, a) = largest_singular(&delta, [outputs, inputs], rank);
                (a, b)
            }
            Combination {
                rule: Rule::Cat, ..
            } => side_by_side(&parts, [inputs, outputs], rank),
            Combination { rule, .. } => {
                if let Some(other) = parts.iter().find(|part| part.rank != parts[0].rank) {
                    return Err(Error::Usage(format!(
                        "{path}: the adapters' ranks {} and {} differ; only `cat` and those that end in `svd` combine such",
                        parts[0].rank, other.rank
                    )));
                }
                let (a, b) = rule.apply_to_both(&parts, settings, seed);
                (padded(a, rank * inputs), wider(&b, parts[0].rank, rank))
            }
        };
        tensors.push((tensor_key(path, names[0]), vec![rank, inputs], a));
        tensors.push((tensor_key(path, names[1]), vec![outputs, rank], b));
    }
    let lora = LoraConfig {
        rank,
        alpha: rank as f64,
        use_rslora: false,
        init_lora_weights: InitLoraWeights::Uniform,
        rank_pattern: Patterns::default(),
        alpha_pattern: Patterns::default(),
        ..adapters[0].0.clone()
    };
    Ok((lora, tensors, layers.into_keys().collect()))
}

impl Part<'_> {
    /// The change of the weight, `[out, in]`, without the adapter's weight.
    fn product(&self) -> Vec<f32> {
        let inputs = self.a.len() / self.rank;
        let mut product = Vec::with_capacity(self.b.len() / self.rank * inputs);
        for b in self.b.chunks_exact(self.rank) {
            let mut row = vec![0f64; inputs];
            for (factor, a) in b.iter().zip(self.a.chunks_exact(inputs)) {
                row.iter_mut()
                    .zip(a)
                    .for_each(|(sum, a)| *sum += f64::from(*factor) * f64::from(*a));
            }
            product.extend(row.iter().map(|x| (x * self.scale) as f32));
        }
        product
    }
}

/// The matrices of all parts beside one another, the factors in `a`; zeros where there are fewer than `rank`.
fn side_by_side(parts: &[Part<'_>], [_, outputs]: [usize; 2], rank: usize) -> (Vec<f32>, Vec<f32>) {
    let inputs = parts[0].a.len() / parts[0].rank;
    let mut a = Vec::new();
    for part in parts {
        let factor = (part.weight * part.scale) as f32;
        a.extend(part.a.iter().map(|x| x * factor));
    }
    let mut b = Vec::with_capacity(outputs * rank);
    for row in 0..outputs {
        for part in parts {
            b.extend(&part.b[row * part.rank..(row + 1) * part.rank]);
        }
        b.resize((row + 1) * rank, 0.0);
    }
    (padded(a, rank * inputs), b)
}

/// Zeros at the end.
fn padded(mut values: Vec<f32>, len: usize) -> Vec<f32> {
    values.resize(len, 0.0);
    values
}

/// Zeros at the end of each row.
fn wider(values: &[f32], from: usize, to: usize) -> Vec<f32> {
    let rows = values.chunks_exact(from);
    rows.flat_map(|row| padded(row.to_vec(), to)).collect()
}

impl Rule {
    /// Both matrices by themselves; the sign of a factor goes to `a`, its root to both.
    fn apply_to_both(
        self,
        parts: &[Part<'_>],
        settings: &CombineSettings,
        seed: Seed,
    ) -> (Vec<f32>, Vec<f32>) {
        let factors = parts.iter().map(|part| part.weight * part.scale);
        let roots: Vec<f64> = factors.clone().map(|factor| factor.abs().sqrt()).collect();
        let signed: Vec<f64> = (factors.zip(&roots))
            .map(|(factor, root)| if factor < 0.0 { -root } else { *root })
            .collect();
        let of_a = parts.iter().map(|part| part.a.to_vec()).collect();
        let of_b = parts.iter().map(|part| part.b.to_vec()).collect();
        (
            self.apply(of_a, &signed, settings, seed.fork("a")),
            self.apply(of_b, &roots, settings, seed.fork("b")),
        )
    }

    /// Of the numbers of all adapters, entry by entry.
    fn apply(
        self,
        mut of_adapters: Vec<Vec<f32>>,
        weights: &[f64],
        settings: &CombineSettings,
        seed: Seed,
    ) -> Vec<f32> {
        let density = settings.density.unwrap_or(1.0);
        for (index, numbers) in of_adapters.iter_mut().enumerate() {
            match self {
                Self::Linear | Self::Cat => {}
                Self::Ties | Self::MagnitudePrune => keep_largest(numbers, density),
                Self::DareLinear | Self::DareTies => {
                    keep_some(numbers, density, seed.fork_index(index as u64));
                }
            }
        }
        let elects = matches!(self, Self::Ties | Self::DareTies);
        let entries = of_adapters.first().map_or(0, Vec::len);
        let entry = |at: usize| {
            let values: Vec<f64> = (of_adapters.iter())
                .map(|numbers| f64::from(numbers[at]))
                .collect();
            match elects {
                true => elected_mean(&values, weights, settings.majority_sign),
                false => values
                    .iter()
                    .zip(weights)
                    .map(|(x, weight)| x * weight)
                    .sum(),
            }
        };
        (0..entries).map(|at| entry(at) as f32).collect()
    }
}

/// The weighted mean of the numbers that have the majority's sign, by their count and not by their weights. A majority of nothing is positive.
fn elected_mean(values: &[f64], weights: &[f64], majority: MajoritySign) -> f64 {
    let sign = |x: f64| match x {
        x if x > 0.0 => 1.0,
        x if x < 0.0 => -1.0,
        _ => 0.0,
    };
    let balance: f64 = match majority {
        MajoritySign::Total => values.iter().sum(),
        MajoritySign::Frequency => values.iter().map(|&x| sign(x)).sum(),
    };
    let elected = if balance >= 0.0 { 1.0 } else { -1.0 };
    let agree = values
        .iter()
        .zip(weights)
        .filter(|(x, _)| sign(**x) == elected);
    let (sum, count) = agree.fold((0.0, 0.0), |(sum, count), (x, weight)| {
        (sum + x * weight, count + 1.0)
    });
    sum / f64::max(count, 1.0)
}

/// Leaves the share `density` of largest magnitude, rounded down; of equal ones the first.
fn keep_largest(numbers: &mut [f32], density: f64) {
    if density >= 1.0 {
        return;
    }
    let count = (density * numbers.len() as f64) as usize;
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&i, &j| numbers[j].abs().total_cmp(&numbers[i].abs()));
    for &index in &order[count..] {
        numbers[index] = 0.0;
    }
}

/// Leaves each number with probability `density`, divided by it.
fn keep_some(numbers: &mut [f32], density: f64, seed: Seed) {
    if density >= 1.0 {
        return;
    }
    for (index, x) in numbers.iter_mut().enumerate() {
        *x = match seed.uniform(index as u64) < density {
            true => (f64::from(*x) / density) as f32,
            false => 0.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pefts() {
        let ties = Combination::parse("ties_svd").unwrap();
        assert_eq!((ties.rule, ties.svd), (Rule::Ties, true));
        assert!(Combination::parse("mean").is_none());
        assert!(!Combination::parse("svd").unwrap().needs_density());
    }

    #[test]
    fn the_majority_elects_the_sign_and_the_mean_is_over_those_that_agree() {
        let total = |values: &[f64]| elected_mean(values, &[1.0, 0.5, 2.0], MajoritySign::Total);
        // 3 - 1 - 1 > 0: 3 * 1 alone.
        assert_eq!(total(&[3.0, -1.0, -1.0]), 3.0);
        // 3 - 4 + 0 < 0: -4 * 0.5 alone.
        assert_eq!(total(&[3.0, -4.0, 0.0]), -2.0);
        // 1, 2, 3 agree: (1 + 1 + 6) / 3.
        assert!((total(&[1.0, 2.0, 3.0]) - 8.0 / 3.0).abs() < 1e-12);
        assert_eq!(total(&[0.0, 0.0, 0.0]), 0.0);
        // Two of three are negative: (-1 * 0.5 - 1 * 2) / 2.
        let by_count = elected_mean(
            &[3.0, -1.0, -1.0],
            &[1.0, 0.5, 2.0],
            MajoritySign::Frequency,
        );
        assert_eq!(by_count, -1.25);
    }

    #[test]
    fn the_largest_are_kept_and_those_left_by_chance_enlarged() {
        let mut numbers = [0.1, -3.0, 2.0, 0.5, -0.2];
        keep_largest(&mut numbers, 0.5);
        assert_eq!(numbers, [0.0, -3.0, 2.0, 0.0, 0.0]);
        let mut many = vec![1.0f32; 10_000];
        keep_some(&mut many, 0.25, Seed::new(3));
        let kept = many.iter().filter(|x| **x == 4.0).count();
        assert_eq!(many.iter().filter(|x| **x == 0.0).count(), 10_000 - kept);
        // A binomial's deviation is 43.
        assert!((2350..2650).contains(&kept), "{kept}");
    }
}
