//! Everything that can be wrong with a recipe by itself, found in one go.
//!
//! Files are not looked at here: a recipe that passes may still name data or weights that do not exist.

use crate::data::{DataSource, RowFormat};
use crate::error::Problem;
use crate::recipe::checks::Checks;
use crate::recipe::places::Places;
use crate::recipe::references;
use crate::recipe::{Recipe, Stage};
use crate::reward::RewardConfig;
use crate::train::config::{
    Cadence, CompareConfig, DataConfig, Init, KlControl, MissingEos, OptimConfig, Peft, PpoConfig,
    RankConfig, RewardModelConfig, SamplingConfig, Schedule, ValueInit,
};

/// Every problem of a recipe that shows without opening another file, in the order of the stages.
pub fn validate(recipe: &Recipe, places: &Places) -> Vec<Problem> {
    validate_except(recipe, places, &[])
}

/// [`validate`], silent on what follows from the key paths `broken`, which hold placeholders.
pub(super) fn validate_except(recipe: &Recipe, places: &Places, broken: &[String]) -> Vec<Problem> {
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
    }
    let stage_name_broken =
        |key: &String| key == "stages" || (key.starts_with("stages.") && key.ends_with(".name"));
    if !broken.iter().any(stage_name_broken) {
        references::check(&mut checks, recipe);
    }
    checks.report(broken)
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
    for (key, data) in [("data", Some(&c.data)), ("eval_data", c.eval_data.as_ref())] {
        if let Some(DataSource::Posts { .. }) = data.map(|data| &data.source) {
            checks.say(
                format!("{path}.{key}.source"),
                "the embedded posts are prompts with completions; a reward model needs comparisons",
            );
            checks.help("add a `Rank` stage and use `Ranked(stage: \"<its name>\")`");
        }
    }
    check_cadence(checks, path, &c.cadence);
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
    let value_init = format!("{path}.value_init");
    if c.value_init == ValueInit::Reward
        && !matches!(c.reward, RewardConfig::Learned { .. })
        && checks.places.is_written(&value_init)
    {
        checks.say(
            value_init,
            "`Reward` starts the value network from the learned reward model, but `reward` is not `Learned(..)`",
        );
        checks.rests_on(format!("{path}.reward"));
        checks.help("use `value_init: Policy`, or leave the key out");
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
}

fn check_training(
    checks: &mut Checks,
    path: &str,
    init: &Init,
    peft: &Peft,
    optim: &OptimConfig,
    epochs: usize,
    batch_size: usize,
) {
    check_peft(checks, path, init, peft);
    check_optim(checks, &format!("{path}.optim"), optim);
    checks.positive(path, "epochs", epochs);
    checks.positive(path, "batch_size", batch_size);
}

fn check_peft(checks: &mut Checks, path: &str, init: &Init, peft: &Peft) {
    let Peft::Lora(lora) = peft else { return };
    let path = format!("{path}.peft");
    checks.positive(&path, "rank", lora.rank);
    checks.above_zero(&path, "alpha", lora.alpha);
    checks.below_one(&path, "dropout", lora.dropout);
    if lora.target_modules.is_empty() {
        checks.say(
            format!("{path}.target_modules"),
            "names no layer, so nothing would be trained",
        );
        checks.help("e.g. `[\"all-linear\"]` or `[\"q_proj\", \"v_proj\"]`");
    }
    for (index, module) in lora.target_modules.iter().enumerate() {
        check_regex(checks, &format!("{path}.target_modules.{index}"), module);
    }
    if matches!(init, Init::Random(_)) {
        checks.say(
            &path,
            "adapters on a frozen random base cannot learn a language",
        );
        checks.help("use `peft: Full` with `init: Random(..)`");
    }
}

fn check_optim(checks: &mut Checks, path: &str, optim: &OptimConfig) {
    checks.above_zero(path, "lr", optim.lr);
    checks.below_one(path, "beta1", optim.beta1);
    checks.below_one(path, "beta2", optim.beta2);
    checks.above_zero(path, "eps", optim.eps);
    checks.not_negative(path, "weight_decay", optim.weight_decay);
    if let Some(norm) = optim.max_grad_norm {
        checks.must(
            format!("{path}.max_grad_norm"),
            norm > 0.0,
            "above 0, or `None` to never clip",
            norm,
        );
    }
    let (warmup_ratio, floor) = match optim.schedule {
        Schedule::Constant { warmup_ratio } => (warmup_ratio, 0.0),
        Schedule::Linear {
            warmup_ratio,
            floor,
        }
        | Schedule::Cosine {
            warmup_ratio,
            floor,
        } => (warmup_ratio, floor),
    };
    checks.fraction(path, "schedule.warmup_ratio", warmup_ratio);
    checks.fraction(path, "schedule.floor", floor);
}

fn check_lengths(checks: &mut Checks, path: &str, micro_batch_tokens: usize, max_length: usize) {
    checks.must(
        format!("{path}.max_length"),
        max_length >= 2,
        "at least 2 tokens: one to read and one to predict",
        max_length,
    );
    if micro_batch_tokens < max_length {
        checks.say(
            format!("{path}.micro_batch_tokens"),
            format!("must be at least max_length {max_length}, found {micro_batch_tokens}"),
        );
        checks.rests_on(format!("{path}.max_length"));
        checks.help("a row is never split over two forward passes");
    }
}

fn check_cadence(checks: &mut Checks, path: &str, cadence: &Cadence) {
    for (key, steps) in [
        ("eval_steps", cadence.eval_steps),
        ("save_steps", cadence.save_steps),
    ] {
        checks.must(
            format!("{path}.cadence.{key}"),
            steps != Some(0),
            "at least 1, or `None`",
            0,
        );
    }
    checks.positive(path, "cadence.save_total_limit", cadence.save_total_limit);
}

fn check_top_p(checks: &mut Checks, path: &str, sampling: &SamplingConfig) {
    checks.must(
        format!("{path}.sampling.top_p"),
        sampling.top_p > 0.0 && sampling.top_p <= 1.0,
        "above 0 and at most 1",
        sampling.top_p,
    );
}

fn check_all_data<const N: usize>(
    checks: &mut Checks,
    path: &str,
    sets: [(&str, Option<&DataConfig>); N],
) {
    for (key, data) in sets {
        if let Some(data) = data {
            check_data(checks, &format!("{path}.{key}"), data);
        }
    }
}

fn check_data(checks: &mut Checks, path: &str, data: &DataConfig) {
    let source = format!("{path}.source");
    match &data.source {
        DataSource::Jsonl(file) => {
            let written = !file.as_os_str().is_empty();
            checks.must(source, written, "the path of a file", file);
        }
        DataSource::Hub { repo, file, .. } => {
            let named = repo.split('/').filter(|part| !part.is_empty()).count() == 2
                && repo.matches('/').count() == 1;
            checks.must(format!("{source}.repo"), named, "`owner/name`", repo);
            checks.must(
                format!("{source}.file"),
                !file.is_empty(),
                "a path in the repository",
                file,
            );
        }
        DataSource::Posts { rows, .. } => {
            checks.positive(&source, "rows", *rows);
            if *rows >= 1 && data.skip >= *rows {
                checks.say(
                    format!("{path}.skip"),
                    format!("leaves none of the {rows} rows"),
                );
                checks.rests_on(format!("{source}.rows"));
            }
        }
        DataSource::Ranked { .. } => {}
    }
    checks.must(
        format!("{path}.limit"),
        data.limit != Some(0),
        "at least 1, or `None` for all rows",
        0,
    );
    check_format(checks, &format!("{path}.format"), &data.format);
}

fn check_format(checks: &mut Checks, path: &str, format: &RowFormat) {
    for (key, template) in [
        ("text", &format.text),
        ("prompt", &format.prompt),
        ("completion", &format.completion),
        ("chosen", &format.chosen),
        ("rejected", &format.rejected),
    ] {
        let Some(template) = template else { continue };
        if let Err(error) = minijinja::Environment::new().template_from_str(template) {
            let detail = error
                .detail()
                .map(|d| format!(" ({d})"))
                .unwrap_or_default();
            checks.say(
                format!("{path}.{key}"),
                format!("not a template: {}{detail}", error.kind()),
            );
            checks.help("columns stand in double braces: `\"{{ prompt }}\"`");
        }
    }
}

/// Checks a reward source; `data` is what it will score.
fn check_reward(checks: &mut Checks, path: &str, reward: &RewardConfig, data: &DataConfig) {
    match reward {
        RewardConfig::Learned { .. } => {}
        RewardConfig::Rouge { reference, .. } => checks.must(
            format!("{path}.reference"),
            !reference.is_empty(),
            "the name of a column",
            reference,
        ),
        RewardConfig::Gold => {
            if !matches!(data.source, DataSource::Posts { .. }) {
                checks.say(
                    path,
                    "`Gold` can score responses to the embedded posts only, and the data is not `Posts(..)`",
                );
                checks.help("use `Rouge(..)`, `Learned(..)` or another source");
            }
        }
        RewardConfig::Length { target } => checks.positive(path, "target", *target),
        RewardConfig::Pattern { regex } => check_regex(checks, &format!("{path}.regex"), regex),
        RewardConfig::Command { command, timeout_s } => {
            if command.first().is_none_or(String::is_empty) {
                checks.say(format!("{path}.command"), "names no program");
                checks.help("e.g. `command: [\"python3\", \"score.py\"]`");
            }
            checks.above_zero(path, "timeout_s", *timeout_s);
        }
        RewardConfig::Sum(terms) => {
            if terms.is_empty() {
                checks.say(path, "a sum needs at least one term");
                checks.help("e.g. `Sum([(1.0, Rouge()), (0.1, Length(target: 10))])`");
            }
            for (index, (weight, term)) in terms.iter().enumerate() {
                let term_path = format!("{path}.{index}");
                checks.must(&term_path, weight.is_finite(), "a finite weight", weight);
                check_reward(checks, &format!("{term_path}.1"), term, data);
            }
        }
    }
}

fn check_regex(checks: &mut Checks, key: &str, pattern: &str) {
    if pattern.is_empty() {
        checks.say(key, "is empty");
    } else if let Err(error) = regex::Regex::new(pattern) {
        // The crate's message spans lines and ends with the cause.
        let cause = error.to_string();
        let cause = cause.lines().last().unwrap_or_default();
        checks.say(
            key,
            format!(
                "{pattern:?} is not a regular expression: {}",
                cause.trim_start_matches("error: ")
            ),
        );
    }
}
