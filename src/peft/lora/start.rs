//! What LoRA's matrices are when training begins.
//!
//! PiSSA and OLoRA begin with a part of the weight itself, `a0 . b0`, and train on from there over what is left of the weight.
//! PEFT takes that part out of the weight; here the base is shared with models that have other adapters, so it stays as it is and
//! the part is subtracted beside it: `x w + s (x a) b - s (x a0) b0`, which is the same sum. In files such an adapter is a LoRA of
//! twice the rank on the unchanged base, as PEFT's `path_initial_model_for_weight_conversion` writes it.
//!
//! # Source
//! PiSSA: Meng et al. 2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775; PEFT 0.21, `pissa_init` and `olora_init`.

use std::fmt;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::svd;
use crate::host;
use crate::ops::{ModelBackend, f32_matmul};
use crate::peft::method::Site;
use crate::rng::Seed;

/// Most passes of `pissa_niter_`: each multiplies by every weight; 16 are as exact as the decomposition.
const MOST_PASSES: usize = 1000;

/// PEFT's `init_lora_weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitLoraWeights {
    /// `true`: `a` uniform in `±1/sqrt(in)` (PEFT's `kaiming_uniform(a = sqrt 5)`), `b` zero.
    #[default]
    Uniform,
    /// `"gaussian"`: `a` normal with deviation `1/rank`, `b` zero.
    Gaussian,
    /// `"pissa"`: the weight's largest singular values and their vectors.
    Pissa,
    /// `"pissa_niter_4"`: the same by that many powers of random vectors, faster and less exact.
    PissaNiter(usize),
    /// `"olora"`: the first columns of the weight's QR decomposition.
    Olora,
}

impl InitLoraWeights {
    /// Whether it begins with a part of the weight.
    pub fn takes_of_weight(self) -> bool {
        matches!(self, Self::Pissa | Self::PissaNiter(_) | Self::Olora)
    }

    /// PEFT's word.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        match text.as_str() {
            "gaussian" => Some(Self::Gaussian),
            "pissa" => Some(Self::Pissa),
            "olora" => Some(Self::Olora),
            text => {
                let passes = text.strip_prefix("pissa_niter_")?.parse().ok()?;
                if passes > MOST_PASSES {
                    return None;
                }
                Some(Self::PissaNiter(passes))
            }
        }
    }
}

impl fmt::Display for InitLoraWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("true"),
            Self::Gaussian => f.write_str("gaussian"),
            Self::Pissa => f.write_str("pissa"),
            Self::PissaNiter(passes) => write!(f, "pissa_niter_{passes}"),
            Self::Olora => f.write_str("olora"),
        }
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uniform => serializer.serialize_bool(true),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = InitLoraWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "true, \"gaussian\", \"pissa\", \"pissa_niter_4\" (at most 1000) or \"olora\"",
                )
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
                match value {
                    true => Ok(InitLoraWeights::Uniform),
                    false => Err(E::invalid_value(de::Unexpected::Bool(false), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                InitLoraWeights::parse(value)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Value)
    }
}

/// The part of the weight that an adapter began with, its sign turned: with it the adapter changes nothing at the start. Frozen.
#[derive(Module, Debug)]
pub struct Start<B: Backend> {
    /// `[in, rank]`.
    pub(super) a: Tensor<B, 2>,
    /// `[rank, out]`.
    pub(super) b: Tensor<B, 2>,
}

impl<B: Backend> Start<B> {
    /// What is added beside the trained matrices.
    pub(super) fn subtracted(self) -> Self {
        Self {
            a: self.a,
            b: self.b.neg(),
        }
    }
}

/// `a` and `b` as training begins, and whether they hold a part of the weight. `scale` is the factor on their product.
pub(super) fn matrices<B: ModelBackend>(
    init: InitLoraWeights,
    rank: usize,
    scale: f64,
    site: &Site<'_, B>,
) -> Start<B> {
    let (inputs, outputs) = (site.layer.in_features, site.layer.out_features);
    match init {
        InitLoraWeights::Uniform | InitLoraWeights::Gaussian => Start {
            a: drawn(init, [inputs, rank], site.seed, site.device),
            b: Tensor::zeros([rank, outputs], site.device),
        },
        InitLoraWeights::Pissa => pissa(&(site.weight)(), rank, scale, None, site.seed),
        InitLoraWeights::PissaNiter(passes) => {
            pissa(&(site.weight)(), rank, scale, Some(passes), site.seed)
        }
        InitLoraWeights::Olora => olora((site.weight)(), rank),
    }
}

/// `a` at random, `[in, rank]`: normal for [`InitLoraWeights::Gaussian`], else uniform.
pub(super) fn drawn<B: Backend>(
    init: InitLoraWeights,
    [inputs, rank]: [usize; 2],
    seed: Seed,
    device: &B::Device,
) -> Tensor<B, 2> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let draw = |i| match init {
        InitLoraWeights::Gaussian => (seed.normal(i) / rank as f64) as f32,
        _ => ((2.0 * seed.uniform(i) - 1.0) * bound) as f32,
    };
    let draws: Vec<f32> = (0..(inputs * rank) as u64).map(draw).collect();
    Tensor::from_data(TensorData::new(draws, [inputs, rank]), device)
}

/// `scale * a . b` is what the largest singular values make of the weight; each matrix has the root of them.
fn pissa<B: ModelBackend>(
    weight: &Tensor<B, 2>,
    rank: usize,
    scale: f64,
    passes: Option<usize>,
    seed: Seed,
) -> Start<B> {
    let [inputs, outputs] = weight.dims();
    let found = svd::leading(weight, rank, passes, seed.fork("pissa"));
    let roots: Vec<f64> = (found.values.iter())
        .map(|value| (value / scale).sqrt())
        .collect();
    let a = (found.left.iter().zip(roots.iter().cycle())).map(|(x, root)| (x * root) as f32);
    let b = (0..rank).flat_map(|k| {
        let root = roots[k];
        (found.right.iter().skip(k).step_by(rank)).map(move |x| (x * root) as f32)
    });
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::from_data(TensorData::new(values, shape), &weight.device())
    };
    Start {
        a: tensor(a.collect(), [inputs, rank]),
        b: tensor(b.collect(), [rank, outputs]),
    }
}

/// `b` holds orthonormal rows that span the first `rank` rows of the weight (columns of PyTorch's), `a` the weight's parts along them.
fn olora<B: ModelBackend>(weight: Tensor<B, 2>, rank: usize) -> Start<B> {
    let [_, outputs] = weight.dims();
    let first: Vec<f32> = host::read(weight.clone().slice([0..rank, 0..outputs]));
    let rows: Vec<Vec<f64>> = (first.chunks_exact(outputs))
        .map(|row| row.iter().map(|&x| f64::from(x)).collect())
        .collect();
    let b: Vec<f32> = orthonormal_rows(rows)
        .iter()
        .flat_map(|row| row.iter().map(|&x| x as f32))
        .collect();
    let b = Tensor::from_data(TensorData::new(b, [rank, outputs]), &weight.device());
    Start {
        a: f32_matmul(weight, b.clone().transpose()),
        b,
    }
}

/// Householder's QR decomposition of the rows taken for columns: those of Q, with LAPACK's signs.
fn orthonormal_rows(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let (count, len) = (rows.len(), rows.first().map_or(0, Vec::len));
    let mut mirrors: Vec<Vec<f64>> = Vec::new();
    let reflect = |mirror: &[f64], from: usize, x: &mut [f64]| {
        let along: f64 = mirror.iter().zip(&x[from..]).map(|(m, x)| m * x).sum();
        x[from..]
            .iter_mut()
            .zip(mirror)
            .for_each(|(x, m)| *x -= 2.0 * along * m);
    };
    for j in 0..count {
        let (before, after) = rows.split_at_mut(j + 1);
        let x = &before[j][j..];
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut mirror = x.to_vec();
        // Away from the first entry's sign, as LAPACK; the last of all has nothing below it to remove.
        if j + 1 < len {
            mirror[0] += norm.copysign(x[0]);
        } else {
            mirror[0] = 0.0;
        }
        let size = mirror.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size > 0.0 {
            mirror.iter_mut().for_each(|x| *x /= size);
        }
        for row in after {
            reflect(&mirror, j, row);
        }
        mirrors.push(mirror);
    }
    let column = |j: usize| {
        let mut unit = vec![0.0; len];
        unit[j] = 1.0;
        for (from, mirror) in mirrors.iter().enumerate().rev() {
            reflect(mirror, from, &mut unit);
        }
        unit
    };
    (0..count).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_pefts() {
        for (text, init) in [
            ("true", InitLoraWeights::Uniform),
            ("\"gaussian\"", InitLoraWeights::Gaussian),
            ("\"pissa\"", InitLoraWeights::Pissa),
            ("\"pissa_niter_16\"", InitLoraWeights::PissaNiter(16)),
            ("\"olora\"", InitLoraWeights::Olora),
        ] {
            let read: InitLoraWeights = serde_json::from_str(text).unwrap();
            assert_eq!(read, init);
            assert_eq!(serde_json::to_string(&init).unwrap(), text);
            assert_eq!(ron::from_str::<InitLoraWeights>(text).unwrap(), init);
        }
        for text in [
            "false",
            "\"pisa\"",
            "\"pissa_niter_\"",
            "\"pissa_niter_1001\"",
            "\"pissa_niter_99999999999\"",
            "3",
        ] {
            assert!(
                serde_json::from_str::<InitLoraWeights>(text).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn rows_are_made_orthonormal_with_lapacks_signs() {
        // Python: torch.linalg.qr(torch.tensor([[3., 1.], [4., 2.], [0., 2.]]))[0].T
        let q = orthonormal_rows(vec![vec![3.0, 4.0, 0.0], vec![1.0, 2.0, 2.0]]);
        let expected = [[-0.6, -0.8, 0.0], [0.156_893, -0.117_670, -0.980_581]];
        for (row, expected) in q.iter().zip(expected) {
            for (x, expected) in row.iter().zip(expected) {
                assert!((x - expected).abs() < 1e-6, "{q:?}");
            }
        }
    }
}
