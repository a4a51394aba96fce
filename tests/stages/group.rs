//! Group methods as stages: they run, resume to the bit, draw again where rewards are equal, and say so where nothing can be learned.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use tempering::recipe::{self, RunOptions};
use tempering::report::{
    EvalReport, Reporter, RolloutReport, SilentReporter, StageInfo, StepReport,
};

use super::resume::run_until;
use crate::support::pipeline::{self, metrics, values};

/// Every group method; sums of sources, penalties, dynamic sampling, several minibatches and full fine-tuning are among it.
const RECIPE: &str = r#"(
    name: "groups", model: "tiny", seed: 5,
    stages: [
        Grpo(name: "grpo", init: Base, data: (source: Posts(rows: 24, seed: 6)), eval_data: (source: Posts(rows: 4, seed: 7)),
            reward: Sum([(1.0, Gold), (0.5, Length(target: 8)), (0.25, Length(target: 8))]), gold: Rouge(), peft: Lora(rank: 4),
            optim: (lr: 1e-3), total_episodes: 36, batch_size: 12, num_generations: 4, num_mini_batches: 3, num_iterations: 2,
            response_length: 12, max_prompt_length: 96, epsilon_high: 0.28, overlong: (cache: 4), dynamic_sampling: (max_rounds: 2),
            mask_truncated_completions: true, cadence: (eval_steps: 2, save_steps: 1)),
        Rloo(name: "rloo", init: Stage("grpo"), data: (source: Posts(rows: 24, seed: 8)), eval_data: (source: Posts(rows: 4, seed: 7)),
            reward: Gold, optim: (lr: 1e-4), total_episodes: 24, batch_size: 8, response_length: 12, max_prompt_length: 96,
            kl_coef: 0.0, missing_eos: Subtract(1.0), ema_decay: 0.9, cadence: (save_steps: 1)),
        ReinforcePlusPlus(name: "rpp", init: Stage("grpo"), data: (source: Posts(rows: 24, seed: 9)), reward: Gold,
            peft: Lora(rank: 4), optim: (lr: 1e-3), total_episodes: 24, batch_size: 8, response_length: 12, max_prompt_length: 96,
            cadence: (save_steps: 1)),
    ],
)
"#;

fn run(text: &str, folder: &Path, reporter: &mut dyn Reporter) -> std::path::PathBuf {
    let output = folder.join("whole");
    let options = RunOptions {
        output: Some(output.clone()),
        ..RunOptions::default()
    };
    pipeline::run_recipe::<Flex>(text, folder, Default::default(), &options, reporter).unwrap();
    output
}

#[test]
fn group_methods_run_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let whole = run(RECIPE, folder.path(), &mut SilentReporter);
    let scores = values(&whole, "grpo", "objective/scores");
    assert_eq!(scores.len(), 3);
    // The score is the weighted sum of its terms, less the penalty on long responses, which is at most 1.
    let mean = |name: &str| values(&whole, "grpo", name);
    let terms =
        ["gold", "length(8)", "length(8)#2"].map(|term| mean(&format!("objective/scores/{term}")));
    for (step, score) in scores.iter().enumerate() {
        let sum = terms[0][step] + 0.5 * terms[1][step] + 0.25 * terms[2][step];
        assert!(
            *score <= sum + 1e-6 && *score >= sum - 1.0 - 1e-6,
            "{score} {sum}"
        );
        assert_eq!(terms[1][step], terms[2][step]);
    }
    assert_eq!(mean("eval/scores/gold").len(), 3);
    assert_eq!(mean("objective/gold_scores").len(), 3);
    assert_eq!(mean("rollout/rounds").len(), 3);
    // Without a KL term there is no KL of the rollout; on held-out prompts there is, since the base is there anyway.
    assert!(mean("objective/kl").is_empty());
    assert_eq!(mean("eval/kl").len(), 3);
    // In full fine-tuning the reference would be a whole model.
    assert!(values(&whole, "rloo", "eval/kl").is_empty());
    assert_eq!(
        values(&whole, "rloo", "rollout/frac_reward_zero_std").len(),
        3
    );
    assert_eq!(values(&whole, "rpp", "objective/kl").len(), 3);
    assert!(values(&whole, "rpp", "rollout/frac_reward_zero_std").is_empty());
    for stage in ["grpo", "rloo", "rpp"] {
        let differences = values(&whole, stage, "rollout/logprob_max_diff");
        assert!(
            differences.iter().all(|&x| x < 1e-3),
            "{stage}: {differences:?}"
        );
        for row in metrics(&whole, stage) {
            assert!(
                row.as_object().unwrap().values().all(|x| x.is_number()),
                "{row}"
            );
        }
    }

    let parts = folder.path().join("parts");
    for stop in [("grpo", 1), ("grpo", 2), ("rloo", 1), ("rpp", 2)] {
        assert!(
            run_until(RECIPE, folder.path(), &parts, Some(stop)),
            "{stop:?}"
        );
    }
    run_until(RECIPE, folder.path(), &parts, None);
    for file in [
        "grpo/metrics.jsonl",
        "grpo/samples.jsonl",
        "grpo/adapter/adapter_model.safetensors",
        "rloo/metrics.jsonl",
        "rloo/model/model.safetensors",
        "rpp/metrics.jsonl",
        "rpp/adapter/adapter_model.safetensors",
    ] {
        let read = |run: &Path| fs::read(run.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(read(&whole), read(&parts), "{file}");
    }
}

#[test]
fn plans_count_steps_and_no_reference_without_a_kl_term() {
    let folder = tempfile::tempdir().unwrap();
    let plans = |kl_coef: &str| {
        let text = RECIPE.replace("kl_coef: 0.0", kl_coef);
        let file = folder.path().join("plan.ron");
        fs::write(&file, text).unwrap();
        let loaded = recipe::load_with_places(&file, &[]).unwrap();
        recipe::check(loaded, &RunOptions::default()).unwrap().plans
    };
    let (without, with) = (plans("kl_coef: 0.0"), plans("kl_coef: 0.05"));
    let steps: Vec<u64> = without.iter().map(|plan| plan.steps).collect();
    assert_eq!(steps, [3, 3, 3]);
    // 36 episodes of 12 tokens at most, two passes in three minibatches.
    assert_eq!(without[0].work.updates, 18.0);
    assert!(without[0].work.sampled > 0.0 && without[0].work.sampled < 36.0 * 12.0 + 1000.0);
    // In full fine-tuning the reference of a KL term is a model of its own, and a pass over each response.
    assert!(with[1].peak() > without[1].peak());
    assert!(with[1].work.forward > without[1].work.forward);
}

/// Keeps what a run says.
#[derive(Default)]
struct Messages(Vec<String>);

impl Reporter for Messages {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, _: &StepReport<'_>) {}
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
    fn stage_end(&mut self, _: &str) {}
}

const EQUAL: &str = r#"(
    name: "equal", model: "tiny", seed: 5,
    stages: [
        Grpo(name: "grpo", init: Base, data: (source: Posts(rows: 24, seed: 6)), reward: Pattern(regex: "no response says this"),
            peft: Lora(rank: 4), optim: (lr: 1e-3), total_episodes: 16, batch_size: 8, num_generations: 4, response_length: 6,
            max_prompt_length: 96, DYNAMIC),
    ],
)
"#;

#[test]
fn groups_of_equal_rewards_are_counted_and_teach_nothing() {
    for (dynamic, groups) in [("", 2.0), ("dynamic_sampling: (max_rounds: 3)", 6.0)] {
        let folder = tempfile::tempdir().unwrap();
        let mut messages = Messages::default();
        let text = EQUAL.replace("DYNAMIC", dynamic);
        let out = run(&text, folder.path(), &mut messages);
        assert_eq!(
            values(&out, "grpo", "rollout/frac_reward_zero_std"),
            [1.0, 1.0]
        );
        assert_eq!(values(&out, "grpo", "policy/grad_norm"), [0.0, 0.0]);
        let says = "update 1: ";
        let said = messages
            .0
            .iter()
            .filter(|message| message.starts_with(says));
        let said: Vec<&String> = said.collect();
        assert!(
            said.len() == 1 && said[0].contains("equal rewards: nothing was learned"),
            "{:?}",
            messages.0
        );
        if !dynamic.is_empty() {
            assert_eq!(values(&out, "grpo", "rollout/rounds"), [3.0, 3.0]);
            assert_eq!(values(&out, "grpo", "rollout/groups_drawn"), [groups; 2]);
            assert_eq!(
                values(&out, "grpo", "rollout/groups_without_variance"),
                [2.0; 2]
            );
        }
    }
}

/// An alarm that goes off at once, since every group has equal rewards, and ends the run.
const ALARMED: &str = "alarms: (window: 1, variance: 0.5, stop: [variance])";

#[test]
fn an_alarm_stops_with_a_checkpoint_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let text = EQUAL.replace("DYNAMIC", ALARMED);
    let output = folder.path().join("out");
    let mut options = RunOptions {
        output: Some(output.clone()),
        resume_command: "temper recipe short.ron --resume".into(),
        ..RunOptions::default()
    };
    let mut messages = Messages::default();
    let error = pipeline::run_recipe::<Flex>(
        &text,
        folder.path(),
        Default::default(),
        &options,
        &mut messages,
    )
    .unwrap_err();
    assert_eq!(error.exit_code(), 1);
    for part in [
        "stopped by alarm `variance` at update 1: 100 % of the groups have equal rewards",
        "`temper recipe short.ron --resume` goes on all the same",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let says = "grpo, update 1: alarm `variance`: ";
    assert!(
        messages.0.iter().any(|message| message.starts_with(says)),
        "{:?}",
        messages.0
    );
    options.resume = true;
    pipeline::run_recipe::<Flex>(
        &text,
        folder.path(),
        Default::default(),
        &options,
        &mut SilentReporter,
    )
    .unwrap();
    // Once, since it held all the time.
    assert_eq!(values(&output, "grpo", "alarm/variance"), [1.0]);
    assert_eq!(values(&output, "grpo", "objective/scores").len(), 2);
    let report = fs::read_to_string(output.join("grpo/report.html")).unwrap();
    assert!(report.contains("Alarm `variance` went off at step 1"));

    // The same numbers as without a stop.
    let whole = tempfile::tempdir().unwrap();
    let text = text.replace("stop: [variance]", "stop: []");
    let whole = run(&text, whole.path(), &mut SilentReporter);
    let read = |run: &Path| fs::read(run.join("grpo/metrics.jsonl")).unwrap();
    assert_eq!(read(&whole), read(&output));
}

#[test]
fn verifiable_rewards_read_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let schema = folder.path().join("schema.json");
    fs::write(
        &rows,
        "{\"prompt\": \"1 + 1 =\", \"answer\": 2}\n{\"prompt\": \"2 + 3 =\", \"answer\": \"5\"}\n",
    )
    .unwrap();
    fs::write(&schema, r#"{"type": "object"}"#).unwrap();
    let text = format!(
        r#"(name: "verify", model: "tiny", stages: [
            Grpo(name: "grpo", init: Base, data: {rows:?}, peft: Lora(rank: 2), total_episodes: 8, batch_size: 8, num_generations: 4,
                response_length: 4, reward: Sum([(1.0, Number()), (1.0, Groups(regex: "(?P<n>[0-9]+)", columns: {{"n": "answer"}})),
                    (1.0, Schema(file: {schema:?})), (0.5, Program(command: ["cat"]))]))])"#
    );
    let out = run(&text, folder.path(), &mut SilentReporter);
    for (name, means) in [
        ("number(answer)", 0.0..=1.0),
        ("groups(answer)", 0.0..=1.0),
        ("schema(schema.json)", 0.0..=0.0),
        ("program(cat)", 1.0..=1.0),
    ] {
        let found = values(&out, "grpo", &format!("objective/scores/{name}"));
        assert!(
            found.len() == 1 && means.contains(&found[0]),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn verifiable_rewards_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    fs::write(&schema, r#"{"if": {}}"#).unwrap();
    let absent = folder.path().join("none.json");
    for (reward, says) in [
        (
            "Number(tolerance: -1.0)".to_owned(),
            "stages.grpo.reward.tolerance: must be at least 0 and finite, found -1.0",
        ),
        (
            "Number()".to_owned(),
            "a reward source reads the column `answer`",
        ),
        (
            r#"Groups(regex: "(?P<a>x)", columns: {"b": "topic"})"#.to_owned(),
            "the expression has no group named \"b\"",
        ),
        (
            r#"Groups(regex: "x", columns: {})"#.to_owned(),
            "no group is compared with a column",
        ),
        (format!("Schema(file: {absent:?})"), "cannot read"),
        (
            format!("Schema(file: {schema:?})"),
            "#/if: the keyword \"if\" is not supported",
        ),
        (
            r#"Program(command: ["no-such-program"])"#.to_owned(),
            "the program \"no-such-program\" was not found",
        ),
    ] {
        let pattern = r#"Pattern(regex: "no response says this")"#;
        let text = EQUAL.replace("DYNAMIC", "").replace(pattern, &reward);
        let options = RunOptions {
            output: Some(folder.path().join("out")),
            ..RunOptions::default()
        };
        let error = pipeline::run_recipe::<Flex>(
            &text,
            folder.path(),
            Default::default(),
            &options,
            &mut SilentReporter,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(says), "{error}\nexpected {says}");
    }
}
