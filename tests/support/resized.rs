//! Bases whose vocabulary has grown, and adapters on them (`tests/reference/resized.py`), generic over the backend.

use std::path::PathBuf;

use tempering::model::weights::resolve;
use tempering::model::{LanguageModel, ModelConfig, ModelSource, save_adapter};
use tempering::ops::{ModelBackend, Numerics};
use tempering::peft::Adaptable;

use super::parity::{Comparison, backend_name};
use super::reference::{Case, cases, distance, folder, logprobs, numbers, tensors};

/// Largest difference from PEFT in nats.
const TOLERANCE: f64 = 1e-5;

fn note<B: ModelBackend>(name: &str, what: &str, difference: f64) {
    let subject = format!("PEFT adapter \"{name}\" on a resized base");
    Comparison {
        reference: "PEFT 0.21",
        subject: &subject,
        what,
        backend: backend_name::<B>(),
        difference,
        tolerance: TOLERANCE,
        relative: false,
    }
    .check();
}

fn base(case: &Case) -> PathBuf {
    folder("peft_base").join(case.reference["base"].as_str().unwrap())
}

fn source(case: &Case) -> ModelSource {
    ModelSource::at(&case.path, base(case).to_str()).unwrap()
}

/// Rows at the mean, and the tables that an adapter's file holds in place of the base's.
pub(crate) fn tables<B: ModelBackend>(device: B::Device) {
    for case in cases("resized") {
        let (name, rows) = (case.name.as_str(), case.rows());
        let plain = ModelConfig::load(base(&case)).unwrap();
        let mut grown = ModelSource::at(&base(&case), None).unwrap();
        grown.resize(plain.with_vocab_size(50).unwrap());
        let weights = grown.open_weights().unwrap();
        let tables = grown.config.tables().into_iter();
        let stored: Vec<String> = tables
            .filter_map(|name| resolve(weights.as_ref(), name))
            .collect();
        let means = case.reference["mean"].as_array().unwrap();
        assert_eq!(stored.len(), means.len(), "{name}");
        for (table, mean) in stored.iter().zip(means) {
            let values = weights.read(table).unwrap();
            let width = values.len() / 50;
            for row in [48, 49] {
                let off = distance(&values[row * width..][..width], &numbers(mean));
                assert!(off < 1e-7, "{name}: {table}: {off}");
            }
        }
        let model: LanguageModel<B> = grown.load_base(Numerics::default(), &device).unwrap();
        let off = distance(&logprobs(&model, &rows, &device), &case.numbers("resized"));
        note::<B>(name, "log-probabilities without it", off);

        let source = source(&case);
        source.check().unwrap();
        assert_eq!(source.config.vocab_size(), 50, "{name}");
        assert!(source.config.has_own_tables(), "{name}");
        let expected = case.numbers("with_adapter");
        let mut model: LanguageModel<B> = source.load_base(Numerics::default(), &device).unwrap();
        let loaded = source
            .attach_outermost(&mut model, &device)
            .unwrap()
            .unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let off = distance(&logprobs(&model, &rows, &device), &expected);
        note::<B>(name, "log-probabilities", off);
        if name != "prompt" {
            model.merge_adapters().unwrap();
            let off = distance(&logprobs(&model, &rows, &device), &expected);
            note::<B>(name, "log-probabilities, merged", off);
        }
    }
}

/// Read and written again, a file holds the same tables; a tied head is not written twice.
pub(crate) fn written<B: ModelBackend>(device: B::Device) {
    for case in cases("resized") {
        let found = source(&case);
        let mut model: LanguageModel<B> = found.load_base(Numerics::default(), &device).unwrap();
        let loaded = found
            .attach_outermost(&mut model, &device)
            .unwrap()
            .unwrap();
        let ours = tempfile::tempdir().unwrap();
        let spec = loaded.config.spec;
        save_adapter(&mut model, &found.config, &spec, "random", ours.path()).unwrap();
        let tied = found.config.tie_word_embeddings();
        let mut expected = tensors(&case.path.join("adapter_model.safetensors"));
        expected.retain(|(key, ..)| !tied || !key.ends_with("lm_head.weight"));
        let written = tensors(&ours.path().join("adapter_model.safetensors"));
        assert!(written == expected, "{}: other tensors", case.name);
    }
}
