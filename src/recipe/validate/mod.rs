//! Everything that can be wrong with a recipe by itself, found in one go.
//!
//! Files are not looked at here: a recipe that passes may still name data or weights that do not exist.

mod settings;

use crate::data::DataSource;
use crate::error::Problem;
use crate::ops::Precision;
use crate::recipe::checks::Checks;
use crate::recipe::places::Places;
use crate::recipe::references;
use crate::recipe::{Recipe, Stage};
use crate::train::config::{
    CompareConfig, DataConfig, DpoConfig, DpoLoss, Init, KlControl, KlEstimator, KlIn, MissingEos,
    Peft, PpoConfig, RankConfig, RewardLoss, RewardModelConfig, ValueTrunk,
};
use settings::{
    check_all_data, check_cadence, check_lengths, check_optim, check_peft, check_reward,
    check_row_length, check_top_p, check_training, check_truncate,
};

/// Every problem of a recipe that shows without opening another file, in the order of the stages.
pub fn validate(recipe: &Recipe, places: &Places) -> Vec<Problem> {
    validate_except(recipe, places, &[])
}

/// [`validate`], silent on what follows from the key paths `broken`, which hold placeholders.
pub(in crate::recipe) fn validate_except(
    recipe: &Recipe,
    places: &Places,
    broken: &[String],
) -> Vec<Problem> {
    let mut checks = Checks::new(places);
    checks.name("name", &recipe.name);
    if let Some(model) = &recipe.model {
        checks.must("model", !model.is_empty(), "a name or a folder", model);
    }
    if recipe.stages.is_empty() {
        checks.say("stages", "a recipe needs at least one stage");
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        let path = places.stage_path(index, stage.name());
        checks.name(&format!("{path}.name"), stage.name());
        check_stage(&mut checks, &path, stage);
        check_precision(&mut checks, &path, stage, recipe.base_precision);
    }
    let stage_name_broken =
        |key: &String| key == "stages" || (key.starts_with("stages.") && key.ends_with(".name"));
    if !broken.iter().any(stage_name_broken) {
        references::check(&mut checks, recipe);
    }
    checks.report(broken)
}

/// Weights in fewer bits stay frozen.
fn check_precision(checks: &mut Checks, path: &str, stage: &Stage, precision: Precision) {
    if precision != Precision::F32 && stage.peft() == Some(&Peft::Full) {
        checks.say(
            format!("{path}.peft"),
            format!(
                "full fine-tuning trains weights in f32, and base_precision is {}",
                precision.name()
            ),
        );
        checks.help("`peft: Lora(rank: 16)`, or leave base_precision out");
        checks.rests_on("base_precision");
    }
}

fn check_stage(checks: &mut Checks, path: &str, stage: &Stage) {
    match stage {
        Stage::Pretrain(c) => {
            check_training(
                checks,
                path,
                &c.init,
                &c.peft,
                &c.optim,
                c.epochs,
                c.batch_size,
            );
            check_lengths(checks, path, c.micro_batch_tokens, c.max_length);
            check_all_data(
                checks,
                path,
                [("data", Some(&c.data)), ("eval_data", c.eval_data.as_ref())],
            );
            check_cadence(checks, path, &c.cadence);
        }
        Stage::Sft(c) => {
            check_training(
                checks,
                path,
                &c.init,
                &c.peft,
                &c.optim,
                c.epochs,
                c.batch_size,
            );
            check_lengths(checks, path, c.micro_batch_tokens, c.max_length);
            check_all_data(
                checks,
                path,
                [("data", Some(&c.data)), ("eval_data", c.eval_data.as_ref())],
            );
            check_cadence(checks, path, &c.cadence);
        }
        Stage::Rank(c) => check_rank(checks, path, c),
        Stage::RewardModel(c) => check_reward_model(checks, path, c),
        Stage::Dpo(c) => check_dpo(checks, path, c),
        Stage::Ppo(c) => check_ppo(checks, path, c),
        Stage::Compare(c) => check_compare(checks, path, c),
    }
}

fn check_rank(checks: &mut Checks, path: &str, c: &RankConfig) {
    check_all_data(checks, path, [("data", Some(&c.data))]);
    checks.must(
        format!("{path}.num_responses"),
        c.num_responses >= 2,
        "at least 2: comparisons need two responses",
        c.num_responses,
    );
    checks.positive(path, "response_length", c.response_length);
    checks.positive(path, "max_prompt_length", c.max_prompt_length);
    checks.positive(path, "generation_batch_size", c.generation_batch_size);
    checks.not_negative(path, "tie_margin", c.tie_margin);
    checks.below_one(path, "valid_fraction", c.valid_fraction);
    // At temperature 0 all responses to a prompt are the same one.
    checks.above_zero(path, "sampling.temperature", c.sampling.temperature);
    check_top_p(checks, path, &c.sampling);
    check_truncate(checks, path, c.truncate.as_ref(), c.response_length);
    check_reward(checks, &format!("{path}.reward"), &c.reward, &c.data);
}

fn check_reward_model(checks: &mut Checks, path: &str, c: &RewardModelConfig) {
    check_training(
        checks,
        path,
        &c.init,
        &c.peft,
        &c.optim,
        c.epochs,
        c.batch_size,
    );
    check_lengths(checks, path, c.micro_batch_tokens, c.max_length);
    check_all_data(
        checks,
        path,
        [
            ("data", Some(&c.data)),
            ("eval_data", c.eval_data.as_ref()),
            ("center_on", c.center_on.as_ref()),
        ],
    );
    check_comparisons(
        checks,
        path,
        "a reward model",
        &c.data,
        c.eval_data.as_ref(),
    );
    if c.use_margin && c.loss_type == RewardLoss::BestOfK {
        checks.say(
            format!("{path}.use_margin"),
            "only the loss `bradley_terry` knows margins",
        );
        checks.rests_on(format!("{path}.loss_type"));
    }
    if c.standardize && c.center_on.is_none() {
        checks.say(
            format!("{path}.standardize"),
            "needs `center_on`: the responses whose scores are to have variance 1",
        );
    }
    if !c.accuracy_by.is_empty() && c.eval_data.is_none() {
        checks.say(
            format!("{path}.accuracy_by"),
            "needs `eval_data`: accuracy is told apart on held-out comparisons",
        );
    }
    check_cadence(checks, path, &c.cadence);
}

fn check_dpo(checks: &mut Checks, path: &str, c: &DpoConfig) {
    check_training(
        checks,
        path,
        &c.init,
        &c.peft,
        &c.optim,
        c.epochs,
        c.batch_size,
    );
    check_lengths(checks, path, c.micro_batch_tokens, c.max_length);
    check_all_data(
        checks,
        path,
        [("data", Some(&c.data)), ("eval_data", c.eval_data.as_ref())],
    );
    check_comparisons(checks, path, "DPO", &c.data, c.eval_data.as_ref());
    if matches!(c.init, Init::Random(_)) {
        checks.say(
            format!("{path}.init"),
            "a random policy has nothing to prefer one response with, and is its own reference",
        );
        checks.help("start from an `Sft` stage, e.g. `init: Stage(\"sft\")`");
    }
    if let Peft::Lora(lora) = &c.peft
        && lora.dropout > 0.0
    {
        checks.must(
            format!("{path}.peft.dropout"),
            false,
            "0: policy and reference would differ before the first step",
            lora.dropout,
        );
    }
    checks.above_zero(path, "beta", c.beta);
    let label_smoothing = format!("{path}.label_smoothing");
    checks.must(
        &label_smoothing,
        (0.0..0.5).contains(&c.label_smoothing),
        "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
        c.label_smoothing,
    );
    if c.label_smoothing > 0.0 && matches!(c.loss_type, DpoLoss::Hinge | DpoLoss::Ipo) {
        checks.say(
            &label_smoothing,
            "only the losses `sigmoid` and `robust` know wrong labels",
        );
        checks.rests_on(format!("{path}.loss_type"));
    }
    check_cadence(checks, path, &c.cadence);
}

/// Data of which the embedded posts have none: comparisons.
fn check_comparisons(
    checks: &mut Checks,
    path: &str,
    who: &str,
    data: &DataConfig,
    eval_data: Option<&DataConfig>,
) {
    for (key, data) in [("data", Some(data)), ("eval_data", eval_data)] {
        if let Some(DataSource::Posts { .. }) = data.map(|data| &data.source) {
            checks.say(
                format!("{path}.{key}.source"),
                format!("the embedded posts are prompts with completions; {who} needs comparisons"),
            );
            checks.help("add a `Rank` stage and use `Ranked(stage: \"<its name>\")`");
        }
    }
}

fn check_ppo(checks: &mut Checks, path: &str, c: &PpoConfig) {
    check_all_data(
        checks,
        path,
        [("data", Some(&c.data)), ("eval_data", c.eval_data.as_ref())],
    );
    check_reward(checks, &format!("{path}.reward"), &c.reward, &c.data);
    if let Some(gold) = &c.gold {
        check_reward(checks, &format!("{path}.gold"), gold, &c.data);
    }
    check_peft(checks, path, &c.init, &c.peft);
    check_optim(checks, &format!("{path}.optim"), &c.optim);
    if let Some(optim) = &c.value_optim {
        check_optim(checks, &format!("{path}.value_optim"), optim);
    }
    if c.value_trunk == ValueTrunk::Policy {
        for (key, given) in [
            ("value_optim", c.value_optim.is_some()),
            ("value_init", c.value_init.is_some()),
        ] {
            if given {
                checks.say(
                    format!("{path}.{key}"),
                    "is of a value network, and with `value_trunk: Policy` there is none: its head starts at zero and is trained by `optim`",
                );
                checks.help(format!("leave out `{key}`, or `value_trunk`"));
            }
        }
    }
    for (key, value) in [
        ("batch_size", c.batch_size),
        ("total_episodes", c.total_episodes),
        ("num_mini_batches", c.num_mini_batches),
        ("num_ppo_epochs", c.num_ppo_epochs),
        ("generation_batch_size", c.generation_batch_size),
        ("response_length", c.response_length),
        ("max_prompt_length", c.max_prompt_length),
    ] {
        checks.positive(path, key, value);
    }
    let batch_size = format!("{path}.batch_size");
    if c.num_mini_batches >= 1 && !c.batch_size.is_multiple_of(c.num_mini_batches) {
        checks.say(
            format!("{path}.num_mini_batches"),
            format!(
                "must divide batch_size {}, found {}",
                c.batch_size, c.num_mini_batches
            ),
        );
        checks.rests_on(&batch_size);
    }
    if c.batch_size >= 1 && c.total_episodes >= 1 {
        let total = c.total_episodes;
        if total < c.batch_size || !total.is_multiple_of(c.batch_size) {
            checks.say(
                format!("{path}.total_episodes"),
                format!(
                    "must be a multiple of batch_size {}, found {total}",
                    c.batch_size
                ),
            );
            let nearest = total.div_ceil(c.batch_size) * c.batch_size;
            checks.help(format!(
                "e.g. {nearest}, which is {} updates",
                nearest / c.batch_size
            ));
            checks.rests_on(&batch_size);
        }
    }
    let longest = c.max_prompt_length.saturating_add(c.response_length);
    if c.micro_batch_tokens < longest {
        checks.say(
            format!("{path}.micro_batch_tokens"),
            format!(
                "must be at least max_prompt_length + response_length = {longest}, found {}",
                c.micro_batch_tokens
            ),
        );
        checks.rests_on(format!("{path}.max_prompt_length"));
        checks.rests_on(format!("{path}.response_length"));
    }

    checks.above_zero(path, "temperature", c.temperature);
    checks.not_negative(path, "kl_coef", c.kl_coef);
    if let KlControl::Adaptive { target, horizon } = c.kl_control {
        checks.above_zero(path, "kl_control.target", target);
        checks.above_zero(path, "kl_control.horizon", horizon);
    }
    if (c.kl_in, c.kl_estimator) == (KlIn::Loss, KlEstimator::K1) {
        checks.say(
            format!("{path}.kl_estimator"),
            "k1 cannot be in the loss: its gradient is zero on average, so it would hold nothing back",
        );
        checks.help("k2 (the gradient of the KL) or k3, or `kl_in: Reward`");
        checks.rests_on(format!("{path}.kl_in"));
    }
    checks.above_zero(path, "cliprange", c.cliprange);
    checks.above_zero(path, "cliprange_value", c.cliprange_value);
    checks.not_negative(path, "vf_coef", c.vf_coef);
    checks.fraction(path, "gamma", c.gamma);
    checks.fraction(path, "lam", c.lam);
    match c.missing_eos {
        MissingEos::Keep => {}
        MissingEos::Replace(score) => {
            checks.must(
                format!("{path}.missing_eos"),
                score.is_finite(),
                "finite",
                score,
            );
        }
        MissingEos::Subtract(penalty) => checks.not_negative(path, "missing_eos", penalty),
    }
    check_truncate(checks, path, c.truncate.as_ref(), c.response_length);
    if let Some(decay) = c.ema_decay {
        checks.below_one(path, "ema_decay", decay);
    }
    if let Some(ptx) = &c.ptx {
        check_all_data(checks, path, [("ptx.data", Some(&ptx.data))]);
        let ptx_path = format!("{path}.ptx");
        checks.not_negative(&ptx_path, "coef", ptx.coef);
        checks.positive(&ptx_path, "batch_size", ptx.batch_size);
        check_row_length(checks, &ptx_path, ptx.max_length);
        if c.micro_batch_tokens < ptx.max_length {
            checks.say(
                format!("{path}.micro_batch_tokens"),
                format!(
                    "must be at least ptx.max_length {}, found {}",
                    ptx.max_length, c.micro_batch_tokens
                ),
            );
            checks.rests_on(format!("{ptx_path}.max_length"));
        }
    }
    check_cadence(checks, path, &c.cadence);
}

fn check_compare(checks: &mut Checks, path: &str, c: &CompareConfig) {
    check_all_data(checks, path, [("data", Some(&c.data))]);
    if c.policies.is_empty() {
        checks.say(format!("{path}.policies"), "at least one policy is needed");
        checks.help("e.g. `policies: [Base, Stage(\"sft\")]`");
    }
    for (title, reward) in &c.rewards {
        check_reward(checks, &format!("{path}.rewards.{title}"), reward, &c.data);
    }
    checks.positive(path, "response_length", c.response_length);
    checks.positive(path, "max_prompt_length", c.max_prompt_length);
    checks.positive(path, "generation_batch_size", c.generation_batch_size);
    checks.not_negative(path, "sampling.temperature", c.sampling.temperature);
    check_top_p(checks, path, &c.sampling);
    check_truncate(checks, path, c.truncate.as_ref(), c.response_length);
}
