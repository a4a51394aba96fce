//! Reduced bases against the same models with rounded weights, generic over the backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, attach_adapters, host_tensors, weights,
};
use tempering::ops::{
    self, BlockFormat, Blocks, FrozenWeight, LinearInput, LowRankPart, ModelBackend, Precision,
    ReducedMatrix,
};
use tempering::optim::GradientSum;
use tempering::params::{ParamKind, ParamSlot, Parameters};
use tempering::peft::{Adaptable, LoraConfig};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;
use tempering::train::row_logprobs;

use super::parity::{Comparison, backend_name};

/// One of each file of `model/`, with heads of their own and shared ones, and OPT's projections.
const FAMILIES: [&str; 5] = ["llama_tied", "llama_untied", "gpt2", "gpt_neox", "opt_post"];
const REDUCED: [Precision; 3] = [Precision::Bf16, Precision::Int8, Precision::Nf4];

fn numbers(len: usize, name: &str) -> Vec<f32> {
    let seed = Seed::new(21).fork(name);
    (0..len).map(|i| seed.normal(i as u64) as f32).collect()
}

fn on<B: ModelBackend>(values: &[f32], dims: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

fn host<B: ModelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

/// The largest difference as a part of the largest number.
fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    for (a, b) in got.iter().zip(want) {
        let off = (a - b).abs() / largest;
        assert!(off < tolerance, "{what}: {a}, expected {b}");
    }
}

/// `x` as a product with 8-bit weights sees it: 127 steps to each side of zero by row and group of 64.
fn rounded_input(x: &[f32], inputs: usize) -> Vec<f32> {
    let rows = x.chunks_exact(inputs).flat_map(|row| row.chunks(64));
    rows.flat_map(|group| {
        let largest = group.iter().fold(0f32, |m, x| m.max(x.abs()));
        let step = largest / 127.0;
        group.iter().map(move |x| match largest {
            0.0 => 0.0,
            _ => (x * (127.0 / largest)).round_ties_even() * step,
        })
    })
    .collect()
}

/// Products, with and without adapters, and their gradients, against f32 products of the rounded sides.
pub(crate) fn products<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    // One row and many, widths that fill no group and no panel.
    for (rows, inputs, outputs) in [(1, 64, 64), (5, 70, 33), (70, 130, 90)] {
        let (x, w) = (numbers(rows * inputs, "x"), numbers(inputs * outputs, "w"));
        let factors = numbers(rows * outputs, "factors");
        let parts = [
            LowRankPart {
                rank: 3,
                scale: 0.5,
                column: 2,
                width: 20,
            },
            LowRankPart {
                rank: 1,
                scale: -2.0,
                column: 22,
                width: 11,
            },
        ];
        let (a, b) = (numbers(inputs * 4, "a"), numbers(3 * 20 + 11, "b"));
        for precision in REDUCED {
            let reduced = ReducedMatrix::new(&w, inputs, outputs, precision).unwrap();
            let full = reduced.values();
            let seen = match precision {
                Precision::Int8 => rounded_input(&x, inputs),
                _ => x.clone(),
            };
            let full_on = || on::<B>(&full, [inputs, outputs], &device);
            let plain = ops::f32_matmul(on::<B>(&seen, [rows, inputs], &device), full_on());
            let tracked =
                |values: &[f32], dims| on::<Autodiff<B>>(values, dims, &device).require_grad();
            let what = format!("{precision:?} {rows} x {inputs} x {outputs}");

            // The gradient is that of the f32 product: `factors . w^T`.
            let input = tracked(&x, [rows, inputs]);
            let y = ops::reduced_linear(input.clone(), &reduced);
            assert_close(&what, &host(y.clone().inner()), &host(plain.clone()), 2e-6);
            let weights = on::<Autodiff<B>>(&factors, [rows, outputs], &device);
            let grads = (y * weights.clone()).sum().backward();
            let through_weight = ops::f32_matmul(
                on::<B>(&factors, [rows, outputs], &device),
                full_on().transpose(),
            );
            let got = host(input.grad(&grads).unwrap());
            assert_close(&what, &got, &host(through_weight.clone()), 2e-6);

            // Adapters read `x` as it is.
            let what = format!("{what} with adapters");
            let (input, a, b) = (
                tracked(&x, [rows, inputs]),
                tracked(&a, [inputs, 4]),
                tracked(&b, [1, 71]),
            );
            let y = ops::lora_linear_of(
                input.clone(),
                LinearInput::Plain,
                &FrozenWeight::Reduced(reduced),
                a.clone(),
                b.clone().reshape([71]),
                &parts,
            );
            let zero = on::<Autodiff<B>>(&vec![0.0; w.len()], [inputs, outputs], &device);
            let flat = b.clone().reshape([71]);
            let (other, a2, b2) = (input.clone().detach().require_grad(), a.clone(), flat);
            let adapters = ops::lora_linear(other.clone(), zero, a2, b2, &parts);
            let want = host(plain + adapters.clone().inner());
            assert_close(&what, &host(y.clone().inner()), &want, 2e-6);
            let grads = (y * weights.clone()).sum().backward();
            let expected = (adapters * weights).sum().backward();
            for parameter in [&a, &b] {
                let want = host(parameter.grad(&expected).unwrap());
                let got = host(parameter.grad(&grads).unwrap());
                assert_close(&what, &got, &want, 2e-6);
            }
            let want = host(through_weight + other.grad(&expected).unwrap());
            assert_close(&what, &host(input.grad(&grads).unwrap()), &want, 2e-6);
        }
    }
}

/// Products with tensors in blocks side by side, their gradients and their columns, against f32 products of their numbers.
pub(crate) fn blocks<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    let formats = [
        BlockFormat::Nf4,
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q8_0,
    ];
    // One row and many; blocks that end with rows and inside them; tensors that are no multiple of sixteen rows.
    for (rows, inputs, outputs) in [(1, 64, [64, 0]), (5, 128, [33, 48]), (70, 70, [64, 32])] {
        for format in formats {
            // The last two in another format each.
            let other = formats[(rows + 1) % 4];
            let tensors = [(outputs[0], format), (outputs[1], other)];
            let tensors = tensors.into_iter().filter(|(outputs, _)| *outputs > 0);
            let tensors = tensors.map(|(outputs, format)| {
                let values = numbers(inputs * outputs, "w");
                Blocks::quantize(format, &values, [outputs, inputs])
            });
            let tensors: Vec<Blocks> = tensors.collect();
            let outputs: usize = outputs.iter().sum();
            let mut full = vec![0f32; inputs * outputs];
            let all = tensors.iter().flat_map(Blocks::values).enumerate();
            all.for_each(|(i, x)| full[i % inputs * outputs + i / inputs] = x);
            let matrix = ReducedMatrix::of_blocks(tensors);
            assert_eq!(matrix.values(), full);

            let (x, factors) = (
                numbers(rows * inputs, "x"),
                numbers(rows * outputs, "factors"),
            );
            let what = format!("{format:?} {rows} x {inputs} x {outputs}");
            let input = on::<Autodiff<B>>(&x, [rows, inputs], &device).require_grad();
            let y = ops::reduced_linear(input.clone(), &matrix);
            let full_on = on::<B>(&full, [inputs, outputs], &device);
            let plain = ops::f32_matmul(on::<B>(&x, [rows, inputs], &device), full_on.clone());
            assert_close(&what, &host(y.clone().inner()), &host(plain), 2e-6);
            let weights = on::<Autodiff<B>>(&factors, [rows, outputs], &device);
            let grads = (y * weights).sum().backward();
            let factors = on::<B>(&factors, [rows, outputs], &device);
            let want = ops::f32_matmul(factors, full_on.transpose());
            assert_close(&what, &host(input.grad(&grads).unwrap()), &host(want), 2e-6);

            let ids = [outputs as i32 - 1, 0];
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::from(ids), &device);
            let columns = host(ops::reduced_columns::<B>(&matrix, ids));
            for (k, row) in full.chunks_exact(outputs).enumerate() {
                let got = [columns[k], columns[inputs + k]];
                assert_eq!(got, [row[outputs - 1], row[0]], "{what}");
            }
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

fn load<B: ModelBackend>(
    name: &str,
    precision: Precision,
    device: &B::Device,
) -> (ModelConfig, LanguageModel<B>) {
    let config = ModelConfig::load(folder(name)).unwrap();
    let source = weights::open(folder(name)).unwrap();
    let model = LanguageModel::load_as(&config, source.as_ref(), precision, device).unwrap();
    (config, model)
}

/// Log-probabilities of each row's tokens after the first, and gradients of the adapters.
fn logprobs_and_gradients<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    let _lock = tempering::guard::lock_gradients();
    let mut model = LanguageModel::<Autodiff<B>>::from_inner(model.clone());
    model.train_only(&|kind| kind == ParamKind::Adapter);
    let batch = TokenBatch::<Autodiff<B>>::from_rows(rows, device);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        positions.extend((range.start..range.end - 1).map(|i| i as i32));
        targets.extend(&row[1..]);
    }
    let count = positions.len();
    let positions =
        Tensor::<Autodiff<B>, 1, Int>::from_data(TensorData::new(positions, [count]), device);
    let hidden = model.states_at(&batch, Some(positions), None, None);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 0.7);
    let mut sum = GradientSum::<B>::default();
    sum.add::<Autodiff<B>>(&mut model, &mut logprobs.clone().sum().backward());
    let mut gradients = BTreeMap::new();
    model.for_each_parameter(&mut |meta, _| {
        if let Some(values) = sum.values(meta.key()) {
            gradients.insert(meta.key().to_owned(), values);
        }
    });
    (host(logprobs.inner()), gradients)
}

fn with_adapters<B: ModelBackend>(
    config: &ModelConfig,
    model: &mut LanguageModel<B>,
    device: &B::Device,
) {
    let lora = LoraConfig {
        rank: 3,
        alpha: 6.0,
        ..LoraConfig::default()
    };
    attach_adapters(model, config, &lora, Seed::new(5)).unwrap();
    model.for_each_parameter(&mut |meta, mut slot| {
        if meta.kind == ParamKind::Adapter {
            let shape = slot.shape();
            let values = numbers(shape.iter().product(), meta.key());
            let values: Vec<f32> = values.iter().map(|x| 0.1 * x).collect();
            slot.assign(values, &shape, device);
        }
    });
}

/// A base in bfloat16 is the f32 model with rounded weights, and its tensors are saved as any model's.
pub(crate) fn bf16_models<B: ModelBackend>(device: B::Device) {
    rounded_models::<B>(Precision::Bf16, &device);
}

/// So is one in NF4.
pub(crate) fn nf4_models<B: ModelBackend>(device: B::Device) {
    rounded_models::<B>(Precision::Nf4, &device);
}

fn rounded_models<B: ModelBackend>(precision: Precision, device: &B::Device) {
    let rows: Vec<Vec<u32>> = vec![vec![5, 17, 30, 3, 8], vec![12, 2], vec![7, 0, 33, 1, 2, 3]];
    for name in FAMILIES {
        let (config, mut reduced) = load::<B>(name, precision, device);
        let (_, mut full) = load::<B>(name, Precision::F32, device);
        let mut rounded = BTreeMap::new();
        let mut count = 0;
        reduced.for_each_parameter(&mut |meta, slot| {
            count += usize::from(matches!(slot, ParamSlot::Reduced(..)));
            rounded.insert(meta.key().to_owned(), slot.values());
        });
        assert!(count > 4, "{name}: {count} reduced matrices");
        full.for_each_parameter(&mut |meta, mut slot| {
            let shape = slot.shape();
            slot.assign(rounded[meta.key()].clone(), &shape, device);
        });
        let tensors = |model: &mut LanguageModel<B>| host_tensors(model, &|_| true);
        assert!(tensors(&mut reduced) == tensors(&mut full), "{name}");

        with_adapters(&config, &mut reduced, device);
        with_adapters(&config, &mut full, device);
        let (got, gradients) = logprobs_and_gradients(&reduced, &rows, device);
        let (want, expected) = logprobs_and_gradients(&full, &rows, device);
        assert_close(name, &got, &want, 1e-5);
        assert!(!expected.is_empty() && gradients.len() == expected.len());
        for (key, want) in &expected {
            assert_close(&format!("{name} {key}"), &gradients[key], want, 2e-5);
        }

        // Merging gives back an f32 model.
        reduced.merge_adapters().unwrap();
        full.merge_adapters().unwrap();
        let merged = tensors(&mut reduced);
        for ((name, _, got), (_, _, want)) in merged.iter().zip(&tensors(&mut full)) {
            assert_close(name, got, want, 1e-6);
        }
    }
}

/// With 8 bits sampling and training see the same distribution, with and without adapters, and it is not far from the model's.
pub(crate) fn int8_models<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        for adapters in [false, true] {
            let (config, mut model) = load::<B>(name, Precision::Int8, &device);
            let (_, mut full) = load::<B>(name, Precision::F32, &device);
            if adapters {
                with_adapters(&config, &mut model, &device);
                with_adapters(&config, &mut full, &device);
            }
            let prompts: [&[u32]; 3] = [&[5, 17, 30], &[12], &[7, 0, 33, 1, 2]];
            let options = GenerateOptions {
                max_new_tokens: 6,
                sampling: SamplingConfig {
                    temperature: 0.7,
                    ..SamplingConfig::default()
                },
                repetition_penalty: 1.0,
                stop_ids: Vec::new(),
                truncate: None,
                batch_size: 2,
            };
            let seed = Seed::new(3);
            let generated = generate(&model, &prompts, &options, seed, &device, &mut |_, _| {});
            let rows: Vec<Vec<u32>> = prompts
                .iter()
                .zip(&generated)
                .map(|(prompt, response)| [prompt, response.ids.as_slice()].concat())
                .collect();
            let of_responses = |model: &LanguageModel<B>| {
                let (logprobs, _) = logprobs_and_gradients(model, &rows, &device);
                let mut logprobs = logprobs.into_iter();
                let mut kept = Vec::new();
                for prompt in prompts {
                    kept.extend(logprobs.by_ref().skip(prompt.len() - 1).take(6));
                }
                kept
            };
            let sampled: Vec<f32> = generated.iter().flat_map(|r| r.logprobs.clone()).collect();
            let trained = of_responses(&model);
            // Sums in another order can move an input across the edge of a step: a 254th of its group's largest number.
            assert_close(name, &sampled, &trained, 5e-3);
            let exact = of_responses(&full);
            assert!(exact != trained, "{name}: nothing was rounded");
            assert_close(name, &trained, &exact, 0.1);
        }
    }
}

/// Models as bitsandbytes stores them, against what transformers computes with them: in the blocks they are stored in, and in f32.
pub(crate) fn bitsandbytes_files<B: ModelBackend>(device: B::Device) {
    for name in ["llama_nf4", "llama_nf4_plain", "gpt2_nf4"] {
        let text = std::fs::read_to_string(folder(name).join("ref.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows: Vec<Vec<u32>> = serde_json::from_value(reference["rows"].clone()).unwrap();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let expected: Vec<Vec<f32>> =
            serde_json::from_value(reference["logprobs"].clone()).unwrap();
        for precision in [Precision::Stored, Precision::F32] {
            let (_, mut model) = load::<B>(name, precision, &device);
            let mut blocks = 0;
            model.for_each_parameter(&mut |_, slot| {
                blocks += usize::from(matches!(slot, ParamSlot::Reduced(..)));
            });
            // Two layers; the joint ones of llama are two projections, those of GPT-2 are one.
            let matrices = if precision == Precision::Stored { 8 } else { 0 };
            assert_eq!(blocks, matrices, "{name} {precision:?}");
            let lens = vec![1; rows.len()];
            let got = row_logprobs(&model, &rows, &lens, 1.0, 64, &device).concat();
            assert_eq!(got.len(), expected.concat().len());
            let off = got.iter().zip(expected.iter().flatten());
            let off = off.map(|(a, b)| f64::from((a - b).abs()));
            Comparison {
                reference: "bitsandbytes 0.50",
                subject: name,
                what: match precision {
                    Precision::Stored => "log-probabilities, in blocks",
                    _ => "log-probabilities, in f32",
                },
                backend: backend_name::<B>(),
                difference: off.fold(0.0, f64::max),
                tolerance: 1e-5,
                relative: false,
            }
            .check();
        }
    }
}
