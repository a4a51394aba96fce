//! The details of PPO, one test each: `docs/ppo-details.md` has the same numbers, with the place in the code, and lists what has
//! no test here and why. After them, the published vectors.
//!
//! # Source
//! Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031, and its code; the Hugging Face blog "The N
//! Implementation Details of RLHF with PPO".

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorPrimitive};
use serde_json::{Value, json};

use tempering::data::{
    Comparisons, Example, RowFormat, TokenRows, Tokenizer, encode_comparisons, encode_completions,
    encode_prompts,
};
use tempering::generate::{GenerateOptions, Response, SamplingConfig, TruncateAt, generate};
use tempering::loss::{self, best_of_k, bradley_terry, policy_loss, value_loss};
use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, ScalarModel, attach_adapters, host_tensors, weights,
};
use tempering::ops::{AdamWParam, AdamWStep, ModelBackend};
use tempering::optim::{OptimConfig, Optimiser, Schedule, lr_at};
use tempering::params::{ParamKind, Parameters};
use tempering::peft::{Adaptable, LoraConfig};
use tempering::recipe;
use tempering::rl::rollout::Objective;
use tempering::rl::{
    self, KlControl, KlController, KlEstimator, MissingEos, ResponseLayout, Variance,
};
use tempering::rng::Seed;
use tempering::tokens::{Segments, TokenBatch};
use tempering::train::config::{Peft, PpoConfig, ValueInit};
use tempering::train::ppo::{self, value_network};
use tempering::train::rollout::{
    Episodes, FrozenValue, MinibatchReport, Models, Networks, Ptx, Rollout, UpdateReport,
    UpdateSettings, ValueFunction, ValueTargets, minibatch_orders, update,
};
use tempering::train::{Policy, RewardModel, Stage, example_loss, row_logprobs};

#[cfg(feature = "flex")]
type B = burn::backend::Flex;
#[cfg(not(feature = "flex"))]
type B = burn::backend::NdArray;

const EOS: u32 = 2;
const T: usize = 6;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder(name: &str) -> PathBuf {
    root().join("tests/reference/ppo").join(name)
}

fn model_config() -> ModelConfig {
    ModelConfig::load(folder("ref")).unwrap()
}

fn language_model(name: &str) -> LanguageModel<B> {
    let source = weights::open(folder(name)).unwrap();
    LanguageModel::load(&model_config(), source.as_ref(), &Default::default()).unwrap()
}

fn reward_model() -> ScalarModel<B> {
    let source = weights::open(folder("reward")).unwrap();
    ScalarModel::load(&model_config(), source.as_ref(), &Default::default()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&root().join("models/tiny")).unwrap()
}

fn rows(values: &[Value]) -> Vec<tempering::data::Row> {
    (values.iter().enumerate())
        .map(|(i, value)| tempering::data::Row {
            columns: value.as_object().unwrap().clone(),
            path: "rows.jsonl".into(),
            line: i + 1,
        })
        .collect()
}

/// A PPO configuration with some keys changed.
fn ppo_config(changes: Value) -> PpoConfig {
    let mut config = json!({
        "name": "ppo", "init": "Base", "data": {"source": {"Posts": {"rows": 1, "seed": 1}}}, "reward": "Gold",
        "total_episodes": 8, "batch_size": 8, "response_length": T,
    });
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    serde_json::from_value(config).unwrap()
}

fn host(tensor: Tensor<B, 1>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

fn tensor(values: &[f32]) -> Tensor<B, 1> {
    Tensor::from_floats(values, &Default::default())
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{got:?}, expected {want:?}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= tolerance, "{got:?}, expected {want:?}");
    }
}

fn response(ids: &[u32]) -> Response {
    Response {
        ids: ids.to_vec(),
        logprobs: vec![-2.0; ids.len()],
        stopped: ids.last() == Some(&EOS),
    }
}

/// Two responses, one cut off and one that stopped.
fn episodes() -> Episodes {
    Episodes {
        queries: vec![vec![5, 17, 9], vec![12, 7]],
        responses: vec![response(&[9, 27, 20, 13, 12, 31]), response(&[19, EOS])],
        values: None,
        columns: Vec::new(),
        scores: vec![0.5, 2.0],
    }
}

fn evaluate(episodes: &Episodes, config: &PpoConfig) -> Rollout {
    let device = Default::default();
    let reference = language_model("ref");
    let value = FrozenValue::Network(reward_model());
    let models = Models {
        policy: &reference,
        reference: Some(&reference),
        value: Some(&value),
        recompute_logprobs: false,
        frozen_base: false,
    };
    ppo::rollout(episodes, models, config, config.kl_coef, &device)
}

fn ref_logprobs(rollout: &Rollout) -> &[f32] {
    rollout.samples.ref_logprobs.as_deref().unwrap()
}

fn targets(rollout: &Rollout) -> &ValueTargets {
    rollout.targets.as_ref().unwrap()
}

/// `[value positions]`: not whitened.
fn raw_rewards(rollout: &Rollout) -> Vec<f32> {
    rollout.samples.token_rewards(&rollout.kl)
}

/// `[value positions]`: not whitened.
fn raw_advantages(rollout: &Rollout, config: &PpoConfig) -> Vec<f32> {
    let ValueTargets {
        values, rewards, ..
    } = targets(rollout);
    let positions = rollout.samples.layout.values();
    rl::gae(rewards, values, positions, config.gamma, config.lam).advantages
}

fn update_settings(config: &PpoConfig, policy_lr: f64, value_lr: f64) -> UpdateSettings<'_> {
    let mut settings = config.update_settings(0, 1, None);
    settings.policy.lr = policy_lr;
    settings.value.as_mut().unwrap().lr = value_lr;
    settings
}

fn networks(policy: LanguageModel<B>, optim: OptimConfig) -> Networks<B> {
    let mut policy = LanguageModel::<Autodiff<B>>::from_inner(policy);
    let mut value = ScalarModel::<Autodiff<B>>::from_inner(reward_model());
    policy.train_only(&|_| true);
    value.train_only(&|_| true);
    Networks {
        policy,
        policy_optim: Optimiser::new(optim.clone()),
        value: Some(ValueFunction::Network {
            model: value,
            optim: Optimiser::new(optim),
        }),
    }
}

fn run_update(
    networks: &mut Networks<B>,
    rollout: &Rollout,
    config: &PpoConfig,
    lr: f64,
) -> UpdateReport {
    let orders = minibatch_orders(
        Seed::new(1),
        rollout.samples.rows.len(),
        config.num_ppo_epochs,
    );
    let settings = update_settings(config, lr, lr);
    update(networks, rollout, &orders, &settings, &Default::default()).unwrap()
}

/// What a policy answers to some prompts at PPO's temperature, generated as the stage does.
fn generated(policy: &LanguageModel<B>, stop_ids: Vec<u32>, temperature: f64) -> Episodes {
    generated_until(policy, stop_ids, None, temperature)
}

fn generated_until(
    policy: &LanguageModel<B>,
    stop_ids: Vec<u32>,
    truncate: Option<TruncateAt>,
    temperature: f64,
) -> Episodes {
    let queries: Vec<Vec<u32>> = vec![vec![5, 17, 9], vec![12], vec![7, 0, 30, 21], vec![8, 19]];
    let slices: Vec<&[u32]> = queries.iter().map(Vec::as_slice).collect();
    let options = GenerateOptions {
        max_new_tokens: T,
        sampling: SamplingConfig {
            temperature,
            ..SamplingConfig::default()
        },
        repetition_penalty: 1.0,
        stop_ids,
        truncate,
        batch_size: 3,
    };
    let responses = generate(
        policy,
        &slices,
        &options,
        Seed::new(9),
        &Default::default(),
        &mut |_, _| {},
    );
    Episodes {
        scores: (0..responses.len()).map(|i| i as f32 - 1.5).collect(),
        queries,
        responses,
        values: None,
        columns: Vec::new(),
    }
}

/// Tokens that end about every second response.
fn stops() -> Vec<u32> {
    (0..32).step_by(5).collect()
}

// ---- data and tokens ----

const TLDR: &str =
    "SUBREDDIT: r/{{ subreddit }}\n\nTITLE: {{ title }}\n\nPOST: {{ post }}\n\nTL;DR:";

fn tldr() -> RowFormat {
    RowFormat {
        prompt: Some(TLDR.into()),
        completion: Some(" {{ summary }}".into()),
        ..RowFormat::default()
    }
}

fn post() -> Value {
    json!({"subreddit": "x", "title": "A b", "post": "One.\nTwo.", "summary": "One."})
}

/// What the tokenizer of the tiny model makes of [`post`], by transformers.
const PROMPT_IDS: [u32; 43] = [
    51, 53, 34, 50, 37, 36, 36, 41, 52, 26, 293, 15, 88, 199, 199, 52, 41, 282, 37, 26, 350, 262,
    199, 199, 48, 47, 51, 52, 26, 331, 69, 14, 199, 52, 87, 79, 14, 199, 199, 282, 27, 281, 26,
];

#[test]
fn detail_01_the_prompt_ends_with_tldr_and_no_space() {
    let prompts = encode_prompts(&rows(&[post()]), &tokenizer(), &tldr(), 512).unwrap();
    let golden = "SUBREDDIT: r/x\n\nTITLE: A b\n\nPOST: One.\nTwo.\n\nTL;DR:";
    assert_eq!(prompts.items[0].text, golden);
    assert_eq!(prompts.items[0].ids, PROMPT_IDS);
}

#[test]
fn detail_02_a_query_too_long_is_cut_at_a_line_break_or_left_out() {
    let mut long = post();
    long["post"] = format!("One.\nTwo.\n{}", "Three. ".repeat(200)).into();
    let data = rows(&[long, post()]);
    let prompts = encode_prompts(&data, &tokenizer(), &tldr(), 43).unwrap();
    assert_eq!(prompts.items.len(), 1);
    assert_eq!(prompts.items[0].ids, PROMPT_IDS);
    assert_eq!(prompts.report.dropped_too_long, 1);
    // With `shorten` the post loses its last paragraph, and is the other one.
    let format = RowFormat {
        shorten: Some("post".into()),
        ..tldr()
    };
    let prompts = encode_prompts(&data, &tokenizer(), &format, 43).unwrap();
    assert_eq!(prompts.items.len(), 2);
    assert_eq!(prompts.items[0].ids, PROMPT_IDS);
    assert_eq!(prompts.report.shortened, 1);
}

#[test]
fn detail_03_a_completion_is_space_summary_eos() {
    let examples = encode_completions(&rows(&[post()]), &tokenizer(), &tldr(), 512, true).unwrap();
    let example = &examples.items[0];
    assert_eq!(example.ids[..43], PROMPT_IDS);
    assert_eq!(example.ids[43..], [331, 69, 14, 0]); // " On", "e", ".", EOS
}

#[test]
fn detail_04_lengths_of_the_tldr_recipe() {
    let recipe = recipe::load(&root().join("recipes/tldr.ron"), &[]).unwrap();
    let mut seen = 0;
    for stage in &recipe.stages {
        match stage {
            Stage::Ppo(ppo) => {
                assert_eq!((ppo.response_length, ppo.max_prompt_length), (53, 512));
                seen += 1;
            }
            Stage::RewardModel(rm) => {
                assert!(rm.max_length >= 638, "{}", rm.max_length);
                seen += 1;
            }
            Stage::Sft(sft) => {
                assert!(sft.max_length >= 562, "{}", sft.max_length);
                seen += 1;
            }
            _ => {}
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn detail_05_there_is_no_pad_and_eos_is_trained() {
    let examples = encode_completions(&rows(&[post()]), &tokenizer(), &tldr(), 512, true).unwrap();
    let example = &examples.items[0];
    let targets: Vec<u32> = (example.ids.iter().zip(&example.trained))
        .filter(|(_, trained)| **trained)
        .map(|(&id, _)| id)
        .collect();
    assert_eq!(targets, [331, 69, 14, tokenizer().eos_id()]);
    // Rows of different lengths are laid end to end: not one token more.
    let batch = TokenBatch::<B>::from_rows(&[vec![5u32, 6, 7], vec![8]], &Default::default());
    assert_eq!(batch.input_ids.dims(), [4]);
    assert_eq!(batch.segments, Segments::from_lens([3, 1]));
}

#[test]
fn detail_06_positions_count_the_rows_own_tokens() {
    assert_eq!(Segments::from_lens([3, 2]).positions(), [0, 1, 2, 0, 1]);
    // After other rows, where left padding would be, a row has the same log-probabilities as alone.
    let (model, device) = (language_model("ref"), Default::default());
    let row: &[u32] = &[5, 17, 9, 3];
    let logprobs =
        |rows: &[&[u32]]| row_logprobs(&model, rows, &vec![1; rows.len()], 0.7, 4096, &device);
    let alone = logprobs(&[row]);
    assert_close(&logprobs(&[&[7, 7, 7, 7, 7], row])[1], &alone[0], 1e-5);
    assert_close(&logprobs(&[row, &[7, 7]])[0], &alone[0], 1e-5);
}

#[test]
fn detail_07_no_dropout_in_rollout_and_update() {
    let mut policy = language_model("ref");
    let lora = LoraConfig {
        rank: 2,
        dropout: 0.5,
        ..LoraConfig::default()
    };
    attach_adapters(&mut policy, &model_config(), &lora, Seed::new(1)).unwrap();
    // With B = 0 nothing could show.
    policy.for_each_parameter(&mut |meta, mut slot| {
        if meta.key().contains("lora_B") {
            let shape = slot.shape();
            let values = (0..slot.num_entries()).map(|i| (i % 7) as f32 * 0.01 - 0.03);
            slot.assign(values.collect(), &shape, &Default::default());
        }
    });
    let config = ppo_config(json!({"num_ppo_epochs": 1}));
    let episodes = generated(&policy, stops(), config.logprob_temperature());
    let rollout = evaluate(&episodes, &config);
    let report = run_update(
        &mut networks(policy, OptimConfig::default()),
        &rollout,
        &config,
        1e-4,
    );
    let (low, high) = report.minibatches[0].stats.ratio_range().unwrap();
    assert!(low > 1.0 - 1e-5 && high < 1.0 + 1e-5, "{low} {high}");
    assert!(report.logprob_max_diff < 1e-5);
}

#[test]
fn detail_08_randomness_is_a_function_of_seed_and_step() {
    let orders = |update| minibatch_orders(Seed::new(1).fork_index(update), 16, 4);
    assert_eq!(orders(3), orders(3));
    assert_ne!(orders(3), orders(4));
    let policy = language_model("ref");
    let ids = |episodes: Episodes| -> Vec<Vec<u32>> {
        episodes.responses.into_iter().map(|r| r.ids).collect()
    };
    assert_eq!(
        ids(generated(&policy, stops(), 0.7)),
        ids(generated(&policy, stops(), 0.7))
    );
}

/// One AdamW step on one number, from zero moments.
fn first_adam_step(gradient: f32, eps: f32) -> f32 {
    let primitive = |x: f32| Tensor::<B, 1>::into_primitive(tensor(&[x])).tensor();
    let step = AdamWStep {
        lr: 1.0,
        beta1: 0.9,
        beta2: 0.999,
        eps,
        weight_decay: 0.0,
        grad_scale: 1.0,
        bias_correction1: 0.1,
        bias_correction2: 0.001,
    };
    let param = AdamWParam {
        value: primitive(0.0),
        grad: primitive(gradient),
        moments: [primitive(0.0), primitive(0.0)],
        decays: false,
    };
    let (value, _) = B::adamw(vec![param], step).remove(0);
    -host(Tensor::from_primitive(TensorPrimitive::Float(value)))[0]
}

#[test]
fn detail_09_adam_eps_stands_where_pytorch_has_it() {
    // A gradient of the size of eps. PyTorch: g / (g + eps) = 1/2. TF1: sqrt(1 - b2) g / (sqrt(1 - b2) g + eps) = .0306534:
    // sixteen times less, which is why its first epochs move the policy less.
    assert_close(&[first_adam_step(1e-5, 1e-5)], &[0.5], 1e-5);
    let scaled = 0.001f64.sqrt() * 1e-5;
    assert!((scaled / (scaled + 1e-5) - 0.030_653_4).abs() < 1e-6);
    // Where gradients are far above eps the two agree.
    assert_close(&[first_adam_step(1.0, 1e-5)], &[1.0], 2e-5);
    // PPO's rate goes down to zero by the update, SFT's and the reward model's as a cosine.
    let at = |schedule: &Schedule, step| lr_at(schedule, 3e-6, step, 4);
    let linear = Schedule::Linear {
        warmup_ratio: 0.0,
        warmup_steps: 0,
        floor: 0.0,
    };
    let cosine = Schedule::Cosine {
        warmup_ratio: 0.0,
        warmup_steps: 0,
        floor: 0.0,
    };
    let rates: Vec<f32> = (0..5)
        .map(|step| (at(&linear, step) * 1e6) as f32)
        .collect();
    assert_close(&rates, &[3.0, 2.25, 1.5, 0.75, 0.0], 1e-6);
    assert!((at(&cosine, 2) - 1.5e-6).abs() < 1e-12 && at(&cosine, 4).abs() < 1e-12);
}

// ---- reward model ----

#[test]
fn detail_10_the_score_is_read_at_the_last_token() {
    let (model, device) = (reward_model(), Default::default());
    // With EOS and without; a second EOS earlier in the row changes nothing.
    let rows: [&[u32]; 3] = [&[5, 17, 19, EOS], &[5, 17, 19], &[8, EOS, 9, 4]];
    let scores = model.row_scores(&rows, 4096, &device, &mut |_, _| {});
    let batch = TokenBatch::from_rows(&rows, &device);
    let all = host(model.scores(&batch, None, None));
    assert_close(&scores, &[all[3], all[6], all[10]], 1e-6);
    assert!((scores[0] - scores[1]).abs() > 1e-3);
}

#[test]
fn detail_11_the_head_starts_as_a_narrow_normal_without_bias() {
    let device = Default::default();
    let mut samples = Vec::new();
    for seed in 0..64 {
        let backbone = language_model("ref");
        let model = ScalarModel::with_random_head(backbone, 16, Seed::new(seed), &device);
        samples.extend(host(model.score.val()));
    }
    // 1,024 samples: the standard error of the deviation is 2.2 %. N(0, 1 / sqrt(17)).
    let deviation = (samples.iter().map(|x| f64::from(x * x)).sum::<f64>() / 1024.0).sqrt();
    assert!((deviation * 17f64.sqrt() - 1.0).abs() < 0.07, "{deviation}");
    let mut model = ScalarModel::with_random_head(language_model("ref"), 16, Seed::new(1), &device);
    let head = host_tensors(&mut model, &|kind| kind == ParamKind::Score);
    assert_eq!(head.len(), 1, "no bias");
    assert_eq!(
        (head[0].0.as_str(), &head[0].1),
        ("score.weight", &vec![1, 16])
    );
}

fn pair() -> loss::Comparisons {
    let mut pairs = loss::Comparisons::new();
    pairs.push_prompt([(0, 1, 0.0)]);
    pairs
}

#[test]
fn detail_12_chosen_and_rejected_pass_together_and_the_loss_is_their_lead() {
    let encoded = encode_comparisons(
        &rows(&[json!({"prompt": "a", "chosen": " b", "rejected": " c"})]),
        &tokenizer(),
        &RowFormat::default(),
        64,
    )
    .unwrap();
    // Both responses of a row are in one element, and an element is never split over forward passes.
    let Comparisons {
        responses, pairs, ..
    } = &encoded.items[0];
    assert_eq!((responses.len(), pairs.len()), (2, 1));
    // -log sigmoid(1) = ln(1 + 1/e)
    let got = host(bradley_terry(tensor(&[2.0, 1.0]), &pair()));
    assert_close(&got, &[0.313_261_7], 1e-6);
    assert_eq!(pair().num_correct(&[2.0, 1.0]), 1);
    assert_eq!(pair().num_correct(&[1.0, 1.0]), 0);
}

#[test]
fn detail_13_the_centre_is_subtracted_from_every_score() {
    let (mut model, device) = (reward_model(), Default::default());
    let rows: [&[u32]; 3] = [&[5, 17, 19, EOS], &[5, 17, 19], &[8, EOS, 9, 4]];
    let scores = model.row_scores(&rows, 4096, &device, &mut |_, _| {});
    model.offset = rl::mean(&scores);
    let centred = model.row_scores(&rows, 4096, &device, &mut |_, _| {});
    assert!(rl::mean(&centred).abs() < 1e-6);
    assert!((centred[0] - scores[0] + model.offset as f32).abs() < 1e-6);
}

#[test]
fn detail_13_a_gain_scales_scores_and_centre() {
    let (mut model, device) = (reward_model(), Default::default());
    let rows: [&[u32]; 3] = [&[5, 17, 19, EOS], &[5, 17, 19], &[8, EOS, 9, 4]];
    let score = |model: &ScalarModel<B>| model.row_scores(&rows, 4096, &device, &mut |_, _| {});
    let scores = score(&model);
    model.offset = rl::mean(&scores);
    model.scale(1.0 / rl::variance(&scores).sqrt(), &device);
    let normal = score(&model);
    assert!(rl::mean(&normal).abs() < 1e-6, "{normal:?}");
    assert!((rl::variance(&normal) - 1.0).abs() < 1e-5, "{normal:?}");
}

#[test]
fn detail_14_scores_do_not_depend_on_what_stands_before_or_after_a_row() {
    let (model, device) = (reward_model(), Default::default());
    let row: &[u32] = &[5, 17, 19, EOS];
    let score =
        |rows: &[&[u32]], at: usize| model.row_scores(rows, 4096, &device, &mut |_, _| {})[at];
    let alone = score(&[row], 0);
    assert_close(&[score(&[&[7; 9], row], 1)], &[alone], 1e-5);
    assert_close(&[score(&[row, &[7; 9]], 0)], &[alone], 1e-5);
}

#[test]
fn detail_15_accuracy_counts_strictly_higher_scores() {
    let mut pairs = loss::Comparisons::new();
    pairs.push_prompt([(0, 1, 0.0)]);
    pairs.push_prompt([(2, 3, 0.0)]);
    pairs.push_prompt([(4, 5, 0.0)]);
    // Right, tie, wrong.
    assert_eq!(pairs.num_correct(&[2.0, 1.0, 1.0, 1.0, 0.0, 3.0]), 1);
    assert_eq!(pairs.num_pairs(), 3);
}

#[test]
fn detail_16_k_responses_make_all_pairs_of_one_element() {
    let row =
        json!({"prompt_ids": [1], "response_ids": [[3], [4], [5]], "scores": [0.5, 2.0, 1.0]});
    let encoded =
        encode_comparisons(&rows(&[row]), &tokenizer(), &RowFormat::default(), 64).unwrap();
    let item = &encoded.items[0];
    assert_eq!(item.responses.len(), 3);
    let mut pairs: Vec<(usize, usize)> = item.pairs.iter().map(|p| (p.0, p.1)).collect();
    pairs.sort_unstable();
    assert_eq!(pairs, [(1, 0), (1, 2), (2, 0)]);
    // -1 / C(3, 2) of the sum of log sigmoid of leads 1, 1, 2: (2 * .3132617 + .1269280) / 3.
    let mut comparisons = loss::Comparisons::new();
    comparisons.push_prompt([(0, 1, 0.0), (1, 2, 0.0), (0, 2, 0.0)]);
    let got = host(bradley_terry(tensor(&[3.0, 2.0, 1.0]), &comparisons));
    assert_close(&got, &[0.251_150_5], 1e-6);
}

// ---- rollout ----

#[test]
fn detail_16_the_best_of_four_is_a_choice() {
    // -log softmax of scores 2, 0, 1, -1 at the first: ln(e^2 + e^0 + e^1 + e^-1) - 2.
    let mut choices = loss::Choices::new();
    choices.push_prompt(2, [0, 1, 3]);
    let got = host(best_of_k(tensor(&[0.0, 1.0, 2.0, -1.0]), &choices));
    assert_close(&got, &[0.440_189_7], 1e-6);
}

#[test]
fn detail_17_stopping_early_changes_nothing_but_the_length() {
    let policy = language_model("ref");
    let stopped = generated(&policy, stops(), 0.7);
    let full = generated(&policy, Vec::new(), 0.7);
    let mut early = 0;
    for (stopped, full) in stopped.responses.iter().zip(&full.responses) {
        assert_eq!(full.ids.len(), T);
        let end = full.ids.iter().position(|id| stops().contains(id));
        let len = end.map_or(T, |end| end + 1);
        assert_eq!(stopped.ids, full.ids[..len]);
        assert_close(&stopped.logprobs, &full.logprobs[..len], 1e-5);
        assert_eq!(stopped.stopped, end.is_some());
        early += usize::from(len < T);
    }
    assert!(early > 0, "no response ended early");
}

#[test]
fn detail_18_every_logprob_is_taken_at_the_temperature() {
    let config = ppo_config(json!({"temperature": 0.7}));
    assert_eq!(config.logprob_temperature(), 0.7 + 1e-7);
    // Sampling and reference: where the policy is the reference, their log-probabilities are the same.
    let policy = language_model("ref");
    let episodes = generated(&policy, stops(), config.logprob_temperature());
    let rollout = evaluate(&episodes, &config);
    assert_close(ref_logprobs(&rollout), &rollout.samples.logprobs, 1e-5);
    // The update: ratios are one.
    let mut networks = networks(policy, OptimConfig::default());
    let report = run_update(&mut networks, &rollout, &config, 0.0);
    assert!(report.logprob_max_diff < 1e-5);
    // And it matters: at temperature 1 they would be far apart.
    let at_one = evaluate(&episodes, &ppo_config(json!({"temperature": 1.0})));
    let gap = (ref_logprobs(&at_one).iter().zip(&rollout.samples.logprobs))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(gap > 0.1, "{gap}");
}

#[test]
fn detail_19_tokens_after_the_response_do_not_reach_it() {
    // The paper reads log-probabilities and values off rows that continue after EOS: the same numbers.
    let (policy, value, device) = (language_model("ref"), reward_model(), Default::default());
    let (short, long): (&[u32], &[u32]) = (&[12, 7, 19, EOS], &[12, 7, 19, EOS, 30, 4]);
    let logprobs = |row| row_logprobs(&policy, &[row], &[2], 0.7, 4096, &device).remove(0);
    assert_close(&logprobs(short), &logprobs(long)[..2], 1e-5);
    // [ctx - 1 : -1]: the first is read at the query's last token; the extra value of a row that stopped at its EOS.
    let layout = ResponseLayout::after_eos(Segments::from_lens([2]), T);
    let packed = Segments::from_lens([4]);
    assert_eq!(layout.logprob_positions(&packed), [1, 2]);
    assert_eq!(layout.value_positions(&packed), [1, 2, 3]);
    let values = |row| host(value.scores(&TokenBatch::from_rows(&[row], &device), None, None));
    assert_close(&values(short)[1..4], &values(long)[1..4], 1e-5);
    let rollout = evaluate(&episodes(), &ppo_config(json!({})));
    assert_close(
        &targets(&rollout).values[rollout.samples.layout.values().range(1)],
        &values(short)[1..4],
        1e-5,
    );
}

#[test]
fn detail_20_a_response_ends_with_its_first_eos() {
    let policy = language_model("ref");
    for response in generated(&policy, stops(), 0.7).responses {
        let first = response.ids.iter().position(|id| stops().contains(id));
        match first {
            Some(first) => assert_eq!(first + 1, response.ids.len(), "kept, and the last one"),
            None => assert_eq!(response.ids.len(), T),
        }
    }
}

#[test]
fn detail_20_a_response_may_end_at_a_token_from_an_index_on() {
    let policy = language_model("ref");
    let full = generated(&policy, Vec::new(), 0.7).responses;
    // A token that a response holds twice or more, so that the first time comes before the index.
    for response in &full {
        for (first, &id) in response.ids.iter().enumerate() {
            for after in 0..=T {
                let at = TruncateAt { id, after };
                let ended = generated_until(&policy, Vec::new(), Some(at), 0.7).responses;
                for (ended, full) in ended.iter().zip(&full) {
                    let end = (after..T).find(|&i| full.ids[i] == id);
                    assert_eq!(ended.ids, full.ids[..end.map_or(T, |end| end + 1)]);
                    assert_eq!(ended.stopped, end.is_some(), "{first} {after}");
                }
            }
        }
    }
}

#[test]
fn detail_21_missing_eos_replaces_or_subtracts() {
    let kept = |rule: Value| {
        evaluate(&episodes(), &ppo_config(json!({"missing_eos": rule})))
            .samples
            .scores
    };
    assert_eq!(kept(json!({"Replace": -1.0})), [-1.0, 2.0]);
    assert_eq!(kept(json!({"Subtract": 1.0})), [-0.5, 2.0]);
    assert_eq!(kept(json!("Keep")), [0.5, 2.0]);
    // Responses are classified by how they ended, never by searching for a token: this one has an EOS id inside.
    let mut scores = [3.0];
    rl::apply_missing_eos(&mut scores, &[false], MissingEos::Replace(-1.0));
    assert_eq!(scores, [-1.0]);
}

#[test]
fn detail_22_positions_that_count_end_at_l_and_at_l_plus_one() {
    // L = 0, 1, T - 1 (EOS there), T - 1 (no EOS): policy positions L + 1; value positions one more if L + 1 < T.
    let layout = ResponseLayout::after_eos(Segments::from_lens([1, 2, 6, 6]), T);
    assert_eq!(layout.responses(), &Segments::from_lens([1, 2, 6, 6]));
    assert_eq!(layout.values(), &Segments::from_lens([2, 3, 6, 6]));
}

#[test]
fn detail_23_nothing_is_stored_beyond_the_response() {
    let rollout = evaluate(&episodes(), &ppo_config(json!({})));
    let tokens = 6 + 2;
    for (what, len) in [
        ("logprobs", rollout.samples.logprobs.len()),
        ("ref_logprobs", ref_logprobs(&rollout).len()),
        ("kl", rollout.samples.kl(rollout.kl.estimator).len()),
        ("advantages", rollout.advantages.len()),
    ] {
        assert_eq!(len, tokens, "{what}");
    }
    assert_eq!(
        (
            targets(&rollout).values.len(),
            targets(&rollout).returns.len()
        ),
        (6 + 3, 6 + 3)
    );
}

#[test]
fn detail_24_the_kl_term_is_paid_per_token_and_the_score_after_eos() {
    let config = ppo_config(json!({"kl_coef": 0.05, "missing_eos": "Keep"}));
    let rollout = evaluate(&episodes(), &config);
    let kl: Vec<f32> = (rollout.samples.logprobs.iter().zip(ref_logprobs(&rollout)))
        .map(|(a, b)| a - b)
        .collect();
    let mut want: Vec<f32> = kl[..6].iter().map(|kl| -0.05 * kl).collect();
    want[5] += 0.5; // L + 1 = T: on the last token
    want.extend([-0.05 * kl[6], -0.05 * kl[7], 2.0]); // L + 1 < T: after it
    assert_close(&raw_rewards(&rollout), &want, 1e-6);
}

#[test]
fn detail_25_reward_whitening_keeps_the_mean_and_is_off_by_default() {
    let off = evaluate(&episodes(), &ppo_config(json!({})));
    assert_eq!(targets(&off).rewards, raw_rewards(&off));
    let on = evaluate(&episodes(), &ppo_config(json!({"whiten_rewards": true})));
    assert_eq!(raw_rewards(&on), raw_rewards(&off));
    assert!((rl::mean(&targets(&on).rewards) - rl::mean(&raw_rewards(&on))).abs() < 1e-6);
    assert!(
        (rl::variance(&targets(&on).rewards) - 1.0).abs() < 1e-5,
        "biased"
    );
}

#[test]
fn detail_26_returns_are_taken_before_whitening() {
    let config = ppo_config(json!({}));
    let rollout = evaluate(&episodes(), &config);
    let (raw, targets) = (raw_advantages(&rollout, &config), targets(&rollout));
    let sums: Vec<f32> = (raw.iter().zip(&targets.values))
        .map(|(a, v)| a + v)
        .collect();
    assert_close(&targets.returns, &sums, 1e-6);
    // The last position has no successor: its advantage is what is paid there less its value, gamma 1 and lambda .95.
    let last = targets.values.len() - 1;
    assert_close(
        &[raw[last]],
        &[targets.rewards[last] - targets.values[last]],
        1e-6,
    );
    assert_eq!((config.gamma, config.lam), (1.0, 0.95));
}

#[test]
fn detail_27_advantages_are_whitened_over_the_whole_rollout() {
    let rollout = evaluate(&episodes(), &ppo_config(json!({"num_mini_batches": 2})));
    assert!(rl::mean(&rollout.advantages).abs() < 1e-6);
    assert!((rl::variance(&rollout.advantages) - 1.0).abs() < 1e-5);
    // Not row by row or minibatch by minibatch.
    assert!(rl::mean(&rollout.advantages[..6]).abs() > 1e-2);
    // Only policy positions are included, not the value after EOS.
    let config = ppo_config(json!({"num_mini_batches": 2}));
    let raw = (rollout.samples.layout).at_responses(&raw_advantages(&rollout, &config));
    assert_eq!(rollout.raw_advantages, raw);
    assert_eq!(rollout.advantages, rl::whiten(&raw, true, Variance::Biased));
}

#[test]
fn detail_28_the_value_network_starts_as_the_reward_model() {
    let device = Default::default();
    let policy = Policy::<B> {
        model: language_model("policy"),
        config: model_config(),
        tokenizer: Arc::new(tokenizer()),
        adapter: None,
        base: "ref".into(),
        score: None,
    };
    let mut reward = reward_model();
    reward.offset = 0.25;
    let start = |value_init, peft: Peft| {
        let reward = RewardModel {
            model: reward.clone(),
            adapter: None,
            config: model_config(),
            tokenizer: Arc::new(tokenizer()),
        };
        let mut config = ppo_config(json!({"reward": {"Learned": {"stage": "rm"}}}));
        (config.value_init, config.peft) = (Some(value_init), peft);
        let reward = config.value_start().map(|stage| {
            assert_eq!(stage, "rm");
            reward
        });
        value_network(&policy, reward, &config, Seed::new(1), &device).unwrap()
    };
    let rows: [&[u32]; 1] = [&[5, 17, 19, EOS]];
    let scores = |model: &ScalarModel<B>| {
        host(model.scores(&TokenBatch::from_rows(&rows, &device), None, None))
    };
    // The same numbers to the last bit, with adapters too; and a network of its own, all or adapters and head trained.
    let full = start(ValueInit::Reward, Peft::Full);
    assert_eq!(scores(&full.valid()), scores(&reward));
    let mut lora = start(ValueInit::Reward, Peft::Lora(LoraConfig::default()));
    assert_eq!(scores(&lora.valid()), scores(&reward));
    lora.for_each_parameter(&mut |meta, slot| {
        let trained = matches!(meta.kind, ParamKind::Adapter | ParamKind::Score);
        assert_eq!(slot.is_trained(), trained, "{}", meta.key());
    });
    // lm-human-preferences' way: the policy's weights under a zero head.
    let zero = start(ValueInit::Policy, Peft::Full);
    assert_eq!(scores(&zero.valid()), [0.0; 4]);
    // So do other reward sources; and a head on the policy needs no reward model.
    assert_eq!(ppo_config(json!({})).value_start(), None);
    let head = json!({"reward": {"Learned": {"stage": "rm"}}, "value_trunk": "Policy"});
    assert_eq!(ppo_config(head).value_start(), None);
    // Of a source of sources, the reward model that is alone or named.
    let member = |reward: Value, value_init: Option<ValueInit>| {
        let mut config = ppo_config(json!({"reward": reward}));
        config.value_init = value_init;
        config.value_start().map(str::to_owned)
    };
    let model = |stage: &str| json!({"Learned": {"stage": stage}});
    let alone = json!({"Sum": [[1.0, model("rm")], [0.1, "Gold"]]});
    let several = json!({"Ensemble": {"sources": [model("rm"), {"Sum": [[0.5, model("other")]]}, model("rm")]}});
    for (reward, value_init, expected) in [
        (&alone, None, None),
        (&alone, Some(ValueInit::Reward), Some("rm")),
        (&several, None, None),
        (&several, Some(ValueInit::Reward), None),
        (
            &several,
            Some(ValueInit::Learned("other".into())),
            Some("other"),
        ),
        (&several, Some(ValueInit::Learned("third".into())), None),
    ] {
        let found = member(reward.clone(), value_init.clone());
        assert_eq!(found.as_deref(), expected, "{reward} {value_init:?}");
    }
}

// ---- update ----

#[test]
fn detail_29_four_epochs_each_in_an_order_of_its_own() {
    assert_eq!(ppo_config(json!({})).num_ppo_epochs, 4);
    let orders = minibatch_orders(Seed::new(1), 16, 4);
    for (i, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..16).collect::<Vec<_>>());
        assert!(!orders[..i].contains(order));
    }
    let config = ppo_config(json!({"num_mini_batches": 2, "num_ppo_epochs": 3}));
    let rollout = evaluate(&episodes(), &config);
    let mut networks = networks(language_model("ref"), OptimConfig::default());
    let report = run_update(&mut networks, &rollout, &config, 1e-4);
    assert_eq!(report.minibatches.len(), 3 * 2);
    assert_eq!(networks.policy_optim.num_updates(), 6);
    // Division must be exact.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.ron");
    let text = r#"(name: "x", model: "tiny", stages: [Ppo(name: "ppo", init: Base, data: (source: Posts(rows: 8, seed: 1)),
        reward: Gold, total_episodes: 48, batch_size: 16, num_mini_batches: 3, response_length: 8)])"#;
    std::fs::write(&file, text).unwrap();
    let error = recipe::load(&file, &[]).unwrap_err().to_string();
    assert!(
        error.contains("must divide batch_size 16, found 3"),
        "{error}"
    );
}

#[test]
fn detail_30_the_policy_loss_is_the_worse_of_ratio_and_clipped_ratio() {
    // Ratios 1.5 and .5 with advantages 2 and -2: 1.2 and 1.5 are held, .5 is not, .8 is.
    let (up, down) = (1.5f32.ln(), 0.5f32.ln());
    let loss = |new: &[f32], advantages: &[f32]| {
        host(
            policy_loss(
                tensor(new),
                tensor(&vec![0.0; new.len()]),
                tensor(advantages),
                Objective::clip(0.2),
            )
            .sum(),
        )[0]
    };
    assert_close(
        &[loss(&[up], &[2.0]), loss(&[up], &[-2.0])],
        &[-2.4, 3.0],
        1e-6,
    );
    assert_close(
        &[loss(&[down], &[2.0]), loss(&[down], &[-2.0])],
        &[-1.0, 1.6],
        1e-6,
    );
    // A sum over tokens, divided by the minibatch's: three tokens in one pass or in two are the same.
    let whole = loss(&[up, down, up], &[2.0, 2.0, -2.0]);
    let parts = loss(&[up], &[2.0]) + loss(&[down, up], &[2.0, -2.0]);
    assert_close(&[parts], &[whole], 1e-6);
}

#[test]
fn detail_31_the_value_loss_is_the_larger_square_and_weighs_a_tenth() {
    // V = 1 from 0, clipped to .2: R = 1 gives .8^2 / 2, R = 0 gives 1 / 2.
    let loss = |target: f32| {
        host(value_loss(
            tensor(&[1.0]),
            tensor(&[0.0]),
            tensor(&[target]),
            0.2,
        ))[0]
    };
    assert_close(&[loss(1.0), loss(0.0)], &[0.32, 0.5], 1e-6);
    assert_eq!(ppo_config(json!({})).vf_coef, 0.1);
    // The weight scales the value network's gradient and nothing else.
    let report = |vf_coef: f64| {
        let config = ppo_config(json!({"vf_coef": vf_coef, "num_ppo_epochs": 1}));
        let rollout = evaluate(&episodes(), &config);
        run_update(
            &mut networks(language_model("ref"), OptimConfig::default()),
            &rollout,
            &config,
            1e-4,
        )
        .minibatches
        .remove(0)
    };
    let (one, tenth) = (report(1.0), report(0.1));
    let [norm, of_tenth] = [&one, &tenth].map(|report| report.value_grad_norm.unwrap());
    assert!((norm / of_tenth - 10.0).abs() < 1e-3);
    assert_eq!(one.policy_grad_norm, tenth.policy_grad_norm);
}

#[test]
fn detail_32_gradients_are_clipped_only_if_asked() {
    let config = ppo_config(json!({"num_ppo_epochs": 1}));
    let run = |max_grad_norm| {
        let optim = OptimConfig {
            max_grad_norm,
            // Far above every gradient: the step is then proportional to it.
            eps: 1e6,
            ..OptimConfig::default()
        };
        let mut networks = networks(language_model("policy"), optim);
        let rollout = evaluate(&episodes(), &config);
        let report = run_update(&mut networks, &rollout, &config, 1e6);
        let before = host_tensors(&mut language_model("policy"), &|_| true);
        let after = host_tensors(&mut networks.policy.valid(), &|_| true);
        let moved: f64 = (before.iter().zip(&after))
            .flat_map(|(a, b)| a.2.iter().zip(&b.2))
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum();
        (report.minibatches[0].policy_grad_norm, moved.sqrt())
    };
    let (norm, free) = run(None);
    let (same, clipped) = run(Some(norm / 4.0));
    assert_eq!(norm, same, "the norm is reported before clipping");
    assert!((free / clipped - 4.0).abs() < 0.02, "{free} {clipped}");
}

#[test]
fn detail_33_the_kl_weight_is_fixed_or_follows_a_target() {
    let mut fixed = KlController::new(KlControl::Fixed, 0.05);
    fixed.update(100.0, 512);
    assert_eq!(fixed.coef(), 0.05);
    assert_eq!(ppo_config(json!({})).kl_coef, 0.05);
    // Beyond 20 % off the target the error is cut: KL 12 and 120 move it alike.
    let after = |kl| {
        let control = KlControl::Adaptive {
            target: 6.0,
            horizon: 10_000.0,
        };
        let mut controller = KlController::new(control, 0.15);
        controller.update(kl, 512);
        controller.coef()
    };
    assert_eq!(after(12.0), after(120.0));
    assert_eq!(after(6.0), 0.15);
}

#[test]
fn detail_34_the_estimator_of_the_reward_is_named_and_the_reported_one_is_k1() {
    let rollout =
        |estimator: &str| evaluate(&episodes(), &ppo_config(json!({"kl_estimator": estimator})));
    let (k1, k2, k3) = (rollout("k1"), rollout("k2"), rollout("k3"));
    let kl = |rollout: &Rollout| rollout.samples.kl(rollout.kl.estimator);
    let (kl1, kl2, kl3) = (kl(&k1), kl(&k2), kl(&k3));
    for i in 0..kl1.len() {
        let logr = f64::from(k1.samples.logprobs[i]) - f64::from(ref_logprobs(&k1)[i]);
        assert_close(&[kl1[i]], &[logr as f32], 1e-6);
        assert_close(&[kl2[i]], &[(logr * logr / 2.0) as f32], 1e-5);
        assert_close(&[kl3[i]], &[((-logr).exp() - 1.0 + logr) as f32], 1e-4);
    }
    assert_eq!(k1.samples.mean_kl(), k3.samples.mean_kl());
}

#[test]
fn detail_34_a_kl_in_the_loss_leaves_the_rewards_alone() {
    let config = |place: &str| ppo_config(json!({"kl_estimator": "k3", "kl_in": place}));
    let (reward, loss) = (config("Reward"), config("Loss"));
    let (a, b) = (evaluate(&episodes(), &reward), evaluate(&episodes(), &loss));
    assert_eq!(a.samples.kl(KlEstimator::K3), b.samples.kl(KlEstimator::K3));
    let paid: Vec<f32> = (raw_rewards(&b).into_iter())
        .filter(|&reward| reward != 0.0)
        .collect();
    assert_eq!(paid, b.samples.scores);
    assert_ne!(raw_rewards(&a), raw_rewards(&b));
    let metric = |rollout: &Rollout, config: &PpoConfig| {
        let mut networks = networks(language_model("policy"), OptimConfig::default());
        let metrics = run_update(&mut networks, rollout, config, 1e-4).metrics();
        let found = metrics.iter().find(|(name, _)| *name == "loss/kl_avg");
        found.map(|(_, value)| *value)
    };
    assert_eq!(metric(&a, &reward), None);
    let kl = metric(&b, &loss).unwrap();
    assert!(kl > 0.0);
    let documented = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    assert!(documented.contains("`loss/kl_avg`"));
}

#[test]
fn detail_35_every_metric_is_written_and_documented() {
    let config = ppo_config(json!({"num_ppo_epochs": 1}));
    let rollout = evaluate(&episodes(), &config);
    let mut networks = networks(language_model("ref"), OptimConfig::default());
    let report = run_update(&mut networks, &rollout, &config, 1e-4);
    let metrics = [rollout.metrics(), report.metrics()].concat();
    let documented = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for (name, value) in &metrics {
        assert!(value.is_finite(), "{name}");
        assert!(documented.contains(&format!("`{name}`")), "{name}");
    }
    for name in [
        "objective/kl",
        "objective/scores",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/entropy",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "val/ratio",
        "val/ratio_var",
        "val/clipfrac_avg",
        "val/response_length",
        "val/num_eos_tokens",
        "rollout/logprob_max_diff",
    ] {
        assert!(metrics.iter().any(|(known, _)| *known == name), "{name}");
    }
    let of = |name: &str| metrics.iter().find(|(known, _)| *known == name).unwrap().1;
    assert_eq!(
        (of("val/response_length"), of("val/num_eos_tokens")),
        (4.0, 1.0)
    );
    // Summed per response, then averaged.
    let logr: f64 = (rollout.samples.logprobs.iter().zip(ref_logprobs(&rollout)))
        .map(|(a, b)| f64::from(a - b))
        .sum();
    assert!((of("objective/kl") - logr / 2.0).abs() < 1e-5);
}

#[test]
fn detail_36_pretraining_text_enters_with_its_weight() {
    let example = |ids: &[u32]| Example {
        ids: ids.to_vec(),
        trained: (0..ids.len()).map(|i| i > 0).collect(),
        prompt_len: 0,
    };
    let texts = [example(&[3, 8, 21, 5]), example(&[17, 2, 9])];
    let config = ppo_config(json!({"num_ppo_epochs": 3, "vf_coef": 0.0}));
    let mut rollout = evaluate(&episodes(), &config);
    // Without an advantage the policy loss has no gradient: what is left is the text's.
    rollout.advantages.fill(0.0);
    let rows = TokenRows::from(texts.to_vec());
    let (sum, count) =
        example_loss(&language_model("ref"), &rows, 64, &Default::default()).unwrap();
    let run = |coef: f64, batches: &[Vec<&Example>]| {
        let optim = OptimConfig {
            max_grad_norm: None,
            ..OptimConfig::default()
        };
        let mut networks = networks(language_model("ref"), optim);
        let orders = minibatch_orders(Seed::new(1), rollout.samples.rows.len(), 3);
        let mut settings = update_settings(&config, 1e-2, 0.0);
        settings.ptx = Some(Ptx { coef, batches });
        update(
            &mut networks,
            &rollout,
            &orders,
            &settings,
            &Default::default(),
        )
        .unwrap()
    };
    let both: Vec<&Example> = texts.iter().collect();
    let batches = vec![both.clone(), both.clone(), both];
    let (one, three) = (run(1.0, &batches), run(3.0, &batches));
    let [first, second, third] = &one.minibatches[..] else {
        panic!("a step per epoch")
    };
    // A mean over the tokens of both texts, at temperature 1.
    let loss = |part: &MinibatchReport| part.ptx_loss.unwrap();
    assert!((loss(first) - sum / count as f64).abs() < 1e-5);
    assert!(loss(second) < loss(first) && loss(third) < loss(second));
    let ratio = three.minibatches[0].policy_grad_norm / first.policy_grad_norm;
    assert!((ratio - 3.0).abs() < 1e-5, "{ratio}");
    let named = one.metrics();
    assert!(named.iter().any(|(name, _)| *name == "loss/ptx_avg"));
    let documented = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    assert!(documented.contains("`loss/ptx_avg`"));
}

#[test]
fn detail_37_the_reference_of_an_adapter_is_its_base_to_the_last_bit() {
    let base = language_model("ref");
    let mut policy = base.clone();
    attach_adapters(
        &mut policy,
        &model_config(),
        &LoraConfig::default(),
        Seed::new(1),
    )
    .unwrap();
    let rows: [&[u32]; 2] = [&[5, 17, 9, 3, 30], &[12, 7]];
    let logprobs = |model: &LanguageModel<B>| {
        row_logprobs(model, &rows, &[1, 1], 0.7, 4096, &Default::default())
    };
    assert_eq!(logprobs(&policy), logprobs(&base), "at the start");
    // An update of the adapters leaves the base unchanged.
    let config = ppo_config(json!({"num_ppo_epochs": 2}));
    let rollout = evaluate(&episodes(), &config);
    let mut networks = networks(policy, OptimConfig::default());
    networks
        .policy
        .train_only(&|kind| kind == ParamKind::Adapter);
    run_update(&mut networks, &rollout, &config, 1e-2);
    let mut trained = networks.policy.valid();
    assert_ne!(logprobs(&trained), logprobs(&base));
    trained.detach_adapters();
    assert_eq!(logprobs(&trained), logprobs(&base), "adapters off");
}

#[test]
fn detail_38_scores_are_f32_sums_of_f32_products() {
    // The head is a product and a sum in f32: a state of 16 numbers against the same in f64.
    let (model, device) = (reward_model(), Default::default());
    let batch = TokenBatch::from_rows(&[[5u32, 17, 9]], &device);
    let hidden: Vec<f32> = model
        .backbone
        .hidden_states(&batch, None, None)
        .into_data()
        .into_vec()
        .unwrap();
    let head = host(model.score.val());
    let want: Vec<f32> = (hidden.chunks(16))
        .map(|state| {
            let products = state
                .iter()
                .zip(&head)
                .map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum::<f64>() as f32
        })
        .collect();
    assert_close(&host(model.scores(&batch, None, None)), &want, 2e-6);
}

// ---- published vectors ----

const REWARDS: [f32; 9] = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0];

#[test]
fn vector_whitening_biased() {
    let want = [
        0.0508, 0.4381, 0.8254, 1.2127, 1.6, 1.9873, 2.3746, 2.7619, 3.1492,
    ];
    assert_close(&rl::whiten(&REWARDS, false, Variance::Biased), &want, 6e-5);
}

#[test]
fn vector_whitening_unbiased() {
    let want = [
        0.1394, 0.5046, 0.8697, 1.2349, 1.6, 1.9651, 2.3303, 2.6954, 3.0606,
    ];
    assert_close(
        &rl::whiten(&REWARDS, false, Variance::Unbiased),
        &want,
        6e-5,
    );
}

#[test]
fn vector_gae_and_masks() {
    // T = 4, EOS at index 1, beta .05, score 2, gamma 1, lambda .95; padded, the fourth position of each is 0.
    let layout = ResponseLayout::after_eos(Segments::from_lens([2]), 4);
    let kl = rl::kl_per_token(KlEstimator::K1, &[-1.0, -2.0], &[-1.5, -1.8]);
    let rewards = rl::token_rewards(&kl, &[2.0], 0.05, &layout);
    assert_close(&rewards, &[-0.025, 0.01, 2.0], 1e-6);
    let gae = rl::gae(&rewards, &[0.5, 0.6, 0.7], layout.values(), 1.0, 0.95);
    assert_close(&gae.advantages, &[1.35275, 1.345, 1.3], 1e-6);
    assert_close(&gae.returns, &[1.85275, 1.945, 2.0], 1e-6);
}

#[test]
fn vector_kl_estimators() {
    let kl = |estimator| rl::kl_per_token(estimator, &[0.5, -0.2, 2.0], &[0.0; 3]);
    assert_close(&kl(KlEstimator::K1), &[0.5, -0.2, 2.0], 1e-6);
    assert_close(&kl(KlEstimator::K2), &[0.125, 0.02, 2.0], 1e-6);
    assert_close(&kl(KlEstimator::K3), &[0.106531, 0.021403, 1.135335], 1e-6);
}

#[test]
fn vector_adaptive_kl() {
    for (kl, want) in [(10.0, 0.151536), (6.6, 0.150768), (3.0, 0.148464)] {
        let control = KlControl::Adaptive {
            target: 6.0,
            horizon: 10_000.0,
        };
        let mut controller = KlController::new(control, 0.15);
        controller.update(kl, 512);
        assert!(
            (controller.coef() - want).abs() < 5e-7,
            "{}",
            controller.coef()
        );
    }
}

#[test]
fn vector_first_epoch_has_ratio_one_and_no_kl() {
    // A policy that answers for itself: with an adapter at its start it is its own reference. Nothing moves at a rate of 0, so
    // every minibatch of every epoch is a first one.
    let mut policy = language_model("ref");
    attach_adapters(
        &mut policy,
        &model_config(),
        &LoraConfig::default(),
        Seed::new(1),
    )
    .unwrap();
    let config = ppo_config(json!({"num_mini_batches": 2, "num_ppo_epochs": 2}));
    let rollout = evaluate(
        &generated(&policy, stops(), config.logprob_temperature()),
        &config,
    );
    assert!(
        rollout.samples.mean_kl().abs() < 1e-5,
        "{}",
        rollout.samples.mean_kl()
    );
    let report = run_update(
        &mut networks(policy, OptimConfig::default()),
        &rollout,
        &config,
        0.0,
    );
    for minibatch in &report.minibatches {
        let (low, high) = minibatch.stats.ratio_range().unwrap();
        assert!(low > 1.0 - 1e-5 && high < 1.0 + 1e-5, "{low} {high}");
        assert!(minibatch.stats.approxkl() < 1e-10);
        assert_eq!(minibatch.stats.clipfrac(), 0.0);
    }
    assert!(
        report.logprob_max_diff < 1e-5,
        "{}",
        report.logprob_max_diff
    );
}
