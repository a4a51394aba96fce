//! Modules that are trained whole beside adapters: the reference keeps the base's, results hold them, runs go on with them.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::model::weights::{self, write_safetensors};
use tempering::model::{
    LanguageModel, ModelSource, attach_adapters, load_adapter, prepare_adapters, save_adapter,
};
use tempering::ops::Numerics;
use tempering::params::Parameters;
use tempering::peft::{AdapterSpec, BottleneckConfig, Ia3Config, Peft, VeraConfig, no_text};
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;
use tempering::rng::Seed;

use super::resume::run_until;
use crate::support::peft::llama;
use crate::support::pipeline::{run_recipe, values};
use crate::support::reference::{self, Case, distance, load, logprobs, read, tensors, wide};

const RECIPE: &str = r#"(
    name: "saved", model: "tiny", seed: 3,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 24, seed: 2)), optim: (lr: 1e-3), batch_size: 8, max_length: 128,
            peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true),
            cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 4)), num_responses: 3,
            response_length: 16, reward: Gold, generation_batch_size: 16),
        RewardModel(name: "rm", init: Base, data: (source: Ranked(stage: "rank")), optim: (lr: 1e-2),
            peft: Ia3(modules_to_save: ["norm", "embed_tokens"]), batch_size: 4, max_length: 128, cadence: (save_steps: 1)),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), optim: (lr: 1e-3), batch_size: 4,
            peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true),
            max_length: 128, cadence: (save_steps: 1)),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 32, seed: 6)), reward: Learned(stage: "rm"),
            peft: Vera(rank: 8, modules_to_save: ["model.norm"]), value_peft: Bottleneck(size: 4, modules_to_save: ["norm"]),
            optim: (lr: 1e-3), total_episodes: 32, batch_size: 16, num_mini_batches: 2, num_ppo_epochs: 2, response_length: 16,
            max_prompt_length: 96, cadence: (save_steps: 1)),
    ],
)
"#;

const TRAINED: [&str; 4] = ["sft", "rm", "dpo", "ppo"];

#[test]
fn modules_are_trained_in_every_stage_and_resume_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run_until(RECIPE, folder.path(), &whole, None);
    for stage in TRAINED {
        let stop = Some((stage, if stage == "sft" { 2 } else { 1 }));
        assert!(run_until(RECIPE, folder.path(), &parts, stop), "{stage}");
    }
    run_until(RECIPE, folder.path(), &parts, None);
    for stage in TRAINED {
        for file in ["metrics.jsonl", "adapter/adapter_model.safetensors"] {
            let read = |run: &Path| fs::read(run.join(stage).join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{stage}/{file}");
        }
    }
    // The policy starts as its reference, which keeps the modules that it began with.
    let first = |stage: &str, name: &str| values(&whole, stage, name)[0];
    let loss = first("dpo", "loss");
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
    let kl = values(&whole, "ppo", "objective/kl");
    assert!(kl[0].abs() < 1e-3 && kl[1].abs() > 1e-5, "{kl:?}");

    // What is stored is the whole module, and not that of the stage before.
    let source = |stage: &str| {
        let file = whole.join(stage).join("adapter/adapter_model.safetensors");
        weights::open(file).unwrap()
    };
    let embedding = "base_model.model.model.embed_tokens.weight";
    let [sft, dpo] = ["sft", "dpo"].map(|stage| source(stage).read(embedding).unwrap());
    assert!(sft != dpo);
    let head = source("sft")
        .read("base_model.model.lm_head.weight")
        .unwrap();
    assert!(sft == head, "one parameter");
    assert!(
        source("rm")
            .shape("base_model.model.lm_head.weight")
            .is_none()
    );

    // Merged into a whole model, the modules are those of the file.
    let merged = export_merged(folder.path(), "whole", "sft");
    let model = weights::open(&merged).unwrap();
    assert!(model.read("model.embed_tokens.weight").unwrap() == sft);
    goes_on_apart(&whole.join("sft/adapter"), folder.path());
}

/// Merges the adapter of a stage of a run in `folder` into a whole model there.
fn export_merged(folder: &Path, run: &str, stage: &str) -> std::path::PathBuf {
    let output = Command::new(env!("CARGO_BIN_EXE_temper"))
        .args([
            "export", "--run", run, "--stage", stage, "--merge", "--to", "merged",
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    folder.join("merged")
}

/// A copy of an adapter's folder with other tensors and another configuration.
fn changed(
    from: &Path,
    to: &Path,
    change: impl Fn(&str, &mut [f32]),
    configure: impl Fn(&mut Value),
) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    let file = to.join("adapter_config.json");
    let mut config = read(&file);
    configure(&mut config);
    fs::write(file, config.to_string()).unwrap();
    let file = to.join("adapter_model.safetensors");
    let mut stored = tensors(&file);
    for (name, _, values) in &mut stored {
        change(name, values);
    }
    write_safetensors(file, &stored).unwrap();
}

/// Two copies of what is embedding and head at once, as PEFT trains them without `ensure_weight_tying`, are two tables: a stage trains
/// them on, with a token added to both.
fn goes_on_apart(adapter: &Path, folder: &Path) {
    let apart = folder.join("apart");
    let other_head = |name: &str, values: &mut [f32]| {
        if name.contains("lm_head") {
            values.iter_mut().for_each(|x| *x += 0.01);
        }
    };
    changed(adapter, &apart, other_head, |config| {
        config["ensure_weight_tying"] = json!(false);
        config["modules_to_save"] = json!(["embed_tokens", "lm_head", "norm"]);
    });
    let found = ModelSource::at(&apart, None).unwrap();
    assert!(!found.config.tie_word_embeddings());
    let notes = found.notes.concat();
    assert!(
        notes.contains("model.embed_tokens.weight and lm_head.weight are one in this model, but not with the adapter"),
        "{notes}"
    );
    let recipe = format!(
        r#"(name: "next", model: "tiny", seed: 3, add_tokens: ["<|new|>"], stages: [
            Sft(name: "sft", init: Folder("{}"), data: (source: Posts(rows: 8, seed: 2)), optim: (lr: 1e-3), batch_size: 8,
                max_length: 128, peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["embed_tokens", "lm_head", "norm"]))])"#,
        apart.display()
    );
    let run = folder.join("next");
    run_until(&recipe, folder, &run, None);
    assert!(!run.join("sft/base").exists(), "trained on, not merged");
    let next = ModelSource::of_stage(&run.join("sft"), None)
        .unwrap()
        .unwrap();
    next.check().unwrap();
    assert!(!next.config.tie_word_embeddings());
    let rows = found.config.vocab_size();
    assert_eq!(next.config.vocab_size(), rows + 1);
    let table = |name: &str| {
        let stored = weights::open(run.join("sft/adapter/adapter_model.safetensors")).unwrap();
        stored
            .read(&format!("base_model.model.{name}.weight"))
            .unwrap()
    };
    let (embedding, head) = (table("model.embed_tokens"), table("lm_head"));
    assert_eq!(embedding.len(), (rows + 1) * found.config.hidden_size());
    assert!(embedding.len() == head.len() && embedding != head);
}

/// A method whose files cannot say that a head is the embedding names both modules and stores the table twice, so that PEFT computes
/// the same; read again it is one.
#[test]
fn a_table_that_is_one_stays_one_in_files_of_every_method() {
    let modules_to_save = vec!["embed_tokens".to_owned(), "model.norm".to_owned()];
    let (base, device) = (reference::folder("peft_base/llama"), Default::default());
    let vera = VeraConfig {
        rank: 4,
        modules_to_save: modules_to_save.clone(),
        ensure_weight_tying: true,
        ..VeraConfig::default()
    };
    let ia3 = Ia3Config {
        modules_to_save: modules_to_save.clone(),
        ensure_weight_tying: true,
        ..Ia3Config::default()
    };
    let bottleneck = BottleneckConfig {
        size: Some(3),
        modules_to_save: modules_to_save.clone(),
        ensure_weight_tying: true,
        ..BottleneckConfig::default()
    };
    let twice = json!(["embed_tokens", "model.norm", "lm_head"]);
    for (spec, file, modules) in [
        (AdapterSpec::from(&vera), "adapter_model", twice.clone()),
        (AdapterSpec::from(&ia3), "adapter_model", twice),
        (
            AdapterSpec::from(&bottleneck),
            "adapter",
            json!(modules_to_save),
        ),
    ] {
        let method = spec.peft_type();
        let (config, mut model) = llama::<Flex>();
        attach_adapters(&mut model, &config, &spec, Seed::new(1)).unwrap();
        model.for_each_parameter(&mut |meta, mut slot| {
            if ["model.embed_tokens.weight", "model.norm.weight"].contains(&meta.key()) {
                let values = slot.values().iter().map(|x| 1.5 * x).collect();
                let shape = slot.shape();
                slot.assign(values, &shape, &device);
            }
        });
        let rows = [vec![5, 17, 40, 3], vec![12, 7]];
        let expected = wide(&logprobs(&model, &rows, &device));
        let folder = tempfile::tempdir().unwrap();
        save_adapter(
            &mut model,
            &config,
            &spec,
            base.to_str().unwrap(),
            folder.path(),
        )
        .unwrap();

        let written = read(&folder.path().join("adapter_config.json"));
        assert_eq!(written["modules_to_save"], modules, "{method}");
        let says = written.get("ensure_weight_tying");
        assert_eq!(
            says,
            (file == "adapter").then_some(&json!(true)),
            "{method}"
        );
        let stored = tensors(&folder.path().join(format!("{file}.safetensors")));
        let table = |name: &str| stored.iter().find(|(key, ..)| key.ends_with(name)).unwrap();
        let (embedding, head) = (table("embed_tokens.weight"), table("lm_head.weight"));
        assert!(embedding.2 == head.2, "{method}");

        let found = ModelSource::at(folder.path(), None).unwrap();
        assert!(
            found.config.tie_word_embeddings() && found.notes.is_empty(),
            "{method}"
        );
        let mut again: LanguageModel<Flex> = found.load_base(Numerics::default(), &device).unwrap();
        let plain = logprobs(&again, &rows, &device);
        assert!(distance(&plain, &expected) > 1e-2, "{method}");
        let loaded = found
            .attach_outermost(&mut again, &device)
            .unwrap()
            .unwrap();
        let off = distance(&logprobs(&again, &rows, &device), &expected);
        assert!(off < 1e-6, "{method}: {off}");
        // A stage with the same settings trains it on.
        let (present, peft) = (&loaded.config.spec, Peft::from(spec));
        let seed = Seed::new(2);
        let prepared =
            prepare_adapters(&mut again, &config, Some(present), &peft, seed, &no_text).unwrap();
        assert!(!prepared.merged, "{method}");
    }
}

/// Adapters on a table that is embedding and head at once, and modules that part it, merged into files: read again they compute what
/// PEFT computes with the adapter.
#[test]
fn tables_that_part_are_merged_into_two() {
    for name in [
        "embedding",
        "head",
        "tied_tables",
        "saved_head",
        "vera_saved",
        "ia3_saved",
    ] {
        let case = Case::at(reference::folder("peft").join(name));
        let base = reference::folder("peft_base").join(case.reference["base"].as_str().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let adapter = folder.path().join("run/stage/adapter");
        changed(
            &case.path,
            &adapter,
            |_, _| {},
            |config| {
                config["base_model_name_or_path"] = json!(base);
            },
        );
        let merged = export_merged(folder.path(), "run", "stage");
        assert_eq!(
            read(&merged.join("config.json"))["tie_word_embeddings"],
            false,
            "{name}"
        );
        let (_, model) = load::<Flex>(&merged, &Default::default());
        let found = logprobs(&model, &case.rows(), &Default::default());
        let off = distance(&found, &case.numbers("with_adapter"));
        assert!(off < 1e-5, "{name}: {off}");
    }
}

/// A caller that loads the files of such an adapter into a model with one table is told so.
#[test]
fn one_table_does_not_take_two() {
    let (config, mut model) = llama::<Flex>();
    let folder = reference::folder("peft/saved_head");
    let error = load_adapter(&mut model, &config, &folder, &Default::default()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("model.embed_tokens.weight and lm_head.weight are one in this model, and the file holds one of them"),
        "{error}"
    );
}

/// A reduced base: what is trained of it is in f32.
#[test]
fn modules_of_a_reduced_base_are_trained_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // With the settings of the stage before, PPO goes on with its adapters instead of merging them.
    let same = r#"modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true"#;
    let recipe = RECIPE
        .replace("seed: 3,", "seed: 3, base_precision: int8,")
        .replace(
            r#"Vera(rank: 8, modules_to_save: ["model.norm"])"#,
            &format!("Lora(rank: 2, alpha: 2.0, {same})"),
        );
    run_until(&recipe, folder.path(), &run, None);
    let loss = values(&run, "dpo", "loss")[0];
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
    let kl = values(&run, "ppo", "objective/kl");
    assert!(kl[0].abs() < 1e-3, "{kl:?}");
}

#[test]
fn what_cannot_be_trained_whole_is_refused_before_a_weight_is_loaded() {
    let sft = r#"Sft(name: "a", data: (source: Posts(rows: 16, seed: 1))"#;
    let rm = r#"RewardModel(name: "a", init: Base, data: (source: Jsonl("tests/reference/trajectories/preferences.jsonl"))"#;
    for (stage, modules, expected) in [
        (
            sft,
            r#"["embed_tokens", "lm_head"]"#,
            "modules_to_save: lm_head is tied to model.embed_tokens in this model, the two are one parameter; \
             with `ensure_weight_tying: true` and \"embed_tokens\" among modules_to_save",
        ),
        (
            sft,
            r#"["final_norm", "wte"]"#,
            "modules_to_save: \"final_norm\" is the end of no module's path; this model has model.embed_tokens, \
             model.layers.N.input_layernorm, model.layers.N.post_attention_layernorm, model.norm, lm_head; \
             modules_to_save: \"wte\"",
        ),
        (
            sft,
            r#"["mlp"]"#,
            "\"mlp\" trains model.layers.0.mlp.gate_proj whole, which has an adapter by target_modules",
        ),
        (
            sft,
            r#"["mlp"], target_modules: ["q_proj"]"#,
            "\"mlp\" names the linear layer model.layers.0.mlp.gate_proj",
        ),
        (
            sft,
            r#"[], ensure_weight_tying: true, target_modules: ["embed_tokens", "q_proj"]"#,
            "ensure_weight_tying: an adapter on model.embed_tokens or lm_head",
        ),
        (sft, r#"["norm", ""]"#, "modules_to_save.1: is empty"),
        (
            rm,
            r#"["lm_head"]"#,
            "reward and value models have no output head",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            r#"(name: "saved", model: "tiny", stages: [
                {stage}, peft: Lora(modules_to_save: {modules}), batch_size: 8, max_length: 96)])"#
        );
        let output = folder.path().join("run");
        let options = RunOptions {
            output: Some(output.clone()),
            ..RunOptions::default()
        };
        let (device, reporter) = (Default::default(), &mut SilentReporter);
        let error = run_recipe::<Flex>(&text, folder.path(), device, &options, reporter);
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!output.exists());
        let message = error.to_string();
        assert!(message.contains(expected), "{message}");
    }
}
