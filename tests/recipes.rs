//! Broken recipes are refused with messages that name the place and the fix; the shipped ones are sound.

use std::fs;
use std::path::Path;

use tempering::data::DataSource;
use tempering::error::Error;
use tempering::recipe::{Recipe, load, load_with_places, to_ron};
use tempering::train::Stage;

/// A sound pipeline: each test breaks one thing or several.
const SOUND: &str = r#"(
    name: "sound", model: "tiny",
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 100, seed: 1)), batch_size: 8, peft: Lora(rank: 4)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 50, seed: 2)), response_length: 16, reward: Gold),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), batch_size: 8),
        Ppo(
            name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 50, seed: 3)), reward: Learned(stage: "rm"),
            total_episodes: 64, batch_size: 16, num_mini_batches: 2, response_length: 16, kl_coef: 0.05,
        ),
        Compare(name: "compare", policies: [Base, Stage("ppo")], data: (source: Posts(rows: 9, seed: 4)),
            rewards: { "gold": Gold }, response_length: 16),
    ],
)
"#;

fn load_text(text: &str, sets: &[&str]) -> Result<Recipe, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ron");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    load(&path, &sets)
}

/// The problems of a text, each as `line:column: key: message`, with the folder's name cut off.
fn problems(text: &str, sets: &[&str]) -> Vec<String> {
    let error = load_text(text, sets).expect_err("the recipe is broken");
    assert_eq!(error.exit_code(), 2, "{error}");
    let Error::Invalid { path, problems } = error else {
        panic!("{error}")
    };
    let file = format!("{}:", path.display());
    problems
        .iter()
        .map(|problem| problem.to_string().replace(&file, ""))
        .collect()
}

/// The problems of a text, a line each; empty if there are none.
fn found(text: &str) -> String {
    match load_text(text, &[]) {
        Ok(_) => String::new(),
        Err(_) => problems(text, &[]).join("\n"),
    }
}

/// [`SOUND`] with `from` replaced by `to`.
fn broken(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from}");
    SOUND.replacen(from, to, 1)
}

/// Replacing `from` by `to` must give exactly one problem, which contains every one of `parts`.
#[track_caller]
fn one(from: &str, to: &str, parts: &[&str]) {
    let found = problems(&broken(from, to), &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "{part:?} is not in {:?}", found[0]);
    }
}

#[test]
fn the_pattern_is_sound() {
    load_text(SOUND, &[]).unwrap();
}

#[test]
fn unknown_key() {
    one(
        "kl_coef: 0.05",
        "kl_coeff: 0.05",
        &[
            "9:91: stages.ppo.kl_coeff: unknown key `kl_coeff`; known keys: `name`, `init`,",
            "help: did you mean `kl_coef`?",
        ],
    );
}

#[test]
fn unknown_key_in_the_header() {
    one(
        "name: \"sound\",",
        "name: \"sound\", sed: 3,",
        &[
            "2:20: sed: unknown key `sed`; known keys: `name`, `model`, `eos_token`",
            "did you mean `seed`?",
        ],
    );
}

#[test]
fn a_mistyped_required_key_is_one_problem() {
    one(
        "batch_size: 8, peft",
        "batchsize: 8, peft",
        &[
            "stages.sft.batchsize: unknown key",
            "did you mean `batch_size`?",
        ],
    );
}

#[test]
fn a_kl_loss_without_a_gradient() {
    one(
        "kl_coef: 0.05",
        "kl_coef: 0.05, kl_in: Loss",
        &[
            "stages.ppo.kl_estimator: k1 cannot be in the loss: its expected gradient is zero",
            "help: use k2 (whose gradient is that of the KL) or k3, or `kl_in: Reward`",
        ],
    );
    load_text(
        &SOUND.replace(
            "kl_coef: 0.05",
            "kl_coef: 0.05, kl_in: Loss, kl_estimator: k2",
        ),
        &[],
    )
    .unwrap();
}

#[test]
fn full_fine_tuning_of_weights_in_fewer_bits() {
    let text = broken("model: \"tiny\",", "model: \"tiny\", base_precision: int8,");
    let found = problems(&text, &[]);
    // Reward model and PPO of the pattern train whole models, supervised fine-tuning adapters.
    assert_eq!(found.len(), 2, "{found:#?}");
    for (stage, problem) in ["rm", "ppo"].iter().zip(&found) {
        assert!(
            problem.contains(&format!("stages.{stage}.peft")),
            "{problem}"
        );
        assert!(problem.contains("base_precision is int8"), "{problem}");
        assert!(problem.contains("peft: Lora(rank: 16)"), "{problem}");
    }
}

#[test]
fn wrong_type() {
    one(
        "kl_coef: 0.05",
        "kl_coef: \"low\"",
        &["9:91: stages.ppo.kl_coef: expected a number, found `\"low\"`"],
    );
    one(
        "total_episodes: 64",
        "total_episodes: 64.5",
        &["stages.ppo.total_episodes: expected a whole number, found `64.5`"],
    );
    one(
        "seed: 3",
        "seed: -3",
        &["stages.ppo.data.source.seed: expected a whole number of at least 0, found `-3`"],
    );
    one(
        "name: \"sft\"",
        "name: 7",
        &["4:13: stages.0.name: expected a string in double quotes, found `7`"],
    );
}

#[test]
fn missing_required_keys_are_all_named() {
    let text = broken(
        "batch_size: 16, num_mini_batches: 2, response_length: 16,",
        "",
    );
    let found = problems(&text, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(
        found[0],
        "7:9: stages.ppo.batch_size: required key of stages.ppo is missing"
    );
    assert!(found[1].contains("stages.ppo.response_length: required key"));
    one(
        "Posts(rows: 50, seed: 3)",
        "Posts(rows: 50)",
        &["stages.ppo.data.source.seed: required key of stages.ppo.data.source is missing"],
    );
}

#[test]
fn unknown_variants() {
    one(
        "peft: Lora(rank: 4)",
        "peft: Lara(rank: 4)",
        &[
            "stages.sft.peft: unknown variant `Lara`; expected one of `Full`, `Only`, `Lora`, `Ia3`, `Vera`",
            "did you mean `Lora`?",
        ],
    );
    one(
        "Sft(name",
        "Stf(name",
        &[
            "4:9: stages.sft: unknown variant `Stf`; expected one of `Pretrain`, `Sft`",
            "did you mean `Sft`?",
        ],
    );
}

#[test]
fn a_key_given_twice() {
    one(
        "kl_coef: 0.05",
        "kl_coef: 0.05, kl_coef: 0.1",
        &["stages.ppo.kl_coef: the key `kl_coef` is given twice"],
    );
}

#[test]
fn unbalanced_bracket() {
    one(
        "peft: Lora(rank: 4)),",
        "peft: Lora(rank: 4),",
        &["5:13: expected `:` after the key `Rank`"],
    );
    one(
        "    ],\n)\n",
        "",
        &["3:13: this `[` is never closed with `]`"],
    );
    one("model: \"tiny\"", "model: \"tiny", &["expected"]);
}

#[test]
fn missing_stage() {
    one(
        "reward: Learned(stage: \"rm\")",
        "reward: Learned(stage: \"rmm\")",
        &[
            "8:104: stages.ppo.reward.stage: there is no stage `rmm`",
            "did you mean `rm`?",
        ],
    );
    one(
        "policies: [Base, Stage(\"ppo\")]",
        "policies: [Base, Stage(\"dpo2000\")]",
        &[
            "stages.compare.policies.1: there is no stage `dpo2000`",
            "help: earlier stages: `sft`, `rank`, `rm`, `ppo`",
        ],
    );
}

#[test]
fn cycle_and_later_stage() {
    let text = broken(
        "Sft(name: \"sft\",",
        "Sft(name: \"sft\", init: Stage(\"ppo\"),",
    );
    let found = problems(&text, &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("stages.sft.init: cycle: sft -> ppo -> sft"),
        "{}",
        found[0]
    );
    let text = r#"(name: "x", model: "tiny", stages: [
        Rank(name: "a", init: Stage("b"), data: (source: Posts(rows: 5, seed: 2)), response_length: 16, reward: Gold),
        Sft(name: "b", data: (source: Posts(rows: 5, seed: 2)), batch_size: 1),
    ])"#;
    assert_eq!(
        problems(text, &[]),
        [
            "2:25: stages.a.init: stage `b` comes later; a stage can use earlier ones only\n    help: move `b` before `a`"
        ]
    );
}

#[test]
fn a_stage_of_the_wrong_kind() {
    one(
        "Stage(\"ppo\")",
        "Stage(\"rm\")",
        &[
            "stages.compare.policies.1: `rm` is a `RewardModel`; a policy (`Pretrain`, `Sft`, `Dpo`, `Cpo`, `Orpo`, `Kto`, `OnlineDpo`, `Hir`, `Ppo`, `Grpo`, `Rloo`, `ReinforcePlusPlus` or `Distill`) was expected",
            "help: earlier stages that fit: `sft`, `ppo`",
        ],
    );
    one(
        "Ranked(stage: \"rank\")",
        "Ranked(stage: \"sft\")",
        &[
            "stages.rm.data.source.stage: `sft` is a `Sft`; a `Rank`, `Sample`, `Judge` or `Label` stage was expected",
        ],
    );
    one(
        "Ranked(stage: \"rank\")",
        "Posts(rows: 10, seed: 1)",
        &[
            "stages.rm.data.source: the embedded posts",
            "add a `Rank` stage",
        ],
    );
}

/// Rounds that go on from each other, after [`SOUND`]'s first stages.
const ROUNDS: &str = r#"(
    name: "rounds", model: "tiny",
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 100, seed: 1)), batch_size: 8),
        Repeat(name: "online", rounds: 2, start: {"ppo": Stage("sft")}, stages: [
            Sample(name: "samples", init: Last("ppo"), data: (source: Posts(rows: 50, seed: 2), skip: Each([0, 20]), limit: 20),
                response_length: 16, reward: Gold),
            RewardModel(name: "rm", init: Stage("sft"), data: (source: Rounds("samples")), batch_size: 8,
                optim: (lr: Each([1e-4, 5e-5]))),
            Ppo(name: "ppo", init: Last("ppo"), reference: Stage("sft"), data: (source: Posts(rows: 50, seed: 3)),
                reward: Learned(stage: "rm"), total_episodes: 64, batch_size: 16, response_length: 16),
        ]),
        Compare(name: "compare", policies: [Stage("sft"), Last("ppo")], data: (source: Posts(rows: 9, seed: 4)),
            rewards: { "gold": Gold }, response_length: 16),
    ],
)
"#;

#[test]
fn rounds_are_plain_stages() {
    let recipe = load_text(ROUNDS, &[]).unwrap();
    let names: Vec<&str> = recipe.stages.iter().map(|stage| stage.name()).collect();
    assert_eq!(
        names,
        [
            "sft",
            "samples-1",
            "rm-1",
            "ppo-1",
            "samples-2",
            "rm-2",
            "ppo-2",
            "compare"
        ]
    );
    let data = |index: usize| recipe.stages[index].inputs().data[0].config.clone();
    assert_eq!((data(1).skip, data(4).skip), (0, 20));
    let all = DataSource::Stages(vec!["samples-1".into(), "samples-2".into()]);
    assert_eq!(data(5).source, all);
    let written = to_ron(&recipe);
    assert!(written.contains("Stage(\"ppo-2\")") && !written.contains("Repeat"));
    assert_eq!(load_text(&written, &[]).unwrap(), recipe);
    let coefs = |set: &str| -> Vec<f64> {
        let recipe = load_text(ROUNDS, &[set]).unwrap();
        let stages = recipe.stages.iter().filter_map(|stage| match stage {
            Stage::Ppo(ppo) => Some(ppo.kl_coef),
            _ => None,
        });
        stages.collect()
    };
    assert_eq!(coefs("stages.ppo-2.kl_coef=0.1"), [0.05, 0.1]);
    assert_eq!(coefs("stages.ppo.kl_coef=0.1"), [0.1, 0.1]);
    assert_eq!(
        problems(ROUNDS, &["stages.ppo.kl_cof=0.1"]).len(),
        1,
        "said once"
    );
}

#[test]
fn mistakes_in_rounds_are_named_once_where_they_are_written() {
    let broken = |from: &str, to: &str| {
        assert!(ROUNDS.contains(from), "{from}");
        problems(&ROUNDS.replace(from, to), &[])
    };
    assert_eq!(
        broken(", start: {\"ppo\": Stage(\"sft\")}", ""),
        [
            "6:43: stages.samples-1.init: there is no `ppo` of a round before the first one of `online`\n    help: say what it is before the first round: `start: {\"ppo\": Stage(\"..\")}` beside `rounds`",
            "10:36: stages.ppo-1.init: there is no `ppo` of a round before the first one of `online`\n    help: say what it is before the first round: `start: {\"ppo\": Stage(\"..\")}` beside `rounds`",
        ]
    );
    assert_eq!(
        broken("Each([0, 20])", "Each([0])"),
        [
            "6:103: stages.samples-1.data.skip: `Each([..])` has 1 value, and the Repeat `online` has 2 rounds"
        ]
    );
    assert_eq!(
        broken("rounds: 2", "round: 2"),
        [
            "5:9: stages.online: required key `rounds` of the Repeat is missing",
            "5:32: stages.online.round: unknown key `round`; known keys: `name`, `rounds`, `start`, `stages`\n    help: did you mean `rounds`?",
        ]
    );
    // One of two copies is wrong, and both are: each is named once, by the first round that has it.
    assert_eq!(
        broken("Each([1e-4, 5e-5])", "Each([1e-4, -5e-5])"),
        ["9:25: stages.rm-2.optim.lr: must be above 0 and finite, found -5e-5"]
    );
    let found = broken("total_episodes: 64", "total_episodes: 63");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("stages.ppo-1.total_episodes"),
        "{found:#?}"
    );
}

#[test]
fn rows_without_scores_cannot_be_compared_or_selected() {
    let text = ROUNDS.replace("response_length: 16, reward: Gold", "response_length: 16");
    let found = problems(&text, &[]);
    assert_eq!(
        found[0],
        "8:64: stages.rm-1.data.source: the stage `samples-1` has no `reward`: its rows have no scores to select or compare by\n    help: give `samples-1` a `reward`"
    );
    let one = r#"(name: "x", model: "tiny", stages: [
        Sample(name: "s", init: Base, data: (source: Posts(rows: 9, seed: 1)), response_length: 8, num_responses: 1),
        Sft(name: "a", data: (source: Stage("s")), batch_size: 2),
        Sft(name: "b", data: (source: Stage("s"), format: (take: All)), batch_size: 2),
    ])"#;
    assert_eq!(
        problems(one, &[]),
        [
            "3:31: stages.a.data.source: the stage `s` has no `reward`: its rows have no scores to select or compare by\n    help: give `s` a `reward`, or take all: `format: (take: All)`"
        ]
    );
    let wrong = one
        .replace(
            "num_responses: 1",
            "num_responses: 0, tie_margin: 0.1, sampling: (temperature: 0.0)",
        )
        .replace("take: All", "take: TopFraction(0.0)");
    let found = problems(&wrong, &[]);
    assert!(
        found[0].contains("stages.s.num_responses: must be at least 1, found 0"),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|p| p.contains("take: must be above 0 and at most 1, found 0.0")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|p| p.contains("tie_margin: is a difference of scores")),
        "{found:#?}"
    );
}

#[test]
fn the_best_checkpoint_needs_evaluations() {
    let kept = |cadence: &str, more: &str| {
        let text = format!(
            r#"(name: "x", model: "tiny", stages: [
        Sft(name: "a", data: (source: Posts(rows: 9, seed: 1)), batch_size: 2{more}, cadence: ({cadence})),
    ])"#
        );
        match load_text(&text, &[]) {
            Ok(_) => Vec::new(),
            Err(_) => problems(&text, &[]),
        }
    };
    let best = "keep_best: (by: \"eval/loss\", mode: Min)";
    let eval = ", eval_data: (source: Posts(rows: 9, seed: 2))";
    assert_eq!(kept(&format!("eval_steps: 1, {best}"), eval), [""; 0]);
    let found = kept(best, eval);
    assert!(
        found[0].contains("chooses among evaluations, and without `eval_steps`"),
        "{found:#?}"
    );
    let found = kept(&format!("eval_steps: 1, {best}"), "");
    assert!(
        found[0].contains("`eval/loss` is of held-out rows, and the stage has no `eval_data`"),
        "{found:#?}"
    );
    let found = kept(
        "eval_steps: 1",
        ", dropout: 1.0, eval_reward: (reward: Gold, response_length: 600)",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
}

/// A named set, read twice with other parts of its rows, and by best of K.
const NAMED: &str = r#"(
    name: "x", model: "tiny",
    data: {"posts": (source: Posts(rows: 40, seed: 1), format: (append_eos: false), skip: 2, limit: 30)},
    stages: [
        Rank(name: "rank", init: Base, data: (source: Data("posts"), limit: 8), response_length: 8, reward: Gold),
        Sft(name: "best", data: (source: Stage("rank")), eval_data: (source: HeldOut("rank"), format: (take: All)), batch_size: 4),
        Sft(name: "sft", data: (source: Data("posts"), skip: 10), batch_size: 4),
    ],
)"#;

#[test]
fn a_named_set_has_its_source_and_format_in_every_stage() {
    let recipe = load_text(NAMED, &["data.posts.source.rows=50"]).unwrap();
    let sets: Vec<_> = (recipe.stages.iter())
        .map(|stage| stage.inputs().data[0].config.clone())
        .collect();
    let part = |i: usize| (sets[i].skip, sets[i].limit, sets[i].format.append_eos);
    assert_eq!(part(0), (2, Some(8), false));
    assert_eq!(part(2), (10, Some(30), false));
    let of_set = DataSource::Posts { rows: 50, seed: 1 };
    assert_eq!((&sets[0].source, &sets[2].source), (&of_set, &of_set));
    // The written recipe is complete.
    assert_eq!(recipe.data.len(), 0);
}

#[test]
fn names_of_sets_and_what_is_taken_of_rows_are_checked() {
    let text = NAMED
        .replace("Data(\"posts\"), skip", "Data(\"psots\"), skip")
        .replace("(take: All)", "(take: BestAndWorst)")
        .replace("limit: 8)", "limit: 8, format: (take: Best))")
        .replace("data: {", "data: {\"b\": (source: Data(\"posts\")), ");
    assert_eq!(
        problems(&text, &[]),
        [
            "3:12: data.b: no stage reads this set\n    help: use it as `source: Data(\"b\")`, or leave it out",
            "3:18: data.b.source: names the set `posts`; a set of the recipe has a source of its own",
            "5:80: stages.rank.data.format: the format of a named set is given at data.posts.format",
            "6:104: stages.best.eval_data.format.take: must be `Best`, `Above(..)`, `TopFraction(..)` or `All`: responses are trained on, found BestAndWorst",
            "7:33: stages.sft.data.source: the recipe's `data` has no set `psots`\n    help: did you mean `posts`?",
        ]
    );
}

#[test]
fn names() {
    one(
        "Compare(name: \"compare\"",
        "Compare(name: \"rm\"",
        &["11:17: stages.4.name: the name `rm` is already taken by stage 3 (RewardModel)"],
    );
    one(
        "Compare(name: \"compare\"",
        "Compare(name: \"../x\"",
        &["must be letters, digits, `-` and `_`", "found \"../x\""],
    );
    one(
        "Compare(name: \"compare\"",
        "Compare(name: \".hidden\"",
        &["must be letters"],
    );
    one(
        "Compare(name: \"compare\"",
        "Compare(name: \"base\"",
        &["stages.base.name: `base` is reserved"],
    );
}

#[test]
fn no_model_and_no_stages() {
    let found = problems(&broken("model: \"tiny\",", ""), &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[0].contains("stages.sft.init: starts from `Base`, but the recipe names no `model`")
    );
    assert!(found[1].contains("stages.compare.policies.0: starts from `Base`"));
    assert_eq!(
        problems("(name: \"x\", stages: [])", &[]),
        ["1:13: stages: a recipe needs at least one stage"]
    );
    assert_eq!(problems("(name: \"x\")", &[]).len(), 1);
}

#[test]
fn settings_of_a_value_network_that_is_not_there() {
    let found = problems(
        &broken(
            "num_mini_batches: 2,",
            "num_mini_batches: 2, value_trunk: Policy, value_init: Policy, value_optim: (lr: 1e-5),",
        ),
        &[],
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    for (found, key) in found.iter().zip(["value_init", "value_optim"]) {
        let says = format!(
            "stages.ppo.{key}: applies to a separate value network, and with `value_trunk: Policy` there is none"
        );
        assert!(found.contains(&says), "{found}");
        assert!(found.contains(&format!("leave out `{key}`")), "{found}");
    }
}

#[test]
fn batch_sizes_that_do_not_divide() {
    one(
        "num_mini_batches: 2",
        "num_mini_batches: 3",
        &["9:49: stages.ppo.num_mini_batches: must divide batch_size 16, found 3"],
    );
    one(
        "total_episodes: 64",
        "total_episodes: 60",
        &[
            "stages.ppo.total_episodes: must be a multiple of batch_size 16, found 60",
            "help: e.g. 64, which is 4 updates",
        ],
    );
    one(
        "total_episodes: 64",
        "total_episodes: 8",
        &["must be a multiple of batch_size 16, found 8"],
    );
    one(
        "batch_size: 8, peft",
        "batch_size: 0, peft",
        &["stages.sft.batch_size: must be at least 1, found 0"],
    );
    one(
        "batch_size: 8, peft",
        "batch_size: 8, max_length: 4096, peft",
        &["stages.sft.micro_batch_tokens: must be at least max_length 4096, found 2048"],
    );
}

#[test]
fn groups_that_are_not_whole() {
    let grpo = |settings: &str| {
        let text = format!(
            "(name: \"x\", model: \"tiny\", stages: [{settings}, name: \"g\", init: Base, data: (source: Posts(rows: 50, seed: 3)), \
             reward: Gold, response_length: 16)])"
        );
        let found = problems(&text, &[]);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.into_iter().next().unwrap()
    };
    for (settings, says) in [
        (
            "Grpo(total_episodes: 16, batch_size: 8, num_generations: 1",
            "stages.g.num_generations: must be at least 2, found 1: a response is compared with the others to its prompt",
        ),
        (
            "Rloo(total_episodes: 18, batch_size: 9, num_generations: 2",
            "stages.g.batch_size: must be a multiple of num_generations 2, found 9\n    help: e.g. 10: 2 responses to each of 5 prompts",
        ),
        (
            "ReinforcePlusPlus(total_episodes: 16, batch_size: 8, baseline: true",
            "stages.g.num_generations: must be at least 2, found 1",
        ),
        (
            "ReinforcePlusPlus(total_episodes: 16, batch_size: 8, dynamic_sampling: ()",
            "stages.g.dynamic_sampling: has nothing to compare: num_generations is 1",
        ),
        (
            "ReinforcePlusPlus(total_episodes: 16, batch_size: 8, kl_in: Loss, kl_estimator: k1",
            "stages.g.kl_estimator: k1 cannot be in the loss",
        ),
        (
            "Grpo(total_episodes: 16, batch_size: 8, loss_type: cispo",
            "stages.g.epsilon_high: is missing: `loss_type: cispo` cuts the ratio itself there",
        ),
        (
            "Grpo(total_episodes: 16, batch_size: 8, delta: 1.1",
            "stages.g.delta: must be above 1 + epsilon = 1.2, found 1.1",
        ),
        (
            "Grpo(total_episodes: 16, batch_size: 8, overlong: (cache: 17)",
            "stages.g.overlong.cache: must be from 1 to response_length 16, found 17",
        ),
        (
            "Rloo(total_episodes: 16, batch_size: 8, reward_clip_range: (1.0, -1.0)",
            "stages.g.reward_clip_range: must be two finite numbers, the first below the second, found (1.0, -1.0)",
        ),
        (
            "Grpo(total_episodes: 16, batch_size: 8, loss_type: gspo",
            "stages.g.loss_type: unknown variant `gspo`",
        ),
        (
            "Grpo(total_episodes: 16, batch_size: 8, beta: 0.1",
            "stages.g.beta: unknown key `beta`",
        ),
    ] {
        let found = grpo(settings);
        assert!(found.contains(says), "{found}\nexpected {says}");
    }
    let alarms = grpo("Grpo(total_episodes: 16, batch_size: 8, alarms: (kl: None, stop: [kl])");
    let says = "stages.g.alarms.stop: names `kl`, which is turned off";
    assert!(alarms.contains(says), "{alarms}");
}

#[test]
fn alarms_that_cannot_go_off_are_refused() {
    let of = |kind: &str, more: &str| {
        let text = format!(
            r#"(name: "x", model: "tiny", stages: [{kind}(name: "g", init: Base, data: (source: Posts(rows: 9, seed: 1)), reward: Gold,
            total_episodes: 16, batch_size: 8, response_length: 8, {more})])"#
        );
        found(&text)
    };
    let never =
        |kind: &str| format!("stages.g.alarms.stop: names `{kind}`, which can never go off");
    for (kind, more, alarm) in [
        ("Grpo", "alarms: (stop: [kl])", "kl"),
        ("Rloo", "kl_coef: 0.0, alarms: (stop: [kl])", "kl"),
        (
            "ReinforcePlusPlus",
            "kl_coef: 0.0, alarms: (stop: [kl])",
            "kl",
        ),
        (
            "ReinforcePlusPlus",
            "alarms: (stop: [variance])",
            "variance",
        ),
        ("Ppo", "alarms: (stop: [variance])", "variance"),
        ("OnlineDpo", "alarms: (stop: [variance])", "variance"),
        ("Grpo", "alarms: (stop: [gold])", "gold"),
        ("Ppo", "alarms: (stop: [gold])", "gold"),
        ("OnlineDpo", "alarms: (stop: [gold])", "gold"),
    ] {
        let found = of(kind, more);
        assert!(found.contains(&never(alarm)), "{kind} {more}: {found}");
    }
    for (kind, more) in [
        (
            "Grpo",
            "kl_coef: 0.1, alarms: (stop: [kl, variance, entropy, length, repetition])",
        ),
        ("Grpo", "gold: Gold, alarms: (stop: [gold])"),
        (
            "Ppo",
            "eval_data: (source: Posts(rows: 9, seed: 2)), alarms: (stop: [kl, gold])",
        ),
        ("OnlineDpo", "alarms: (stop: [kl], length: 2.0)"),
    ] {
        assert_eq!(of(kind, more), "", "{kind} {more}");
    }
    for key in ["entropy", "repetition", "variance"] {
        let found = of("Grpo", &format!("alarms: ({key}: 1.5)"));
        let says = format!("stages.g.alarms.{key}: must be a share, from 0 to 1, found 1.5");
        assert!(found.contains(&says), "{found}");
    }
}

#[test]
fn held_out_rows_of_a_stage_that_holds_none_out_are_refused() {
    let of = |fraction: f64, source: &str| {
        let text = format!(
            r#"(name: "x", model: "tiny", stages: [
            Rank(name: "r", init: Base, data: (source: Posts(rows: 9, seed: 1)), response_length: 8, reward: Gold, valid_fraction: {fraction:?}),
            Dpo(name: "d", init: Base, data: (source: Stage("r")), eval_data: (source: {source}), batch_size: 2)])"#
        );
        found(&text)
    };
    let says =
        "stages.d.eval_data.source: the stage `r` has `valid_fraction: 0.0`: it holds out no rows";
    for source in [
        r#"HeldOut("r")"#,
        r#"HeldOutStages(["r"])"#,
        r#"Ranked(stage: "r", valid: true)"#,
        r#"Mix([(1.0, (source: HeldOut("r")))])"#,
    ] {
        let found = of(0.0, source);
        assert!(found.contains(says), "{source}: {found}");
        assert!(!of(0.1, source).contains("holds out no rows"), "{source}");
    }
    let revise = r#"(name: "x", model: "tiny", stages: [
        Revise(name: "r", init: Base, data: (source: Posts(rows: 9, seed: 1)), response_length: 8, principles: "p.jsonl"),
        Sft(name: "s", data: (source: HeldOut("r")), batch_size: 2)])"#;
    assert!(
        problems(revise, &[])
            .join("\n")
            .contains("holds out no rows")
    );
}

#[test]
fn values_out_of_range() {
    let cases = [
        (
            "kl_coef: 0.05",
            "kl_coef: -0.1",
            "9:91: stages.ppo.kl_coef: must be at least 0 and finite, found -0.1",
        ),
        (
            "rank: 4",
            "rank: 0",
            "stages.sft.peft.rank: must be at least 1, found 0",
        ),
        (
            "rank: 4",
            "dropout: 1.0",
            "stages.sft.peft.dropout: must be at least 0 and below 1, found 1.0",
        ),
        (
            "rank: 4",
            "alpha: 0.0",
            "stages.sft.peft.alpha: must be above 0 and finite, found 0.0",
        ),
        (
            "rank: 4",
            "target_modules: []",
            "stages.sft.peft.target_modules: names no layer",
        ),
        (
            "rank: 4",
            "target_modules: [\"q(\"]",
            "stages.sft.peft.target_modules.0: \"q(\" is not a regular expression: Opening parenthesis without closing parenthesis",
        ),
        (
            "kl_coef: 0.05",
            "optim: (lr: 0.0)",
            "stages.ppo.optim.lr: must be above 0",
        ),
        (
            "kl_coef: 0.05",
            "optim: (schedule: Cosine(warmup_ratio: 1.5))",
            "stages.ppo.optim.schedule.warmup_ratio: must be between 0 and 1, found 1.5",
        ),
        (
            "kl_coef: 0.05",
            "optim: (beta2: 1.0)",
            "stages.ppo.optim.beta2: must be at least 0 and below 1",
        ),
        (
            "kl_coef: 0.05",
            "optim: (algorithm: Lion(beta2: 1.0))",
            "stages.ppo.optim.algorithm.beta2: must be at least 0 and below 1, found 1.0",
        ),
        (
            "kl_coef: 0.05",
            "optim: (algorithm: Lion(), beta2: 0.95)",
            "stages.ppo.optim.beta2: is AdamW's, and `Lion` has no use for it",
        ),
        (
            "kl_coef: 0.05",
            "optim: (algorithm: Sgd(momentum: 0.0, nesterov: true))",
            "stages.ppo.optim.algorithm.nesterov: has no effect without momentum",
        ),
        (
            "kl_coef: 0.05",
            "optim: (algorithm: Adafactor(decay_rate: 0.8))",
            "stages.ppo.optim.algorithm.decay_rate: must be at least -1 and below 0, found 0.8",
        ),
        (
            "kl_coef: 0.05",
            "optim: (algorithm: AdamW4bit)",
            "stages.ppo.optim.algorithm: unknown variant `AdamW4bit`",
        ),
        (
            "rank: 4)",
            "rank: 4), optim: (algorithm: Muon())",
            "stages.sft.optim.algorithm: `Muon` is for the matrices of a model itself, and `peft` trains adapters",
        ),
        (
            "kl_coef: 0.05",
            "optim: (schedule: Wsd(warmup_steps: 3))",
            "stages.ppo.optim.schedule: never decays: neither `decay_ratio` nor `decay_steps` is above 0",
        ),
        (
            "kl_coef: 0.05",
            "value_optim: (groups: [(pattern: \"score\", lr: -1.0)])",
            "stages.ppo.value_optim.groups.0.lr: must be above 0 and finite, found -1.0",
        ),
        (
            "kl_coef: 0.05",
            "optim: (groups: [(pattern: \"layers.(\", lr: 1e-5)])",
            "stages.ppo.optim.groups.0.pattern: \"layers.(\" is not a regular expression",
        ),
        (
            "kl_coef: 0.05",
            "gamma: 1.1",
            "stages.ppo.gamma: must be between 0 and 1",
        ),
        (
            "kl_coef: 0.05",
            "temperature: 0.0",
            "stages.ppo.temperature: must be above 0",
        ),
        (
            "kl_coef: 0.05",
            "kl_control: Adaptive(target: 0.0, horizon: 1.0)",
            "stages.ppo.kl_control.target: must be above 0",
        ),
        (
            "kl_coef: 0.05",
            "gold: Length(target: 0)",
            "stages.ppo.gold.target: must be at least 1",
        ),
        (
            "kl_coef: 0.05",
            "gold: Sum([(1.0, Gold), (0.5, Learned(stage: \"sft\"))])",
            "stages.ppo.gold.1.1.stage: `sft` is a `Sft`",
        ),
        (
            "kl_coef: 0.05",
            "cadence: (save_steps: 0)",
            "stages.ppo.cadence.save_steps: must be at least 1, or `None`",
        ),
        (
            "reward: Gold)",
            "reward: Gold, sampling: (top_p: 0.0))",
            "stages.rank.sampling.top_p: must be above 0 and at most 1",
        ),
        (
            "reward: Gold)",
            "reward: Gold, num_responses: 1)",
            "stages.rank.num_responses: must be at least 2",
        ),
        (
            "reward: Gold)",
            "reward: Gold, valid_fraction: 1.0)",
            "stages.rank.valid_fraction: must be at least 0 and below 1",
        ),
        (
            "source: Posts(rows: 50, seed: 2)",
            "source: Jsonl(\"p.jsonl\")",
            "stages.rank.reward: `Gold` can score responses to the embedded posts only",
        ),
        (
            "source: Posts(rows: 50, seed: 3)",
            "source: Hub(repo: \"tldr\", file: \"a.jsonl\")",
            "stages.ppo.data.source.repo: must be `owner/name`, found \"tldr\"",
        ),
        (
            "(source: Posts(rows: 50, seed: 3))",
            "(source: Posts(rows: 50, seed: 3), format: (prompt: \"{{ prompt\"))",
            "stages.ppo.data.format.prompt: not a template: syntax error",
        ),
        (
            "policies: [Base, Stage(\"ppo\")]",
            "policies: []",
            "stages.compare.policies: at least one policy is needed",
        ),
    ];
    for (from, to, part) in cases {
        one(from, to, &[part]);
    }
}

#[test]
fn everything_wrong_is_reported_at_once_in_the_order_of_the_file() {
    let text = r#"(
    name: "x", model: "tiny", sed: 1,
    stages: [
        Sft(name: "sft", data: (source: Post(rows: 10, seed: 1)), bath_size: 8, epochs: "two"),
        RewardModel(name: "rm", init: Stage("stf"), data: (source: Jsonl("a.jsonl")), batch_size: 0, epochs: 0),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 5)), reward: Lerned(stage: "rm"), kl_coef: -1.0,
            total_episodes: 10, batch_size: 4, response_length: true),
    ],
)"#;
    let found = problems(text, &["stages.ppo.gamma=2.0", "stages.ppo.gama=2.0"]);
    let heads: Vec<&str> = found.iter().map(|p| p.split(';').next().unwrap()).collect();
    let expected = [
        "2:31: sed: unknown key `sed`",
        "4:33: stages.sft.data.source: unknown variant `Post`",
        "4:67: stages.sft.bath_size: unknown key `bath_size`",
        "4:81: stages.sft.epochs: expected a whole number of at least 0, found `\"two\"`",
        "5:33: stages.rm.init: there is no stage `stf`\n    help: did you mean `sft`?",
        "5:87: stages.rm.batch_size: must be at least 1, found 0",
        "5:102: stages.rm.epochs: must be at least 1, found 0",
        "6:53: stages.ppo.data.source.seed: required key of stages.ppo.data.source is missing",
        "6:78: stages.ppo.reward: unknown variant `Lerned`",
        "6:107: stages.ppo.kl_coef: must be at least 0 and finite, found -1.0",
        "7:13: stages.ppo.total_episodes: must be a multiple of batch_size 4, found 10\n    help: e.g. 12, which is 3 updates",
        "7:48: stages.ppo.response_length: expected a whole number of at least 0, found `true`",
        "--set stages.ppo.gamma=2.0: must be between 0 and 1, found 2.0",
        "--set stages.ppo.gama=2.0: no key `gama` in stages.ppo",
    ];
    assert_eq!(heads, expected, "{found:#?}");
}

#[test]
fn everything_wrong_with_dpo_is_reported_at_once() {
    let text = r#"(
    name: "x", model: "tiny",
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 10, seed: 1)), batch_size: 8),
        Dpo(name: "a", data: (source: Jsonl("a.jsonl")), batch_size: 0, beta: 0.0, label_smoothing: 0.5),
        Dpo(name: "b", init: Stage("stf"), data: (source: Posts(rows: 10, seed: 1)), batch_size: 8, loss_type: ippo),
        Dpo(name: "c", init: Stage("sft"), data: (source: Jsonl("a.jsonl")), batch_size: 8, loss_type: hinge,
            label_smoothing: 0.1, beta: -1.0, peft: Lora(dropout: 0.1)),
        Dpo(name: "d", init: Random("models/tiny/config.json"), data: (source: Jsonl("a.jsonl")), batch_size: 8,
            label_smoothing: -0.1),
        Ppo(name: "ppo", init: Stage("c"), data: (source: Ranked(stage: "sft")), reward: Length(target: 8),
            total_episodes: 4, batch_size: 4, response_length: 8),
    ],
)"#;
    let found = problems(text, &[]);
    let heads: Vec<&str> = found.iter().map(|p| p.split(';').next().unwrap()).collect();
    let expected = [
        "5:9: stages.a.init: required key of stages.a is missing",
        "5:58: stages.a.batch_size: must be at least 1, found 0",
        "5:73: stages.a.beta: must be above 0 and finite, found 0.0",
        "5:84: stages.a.label_smoothing: must be at least 0 and below 0.5: with half of the labels wrong there is nothing to learn, found 0.5",
        "6:24: stages.b.init: there is no stage `stf`\n    help: did you mean `sft`?",
        "6:51: stages.b.data.source: the embedded posts are prompts with completions",
        "6:101: stages.b.loss_type: unknown variant `ippo`",
        "8:13: stages.c.label_smoothing: only the losses `sigmoid`, `exo_pair`, `robust`, `aot`, `aot_unpaired` know wrong labels",
        "8:35: stages.c.beta: must be above 0 and finite, found -1.0",
        "8:58: stages.c.peft.dropout: must be 0: policy and reference would differ before the first step, found 0.1",
        "9:24: stages.d.init: a randomly initialised policy cannot be a reference\n    help: start from an `Sft` stage, e.g. `init: Stage(\"sft\")`",
        "10:13: stages.d.label_smoothing: must be at least 0 and below 0.5: with half of the labels wrong there is nothing to learn, found -0.1",
        "11:51: stages.ppo.data.source: the rows that stages write are scored responses, comparisons or completions, expected `prompt` or `messages`",
    ];
    assert_eq!(heads, expected, "{found:#?}");
}

#[test]
fn everything_wrong_with_the_rarer_keys_is_reported_at_once() {
    let text = r#"(
    name: "x", model: "tiny",
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 10, seed: 1), format: (shorten: "")), batch_size: 8),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 10, seed: 1)), response_length: 8,
            reward: Gold, truncate: (token: "", after: 8)),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), batch_size: 8,
            loss_type: best_of_k, use_margin: true, standardize: true, accuracy_by: ["batch"]),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 10, seed: 1)), reward: Length(target: 8),
            total_episodes: 4, batch_size: 4, response_length: 8, ema_decay: 1.0,
            ptx: (data: (source: Ranked(stage: "rank")), coef: -1.0, batch_size: 0, max_length: 4096)),
    ],
)"#;
    let found = problems(text, &[]);
    let heads: Vec<&str> = found.iter().map(|p| p.split(';').next().unwrap()).collect();
    let expected = [
        "4:76: stages.sft.data.format.shorten: must be the name of a column, found \"\"",
        "6:38: stages.rank.truncate.token: must be the text of one token, found \"\"",
        "6:49: stages.rank.truncate.after: must be below response_length 8 to have an effect, found 8",
        "8:35: stages.rm.use_margin: only the loss `bradley_terry` knows margins",
        "8:53: stages.rm.standardize: needs `center_on`: the responses whose scores are to have variance 1",
        "8:72: stages.rm.accuracy_by: needs `eval_data`: accuracy is reported by group on held-out comparisons",
        "9:9: stages.ppo.micro_batch_tokens: must be at least ptx.max_length 4096, found 2048",
        "10:67: stages.ppo.ema_decay: must be at least 0 and below 1, found 1.0",
        "11:26: stages.ppo.ptx.data.source: the rows that stages write are scored responses, comparisons or completions, expected `text` or `messages`",
        "11:58: stages.ppo.ptx.coef: must be at least 0 and finite, found -1.0",
        "11:70: stages.ppo.ptx.batch_size: must be at least 1, found 0",
    ];
    assert_eq!(heads, expected, "{found:#?}");
}

#[test]
fn sets_reach_every_key_of_the_resolved_recipe() {
    let recipe = load_text(
        SOUND,
        &[
            "seed=3",
            "model=smollm2-135m",
            "stages.ppo.kl_coef=0.1",
            "stages.sft.optim.lr=1e-5",
            "stages.sft.optim.schedule=Cosine(warmup_ratio: 0.1)",
            "stages.sft.peft.rank=64",
            "stages.sft.optim.max_grad_norm=None",
            "stages.rank.data.limit=7",
            "stages.compare.rewards.gold=Length(target: 8)",
        ],
    )
    .unwrap();
    let expected = SOUND
        .replace("model: \"tiny\"", "model: \"smollm2-135m\", seed: 3")
        .replace("kl_coef: 0.05", "kl_coef: 0.1")
        .replace(
            "batch_size: 8, peft: Lora(rank: 4)",
            "batch_size: 8, peft: Lora(rank: 64), optim: (lr: 1e-5, schedule: Cosine(warmup_ratio: 0.1), max_grad_norm: None)",
        )
        .replace("(source: Posts(rows: 50, seed: 2))", "(source: Posts(rows: 50, seed: 2), limit: 7)")
        .replace("\"gold\": Gold", "\"gold\": Length(target: 8)");
    assert_eq!(recipe, load_text(&expected, &[]).unwrap());
}

#[test]
fn bad_sets() {
    let cases = [
        (
            "stages.pppo.kl_coef=1.0",
            "no stage `pppo` in stages; it has `sft`, `rank`, `rm`, `ppo`, `compare`\n    help: did you mean `ppo`?",
        ),
        ("stages.ppo.kl_ceof=1.0", "did you mean `kl_coef`?"),
        ("ppo.kl_coef=1.0", "did you mean `stages.ppo.kl_coef`?"),
        (
            "stages.ppo.kl_coef.x=1.0",
            "stages.ppo.kl_coef is `0.05` and has no keys",
        ),
        ("stages.ppo.kl_coef=low", "expected a number, found `low`"),
        (
            "stages.ppo.kl_coef=0.1, gamma: 0.5",
            "the value is not RON: expected the end of the text, found `,`",
        ),
        (
            "stages.ppo.kl_control=Adaptiv(target: 1.0, horizon: 2.0)",
            "did you mean `Adaptive`?",
        ),
        (
            "stages.ppo.num_mini_batches=3",
            "must divide batch_size 16, found 3",
        ),
        ("seed", "expected `path=value`"),
    ];
    for (set, part) in cases {
        let found = problems(SOUND, &[set]);
        assert_eq!(found.len(), 1, "{set}: {found:#?}");
        assert!(
            found[0].starts_with(&format!("--set {set}: ")),
            "{}",
            found[0]
        );
        assert!(found[0].contains(part), "{part:?} is not in {:?}", found[0]);
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    let error = load(Path::new("no/such/recipe.ron"), &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read no/such/recipe.ron"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.ron");
    fs::write(&path, b"(\n name: \"\xff\")").unwrap();
    let error = load(&path, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("r.ron:2: byte 10 of the file is not UTF-8"),
        "{error}"
    );
    assert_eq!(
        problems("", &[]),
        ["1:1: expected a value, found the end of the text"]
    );
}

#[test]
fn a_resolved_recipe_can_be_read_again() {
    // Written out, it holds every default, also those that mean nothing for the reward at hand.
    let text = broken("reward: Learned(stage: \"rm\")", "reward: Gold");
    let recipe = load_text(&text, &[]).unwrap();
    assert_eq!(load_text(&to_ron(&recipe), &[]).unwrap(), recipe);
}

#[test]
fn shipped_recipes_are_sound_and_survive_being_written_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ron") {
            continue;
        }
        let loaded = load_with_places(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            load_text(&to_ron(&loaded.recipe), &[]).unwrap(),
            loaded.recipe
        );
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(loaded.recipe.name, stem);
        let text = fs::read_to_string(&path).unwrap();
        for line in ["// Shows:", "// Paper:", "// Command:", "// Expected:"] {
            assert!(text.contains(line), "{stem} lacks {line}");
        }
        names.push(stem);
    }
    names.sort();
    for name in [
        "adapters",
        "quickstart",
        "quickstart-dpo",
        "reviews",
        "smollm2",
        "tiny-pretrain",
        "tldr",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is missing");
    }
}
