//! Names that users of other tools type, and what they are called here.

/// A name of TRL, PEFT, transformers or axolotl.
struct Elsewhere {
    /// As it is typed there.
    names: &'static [&'static str],
    /// The key here that the advice is about; it is given where this key may stand.
    key: &'static str,
    advice: &'static str,
}

const KEYS: &[Elsewhere] = &[
    Elsewhere {
        names: &[
            "model_name_or_path",
            "base_model",
            "model_name",
            "model_id",
            "pretrained_model",
        ],
        key: "model",
        advice: "the base model is `model: \"..\"`",
    },
    Elsewhere {
        names: &["learning_rate"],
        key: "lr",
        advice: "it is called `lr` here",
    },
    Elsewhere {
        names: &["learning_rate", "lr"],
        key: "optim",
        advice: "it belongs to the optimiser: `optim: (lr: 2e-4)`",
    },
    Elsewhere {
        names: &[
            "lr_scheduler_type",
            "lr_scheduler",
            "warmup_steps",
            "warmup_ratio",
        ],
        key: "schedule",
        advice: "it is a part of the schedule: `schedule: Cosine(warmup_ratio: 0.03)`",
    },
    Elsewhere {
        names: &[
            "lr_scheduler_type",
            "lr_scheduler",
            "warmup_steps",
            "warmup_ratio",
        ],
        key: "optim",
        advice: "it is a part of the schedule: `optim: (lr: .., schedule: Cosine(warmup_ratio: 0.03))`",
    },
    Elsewhere {
        names: &[
            "weight_decay",
            "max_grad_norm",
            "gradient_clipping",
            "optimizer",
            "betas",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
        ],
        key: "optim",
        advice: "it belongs to the optimiser: `optim: (lr: .., weight_decay: 0.01, max_grad_norm: 1.0, algorithm: AdamW)`",
    },
    Elsewhere {
        names: &["lora_r", "r", "lora_rank"],
        key: "rank",
        advice: "it is called `rank` here",
    },
    Elsewhere {
        names: &["lora_alpha"],
        key: "alpha",
        advice: "it is called `alpha` here",
    },
    Elsewhere {
        names: &["lora_dropout"],
        key: "dropout",
        advice: "it is called `dropout` here",
    },
    Elsewhere {
        names: &[
            "lora_r",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "target_modules",
            "lora_target_linear",
            "use_peft",
            "peft_config",
            "adapter",
            "lora",
        ],
        key: "peft",
        advice: "adapters are `peft: Lora(rank: 16, alpha: 32.0, target_modules: [\"all-linear\"])`",
    },
    Elsewhere {
        names: &[
            "load_in_4bit",
            "load_in_8bit",
            "quantization_config",
            "bnb_4bit_quant_type",
        ],
        key: "base_precision",
        advice: "a base in fewer bits is `base_precision: nf4`, or int8 or bf16",
    },
    Elsewhere {
        names: &[
            "load_in_4bit",
            "load_in_8bit",
            "quantization_config",
            "bf16",
            "fp16",
        ],
        key: "peft",
        advice: "precision is set for the whole recipe, beside `model`: `base_precision: nf4`, `matmul_precision: bf16`",
    },
    Elsewhere {
        names: &["bf16", "fp16", "torch_dtype", "dtype"],
        key: "matmul_precision",
        advice: "products in fewer bits are `matmul_precision: bf16`, a base in fewer bits is `base_precision: bf16`",
    },
    Elsewhere {
        names: &["num_train_epochs", "num_epochs"],
        key: "epochs",
        advice: "it is called `epochs` here",
    },
    Elsewhere {
        names: &[
            "per_device_train_batch_size",
            "train_batch_size",
            "batch",
            "micro_batch_size",
        ],
        key: "batch_size",
        advice: "`batch_size` is that of an optimiser step; `micro_batch_tokens` bounds what passes through the model at once",
    },
    Elsewhere {
        names: &["gradient_accumulation_steps", "per_device_eval_batch_size"],
        key: "micro_batch_tokens",
        advice: "leave it out: `batch_size` rows make a step, and it is split by itself into passes of `micro_batch_tokens` tokens",
    },
    Elsewhere {
        names: &[
            "max_seq_length",
            "max_seq_len",
            "sequence_len",
            "cutoff_len",
            "model_max_length",
            "max_tokens",
        ],
        key: "max_length",
        advice: "it is called `max_length` here",
    },
    Elsewhere {
        names: &[
            "packing",
            "sample_packing",
            "padding_free",
            "group_by_length",
            "pad_to_sequence_len",
        ],
        key: "micro_batch_tokens",
        advice: "leave it out: rows are always packed without padding, and do not see each other",
    },
    Elsewhere {
        names: &[
            "max_new_tokens",
            "max_completion_length",
            "generation_max_length",
        ],
        key: "response_length",
        advice: "it is called `response_length` here",
    },
    Elsewhere {
        names: &[
            "keep_best",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
        ],
        key: "cadence",
        advice: "it belongs to `cadence: (eval_steps: 50, keep_best: (by: \"eval/loss\", mode: Min))`",
    },
    Elsewhere {
        names: &[
            "resid_pdrop",
            "resid_dropout",
            "residual_dropout",
            "hidden_dropout",
        ],
        key: "dropout",
        advice: "it is called `dropout` here",
    },
    Elsewhere {
        names: &["ref_model", "ref_policy", "ref_init"],
        key: "reference",
        advice: "it is called `reference` here",
    },
    Elsewhere {
        names: &["top_k", "top_p", "min_p", "temperature"],
        key: "sampling",
        advice: "it belongs to `sampling: (temperature: 1.0, top_p: 1.0)`",
    },
    Elsewhere {
        names: &[
            "datasets",
            "dataset",
            "train_dataset",
            "dataset_name",
            "train_file",
            "data_path",
            "data_files",
        ],
        key: "data",
        advice: "rows come from `data: (source: ..)`; docs/recipes.md lists the sources",
    },
    Elsewhere {
        names: &[
            "eval_dataset",
            "test_datasets",
            "validation_file",
            "val_set_size",
        ],
        key: "eval_data",
        advice: "held-out rows are `eval_data: (source: ..)`",
    },
    Elsewhere {
        names: &[
            "dataset_text_field",
            "chat_template",
            "formatting_func",
            "field_messages",
            "prompt_template",
        ],
        key: "format",
        advice: "columns and templates belong to `format: (prompt: \"{{ .. }}\", completion: \"{{ .. }}\")`",
    },
    Elsewhere {
        names: &[
            "dataset_text_field",
            "formatting_func",
            "field_messages",
            "prompt_template",
        ],
        key: "data",
        advice: "columns and templates belong to the data: `data: (source: .., format: (prompt: \"{{ .. }}\"))`",
    },
    Elsewhere {
        names: &[
            "save_steps",
            "eval_steps",
            "save_total_limit",
            "save_strategy",
            "eval_strategy",
            "evaluation_strategy",
            "logging_steps",
        ],
        key: "cadence",
        advice: "evaluations and checkpoints are `cadence: (eval_steps: 50, save_steps: 50)`; every step is logged",
    },
    Elsewhere {
        names: &["output_dir", "run_name", "run_dir"],
        key: "output",
        advice: "the run folder is `output: \"..\"`",
    },
    Elsewhere {
        names: &["init_kl_coef", "kl_beta", "beta"],
        key: "kl_coef",
        advice: "it is called `kl_coef` here",
    },
    Elsewhere {
        names: &["reward_model", "reward_model_path", "reward_funcs"],
        key: "reward",
        advice: "scores come from `reward: Learned(stage: \"..\")`, `Classifier(model: \"..\", label: \"..\")` or another source",
    },
    Elsewhere {
        names: &["ppo_epochs", "num_ppo_epochs", "mu"],
        key: "num_iterations",
        advice: "it is called `num_iterations` here",
    },
    Elsewhere {
        names: &[
            "rloo_k",
            "group_size",
            "num_responses",
            "num_return_sequences",
        ],
        key: "num_generations",
        advice: "it is called `num_generations` here",
    },
    Elsewhere {
        names: &["reward_weights"],
        key: "reward",
        advice: "several sources with weights are `reward: Sum([(1.0, ..), (0.5, ..)])`",
    },
    Elsewhere {
        names: &["steps_per_generation"],
        key: "num_mini_batches",
        advice: "`num_mini_batches` optimiser steps make a pass over the responses of an update",
    },
    Elsewhere {
        names: &["ppo_epochs"],
        key: "num_ppo_epochs",
        advice: "it is called `num_ppo_epochs` here",
    },
    Elsewhere {
        names: &["device", "device_map", "backend", "use_cpu"],
        key: "stages",
        advice: "the device is chosen on the command line: `--backend cuda --device 0`",
    },
];

/// Methods of other tools, and the nearest thing here.
const VARIANTS: &[Elsewhere] = &[
    Elsewhere {
        names: &[
            "SFTTrainer",
            "Finetune",
            "FineTune",
            "SupervisedFineTuning",
            "Train",
        ],
        key: "Sft",
        advice: "supervised fine-tuning is a stage `Sft(..)`",
    },
    Elsewhere {
        names: &["Reward", "RM", "RewardTrainer"],
        key: "RewardModel",
        advice: "a reward model is trained by a stage `RewardModel(..)`",
    },
    Elsewhere {
        names: &["Simpo", "SimPOTrainer", "AlphaPO"],
        key: "Cpo",
        advice: "SimPO is `Cpo(loss_type: simpo, cpo_alpha: 0.0, ..)`, as in TRL; AlphaPO the same with `alpha`",
    },
    Elsewhere {
        names: &["BestOfN", "RejectionSampling", "Raft", "Generate"],
        key: "Sample",
        advice: "`Sample(..)` generates and scores responses, and `Sft(..)` with `format: (take: Best)` trains on the best ones",
    },
    Elsewhere {
        names: &["CPOTrainer"],
        key: "Cpo",
        advice: "contrastive preference optimisation is a stage `Cpo(..)`",
    },
    Elsewhere {
        names: &["ORPOTrainer"],
        key: "Orpo",
        advice: "odds ratio preference optimisation is a stage `Orpo(..)`",
    },
    Elsewhere {
        names: &[
            "Bco",
            "IPO",
            "Ipo",
            "Apo",
            "Nca",
            "Exo",
            "Sppo",
            "Aot",
            "Discopop",
            "DPOTrainer",
        ],
        key: "Dpo",
        advice: "it is a loss of `Dpo(..)`: `loss_type: ipo`, bco_pair, apo_zero, nca_pair, exo_pair, sppo_hard, aot, discopop and others",
    },
    Elsewhere {
        names: &["OnlineDPOTrainer", "Oaif", "XpoTrainer", "NashMD"],
        key: "OnlineDpo",
        advice: "preferences between the policy's own responses are learnt by a stage `OnlineDpo(..)`",
    },
    Elsewhere {
        names: &["KTOTrainer"],
        key: "Kto",
        advice: "Kahneman-Tversky optimisation is a stage `Kto(..)`",
    },
    Elsewhere {
        names: &["GRPOTrainer", "Dapo", "DrGrpo", "Gspo", "Cispo", "Bnpo"],
        key: "Grpo",
        advice: "it is a stage `Grpo(..)`: `loss_type` is dapo, grpo, dr_grpo, bnpo or cispo, and GSPO is `importance_sampling_level: sequence`",
    },
    Elsewhere {
        names: &["RLOOTrainer"],
        key: "Rloo",
        advice: "it is a stage `Rloo(..)`",
    },
    Elsewhere {
        names: &["Reinforce", "ReinforcePP", "Reinforce++"],
        key: "ReinforcePlusPlus",
        advice: "it is a stage `ReinforcePlusPlus(..)`; plain REINFORCE with a baseline from other responses is `Rloo(..)`",
    },
    Elsewhere {
        names: &[
            "Gkd",
            "GKDTrainer",
            "Distillation",
            "KnowledgeDistillation",
            "MiniLLM",
        ],
        key: "Distill",
        advice: "distillation from a teacher is a stage `Distill(..)`",
    },
    Elsewhere {
        names: &["Prefix", "Prompt", "PTuningV2"],
        key: "PrefixTuning",
        advice: "virtual tokens are `PrefixTuning(..)`, `PromptTuning(..)` and `PTuning(..)`",
    },
    Elsewhere {
        names: &["QLora", "Dora", "RsLora"],
        key: "Lora",
        advice: "it is `Lora(..)`: with `base_precision: nf4` in the recipe, `use_dora: true` or `use_rslora: true`",
    },
    Elsewhere {
        names: &["Houlsby", "Pfeiffer", "Adapter"],
        key: "Bottleneck",
        advice: "it is `Bottleneck(placement: Houlsby)`, or Pfeiffer or Parallel",
    },
];

/// What a key of another tool is here, if one of the keys that may stand there is meant.
pub(super) fn key(found: &str, known: &[&str]) -> Option<String> {
    advice(KEYS, found, known)
}

/// As [`key`], for the name of a variant.
pub(super) fn variant(found: &str, known: &[&str]) -> Option<String> {
    advice(VARIANTS, found, known)
}

fn advice(table: &[Elsewhere], found: &str, known: &[&str]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], "");
    let meant = |entry: &&Elsewhere| {
        known.contains(&entry.key) && entry.names.iter().any(|name| plain(name) == plain(found))
    };
    table
        .iter()
        .find(meant)
        .map(|entry| entry.advice.to_owned())
}

/// What a text is that is not RON at all.
pub(super) fn other_format(source: &str) -> Option<&'static str> {
    let first = source.lines().map(str::trim).find(|line| {
        !line.is_empty() && !line.starts_with("//") && !line.starts_with('#') && *line != "---"
    })?;
    if first.starts_with('{') {
        return Some(
            "this looks like JSON, and recipes are RON: `(` and `)` in place of `{` and `}`, keys without quotes, and stages by name, as in \
             `(name: \"my-run\", model: \"smollm2-135m\", stages: [Sft(name: \"sft\", data: (source: ..), batch_size: 8)])`",
        );
    }
    let (key, rest) = first.split_once(':')?;
    let is_key = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    (is_key && !rest.ends_with(',')).then_some(
        "this looks like YAML, and recipes are RON: everything inside of `(` and `)`, a comma after each value, text in double quotes, as in \
         `(name: \"my-run\", model: \"smollm2-135m\", stages: [Sft(name: \"sft\", data: (source: ..), batch_size: 8)])`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_tools_are_known() {
        let sft = [
            "name",
            "data",
            "peft",
            "optim",
            "batch_size",
            "micro_batch_tokens",
            "epochs",
        ];
        for (found, part) in [
            ("learning_rate", "optim: (lr"),
            ("lora_r", "peft: Lora(rank"),
            ("num_train_epochs", "`epochs`"),
            ("gradient_accumulation_steps", "leave it out"),
            ("Packing", "packed"),
        ] {
            let advice = key(found, &sft).unwrap();
            assert!(advice.contains(part), "{found}: {advice}");
        }
        assert!(
            key("learning_rate", &["lr"])
                .unwrap()
                .contains("called `lr`")
        );
        assert_eq!(key("learning_rate", &["name"]), None);
        assert_eq!(key("colour", &sft), None);
        assert!(
            variant("DAPO", &["Sft", "Grpo"])
                .unwrap()
                .contains("Grpo(..)")
        );
        assert_eq!(variant("Kto", &["Lora"]), None);
    }

    #[test]
    fn json_and_yaml_are_told_from_ron() {
        let kind = |text: &str| other_format(text).map(|text| &text[16..20]);
        assert_eq!(kind("\n{\"name\": 1}"), Some("JSON"));
        assert_eq!(kind("# mine\nbase_model: x\nlr: 1"), Some("YAML"));
        assert_eq!(kind("---\nname: x"), Some("YAML"));
        assert_eq!(kind("// a recipe\n(name: \"x\","), None);
        assert_eq!(kind("name: \"x\","), None);
        assert_eq!(kind(""), None);
    }
}
