//! What the check of a recipe says before any weight is loaded.

use std::collections::BTreeSet;
use std::path::Path;

use burn_ndarray::NdArray;

use crate::error::{Error, Result};
use crate::recipe::read::read;
use crate::recipe::{CheckedRecipe, RunOptions, check, load_text, run};
use crate::report::{MetricsRow, SilentReporter, each_row};

/// Checks a recipe with these stages on the embedded model; its run would be in `folder`.
fn checked(folder: &Path, stages: &str) -> Result<CheckedRecipe> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    let text = format!("(name: \"r\", model: \"{model}\", stages: [{stages}])");
    let options = RunOptions {
        output: Some(folder.join("run")),
        ..RunOptions::default()
    };
    let loaded = load_text(Path::new("r.ron"), &text, &[])?;
    check(loaded, &options)
}

/// The problems of a recipe with these stages, each with its place and advice; empty if it is sound.
fn problems(stages: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    match checked(folder.path(), stages) {
        Ok(_) => Vec::new(),
        Err(Error::Invalid { problems, .. }) => problems
            .into_iter()
            .map(|problem| match problem.help {
                Some(help) => format!("{}: {} | {help}", problem.place, problem.message),
                None => format!("{}: {}", problem.place, problem.message),
            })
            .collect(),
        Err(other) => panic!("{other}"),
    }
}

/// The only problem of a recipe with these stages must contain every one of `parts`.
#[track_caller]
fn refused(stages: &str, parts: &[&str]) {
    let found = problems(stages);
    assert_eq!(found.len(), 1, "{stages}: {found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "{part:?} is not in {:?}", found[0]);
    }
}

/// A Rank stage `r`, and settings of stages.
const RANK: &str = r#"Rank(name: "r", init: Base, data: (source: Posts(rows: 24, seed: 1)), num_responses: 3, response_length: 6,
    max_prompt_length: 120, reward: Gold, valid_fraction: 0.3)"#;
const POSTS: &str =
    "data: (source: Posts(rows: 8, seed: 2)), eval_data: (source: Posts(rows: 2, seed: 3))";
const PAIRS: &str = r#"data: (source: Stage("r")), eval_data: (source: HeldOut("r")), batch_size: 4, max_steps: 1, max_length: 200"#;
const ROLLOUT: &str =
    "total_episodes: 4, batch_size: 4, response_length: 4, max_prompt_length: 120";
const SUM: &str = "reward: Sum([(1.0, Gold), (0.1, Length(target: 4))]), gold: Gold";

#[test]
fn keep_best_names_a_metric_that_the_stage_logs() {
    let sft = |by: &str| {
        format!(
            r#"Sft(name: "s", {POSTS}, batch_size: 4, cadence: (eval_steps: 1, keep_best: (by: "{by}", mode: Min)))"#
        )
    };
    assert_eq!(problems(&sft("eval/loss")), Vec::<String>::new());
    assert_eq!(problems(&sft("trained_tokens")), Vec::<String>::new());
    refused(
        &sft("eval/lose"),
        &[
            "stages.s.cadence.keep_best.by: the stage has no metric `eval/lose`; it has",
            "`eval/perplexity`",
            "did you mean `eval/loss`?",
        ],
    );
    refused(&sft("eval/reward"), &["has no metric `eval/reward`"]);
    let grpo = |by: &str| {
        format!(
            r#"Grpo(name: "g", init: Base, {POSTS}, {SUM}, {ROLLOUT}, num_generations: 2,
            cadence: (eval_steps: 1, keep_best: (by: "{by}", mode: Max)))"#
        )
    };
    assert_eq!(
        problems(&grpo("eval/scores/length(4)")),
        Vec::<String>::new()
    );
    refused(
        &grpo("eval/scores/length(5)"),
        &["did you mean `eval/scores/length(4)`?"],
    );
    refused(&grpo("eval/kl"), &["has no metric `eval/kl`"]);
}

#[test]
fn metrics_of_every_stage_are_those_that_it_logs() {
    let best = |by: &str| {
        format!(r#"cadence: (eval_steps: 1, keep_best: (by: "{by}", mode: Min), num_samples: 0)"#)
    };
    let stages = [
        RANK.to_owned(),
        format!(r#"Pretrain(name: "pretrain", init: Base, {POSTS}, batch_size: 4, max_steps: 1)"#),
        format!(
            r#"Sft(name: "sft", {POSTS}, batch_size: 4, max_steps: 1, max_length: 140, eval_reward: (reward: Gold, response_length: 4))"#
        ),
        format!(r#"RewardModel(name: "rm", init: Base, {PAIRS}, accuracy_by: ["prompt"])"#),
        format!(r#"Dpo(name: "dpo", init: Base, {PAIRS})"#),
        format!(r#"Cpo(name: "cpo", init: Base, {PAIRS})"#),
        format!(r#"Orpo(name: "orpo", init: Base, {PAIRS})"#),
        format!(r#"Kto(name: "kto", init: Base, {PAIRS})"#),
        format!(
            r#"OnlineDpo(name: "online", init: Base, {POSTS}, {SUM}, {ROLLOUT}, temperature: 1.0)"#
        ),
        format!(
            r#"Hir(name: "hir", init: Base, {POSTS}, reward: Gold, iterations: 1, prompts_per_iteration: 2, num_responses: 2,
            sub_outputs: 1, epochs: 1, batch_size: 4, response_length: 4, max_prompt_length: 130)"#
        ),
        format!(
            r#"Ppo(name: "ppo", init: Base, {POSTS}, {SUM}, {ROLLOUT}, kl_in: Loss, kl_estimator: k3,
            ptx: (data: (source: Posts(rows: 4, seed: 5)), batch_size: 1))"#
        ),
        format!(
            r#"Grpo(name: "grpo", init: Base, {POSTS}, {SUM}, {ROLLOUT}, num_generations: 2, kl_coef: 0.1,
            dynamic_sampling: (max_rounds: 2))"#
        ),
        format!(r#"Rloo(name: "rloo", init: Base, {POSTS}, {SUM}, {ROLLOUT}, num_generations: 2)"#),
        format!(
            r#"ReinforcePlusPlus(name: "rpp", init: Base, {POSTS}, {SUM}, {ROLLOUT}, num_generations: 1)"#
        ),
        format!(
            r#"Distill(name: "distill", teacher: Stage("sft"), {POSTS}, batch_size: 4, max_steps: 1, max_length: 140, response_length: 4,
            {})"#,
            best("eval/loss")
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let checked = checked(folder.path(), &stages.join(",\n")).unwrap();
    let device = Default::default();
    run::<NdArray>(
        &checked,
        &RunOptions::default(),
        device,
        "ndarray",
        &mut SilentReporter,
    )
    .unwrap();
    for stage in checked
        .recipe
        .stages
        .iter()
        .filter(|stage| stage.training().is_some())
    {
        let (name, known) = (stage.name(), stage.metrics());
        let mut logged = BTreeSet::new();
        let file = checked.output.join(name).join("metrics.jsonl");
        each_row(&file, |row: MetricsRow| {
            if row.step > 0 {
                let names = row.values.keys().filter(|name| !name.starts_with("alarm/"));
                logged.extend(names.cloned());
            }
        })
        .unwrap();
        for metric in &logged {
            assert!(known.has(metric), "{name} logs {metric}");
        }
        for metric in known.names() {
            // Of two held-out prompts not all are known, nor any of a step without a pair.
            let may_lack = ["rm", "online"].contains(&name);
            assert!(
                may_lack || logged.contains(metric),
                "{name} has no {metric}"
            );
        }
    }
}

#[test]
fn a_loss_that_overflows_before_the_first_step_is_an_error_and_no_metric() {
    let folder = tempfile::tempdir().unwrap();
    let cpo = format!(r#"{RANK}, Cpo(name: "cpo", init: Base, {PAIRS}, alpha: 40.0)"#);
    let checked = checked(folder.path(), &cpo).unwrap();
    let device = Default::default();
    let options = RunOptions::default();
    let outcome = run::<NdArray>(&checked, &options, device, "ndarray", &mut SilentReporter);
    let message = outcome.unwrap_err().to_string();
    let says = "cpo, step 1: held-out loss (its rewards grow with exp(alpha * nats): lower `alpha`) is not finite";
    assert!(message.starts_with(says), "{message}");
    let metrics = std::fs::read_to_string(checked.output.join("cpo/metrics.jsonl"));
    let metrics = metrics.unwrap_or_default();
    assert_eq!(metrics, "");
}

#[test]
fn tiny_temperatures_are_refused_where_log_probabilities_are_taken() {
    let rollout = |kind: &str, more: &str| {
        format!(
            r#"{kind}(name: "s", init: Base, {POSTS}, reward: Gold, {ROLLOUT}, temperature: 1e-45, {more})"#
        )
    };
    let sampling = "sampling: (temperature: 1e-45)";
    for stage in [
        rollout("Ppo", ""),
        rollout("Grpo", "num_generations: 2"),
        rollout("OnlineDpo", ""),
        format!(
            r#"Distill(name: "s", teacher: Folder("t"), {POSTS}, batch_size: 4, temperature: 1e-45)"#
        ),
        format!(
            r#"Distill(name: "s", teacher: Folder("t"), {POSTS}, batch_size: 4, loss_temperature: 1e-45)"#
        ),
        RANK.replace("reward: Gold", &format!("reward: Gold, {sampling}")),
        format!(
            r#"Compare(name: "s", policies: [Base], data: (source: Posts(rows: 2, seed: 3)), rewards: {{"gold": Gold}},
            response_length: 4, {sampling})"#
        ),
    ] {
        refused(
            &stage,
            &["temperature: must be at least 1e-6", "found 1e-45"],
        );
    }
    let least = rollout("Ppo", "").replace("1e-45", "1e-6");
    assert_eq!(problems(&least), Vec::<String>::new());
    let greedy = r#"Compare(name: "s", policies: [Base], data: (source: Posts(rows: 2, seed: 3)), rewards: {"gold": Gold},
        response_length: 4, sampling: (temperature: 0.0))"#;
    assert_eq!(problems(greedy), Vec::<String>::new());
}

#[test]
fn rows_of_stages_that_cannot_be_compared_are_refused() {
    let sample = |count: usize, reward: &str| {
        format!(
            r#"Sample(name: "one", init: Base, data: (source: Posts(rows: 24, seed: 1)), num_responses: {count}, response_length: 6,
            max_prompt_length: 120, {reward})"#
        )
    };
    let (one, scored) = (sample(1, ""), sample(1, "reward: Gold"));
    let raise = "the rows of `one` have 1 response to each prompt, and at least 2 are compared: raise `num_responses` there";
    let data = r#"data: (source: Stage("one"))"#;
    for stages in [
        format!(r#"{one}, Judge(name: "j", {data}, judge: Model(Base))"#),
        format!(r#"{one}, Label(name: "l", {data})"#),
        format!(r#"{scored}, Dpo(name: "d", init: Base, {data}, batch_size: 4)"#),
        format!(r#"{scored}, Kto(name: "d", init: Base, {data}, batch_size: 4)"#),
        format!(r#"{scored}, RewardModel(name: "d", init: Base, {data}, batch_size: 4)"#),
    ] {
        refused(&stages, &[raise]);
    }
    let many = sample(12, "");
    refused(
        &format!(r#"{many}, Label(name: "l", {data}, form: Rank())"#),
        &["have 12 responses to each prompt, and at most 9 are judged together: lower"],
    );
    for stages in [
        format!(r#"{many}, Label(name: "l", {data})"#),
        format!(r#"{one}, Label(name: "l", {data}, form: InstructGpt)"#),
        format!(
            r#"{}, Judge(name: "j", {data}, judge: Model(Base))"#,
            sample(1, "include_completions: true")
        ),
        format!(
            r#"{scored}, RewardModel(name: "d", init: Base, {data}, batch_size: 4, loss_type: regression)"#
        ),
    ] {
        assert_eq!(problems(&stages), Vec::<String>::new(), "{stages}");
    }
}

#[test]
fn scores_that_no_earlier_stage_writes_are_refused_where_they_decide() {
    let sample = |name: &str, more: &str| {
        format!(
            r#"Sample(name: "{name}", init: Base, data: (source: Posts(rows: 24, seed: 1)), num_responses: 2, response_length: 6,
            max_prompt_length: 120, {more})"#
        )
    };
    let (plain, scored) = (sample("p", ""), sample("q", "reward: Gold"));
    let label = |source: &str, by: &str| {
        format!(r#"{plain}, {scored}, Label(name: "l", data: (source: {source}), {by})"#)
    };
    for source in [r#"Stage("p")"#, r#"Stages(["q", "p"])"#] {
        refused(
            &label(source, "by: Scores"),
            &[
                "stages.l.data.source: the stage `p` has no `reward`",
                "or let people compare: leave out `by`",
            ],
        );
        assert_eq!(problems(&label(source, "")), Vec::<String>::new());
    }
    assert_eq!(
        problems(&label(r#"Stage("q")"#, "by: Scores")),
        Vec::<String>::new()
    );
}

#[test]
fn parts_of_a_stage_that_will_be_empty_are_refused() {
    let dpo = |rows: usize, fraction: f64| {
        format!(
            r#"Rank(name: "r", init: Base, data: (source: Posts(rows: {rows}, seed: 1)), num_responses: 3, response_length: 6,
            max_prompt_length: 120, reward: Gold, valid_fraction: {fraction:?}), Dpo(name: "d", init: Base, {PAIRS})"#
        )
    };
    refused(
        &dpo(6, 0.0001),
        &[
            "stages.d.eval_data.source: the stage `r` holds out no rows, as its `valid_fraction` of them is less than half a row",
        ],
    );
    refused(
        &dpo(6, 0.95),
        &["stages.d.data.source: the stage `r` holds out all rows"],
    );
    // 0.09 of 6 are 0.54 rows, rounded to one.
    assert_eq!(problems(&dpo(6, 0.09)), Vec::<String>::new());
}

#[test]
fn an_address_with_a_password_is_refused_and_not_shown() {
    let text = r#"(name: "r", report_to: [Mlflow("http://user:sekret@127.0.0.1:1")], stages: [Sft(name: "s", data: (source: Posts(rows: 8, seed: 2)), batch_size: 4)])"#;
    let message = load_text(Path::new("r.ron"), text, &[])
        .unwrap_err()
        .to_string();
    let says = "report_to.0: holds a user or password, which would be written to the run's folder; MLflow's token is read from \
                MLFLOW_TRACKING_TOKEN";
    assert!(message.contains(says), "{message}");
    assert!(!message.contains("sekret"), "{message}");
}

#[test]
fn labels_that_no_earlier_stage_writes_are_refused() {
    let model = |more: &str| {
        format!(
            r#"RewardModel(name: "m", init: Base, data: (source: Stage("r")), batch_size: 4, {more})"#
        )
    };
    refused(
        &format!("{RANK}, {}", model("soft_labels: true")),
        &[
            "soft_labels",
            "no `chosen_probability`, which the stages Judge and Label write",
        ],
    );
    refused(
        &format!("{RANK}, {}", model("safety_coef: 0.5")),
        &["safety_coef", "no stage writes rows with `chosen_safe`"],
    );
    let label = r#"Label(name: "l", data: (source: Stage("r")), by: Scores)"#;
    let soft = model("soft_labels: true").replace("Stage(\"r\")", "Stage(\"l\")");
    assert_eq!(
        problems(&format!("{RANK}, {label}, {soft}")),
        Vec::<String>::new()
    );
    let centred = |rows: usize| {
        let more = format!("standardize: true, center_on: (source: Posts(rows: {rows}, seed: 9))");
        format!("{RANK}, {}", model(&more))
    };
    refused(&centred(1), &["standardize", "which is one row"]);
    assert_eq!(problems(&centred(2)), Vec::<String>::new());
}

#[test]
fn a_label_stage_by_scores_has_no_keys_for_people() {
    let label = |more: &str| {
        format!(r#"{RANK}, Label(name: "l", data: (source: Stage("r")), by: Scores, {more})"#)
    };
    for more in [
        "overlap: 0.2",
        "port: 8123",
        r#"host: "127.0.0.2""#,
        r#"annotators: ["ann", "bob"]"#,
        "form: InstructGpt",
    ] {
        let key = more.split(':').next().unwrap();
        let says = format!("stages.l.{key}: has no effect: nobody is asked with `by: Scores`");
        refused(&label(more), &[&says]);
    }
    assert_eq!(
        problems(&label("enough: 3, max_pairs: 2")),
        Vec::<String>::new()
    );
}

#[test]
fn an_answer_without_a_number_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("d.jsonl");
    std::fs::write(
        &file,
        "{\"prompt\":\"1 + 1\",\"answer\":\"#### 2\"}\n{\"prompt\":\"a\",\"answer\":\"two\"}\n",
    )
    .unwrap();
    let stages = format!(
        r#"Grpo(name: "g", init: Base, data: (source: Jsonl({:?})), reward: Number(answer: "answer"), {ROLLOUT}, num_generations: 2)"#,
        file.to_str().unwrap()
    );
    refused(
        &stages,
        &[
            "column `answer`, which a reward source reads: expected a number, or text with one, found \"two\"",
        ],
    );
}

#[test]
fn a_label_stage_has_its_place_in_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let stages = format!(
        r#"{RANK}, Label(name: "l", data: (source: Stage("r")), by: Scores, max_pairs: 2),
        RewardModel(name: "m", init: Base, data: (source: Stage("l")), batch_size: 4)"#
    );
    let checked = checked(folder.path(), &stages).unwrap();
    let plans = checked
        .plans
        .iter()
        .map(|plan| (plan.name.as_str(), plan.rows));
    // The Rank stage holds out 0.3 of 24 prompts, 7 of them; Label a tenth of the other 17, 2 of them, with two pairs of each prompt.
    assert_eq!(plans.collect::<Vec<_>>(), [("r", 24), ("l", 17), ("m", 30)]);
}

#[test]
fn the_label_stages_of_the_documentation_are_read() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, section) = docs.split_once("\n### Label").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let blocks: Vec<&str> = (section.split("```ron\n").skip(1))
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert_eq!(blocks.len(), 2);
    let problems_of = |stages: &str| {
        let text = format!("(name: \"r\", model: \"tiny\", stages: [{stages}])");
        read(Path::new("r.ron"), &text).problems
    };
    for block in blocks {
        assert_eq!(problems_of(block), [], "{block}");
    }
    let found = problems_of(
        r#"Label(name: "l", data: (source: Stage("s")), form: Rate((fields: [Scale(name: "h", label: "H", from: 1, to: 5)])))"#,
    );
    assert!(
        found[0]
            .message
            .starts_with("expected the name of a variant (without quotes), found"),
        "{found:?}"
    );
}

/// A Sample stage with this reward source.
fn sampled(reward: &str) -> String {
    format!(
        r#"Sample(name: "s", init: Base, data: (source: Posts(rows: 3, seed: 3)), num_responses: 2, response_length: 4,
            max_prompt_length: 120, reward: {reward})"#
    )
}

#[test]
fn problems_of_reward_sources_are_at_their_keys() {
    for (reward, parts) in [
        (
            "LengthPenalty(source: Gold, coef: 0.0)",
            ["stages.s.reward.coef: coef is 0", ""],
        ),
        (
            "Sum([(1.0, Gold), (1.0, Safest(helpful: Gold, safety: Gold, threshold: 2.0))])",
            ["stages.s.reward.1.1.threshold: threshold is 2", ""],
        ),
        (
            "Ensemble(sources: [Gold, Gold], combine: MeanMinusStd(-1.0))",
            ["stages.s.reward.combine: MeanMinusStd(-1)", ""],
        ),
        (
            r#"Rouge(reference: "nosuch")"#,
            [
                "posts:1: a reward source reads the column `nosuch`; the row has the columns `text`",
                "| it is read at r.ron:2:37: stages.s.reward",
            ],
        ),
        (
            r#"Graded(judge: Model(Base), template: "{{ response }} {{ row.nosuch }}")"#,
            [
                "posts:1: a reward source reads the column `nosuch`; the row has the columns `text`",
                "| it is read at r.ron:2:37: stages.s.reward",
            ],
        ),
    ] {
        refused(&sampled(reward), &parts);
    }
    let fine = r#"Graded(judge: Model(Base), template: "{{ response }} {{ row.ideal }}{{ row.nosuch | default('') }}")"#;
    assert_eq!(problems(&sampled(fine)), Vec::<String>::new());
}

#[test]
fn tokens_that_are_none_are_refused_at_their_keys() {
    refused(
        r#"Sft(name: "f", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4, max_length: 96,
            peft: TrainableTokens(token_indices: [99999999]))"#,
        &[
            "stages.f.peft.token_indices: there is no token 99999999: model.embed_tokens has 768 rows",
        ],
    );
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    let text = format!(
        r#"(name: "r", model: "{model}", eos_token: "zzz", stages: [Sft(name: "f", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)])"#
    );
    let loaded = load_text(Path::new("r.ron"), &text, &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions {
        output: Some(folder.path().join("run")),
        ..RunOptions::default()
    };
    let error = check(loaded, &options).err().unwrap().to_string();
    assert_eq!(error.matches("eos_token").count(), 1, "{error}");
    for part in [
        ": eos_token: \"zzz\" is not a token of the vocabulary in ",
        "help: name a token of the model, or add it by `add_tokens: [\"zzz\"]`",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
