//! A llama under each RoPE scaling against transformers' numbers (`tests/reference/families.py`): rows within the original context
//! and beyond it, in one pass and by way of the cache.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use serde_json::Value;

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::weights;
use tempering::model::{Architecture, LanguageModel, ModelConfig};
use tempering::ops::ModelBackend;
use tempering::params::Parameters;
use tempering::rng::Seed;

use super::families::{
    TOLERANCE, cached_logprobs, compare, compare_gradients, folder, largest_difference,
    logprob_difference, numbers, read, rows, worse,
};

/// A scaling, and the model under it.
struct Scaled<B: ModelBackend> {
    name: String,
    config: ModelConfig,
    model: LanguageModel<B>,
    reference: Value,
}

fn all<B: ModelBackend>(device: &B::Device) -> Vec<Scaled<B>> {
    let source = weights::open(folder("rope_scalings")).unwrap();
    let plain = read("rope_scalings", "config.json");
    let cases: Vec<Value> = serde_json::from_value(read("rope_scalings", "cases.json")).unwrap();
    let scaled = cases.into_iter().map(|reference| {
        let mut config = plain.clone();
        for (key, value) in reference["config"].as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = ModelConfig::from_value(config).unwrap();
        Scaled {
            name: format!(
                "llama, RoPE scaling {}",
                reference["name"].as_str().unwrap()
            ),
            model: LanguageModel::load(&config, source.as_ref(), device).unwrap(),
            config,
            reference,
        }
    });
    scaled.collect()
}

/// The longest row, in tokens, with the frequencies of short rows.
fn short_rows(config: &ModelConfig) -> usize {
    let Architecture::Gated(config) = config.architecture() else {
        panic!("{}", config.family());
    };
    let scaling = config.rope_scaling.as_ref().unwrap();
    scaling.short_rows().unwrap_or(usize::MAX)
}

pub(crate) fn one_pass<B: ModelBackend>(device: B::Device) {
    for Scaled {
        name,
        model,
        reference,
        ..
    } in all::<B>(&device)
    {
        let difference = logprob_difference(&model, &reference, &device);
        compare::<B>(&name, "log-probabilities", difference, false);
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.train_only(&|_| true);
        compare_gradients(TOLERANCE, &name, &mut model, &reference, &device);
    }
}

/// Keys stay in the cache as they were rotated: a row beyond the original context is one pass only if it comes in one piece.
pub(crate) fn cached<B: ModelBackend>(device: B::Device) {
    for Scaled {
        name,
        config,
        model,
        reference,
    } in all::<B>(&device)
    {
        let (rows, short) = (rows(&reference), short_rows(&config));
        let mut difference = 0.0;
        for chunk in [3, 64] {
            let found = cached_logprobs(&model, &rows, chunk, &device);
            for (row, got) in found.iter().enumerate() {
                if rows[row].len() <= short.max(chunk) {
                    let expected = numbers(&reference["token_logprobs"][row]);
                    difference = worse(difference, largest_difference(got, &expected));
                }
            }
        }
        let what = "log-probabilities by way of the cache";
        compare::<B>(&name, what, difference, false);

        let greedy: Vec<Vec<u32>> =
            serde_json::from_value(reference["greedy_by_cache"].clone()).unwrap();
        let options = GenerateOptions {
            max_new_tokens: greedy[0].len(),
            sampling: SamplingConfig {
                temperature: 0.0,
                ..SamplingConfig::default()
            },
            repetition_penalty: 1.0,
            stop_ids: Vec::new(),
            truncate: None,
            batch_size: rows.len(),
        };
        let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let responses = generate(
            &model,
            &prompts,
            &options,
            Seed::new(5),
            &device,
            &mut |_, _| {},
        );
        let ids: Vec<Vec<u32>> = responses.into_iter().map(|response| response.ids).collect();
        assert_eq!(ids, greedy, "{name}");
    }
}
