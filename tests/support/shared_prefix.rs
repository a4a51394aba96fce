//! Groups of rows against the same rows one by one, generic over the backend.

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{CausalLm, LanguageModel, ModelConfig, ScalarModel, weights};
use tempering::ops::ModelBackend;
use tempering::optim::GradientSum;
use tempering::params::{ParamKind, Parameters};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

const FAMILIES: [&str; 11] = [
    "llama_tied",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "opt_post",
    "qwen2_window",
    "mistral",
    "gemma2",
    "bloom",
    "gemma3",
];

/// Three responses to one prompt, a row alone, two equal rows, and two rows that begin differently.
fn groups() -> Vec<Vec<Vec<u32>>> {
    vec![
        vec![
            vec![5, 17, 40, 3, 3],
            vec![5, 17, 40, 3, 8, 45, 1],
            vec![5, 17, 40, 9],
        ],
        vec![vec![12, 2]],
        vec![vec![7, 0, 33], vec![7, 0, 33]],
        vec![vec![1, 2, 3], vec![2, 2, 3]],
    ]
}

fn load<B: ModelBackend>(name: &str, device: &B::Device) -> LanguageModel<B> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name);
    let config = ModelConfig::load(&folder).unwrap();
    let source = weights::open(&folder).unwrap();
    LanguageModel::load(&config, source.as_ref(), device).unwrap()
}

fn host<B: ModelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

/// States of the rows' tokens, row after row; every token's own state, also of tokens that rows share.
fn grouped_states<B: ModelBackend>(
    model: &LanguageModel<B>,
    groups: &[Vec<Vec<u32>>],
    device: &B::Device,
) -> Tensor<B, 2> {
    let (batch, spans) = TokenBatch::from_groups(groups, device);
    let tokens: Vec<i32> = spans
        .iter()
        .flat_map(|span| (0..span.len()).map(|i| span.token(i) as i32))
        .collect();
    let len = tokens.len();
    let tokens = Tensor::<B, 1, Int>::from_data(TensorData::new(tokens, [len]), device);
    model.states_at(&batch, Some(tokens), None, None)
}

fn lone_states<B: ModelBackend>(
    model: &LanguageModel<B>,
    groups: &[Vec<Vec<u32>>],
    device: &B::Device,
) -> Tensor<B, 2> {
    let rows = groups.iter().flatten().map(|row| {
        let batch = TokenBatch::from_rows(&[row], device);
        model.hidden_states(&batch, None, None)
    });
    Tensor::cat(rows.collect(), 0)
}

fn assert_near(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1f32, |max, x| max.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = (got - expected).abs();
        assert!(
            difference <= tolerance * size,
            "{what}[{i}]: {got} instead of {expected}"
        );
    }
}

/// Every token's state.
pub(crate) fn states<B: ModelBackend>(device: B::Device) {
    for family in FAMILIES {
        let model = load::<B>(family, &device);
        let got = host(grouped_states(&model, &groups(), &device));
        let expected = host(lone_states(&model, &groups(), &device));
        assert_near(family, &got, &expected, 1e-5);
    }
}

/// The gradient of every parameter, of a loss that weighs each state of each row differently.
pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    for family in FAMILIES {
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(load::<B>(family, &device));
        model.train_only(&|_: ParamKind| true);
        let gradient = |states: Tensor<Autodiff<B>, 2>| {
            let [tokens, hidden] = states.dims();
            let seed = Seed::new(5);
            let weights: Vec<f32> = (0..(tokens * hidden) as u64)
                .map(|i| seed.normal(i) as f32)
                .collect();
            let weights = Tensor::from_data(TensorData::new(weights, [tokens, hidden]), &device);
            let mut sum = GradientSum::<B>::default();
            let loss = (states * weights).sum();
            sum.add::<Autodiff<B>>(&mut model.clone(), &mut loss.backward());
            sum
        };
        let got = gradient(grouped_states(&model.clone(), &groups(), &device));
        let expected = gradient(lone_states(&model.clone(), &groups(), &device));
        let names: Vec<&str> = expected.names().collect();
        assert!(
            got.names().eq(names.iter().copied()) && names.len() > 10,
            "{family}"
        );
        for name in names {
            let [got, expected] = [&got, &expected].map(|sum| sum.values(name).unwrap());
            assert_near(&format!("{family} {name}"), &got, &expected, 1e-5);
        }
    }
}

/// Scores of a reward model.
pub(crate) fn scores<B: ModelBackend>(device: B::Device) {
    let backbone = load::<B>("llama_tied", &device).into_backbone();
    let hidden = backbone.head().width();
    let model = ScalarModel::with_random_head(backbone, hidden, Seed::new(2), &device);
    let groups = groups();
    let rows: Vec<Vec<&[u32]>> = groups
        .iter()
        .map(|group| group.iter().map(Vec::as_slice).collect())
        .collect();
    // 11 tokens at most: groups are spread over several passes, out of order.
    let got = model
        .group_scores(&rows, 11, &device, &mut |_, _| {})
        .concat();
    let expected = model.row_scores(&rows.concat(), 1000, &device, &mut |_, _| {});
    assert_near("scores", &got, &expected, 1e-5);
}

/// Several responses to one prompt equal those generated alone.
pub(crate) fn responses<B: ModelBackend>(device: B::Device) {
    let model = load::<B>("llama_tied", &device);
    let prompts: [&[u32]; 7] = [
        &[4, 9, 2],
        &[4, 9, 2],
        &[4, 9, 2],
        &[8],
        &[8],
        &[30, 1],
        &[4, 9, 2],
    ];
    let options = |batch_size: usize| GenerateOptions {
        max_new_tokens: 6,
        sampling: SamplingConfig::default(),
        repetition_penalty: 1.0,
        stop_ids: vec![0],
        truncate: None,
        batch_size,
    };
    let together = |batch_size: usize| {
        generate(
            &model,
            &prompts,
            &options(batch_size),
            Seed::new(7),
            &device,
            &mut |_, _| {},
        )
    };
    let alone = together(1);
    let distinct: std::collections::BTreeSet<_> =
        alone[..3].iter().map(|r| r.ids.clone()).collect();
    assert!(distinct.len() > 1, "responses to one prompt differ");
    for batch_size in [2, 3, 7] {
        for (got, expected) in together(batch_size).iter().zip(&alone) {
            assert_eq!(got.ids, expected.ids, "{batch_size} at once");
            assert_near("logprobs", &got.logprobs, &expected.logprobs, 1e-5);
        }
    }
}
