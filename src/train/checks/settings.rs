//! Checks of the settings that several stages share: optimiser, adapter, lengths, data and rewards.

use std::path::Path;

use crate::data::jinja;
use crate::data::{DataSource, Part, RowFormat, RowKind, SplitSlice, Take, shape_names};
use crate::reward::RewardConfig;
use crate::reward::judge::graded_problems;
use crate::suggest::{did_you_mean, quoted};
use crate::train::checks::Checks;
use crate::train::checks::cadence::check_cadence;
use crate::train::config::{
    Algorithm, DataConfig, Init, OptimConfig, Peft, SamplingConfig, Truncate,
};
use crate::train::{DataUse, GenerationSettings, StageInputs, TrainingSettings};

/// Checks the settings common to all stages that train.
pub(in crate::train) fn check_training(
    checks: &mut Checks,
    path: &str,
    training: &TrainingSettings<'_>,
) {
    check_peft(checks, path, training.init, training.peft);
    check_optim(
        checks,
        &format!("{path}.optim"),
        training.optim,
        training.peft,
    );
    if let Some(epochs) = training.epochs {
        checks.positive(path, "epochs", epochs);
    }
    if let Some(steps) = training.max_steps {
        checks.positive(path, "max_steps", steps);
    }
    checks.positive(path, "batch_size", training.batch_size);
    if let Some(max_length) = training.max_length {
        check_row_length(checks, path, max_length);
        if training.micro_batch_tokens < max_length {
            let found = training.micro_batch_tokens;
            checks.problem(
                format!("{path}.micro_batch_tokens"),
                format!("must be at least max_length {max_length}, found {found}"),
            );
            checks.depends_on(format!("{path}.max_length"));
            checks.help("a row is never split over two forward passes");
        }
    }
    check_cadence(checks, path, training.cadence);
}

/// Checks the settings common to all stages that generate responses.
pub(in crate::train) fn check_generation(
    checks: &mut Checks,
    path: &str,
    generation: &GenerationSettings<'_>,
) {
    checks.positive(path, "response_length", generation.response_length);
    checks.positive(path, "max_prompt_length", generation.max_prompt_length);
    checks.positive(
        path,
        "generation_batch_size",
        generation.generation_batch_size,
    );
    if let Some(sampling) = generation.sampling {
        check_sampling(checks, path, sampling);
    }
    check_truncate(
        checks,
        path,
        generation.truncate,
        generation.response_length,
    );
}

fn check_peft(checks: &mut Checks, path: &str, init: &Init, peft: &Peft) {
    let path = format!("{path}.peft");
    check_method(checks, &path, peft);
    if matches!(init, Init::Random(_)) && !peft.trains_base() {
        checks.problem(
            &path,
            "adapters on a frozen random base cannot learn a language",
        );
        checks.help("use `peft: Full` with `init: Random(..)`");
    }
}

/// Checks what is trained; `path` is its own.
pub(in crate::train) fn check_method(checks: &mut Checks, path: &str, peft: &Peft) {
    checks.problems_below(path, peft.problems());
}

/// Checks an optimiser of what `peft` trains.
pub(in crate::train) fn check_optim(
    checks: &mut Checks,
    path: &str,
    optim: &OptimConfig,
    peft: &Peft,
) {
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
    checks.problems_below(path, optim.problems());
    check_rule(checks, path, &optim.algorithm, peft);
}

/// Checks that the update rule of the optimiser at `path` is for what `peft` trains.
pub(in crate::train) fn check_rule(
    checks: &mut Checks,
    path: &str,
    algorithm: &Algorithm,
    peft: &Peft,
) {
    if algorithm.is_for_whole_models() && !peft.trains_base() {
        let message = format!(
            "`{}` is for the matrices of a model itself, and `peft` trains adapters",
            algorithm.name()
        );
        checks.problem(format!("{path}.algorithm"), message);
        checks.help("train `peft: Full` or `Only([..])`, or leave `algorithm` out");
    }
}

/// Checks the limit on the length of a row.
pub(in crate::train) fn check_row_length(checks: &mut Checks, path: &str, max_length: usize) {
    checks.must(
        format!("{path}.max_length"),
        max_length >= 2,
        "at least 2 tokens: one to read and one to predict",
        max_length,
    );
}

fn check_sampling(checks: &mut Checks, path: &str, sampling: &SamplingConfig) {
    checks.must(
        format!("{path}.sampling.top_p"),
        sampling.top_p > 0.0 && sampling.top_p <= 1.0,
        "above 0 and at most 1",
        sampling.top_p,
    );
    checks.must(
        format!("{path}.sampling.min_p"),
        (0.0..=1.0).contains(&sampling.min_p),
        "from 0 to 1",
        sampling.min_p,
    );
}

fn check_truncate(
    checks: &mut Checks,
    path: &str,
    truncate: Option<&Truncate>,
    response_length: usize,
) {
    let Some(truncate) = truncate else { return };
    checks.must(
        format!("{path}.truncate.token"),
        !truncate.token.is_empty(),
        "the text of one token",
        &truncate.token,
    );
    if truncate.after >= response_length {
        checks.problem(
            format!("{path}.truncate.after"),
            format!(
                "must be below response_length {response_length} to have an effect, found {}",
                truncate.after
            ),
        );
        checks.depends_on(format!("{path}.response_length"));
    }
}

/// Checks a data set of a stage.
pub(in crate::train) fn check_data(checks: &mut Checks, path: &str, data: &DataUse<'_>) {
    check_take(checks, path, data);
    check_rows_of(checks, path, data.config, data.kind);
}

/// Checks source, part, limits and format of a data set.
fn check_rows_of(checks: &mut Checks, path: &str, data: &DataConfig, kind: RowKind) {
    let source = format!("{path}.source");
    match &data.source {
        DataSource::Hub {
            repo,
            file,
            config,
            split,
            ..
        } => {
            let named = repo.split('/').filter(|part| !part.is_empty()).count() == 2
                && repo.matches('/').count() == 1;
            checks.must(format!("{source}.repo"), named, "`owner/name`", repo);
            let written = file.as_ref().is_none_or(|file| !file.is_empty());
            checks.must(
                format!("{source}.file"),
                written,
                "a path in the repository",
                file,
            );
            if let Some(Err(message)) = split.as_deref().map(SplitSlice::parse) {
                checks.problem(format!("{source}.split"), message);
            }
            if file.is_some() && (config.is_some() || split.is_some()) {
                checks.problem(
                    format!("{source}.file"),
                    "names one file, beside `config` or `split`, which name several",
                );
                checks.help("leave out one of the two; `skip` and `limit` select rows of a file");
            }
        }
        DataSource::Posts { rows, .. } => {
            checks.positive(&source, "rows", *rows);
            if *rows >= 1 && data.skip >= *rows {
                checks.problem(
                    format!("{path}.skip"),
                    format!("leaves none of the {rows} rows"),
                );
                checks.depends_on(format!("{source}.rows"));
            }
        }
        DataSource::Mix(parts) => check_mixture(checks, &source, parts, kind),
        DataSource::Stages(stages) | DataSource::HeldOutStages(stages) => {
            checks.must(
                source,
                !stages.is_empty(),
                "the names of stages",
                stages.len(),
            );
        }
        DataSource::Stage(_)
        | DataSource::HeldOut(_)
        | DataSource::Ranked { .. }
        | DataSource::Data(_) => {}
        local => {
            let file = local.file().unwrap_or(Path::new(""));
            let written = !file.as_os_str().is_empty();
            checks.must(source, written, "the path of a file or folder", file);
        }
    }
    checks.below_one(path, "valid_fraction", data.valid_fraction);
    if data.part == Part::HeldOut && data.valid_fraction == 0.0 {
        checks.problem(
            format!("{path}.valid_fraction"),
            "no rows are held out: the data set has no `valid_fraction`",
        );
        checks.help("e.g. `valid_fraction: 0.1`, beside the set's `source`");
    }
    checks.must(
        format!("{path}.limit"),
        data.limit != Some(0),
        "at least 1, or `None` for all rows",
        0,
    );
    check_format(checks, &format!("{path}.format"), &data.format);
}

/// Checks the sets of a mixture.
fn check_mixture(checks: &mut Checks, path: &str, parts: &[(f64, DataConfig)], kind: RowKind) {
    if parts.is_empty() {
        checks.problem(path, "a mixture needs at least one data set");
        checks.help("e.g. `Mix([(0.7, \"a.jsonl\"), (0.3, \"b.jsonl\")])`");
    }
    for (i, (weight, part)) in parts.iter().enumerate() {
        checks.must(
            format!("{path}.{i}.0"),
            weight.is_finite() && *weight > 0.0,
            "a weight above 0",
            weight,
        );
        let path = format!("{path}.{i}.1");
        if part.source.is_of_stages() && kind != RowKind::Preference {
            checks.problem(
                format!("{path}.source"),
                "rows of a stage can be part of a mixture of comparisons only",
            );
        }
        if part.format != part.format.columns_only() {
            checks.problem(
                format!("{path}.format"),
                "a set of a mixture has templates, `shape` and `sample_by` of its own; other keys are given once",
            );
            checks.help("give them in the `format` of the mixture");
        }
        check_rows_of(checks, &path, part, kind);
    }
}

/// Checks that `take` fits the kind of rows that the stage reads.
fn check_take(checks: &mut Checks, path: &str, data: &DataUse<'_>) {
    let Some(take) = data.config.format.take else {
        return;
    };
    let key = format!("{path}.format.take");
    if !data.config.source.is_of_stages() {
        checks.problem(
            key,
            "selects among the scored responses of a stage, and the source is no stage",
        );
        checks.help("use `source: Stage(\"..\")`, or leave `take` out");
        return;
    }
    let compares = matches!(
        data.kind,
        RowKind::Preference | RowKind::Responses | RowKind::Labelled
    );
    let fits = match take {
        Take::All => true,
        Take::Best | Take::Above(_) | Take::TopFraction(_) => !compares,
        Take::BestAndWorst => compares,
    };
    let expected = match compares {
        true => "`All` or `BestAndWorst`: comparisons are read",
        false => "`Best`, `Above(..)`, `TopFraction(..)` or `All`: responses are trained on",
    };
    checks.must(&key, fits, expected, take);
    match take {
        Take::Above(score) => checks.must(key, score.is_finite(), "a finite score", score),
        Take::TopFraction(share) => {
            let is_share = share > 0.0 && share <= 1.0;
            checks.must(key, is_share, "above 0 and at most 1", share);
        }
        Take::All | Take::Best | Take::BestAndWorst => {}
    }
}

fn check_format(checks: &mut Checks, path: &str, format: &RowFormat) {
    if let Some(column) = &format.shorten {
        checks.must(
            format!("{path}.shorten"),
            !column.is_empty(),
            "the name of a column",
            column,
        );
    }
    if let Some(shape) = &format.shape
        && !shape_names().any(|name| name == shape)
    {
        checks.problem(
            format!("{path}.shape"),
            format!(
                "there is no layout `{shape}`; known are {}",
                quoted(shape_names())
            ),
        );
        if let Some(near) = did_you_mean(shape, shape_names()) {
            checks.help(near);
        }
    }
    for (key, template) in format.templates() {
        let Some(template) = template else { continue };
        if let Err(error) = jinja::compile(&mut jinja::plain_environment(), template) {
            let detail = error
                .detail()
                .map(|d| format!(" ({d})"))
                .unwrap_or_default();
            checks.problem(
                format!("{path}.{key}"),
                format!("not a template: {}{detail}", error.kind()),
            );
            checks.help("write columns in double braces: `\"{{ prompt }}\"`");
        }
    }
}

/// Refuses the embedded posts as comparisons for `who`: they have none.
pub(in crate::train) fn check_comparisons(
    checks: &mut Checks,
    path: &str,
    who: &str,
    inputs: StageInputs<'_>,
) {
    let comparisons =
        |data: &DataUse<'_>| matches!(data.kind, RowKind::Preference | RowKind::Responses);
    for data in inputs.data.into_iter().filter(comparisons) {
        if matches!(data.config.source, DataSource::Posts { .. }) {
            checks.problem(
                format!("{path}.{}.source", data.key),
                format!("the embedded posts are prompts with completions; {who} needs comparisons"),
            );
            checks.help("add a `Rank` stage and use `source: Stage(\"<its name>\")`");
        }
    }
}

/// Checks a reward source that will score responses to `data`.
pub(in crate::train) fn check_reward(
    checks: &mut Checks,
    path: &str,
    reward: &RewardConfig,
    data: &DataConfig,
) {
    match reward {
        // Those of a program are checked where its options are known.
        RewardConfig::Learned { .. } | RewardConfig::Custom { .. } => {}
        RewardConfig::Classifier { model, .. } => checks.must(
            format!("{path}.model"),
            !model.is_empty(),
            "a folder, or `owner/name` of the hub",
            model,
        ),
        // Its model or stage is checked with the source.
        RewardConfig::LogProbability { .. } => {}
        RewardConfig::Rouge { reference, .. }
        | RewardConfig::Bleu { reference, .. }
        | RewardConfig::Chrf { reference, .. } => checks.must(
            format!("{path}.reference"),
            !reference.is_empty(),
            "the name of a column",
            reference,
        ),
        RewardConfig::Gold => {
            if !matches!(data.source, DataSource::Posts { .. }) {
                checks.problem(
                    path,
                    "`Gold` can score responses to the embedded posts only, and the data is not `Posts(..)`",
                );
                checks.help("use `Rouge(..)`, `Learned(..)` or another source");
            }
        }
        RewardConfig::Length { target } => checks.positive(path, "target", *target),
        RewardConfig::Pattern { regex } => check_regex(checks, &format!("{path}.regex"), regex),
        RewardConfig::Number { answer, tolerance } => {
            checks.must(
                format!("{path}.answer"),
                !answer.is_empty(),
                "the name of a column",
                answer,
            );
            checks.not_negative(path, "tolerance", *tolerance);
        }
        RewardConfig::Groups { regex, .. } => {
            check_regex(checks, &format!("{path}.regex"), regex);
        }
        // The file is read with the recipe.
        RewardConfig::Schema { .. } => {}
        RewardConfig::Command { .. } | RewardConfig::Program { .. } => {
            let (command, timeout_s) = reward.program().unwrap_or_default();
            if command.first().is_none_or(String::is_empty) {
                checks.problem(format!("{path}.command"), "names no program");
                checks.help("e.g. `command: [\"python3\", \"score.py\"]`");
            }
            checks.above_zero(path, "timeout_s", timeout_s);
        }
        RewardConfig::Graded(graded) => {
            checks.problems_below(path, graded_problems(graded));
        }
        RewardConfig::Sum(terms) => {
            if terms.is_empty() {
                checks.problem(path, "a sum needs at least one term");
                checks.help("e.g. `Sum([(1.0, Rouge()), (0.1, Length(target: 10))])`");
            }
            for (index, (weight, _)) in terms.iter().enumerate() {
                let term_path = format!("{path}.{index}");
                checks.must(&term_path, weight.is_finite(), "a finite weight", weight);
            }
        }
        // Their own settings are checked with the library's rules for sources.
        RewardConfig::Ensemble { .. }
        | RewardConfig::Safest { .. }
        | RewardConfig::LengthPenalty { .. } => {}
    }
    for (key, part) in reward.parts() {
        check_reward(checks, &format!("{path}.{key}"), part, data);
    }
}

fn check_regex(checks: &mut Checks, key: &str, pattern: &str) {
    if pattern.is_empty() {
        checks.problem(key, "is empty");
    } else if let Err(error) = regex::Regex::new(pattern) {
        // The message of the regex crate spans lines and ends with the cause.
        let cause = error.to_string();
        let cause = cause.lines().last().unwrap_or_default();
        checks.problem(
            key,
            format!(
                "{pattern:?} is not a regular expression: {}",
                cause.trim_start_matches("error: ")
            ),
        );
    }
}
