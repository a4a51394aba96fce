//! The rollout core without a value function: what group methods are made of.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use tempering::generate::Response;
use tempering::model::{LanguageModel, ModelConfig, weights};
use tempering::optim::{OptimConfig, Optimiser};
use tempering::params::Parameters;
use tempering::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel, ScaleRewards};
use tempering::rl::{KlEstimator, KlIn, KlTerm, MissingEos};
use tempering::train::rollout::{
    Episodes, Models, Networks, PassSettings, PolicyUpdate, Rollout, SampleSettings,
    UpdateSettings, update,
};
use tempering::train::row_logprobs;

#[cfg(feature = "flex")]
type B = burn::backend::Flex;
#[cfg(not(feature = "flex"))]
type B = burn::backend::NdArray;

const TEMPERATURE: f64 = 0.7;

fn model() -> LanguageModel<B> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/ppo/ref");
    let source = weights::open(&folder).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    LanguageModel::load(&config, source.as_ref(), &Default::default()).unwrap()
}

/// Two responses to each of two queries, with this model's log-probabilities.
fn episodes(model: &LanguageModel<B>) -> Episodes {
    let queries = [[5, 17], [5, 17], [12, 7], [12, 7]];
    let responses: [&[u32]; 4] = [&[9, 27, 20], &[13, 2], &[19, 2], &[31, 4, 8]];
    let rows: Vec<Vec<u32>> = (queries.iter().zip(responses))
        .map(|(query, response)| [query.as_slice(), response].concat())
        .collect();
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let device = Default::default();
    let logprobs = row_logprobs(model, &slices, &[2; 4], TEMPERATURE, 4096, &device);
    let responses = (responses.iter().zip(logprobs)).map(|(ids, logprobs)| Response {
        ids: ids.to_vec(),
        logprobs,
        stopped: ids.last() == Some(&2),
    });
    Episodes {
        queries: queries.iter().map(|query| query.to_vec()).collect(),
        responses: responses.collect(),
        values: None,
        scores: vec![1.0, 0.0, 0.25, 1.75],
        columns: Vec::new(),
    }
}

fn rollout(advantage: AdvantageEstimator, reference: Option<&LanguageModel<B>>) -> Rollout {
    let policy = model();
    let episodes = episodes(&policy);
    let models = Models {
        policy: &policy,
        reference,
        value: None,
        recompute_logprobs: false,
        frozen_base: false,
    };
    let settings = SampleSettings {
        response_length: 3,
        temperature: TEMPERATURE,
        micro_batch_tokens: 4096,
        missing_eos: MissingEos::Keep,
        share_prompts: false,
    };
    let (samples, values) = models.samples(&episodes, settings, &Default::default());
    assert_eq!(values, None);
    let kl = KlTerm {
        coef: 0.1,
        estimator: KlEstimator::K3,
        place: KlIn::Loss,
    };
    advantage.estimate(samples, values, kl)
}

fn networks() -> Networks<B> {
    let mut policy = LanguageModel::<Autodiff<B>>::from_inner(model());
    policy.train_only(&|_| true);
    Networks {
        policy,
        policy_optim: Optimiser::new(OptimConfig::default()),
        value: None,
    }
}

fn settings(
    objective: Objective,
    mean: LossMean,
    micro_batch_tokens: usize,
) -> UpdateSettings<'static> {
    UpdateSettings {
        num_mini_batches: 1,
        passes: PassSettings {
            micro_batch_tokens,
            gradient_checkpointing: false,
            share_prompts: false,
        },
        policy: PolicyUpdate {
            objective,
            ratio: RatioLevel::Token,
            kl_bias_correction: false,
            mean,
            temperature: TEMPERATURE,
            lr: 1e-3,
        },
        value: None,
        ptx: None,
    }
}

/// Log-probability of each response.
fn response_logprobs(policy: &LanguageModel<B>, rollout: &Rollout) -> Vec<f32> {
    let rows = rollout.samples.row_slices();
    let lens = &rollout.samples.query_lens;
    let logprobs = row_logprobs(policy, &rows, lens, TEMPERATURE, 4096, &Default::default());
    logprobs.iter().map(|row| row.iter().sum()).collect()
}

#[test]
fn better_responses_of_a_group_become_more_probable() {
    let reference = model();
    for advantage in [
        AdvantageEstimator::LeaveOneOut {
            size: 2,
            normalize: false,
        },
        AdvantageEstimator::Group {
            size: 2,
            scale: ScaleRewards::None,
        },
    ] {
        for objective in [Objective::clip(0.2), Objective::Cispo { max_ratio: 5.0 }] {
            let rollout = rollout(advantage, Some(&reference));
            let mut networks = networks();
            let before = response_logprobs(&networks.policy.valid(), &rollout);
            let order = [vec![0, 1, 2, 3]];
            let report = update(
                &mut networks,
                &rollout,
                &order,
                &settings(objective, LossMean::Responses, 4096),
                &Default::default(),
            )
            .unwrap();
            let after = response_logprobs(&networks.policy.valid(), &rollout);
            let moved: Vec<bool> = after.iter().zip(&before).map(|(a, b)| a > b).collect();
            assert_eq!(moved, [true, false, false, true], "{advantage:?}");
            // Nothing of a value function is reported, and the KL of a policy to itself is zero.
            let metrics = [rollout.metrics(), report.metrics()].concat();
            for (name, value) in metrics {
                assert!(
                    !name.contains("value") && name != "val/clipfrac_avg",
                    "{name}"
                );
                assert!(value.is_finite(), "{name}");
            }
            let first = &report.minibatches[0];
            assert!(first.kl_loss.unwrap().abs() < 1e-6);
            assert!(report.logprob_max_diff < 1e-5);
        }
    }
}

#[test]
fn at_ratio_one_the_loss_is_the_mean_advantage() {
    // Leave one out: 1 - 0, 0 - 1, 0.25 - 1.75, 1.75 - 0.25 at 3, 2, 2 and 3 tokens. Over tokens (3 - 2 - 3 + 4.5) / 10,
    // over responses 0 / 4, by a length of 5 (3 - 2 - 3 + 4.5) / 20.
    let rollout = rollout(
        AdvantageEstimator::LeaveOneOut {
            size: 2,
            normalize: false,
        },
        None,
    );
    assert_eq!(rollout.samples.ref_logprobs, None);
    let step = |settings: UpdateSettings<'_>| {
        let order = [vec![3, 1, 0, 2]];
        let device = Default::default();
        let report = update(&mut networks(), &rollout, &order, &settings, &device).unwrap();
        let [minibatch] = &report.minibatches[..] else {
            panic!("one step")
        };
        // Without a reference there is no KL term, wherever it would be.
        assert_eq!(minibatch.kl_loss, None);
        (minibatch.policy_loss, minibatch.policy_grad_norm)
    };
    let loss =
        |mean, micro_batch_tokens| step(settings(Objective::clip(0.2), mean, micro_batch_tokens));
    // Responses to one query share its tokens.
    let shared = |mean| {
        let mut settings = settings(Objective::clip(0.2), mean, 4096);
        settings.passes.share_prompts = true;
        step(settings)
    };
    for (mean, want) in [
        (LossMean::Tokens, -0.25),
        (LossMean::Responses, 0.0),
        (LossMean::Constant(5), -0.125),
    ] {
        let (whole, norm) = loss(mean, 4096);
        assert!((whole - want).abs() < 1e-5, "{mean:?}: {whole}");
        let (shared, shared_norm) = shared(mean);
        assert!((shared - whole).abs() < 1e-5, "{mean:?}");
        assert!((shared_norm - norm).abs() < 1e-4 * norm, "{mean:?}");
        let (split, split_norm) = loss(mean, 5);
        assert!((split - whole).abs() < 1e-6, "{mean:?}");
        assert!((split_norm - norm).abs() < 1e-5 * norm, "{mean:?}");
    }
}
