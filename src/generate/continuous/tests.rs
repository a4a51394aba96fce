use std::sync::{Arc, Mutex};

use burn_ndarray::NdArray;
use serde_json::json;

use super::*;
use crate::generate::{GenerateOptions, Penalties, SamplingConfig, generate, prompt_logprobs};
use crate::model::weights::RandomSource;
use crate::model::{LanguageModel, ModelConfig};
use crate::rng::Seed;

type B = NdArray;

fn model(seed: u64) -> LanguageModel<B> {
    let config = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 2048,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 0
    });
    let config = ModelConfig::from_value(config).unwrap();
    let source = RandomSource::new(&config, Seed::new(seed));
    LanguageModel::load(&config, &source, &Default::default()).unwrap()
}

/// What came of a job.
#[derive(Debug, Clone, Default, PartialEq)]
struct Heard {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    begun: bool,
    ending: Option<Ending>,
    gone: bool,
}

#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Heard>>);

impl Listener for Ear {
    fn begin(&mut self) {
        self.0.lock().unwrap().begun = true;
    }

    fn token(&mut self, token: GeneratedToken) -> bool {
        let mut heard = self.0.lock().unwrap();
        heard.ids.push(token.id);
        heard.logprobs.push(token.logprobs.unwrap().logprob);
        false
    }

    fn end(&mut self, ending: Ending) {
        self.0.lock().unwrap().ending = Some(ending);
    }

    fn is_gone(&self) -> bool {
        self.0.lock().unwrap().gone
    }
}

fn options(max_new_tokens: usize, temperature: f64) -> JobOptions {
    JobOptions {
        max_new_tokens,
        sampling: SamplingConfig {
            temperature,
            ..SamplingConfig::default()
        },
        penalties: Penalties::default(),
        stop_ids: vec![0],
        num_top: Some(0),
    }
}

/// Prompt, most tokens and temperature of job `i`.
fn job(i: usize) -> (Vec<u32>, usize, f64) {
    let prompt = (0..1 + i * 7 % 23).map(|t| 1 + ((i * 5 + t * 3) % 39) as u32);
    (prompt.collect(), 3 + i % 9, [0.0, 1.0, 0.7][i % 3])
}

fn seed(i: usize) -> Seed {
    Seed::new(9).fork_index(i as u64)
}

fn alone(model: &LanguageModel<B>, i: usize) -> Vec<u32> {
    let (prompt, max_new_tokens, temperature) = job(i);
    let options = GenerateOptions {
        max_new_tokens,
        sampling: options(1, temperature).sampling,
        repetition_penalty: 1.0,
        stop_ids: vec![0],
        truncate: None,
        batch_size: 1,
    };
    // `generate` forks by the prompt's place, which is 0.
    let device = Default::default();
    let root = Seed::new(9).fork_index(i as u64);
    let responses = generate(model, &[&prompt], &options, root, &device, &mut |_, _| {});
    responses.into_iter().next().unwrap().ids
}

#[test]
fn jobs_that_come_and_go_get_what_they_would_get_alone() {
    let device = Default::default();
    let models = vec![model(1), model(2)];
    let expected: Vec<Vec<u32>> = (0..40).map(|i| alone(&models[i % 2], i)).collect();
    let room = Room {
        rows: 6,
        tokens: 2048,
    };
    let mut scheduler = Scheduler::<B, _>::new(models, room, device);
    let ears: Vec<Ear> = (0..40).map(|_| Ear::default()).collect();
    let mut next = 0;
    let mut most = 0;
    while next < 40 || !scheduler.is_idle() {
        // Bursts of three, every second step.
        let burst: Vec<(usize, &Ear)> = ears.iter().enumerate().skip(next).take(3).collect();
        next += burst.len();
        for (i, ear) in burst {
            let (prompt, max_new_tokens, temperature) = job(i);
            scheduler.submit(Job {
                model: i % 2,
                prompt: prompt.into(),
                options: options(max_new_tokens, temperature),
                seed: seed(i).fork_index(0),
                listener: Box::new(ear.clone()),
            });
        }
        scheduler.step();
        scheduler.step();
        most = most.max(scheduler.num_running());
    }
    assert!((4..=6).contains(&most), "{most} at once");
    for (i, ear) in ears.iter().enumerate() {
        let heard = ear.0.lock().unwrap();
        assert_eq!(heard.ids, expected[i], "job {i}");
        let ending = match heard.ids.last() == Some(&0) {
            true => Ending::Stop,
            false => Ending::Length,
        };
        assert_eq!(heard.ending, Some(ending), "job {i}");
    }
    assert_eq!(scheduler.free.len(), scheduler.shape.slots);
}

#[test]
fn one_prompt_for_several_and_a_long_one_in_pieces() {
    let device = Default::default();
    let model = model(3);
    let long: Vec<u32> = (0..1200).map(|i| 1 + i * 7 % 39).collect();
    let short: Vec<u32> = vec![5, 6, 7];
    let mut scheduler = Scheduler::<B, _>::new(
        vec![model.clone()],
        Room {
            rows: 8,
            tokens: 1 << 14,
        },
        device,
    );
    let submit = |scheduler: &mut Scheduler<B, _>, prompt: &[u32], index: u64| {
        let ear = Ear::default();
        scheduler.submit(Job {
            model: 0,
            prompt: prompt.into(),
            options: options(4, 1.0),
            seed: Seed::new(1).fork_index(index),
            listener: Box::new(ear.clone()),
        });
        ear
    };
    let first = submit(&mut scheduler, &short, 0);
    assert_eq!(scheduler.step().prompt_tokens, 3);
    let copies: Vec<Ear> = (0..3).map(|i| submit(&mut scheduler, &long, i)).collect();
    // In pieces of 512 beside the first one, once for all three.
    let steps: Vec<usize> = (0..3).map(|_| scheduler.step().prompt_tokens).collect();
    assert_eq!(steps, [512, 512, 176]);
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert_eq!(first.0.lock().unwrap().ids.len(), 4);
    for (i, ear) in copies.iter().enumerate() {
        let heard = ear.0.lock().unwrap();
        // Each response read as a row has the log-probabilities that were reported.
        let row = [&long[..], &heard.ids].concat();
        let measured = &prompt_logprobs(&model, &[&row], 0, &device)[0];
        for (at, logprob) in heard.logprobs.iter().enumerate() {
            let expected = measured[long.len() - 1 + at].logprob;
            assert!(
                (logprob - expected).abs() < 1e-5,
                "{i}: {logprob} {expected}"
            );
        }
    }
}

#[test]
fn who_has_left_costs_nothing_and_frees_its_place() {
    let device = Default::default();
    let room = Room {
        rows: 2,
        tokens: 512,
    };
    let mut scheduler = Scheduler::<B, _>::new(vec![model(4)], room, device);
    let ears: Vec<Ear> = (0..4).map(|_| Ear::default()).collect();
    for (i, ear) in ears.iter().enumerate() {
        scheduler.submit(Job {
            model: 0,
            prompt: vec![3, 4].into(),
            options: JobOptions {
                stop_ids: Vec::new(),
                ..options(50, 1.0)
            },
            seed: seed(i),
            listener: Box::new(ear.clone()),
        });
    }
    scheduler.step();
    assert_eq!((scheduler.num_running(), scheduler.waiting.len()), (2, 2));
    // One in progress and one that waits go.
    for gone in [0, 2] {
        ears[gone].0.lock().unwrap().gone = true;
    }
    scheduler.step();
    assert_eq!((scheduler.num_running(), scheduler.waiting.len()), (2, 0));
    let heard = |i: usize| ears[i].0.lock().unwrap().clone();
    assert_eq!(heard(0).ending, Some(Ending::Gone));
    assert_eq!(
        (heard(2).begun, heard(2).ending),
        (false, Some(Ending::Gone))
    );
    while !scheduler.is_idle() {
        scheduler.step();
    }
    for left in [1, 3] {
        assert_eq!(heard(left).ids.len(), 50);
        assert_eq!(heard(left).ending, Some(Ending::Length));
    }
}
