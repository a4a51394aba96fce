//! The same model from one safetensors file, from shards, from GGUF and in half precision.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Value, json};
use tempering::model::ModelConfig;
use tempering::model::weights::{self, write_safetensors};
use tempering::ops::ModelBackend;
use tempering::params::HostTensor;

use super::families::{FAMILIES, folder, load, stored};
use super::gguf;

/// The tensors of a reference model as its file holds them, sorted by name.
fn file_tensors(name: &str) -> Vec<HostTensor> {
    let source = weights::open(folder(name)).unwrap();
    let tensor = |name: String| {
        let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
        (name, shape, values)
    };
    source.names().into_iter().map(tensor).collect()
}

fn copy_config(name: &str, to: &Path) {
    fs::copy(folder(name).join("config.json"), to.join("config.json")).unwrap();
}

/// Fails without printing the tensors.
#[track_caller]
fn assert_same(what: &str, got: &[HostTensor], expected: &[HostTensor]) {
    let names = |tensors: &[HostTensor]| -> Vec<String> {
        tensors.iter().map(|tensor| tensor.0.clone()).collect()
    };
    assert_eq!(names(got), names(expected), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.1, expected.1, "{what} {}", got.0);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&got.2) == bits(&expected.2), "{what} {}", got.0);
    }
}

pub(crate) fn what_is_loaded_is_saved<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let mut model = load::<B>(&folder(name), &device);
        assert_same(name, &stored(&mut model), &file_tensors(name));
    }
}

pub(crate) fn shards_are_one_file<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let tensors = file_tensors(name);
        let temp = tempfile::tempdir().unwrap();
        copy_config(name, temp.path());
        let mut map = serde_json::Map::new();
        for (shard, part) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
            let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
            write_safetensors(temp.path().join(&file), part).unwrap();
            for tensor in part {
                map.insert(tensor.0.clone(), json!(file));
            }
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        let file = temp.path().join("model.safetensors.index.json");
        fs::write(file, index.to_string()).unwrap();
        let mut model = load::<B>(temp.path(), &device);
        assert_same(name, &stored(&mut model), &tensors);
    }
}

pub(crate) fn gguf_is_safetensors<B: ModelBackend>(device: B::Device) {
    for name in [
        "llama_tied",
        "llama_untied",
        "llama_rope3",
        "qwen2",
        "qwen3",
        "phi3",
        "olmo2",
        "smollm3",
        "gpt2",
    ] {
        let temp = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(folder(name).join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let tensors = file_tensors(name);
        let file = temp.path().join("model.gguf");
        fs::write(&file, gguf::file(&config, &tensors)).unwrap();
        // The metadata describe all but scalings, and SmolLM3's layers without rotation.
        if ["llama_rope3", "phi3", "smollm3"].contains(&name) {
            copy_config(name, temp.path());
        } else {
            let (found, expected) = (ModelConfig::load(&file), ModelConfig::load(folder(name)));
            let (found, expected) = (found.unwrap(), expected.unwrap());
            assert_eq!(found.tensors(), expected.tensors(), "{name}");
            assert_eq!(found.head_layout(), expected.head_layout(), "{name}");
        }
        let mut model = load::<B>(&file, &device);
        assert_same(name, &stored(&mut model), &tensors);
    }
}

/// Writes tensors of 16-bit numbers.
fn write_half(path: &Path, dtype: &str, tensors: &[(&str, &[usize], Vec<u16>)]) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, shape, bits) in tensors {
        let begin = data.len();
        data.extend(bits.iter().flat_map(|b| b.to_le_bytes()));
        let offsets = [begin, data.len()];
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).unwrap();
}

/// An f16 by its definition (IEEE 754-2008, section 3.4).
fn f16_value(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = ((bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(i32::from(exponent) - 15),
    };
    (sign * magnitude) as f32
}

pub(crate) fn half_precision_is_exact<B: ModelBackend>(device: B::Device) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.safetensors");
    // Every number there is.
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bf16_value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    for (dtype, value) in [
        ("F16", &f16_value as &dyn Fn(u16) -> f32),
        ("BF16", &bf16_value),
    ] {
        write_half(&path, dtype, &[("all", &[256, 256], all.clone())]);
        let read = weights::open(&path).unwrap().read("all").unwrap();
        for (&bits, read) in all.iter().zip(read) {
            let expected = value(bits);
            let same = read.to_bits() == expected.to_bits() || read.is_nan() && expected.is_nan();
            assert!(same, "{dtype} {bits:#06x}: {read} instead of {expected}");
        }
    }
    // A whole model.
    for name in ["llama_tied", "gpt2", "gpt_neox", "opt_post"] {
        let tensors = file_tensors(name);
        copy_config(name, temp.path());
        for (dtype, to_bits, value) in [
            (
                "F16",
                (|x| f16::from_f32(x).to_bits()) as fn(f32) -> u16,
                f16_value as fn(u16) -> f32,
            ),
            (
                "BF16",
                |x| bf16::from_f32(x).to_bits(),
                |bits| f32::from_bits(u32::from(bits) << 16),
            ),
        ] {
            let bits = |values: &[f32]| values.iter().map(|&x| to_bits(x)).collect();
            let half: Vec<(&str, &[usize], Vec<u16>)> = (tensors.iter())
                .map(|(name, shape, values)| (name.as_str(), shape.as_slice(), bits(values)))
                .collect();
            write_half(&path, dtype, &half);
            let expected: Vec<HostTensor> = (half.iter())
                .map(|(name, shape, bits)| {
                    let values = bits.iter().map(|&b| value(b)).collect();
                    ((*name).to_owned(), shape.to_vec(), values)
                })
                .collect();
            let mut model = load::<B>(temp.path(), &device);
            assert_same(&format!("{name} {dtype}"), &stored(&mut model), &expected);
        }
    }
}
