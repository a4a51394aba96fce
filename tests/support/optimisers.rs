//! Every optimiser against its reference implementation, 20 steps: `tests/reference/optimisers`. Then the same 20 steps resumed
//! in the middle, which has to give the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use ron::extensions::Extensions;
use serde::Deserialize;
use tempering::ops::ModelBackend;
use tempering::optim::{GradientSum, OptimConfig, Optimiser, StateMap, lr_at};
use tempering::params::{ParamKind, ParamMeta, ParamSlot, Parameters};

use super::parity::{Comparison, backend_name};

const STEPS: usize = 20;
/// Of large tensors every so many entries are compared.
fn stride(entries: usize) -> usize {
    match entries {
        ..100 => 1,
        100..1000 => 5,
        _ => 37,
    }
}

/// Name and shape as files hold it, in the order of the reference script.
const TENSORS: [(&str, &[usize]); 6] = [
    ("q_proj.weight", &[24, 16]),
    ("k_proj.weight", &[8, 16]),
    ("q_proj.bias", &[24]),
    ("k_proj.bias", &[8]),
    ("down_proj.weight", &[16, 48]),
    ("embed_tokens.weight", &[81, 64]),
];

/// What a recipe says of an optimiser, and the parameters that the reference ends at.
#[derive(Deserialize)]
struct Variant {
    name: String,
    optim: String,
    values: BTreeMap<String, Vec<f32>>,
}

/// Two layers stored as one matrix and their biases, a layer by itself, and a table.
struct Model<B: Backend> {
    qk: Param<Tensor<B, 2>>,
    bias: Param<Tensor<B, 1>>,
    down: Param<Tensor<B, 2>>,
    embed: Param<Tensor<B, 2>>,
}

impl<B: Backend> Parameters<B> for Model<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let joint = |kind, leaf: &str, transposed| ParamMeta {
            kind,
            pieces: vec![
                (format!("q_proj.{leaf}"), 24),
                (format!("k_proj.{leaf}"), 8),
            ],
            transposed,
            order: None,
            trained_columns: None,
            lr_factor: 1.0,
        };
        visit(
            &joint(ParamKind::Matrix, "weight", true),
            ParamSlot::Matrix(&mut self.qk),
        );
        visit(
            &joint(ParamKind::Vector, "bias", false),
            ParamSlot::Vector(&mut self.bias),
        );
        let down = ParamMeta::single(ParamKind::Matrix, "down_proj.weight", 16, true);
        visit(&down, ParamSlot::Matrix(&mut self.down));
        let embed = ParamMeta::single(ParamKind::Embedding, "embed_tokens.weight", 64, false);
        visit(&embed, ParamSlot::Matrix(&mut self.embed));
    }
}

/// The reference script's numbers, from -1 to 1.
fn hashed(which: u64, index: u64, step: u64) -> f64 {
    let mixed =
        (index * 7919 + (index * index) % 1009 * 31 + which * 12983 + step * 104_729) % 2003;
    (mixed as f64 - 1001.0) / 1000.0 / f64::from(1 << (index % 5))
}

/// A tensor's numbers at step 0, or its gradient at a later one.
fn numbers(name: &str, step: u64) -> Vec<f32> {
    let (which, (_, shape)) = (TENSORS.iter().enumerate())
        .find(|(_, (other, _))| *other == name)
        .unwrap();
    let count = shape.iter().product::<usize>() as u64;
    let number = |index| {
        let fixed = hashed(which as u64, index, 0);
        match step {
            0 => fixed,
            _ => (fixed + hashed(which as u64, index, step)) / 2.0,
        }
    };
    (0..count).map(|index| number(index) as f32).collect()
}

/// A model that holds [`numbers`].
fn model<B: Backend>(step: u64, device: &B::Device) -> Model<B> {
    fn zeros<B: Backend, const D: usize>(
        shape: [usize; D],
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        Param::initialized(ParamId::new(), Tensor::zeros(shape, device))
    }
    let mut model = Model {
        qk: zeros([16, 32], device),
        bias: zeros([32], device),
        down: zeros([48, 16], device),
        embed: zeros([81, 64], device),
    };
    model.for_each_parameter(&mut |meta, mut slot| {
        let loaded = slot.load::<_, ()>(meta, device, |name| Ok(numbers(name, step)));
        loaded.unwrap();
    });
    model
}

/// A model in training.
struct Run<B: ModelBackend> {
    model: Model<Autodiff<B>>,
    optim: Optimiser<B>,
    config: OptimConfig,
    device: B::Device,
}

impl<B: ModelBackend> Run<B> {
    fn new(config: &OptimConfig, device: &B::Device) -> Self {
        let mut model = model::<Autodiff<B>>(0, device);
        model.train_only(&|_| true);
        Self {
            model,
            optim: Optimiser::new(config.clone()),
            config: config.clone(),
            device: device.clone(),
        }
    }

    fn steps(&mut self, steps: std::ops::Range<usize>) {
        let _lock = tempering::guard::lock_gradients();
        for step in steps {
            // The gradient of a sum of products is the other factor.
            let g = model::<Autodiff<B>>(step as u64 + 1, &self.device);
            let m = &self.model;
            let loss = (m.qk.val() * g.qk.val()).sum()
                + (m.bias.val() * g.bias.val()).sum()
                + (m.down.val() * g.down.val()).sum()
                + (m.embed.val() * g.embed.val()).sum();
            let mut gradients = GradientSum::<B>::default();
            gradients.add::<Autodiff<B>>(&mut self.model, &mut loss.backward());
            let lr = lr_at(&self.config.schedule, self.config.lr, step, STEPS);
            let norm = self.optim.update(&mut self.model, gradients, 1.0, lr);
            assert!(norm > 1.0 && norm.is_finite());
        }
    }

    /// As a checkpoint would hold them and give them back.
    fn resumed(mut self) -> Self {
        let snapshot = self.optim.state();
        let state: StateMap = (snapshot.tensors().iter())
            .map(|t| (t.name.clone(), (t.shape.clone(), t.read().into_owned())))
            .collect();
        drop(snapshot);
        let mut optim = Optimiser::new(self.config.clone());
        let (done, folder) = (self.optim.num_updates(), Path::new("checkpoint"));
        let restored = optim.restore(state, done, &mut self.model, &self.device, folder);
        restored.unwrap();
        self.optim = optim;
        self
    }

    /// The parameters by name, as files hold them.
    fn values(&mut self) -> BTreeMap<String, Vec<f32>> {
        let mut all = BTreeMap::new();
        self.model.for_each_parameter(&mut |meta, slot| {
            let tensors = slot.save(meta).into_iter();
            all.extend(tensors.map(|(name, _, values)| (name, values)));
        });
        all
    }
}

fn variants() -> Vec<Variant> {
    let text = std::fs::read_to_string("tests/reference/optimisers/optimisers.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

/// As recipes are read.
fn config(text: &str) -> OptimConfig {
    let options = ron::Options::default().with_default_extension(
        Extensions::IMPLICIT_SOME
            | Extensions::UNWRAP_NEWTYPES
            | Extensions::UNWRAP_VARIANT_NEWTYPES,
    );
    options.from_str(text).unwrap()
}

/// All variants, whole and resumed.
pub(crate) fn twenty_steps<B: ModelBackend>(device: B::Device) {
    let variants = variants();
    assert_eq!(variants.len(), 14);
    for variant in variants {
        let config = config(&variant.optim);
        assert_eq!(config.problems(), [], "{}", variant.name);
        let mut whole = Run::<B>::new(&config, &device);
        whole.steps(0..STEPS);
        let values = whole.values();
        let mut worst = 0f64;
        for (name, expected) in &variant.values {
            let found = &values[name];
            let stride = stride(found.len());
            let found: Vec<f32> = found.iter().copied().step_by(stride).collect();
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                let difference = f64::from((found - expected).abs());
                assert!(!difference.is_nan());
                worst = worst.max(difference);
            }
        }
        Comparison {
            reference: match () {
                () if variant.name.starts_with("Adafactor") => "transformers 5.23",
                () if variant.name.starts_with("Lion") => "bitsandbytes 0.50",
                () if variant.name == "AdamW8bit" => "bitsandbytes 0.50",
                () => "torch 2.15",
            },
            subject: &variant.name,
            what: "parameters after 20 steps",
            backend: backend_name::<B>(),
            difference: worst,
            tolerance: tolerance(&variant.name),
            relative: false,
        }
        .check();

        let mut parts = Run::<B>::new(&config, &device);
        parts.steps(0..7);
        let mut parts = parts.resumed();
        parts.steps(7..STEPS);
        assert_eq!(parts.values(), values, "{} resumed", variant.name);
    }
}

/// Of parameters that move by 0.1: rounding only; of moments in 8 bits a rounding that flips a code, too.
fn tolerance(variant: &str) -> f64 {
    match variant {
        "AdamW8bit" => 1e-4,
        _ => 2e-6,
    }
}
