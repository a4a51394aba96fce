//! Several models over one base in one pass against each by itself, generic over the backend.

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};

use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, SharedBaseModels, attach_adapters, weights,
};
use tempering::ops::{MatmulPrecision, ModelBackend, Numerics, Precision};
use tempering::params::{ParamKind, Parameters};
use tempering::peft::{Adaptable, LoraConfig};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

const ROWS: [&[u32]; 3] = [&[5, 17, 40, 3, 3], &[12, 2], &[7, 0, 33, 1, 30, 2, 9]];
/// Places in the packed rows, out of order.
const PLACES: [usize; 6] = [4, 0, 6, 5, 13, 9];

fn load<B: ModelBackend>(
    name: &str,
    numerics: Numerics,
    device: &B::Device,
) -> (LanguageModel<B>, ModelConfig) {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name);
    let config = ModelConfig::load(&folder).unwrap();
    let source = weights::open(&folder).unwrap();
    let model = LanguageModel::load_as(&config, source.as_ref(), numerics, device).unwrap();
    (model, config)
}

/// The base with adapters that do something on the layers that `targets` names.
fn adapted<B: ModelBackend>(
    base: &LanguageModel<B>,
    config: &ModelConfig,
    rank: usize,
    targets: &str,
    device: &B::Device,
) -> LanguageModel<B> {
    let mut model = base.clone();
    let lora = LoraConfig {
        rank,
        alpha: 3.0,
        target_modules: vec![targets.into()],
        ..LoraConfig::default()
    };
    let seed = Seed::new(rank as u64);
    attach_adapters(&mut model, config, &lora, seed).unwrap();
    model.for_each_parameter(&mut |meta, mut slot| {
        if meta.kind == ParamKind::Adapter {
            let seed = seed.fork(meta.key());
            let len = slot.num_entries() as u64;
            let values = (0..len).map(|i| seed.uniform(i) as f32 - 0.5).collect();
            slot.assign(values, &slot.shape(), device);
        }
    });
    model
}

fn alone<B: ModelBackend>(model: &LanguageModel<B>, device: &B::Device) -> Vec<f32> {
    let batch = TokenBatch::from_rows(&ROWS, device);
    let places: Vec<i32> = PLACES.iter().map(|&place| place as i32).collect();
    let at = Tensor::<B, 1, Int>::from_data(TensorData::new(places, [PLACES.len()]), device);
    host(model.states_at(&batch, Some(at), None, None))
}

fn host<B: ModelBackend>(states: Tensor<B, 2>) -> Vec<f32> {
    states.into_data().convert::<f32>().into_vec().unwrap()
}

/// Largest difference over the size of the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(1f32, |max, x| max.max(x.abs()));
    a.iter()
        .zip(b)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()))
        / size
}

/// The base, one with adapters on some layers, one with adapters of another rank on all.
pub(crate) fn models_in_one_pass<B: ModelBackend>(device: B::Device) {
    let f32 = Numerics::default();
    let bf16 = Numerics {
        storage: Precision::Bf16,
        matmul: MatmulPrecision::F32,
    };
    let cases = [
        ("llama_tied", "q_proj", f32),
        ("qwen3", "down_proj", f32),
        ("gpt2", "c_attn", f32),
        ("gpt_neox", "dense", f32),
        ("opt_post", "fc1", f32),
        ("llama_tied", "up_proj", bf16),
    ];
    for (family, some, numerics) in cases {
        let (base, config) = load::<B>(family, numerics, &device);
        let first = adapted(&base, &config, 3, some, &device);
        let second = adapted(&base, &config, 2, "all-linear", &device);
        let models = [&base, &first, &second];
        let together = SharedBaseModels::new(&models).expect("one base");
        let states = together.states_at(&ROWS, &PLACES, &device);
        assert_eq!(states.len(), 3);
        let lone: Vec<Vec<f32>> = models.iter().map(|model| alone(model, &device)).collect();
        for ((i, states), lone) in states.into_iter().enumerate().zip(&lone) {
            let difference = apart(&host(states), lone);
            assert!(difference < 1e-5, "{family}, model {i}: {difference}");
        }
        assert!(apart(&lone[0], &lone[1]) > 1e-2 && apart(&lone[1], &lone[2]) > 1e-2);
        // Without adapters at all, and with the same model twice.
        let twice = SharedBaseModels::new(&[&base, &base]).expect("one base");
        for states in twice.states_at(&ROWS, &PLACES, &device) {
            assert!(apart(&host(states), &lone[0]) < 1e-5, "{family}");
        }
        // Weights of its own.
        let mut merged = first.clone();
        merged.merge_adapters().unwrap();
        assert!(
            SharedBaseModels::new(&[&base, &merged]).is_none(),
            "{family}"
        );
        let (other, _) = load::<B>(family, numerics, &device);
        assert!(
            SharedBaseModels::new(&[&base, &other]).is_none(),
            "{family}"
        );
    }
}
