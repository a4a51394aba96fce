//! The definition of the command line. Plain values, no code that runs commands.
//!
//! Usage errors are reported by clap with exit code 2.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use super::chat::ChatArgs;
pub use super::combine::CombineArgs;
pub use super::completions::CompletionsArgs;
pub use super::elo::EloArgs;
pub use super::eval_stages::StagesArgs;
pub use super::generate::GenerateArgs;
pub use super::inspect::InspectArgs;
pub use super::label::LabelArgs;
pub use super::models::ModelsArgs;
pub use super::new::NewArgs;
pub use super::push::PushArgs;
pub use super::report::ReportArgs;
pub use super::respond::SamplingArgs;
pub use super::score::ScoreArgs;
pub use super::serve::ServeArgs;
pub use super::watch::WatchArgs;
use crate::backend::BackendChoice;
use crate::model::weights::TensorType;
use crate::model::{Init, Label, LabelOutput};
use crate::ops::{MatmulPrecision, Precision};
use crate::reward::judge::{GradedConfig, JudgeModel};
use crate::reward::{ClassifierInput, RewardConfig, RougeVariant, TokenReduction};

/// Post-training of language models: supervised fine-tuning, reward models and PPO, without Python.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "temper",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:
  temper recipe recipes/quickstart.ron              the whole pipeline on a CPU, nothing to download
  temper new sft --model smollm2-135m --data my.csv a recipe for data of your own
  temper recipe recipes/smollm2.ron --dry-run       what a recipe would do and need
  temper generate --model tiny --prompt \"Once\"      try a model
  temper chat --run runs/smollm2 --stage sft        talk with what a stage has trained
  temper doctor                                     what this build can run on

Results go to stdout, progress to stderr.
Exit codes: 0 all went well, 1 something failed, 2 bad usage or a bad recipe."
)]
pub struct Cli {
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Backend to compute on; `auto` takes the best one that is compiled in and has a device
    #[arg(long, global = true, value_enum, default_value_t = BackendChoice::Auto, value_name = "BACKEND")]
    pub backend: BackendChoice,
    /// Which device of the backend, counted from 0
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub device: usize,
    /// CPU threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = at_most::<1024>)]
    pub threads: Option<usize>,
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the stages of a recipe
    Recipe(RecipeArgs),
    /// Print how far a run has come and its tables, also while it goes on
    Report(ReportArgs),
    /// Rate policies or responses by comparisons of people, judges or reward models: Bradley-Terry and Elo
    #[command(visible_alias = "rate")]
    Elo(EloArgs),
    /// Show the report of a run live in a browser
    Watch(WatchArgs),
    /// Write a recipe for a model and a data set
    New(NewArgs),
    /// Log-probabilities that a model gives to texts
    Logprobs(LogprobsArgs),
    /// Scores that a reward model gives to texts
    Score(ScoreArgs),
    /// Generate responses
    Generate(GenerateArgs),
    /// Talk with a model, or with two at once
    Chat(ChatArgs),
    /// Serve models over OpenAI's API, with a chat page
    Serve(ServeArgs),
    /// Measure a model on a data file: loss, perplexity and reward sources
    Eval(EvalArgs),
    /// Show what a stage trains on, token by token
    Inspect(InspectArgs),
    /// Let people judge responses in a browser, and export what they said
    Label(LabelArgs),
    /// Copy a stage's result or a model into a folder for transformers and PEFT, or into a GGUF file
    Export(ExportArgs),
    /// Say what is compiled in and which devices work, and check their numbers against the CPU
    Doctor(DoctorArgs),
    /// List the models known by name and those that are on this machine, or download some
    Models(ModelsArgs),
    /// Print a script that completes commands in a shell, or write man pages
    Completions(CompletionsArgs),
}

/// `temper recipe`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper recipe recipes/quickstart.ron
  temper recipe recipes/quickstart.ron --set seed=3 --set stages.ppo.kl_coef=0.1 --output runs/seed3
  temper recipe recipes/smollm2.ron --dry-run
  temper recipe recipes/smollm2.ron --resume

All problems of a recipe are reported at once, before any weight is loaded: keys, files, rows, and stages whose estimated peak is more than the
device has free. Ctrl-C writes a checkpoint.")]
pub struct RecipeArgs {
    /// The recipe, a RON file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Change one key: stage name and keys joined by dots, then a RON value; may be repeated
    ///
    /// E.g. `seed=3`, `stages.ppo.kl_coef=0.1`, `'stages.sft.optim.schedule=Cosine(warmup_ratio: 0.1)'`. Any key of the
    /// resolved recipe can be set, also one that the file leaves at its default.
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = assignment)]
    pub set: Vec<String>,
    /// Run folder [default: the recipe's `output`, or `runs/NAME`]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Run this stage only; the stages that it depends on must have finished in the same run folder
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Continue from the newest complete checkpoint; gives the same metrics as an uninterrupted run
    #[arg(long)]
    pub resume: bool,
    /// Print the resolved plan (parameters, tokens, steps, estimated peak memory and time) and stop
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run, leave out the estimated time, for which the model is loaded and measured for some seconds
    #[arg(long, requires = "dry_run")]
    pub no_time: bool,
    /// On a GPU, skip the comparison of its numbers with the CPU's; the recipe, its files and the memory are still checked
    #[arg(long)]
    pub no_check: bool,
    /// Memory limit for the stages, e.g. 24GiB, instead of the device's free memory
    #[arg(long, value_name = "SIZE", value_parser = super::size::bytes)]
    pub device_memory: Option<u64>,
    /// Full-screen charts instead of progress bars
    #[arg(long, conflicts_with = "dry_run")]
    pub tui: bool,
}

/// `temper doctor`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper doctor --backend wgpu
  temper doctor recipes/smollm2.ron

Exit code 1 if the backend computes wrong numbers. A recipe on a GPU begins with this check (`recipe --no-check` leaves it out).")]
pub struct DoctorArgs {
    /// Check at the sizes of this recipe's models and adapters as well, and measure its `base_precision` against f32
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<PathBuf>,
}

/// Which model a subcommand loads.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A name of `temper models`, `owner/name[@revision][:file.gguf]` of the Hugging Face hub, a folder in its layout (such as a stage's
    /// `model/`), or a GGUF file
    #[arg(long, value_name = "DIR|NAME", required_unless_present = "run")]
    pub model: Option<String>,
    /// A run folder, whose stage's result is the model
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "adapter"])]
    pub run: Option<PathBuf>,
    /// The stage of --run [default: the last one that has left a model or an adapter]
    #[arg(long, value_name = "NAME", requires = "run", conflicts_with = "model")]
    pub stage: Option<String>,
    /// An adapter in the PEFT layout (such as a stage's `adapter/`, or `owner/name` of the hub) to put on the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Store the frozen weights in fewer bits: down to a seventh of the memory [default: as the
    /// adapter's base was stored in training, else f32]
    #[arg(long, value_name = "PRECISION", value_enum)]
    pub base_precision: Option<Precision>,
    /// Round both sides of products with weights
    #[arg(long, value_name = "PRECISION", value_enum, default_value_t = MatmulPrecision::F32)]
    pub matmul_precision: MatmulPrecision,
}

impl ModelArgs {
    /// A model without adapter, in f32.
    pub(super) fn of(model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            run: None,
            stage: None,
            adapter: None,
            base_precision: None,
            matmul_precision: MatmulPrecision::F32,
        }
    }
}

/// `temper logprobs`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Rows:    {\"input_ids\": [1, 2, 3]} or {\"prompt\": \"..\", \"completion\": \"..\"}
Output:  {\"input_ids\": [..], \"logprobs\": [..], \"sum\": -12.3} in nats; of input_ids[1..], or with a prompt of the completion's tokens
         (no EOS is added)

Example:
  temper logprobs --model tiny --data rows.jsonl --output -"
)]
pub struct LogprobsArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: PathBuf,
    /// Output file, one JSON object a line; `-` is stdout
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
}

/// `temper eval`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Rows with a completion give loss (nats a token, EOS included) and perplexity; with --reward the model also generates a
    response to each prompt, which is scored.

Reward sources:
  rouge-1, rouge-2, rouge-l   F-measure against the column `completion`; `rouge-l:COLUMN` names another
  bleu, chrf                  sacrebleu's sentence scores against the column `completion`; `chrf:COLUMN` names another
  gold                        the known scorer of the embedded posts
  length:N                    closeness of the length to N words
  pattern:REGEX               1 when the response matches, else 0
  learned:DIR                 a reward model's folder, or owner/name of the hub
  classifier:DIR#LABEL        the logit of an encoder's label (BERT, DistilBERT, RoBERTa) for prompt and response
  logprob:MODEL               mean log-probability in nats of the response's tokens under another language model
  graded:DIR                  the grade, from -1 to 1, that a language model is expected to give the response
  command:PROGRAM ARGS        a program that reads rows and writes {\"score\": x}, one JSON object a line

Examples:
  temper eval --model tiny --data rows.jsonl
  temper eval --model smollm2-135m --adapter runs/smollm2/sft/adapter --data valid.jsonl --reward rouge-l --reward length:8
  temper eval --model tiny --data rows.jsonl --reward 'command:python3 score.py' --output eval.json
  temper eval --run runs/smollm2 --stages sft,ppo --data test.jsonl --reward rouge-l   win rates with intervals"
)]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows, one JSON object a line: {"text"}, {"prompt"} or {"prompt", "completion"}
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: PathBuf,
    /// Generate responses to the prompts and score them by this source (see below); may be repeated
    #[arg(long, value_name = "SOURCE", value_parser = reward)]
    pub reward: Vec<RewardArg>,
    /// Stages of a run side by side.
    #[command(flatten)]
    pub stages: StagesArgs,
    /// How responses are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Output file for the numbers as one JSON object; `-` is stdout. By default a table goes to stdout
    #[arg(long, value_name = "FILE.json")]
    pub output: Option<PathBuf>,
}

/// A reward source of the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardArg {
    /// The text of the option, used as the title of its scores.
    pub title: String,
    /// The source.
    pub config: RewardConfig,
}

/// `temper export`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper export --run runs/smollm2 --stage ppo --to exported            adapter in the PEFT layout
  temper export --run runs/smollm2 --stage ppo --to exported --merge    one whole model, adapter merged in
  temper export --run runs/tiny-pretrain --stage tiny --to exported --dtype f16         half the size
  temper export --run runs/smollm2 --stage ppo --merge --to smol.gguf --dtype q8_0      for llama.cpp and Ollama
  temper export --run runs/smollm2 --stage ppo --to lora.gguf           the LoRA adapter alone, for a GGUF file of its base
  temper export --adapters runs/a/sft/adapter,runs/b/sft/adapter --weights 0.7,0.3 --combination ties --density 0.5 --to both
  temper export --run runs/smollm2 --stage ppo --merge --push me/smol-ppo               to the hub, private, with a model card")]
pub struct ExportArgs {
    /// The run folder
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present_any = ["adapters", "model"],
        requires = "stage"
    )]
    pub run: Option<PathBuf>,
    /// The stage whose result is exported
    #[arg(long, value_name = "NAME", requires = "run")]
    pub stage: Option<String>,
    /// A model that no run has trained, in place of --run: a folder, a GGUF file, a known name or owner/name of the hub
    #[arg(long, value_name = "DIR|NAME", conflicts_with_all = ["run", "adapters", "as_trained"])]
    pub model: Option<String>,
    /// Adapters that become one.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// The folder to write, which must not exist yet or be empty; or a GGUF file for llama.cpp and Ollama, NAME.gguf
    #[arg(long, value_name = "DIR|NAME.gguf", required_unless_present = "push")]
    pub to: Option<PathBuf>,
    /// Merge the adapter into the weights
    #[arg(long, conflicts_with = "adapters")]
    pub merge: bool,
    /// With --merge: into the weights as the run kept them, in fewer bits, instead of those of the base's file
    #[arg(long, requires = "merge")]
    pub as_trained: bool,
    /// Number format of a whole model's weights, or of a GGUF file; q8_0 and q4_0 of that only [default: as the
    /// stage wrote them, f32; of a GGUF file f16, of an adapter's f32]
    #[arg(long, value_name = "DTYPE", value_enum, conflicts_with = "adapters")]
    pub dtype: Option<TensorType>,
    /// The upload.
    #[command(flatten)]
    pub push: PushArgs,
}

/// A whole number from 1 to 2^24, above which nothing that is counted here makes sense.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    at_most::<{ 1 << 24 }>(text)
}

/// A whole number from 1 to `MOST`.
pub(super) fn at_most<const MOST: usize>(text: &str) -> Result<usize, String> {
    match text.parse::<u128>() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".into()),
        Ok(n) => (usize::try_from(n).ok())
            .filter(|n| *n <= MOST)
            .ok_or_else(|| format!("expected at most {MOST}")),
    }
}

fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((path, value)) if !path.trim().is_empty() && !value.trim().is_empty() => {
            Ok(text.into())
        }
        _ => Err("expected PATH=VALUE, e.g. stages.ppo.kl_coef=0.1".into()),
    }
}

/// A classifier's label: an index, or else a name.
pub(super) fn label(text: &str) -> Result<Label, String> {
    match text.parse() {
        _ if text.is_empty() => Err("expected a label's name or index".into()),
        Ok(index) => Ok(Label::Index(index)),
        Err(_) => Ok(Label::Name(text.into())),
    }
}

fn reward(text: &str) -> Result<RewardArg, String> {
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest).filter(|rest| !rest.is_empty())),
        None => (text, None),
    };
    let needed = |what: &str| rest.ok_or_else(|| format!("expected {kind}:{what}"));
    let rouge = |variant| RewardConfig::Rouge {
        variant,
        reference: rest.unwrap_or("completion").into(),
        first_line: false,
    };
    let config = match kind {
        "rouge-1" => rouge(RougeVariant::Rouge1),
        "rouge-2" => rouge(RougeVariant::Rouge2),
        "rouge-l" => rouge(RougeVariant::RougeL),
        "bleu" => RewardConfig::Bleu {
            reference: rest.unwrap_or("completion").into(),
            first_line: false,
        },
        "chrf" => RewardConfig::Chrf {
            reference: rest.unwrap_or("completion").into(),
            word_order: 0,
            first_line: false,
        },
        "logprob" => RewardConfig::LogProbability {
            model: needed("MODEL")?.into(),
            stage: None,
            reduction: TokenReduction::Mean,
        },
        "gold" if !text.contains(':') => RewardConfig::Gold,
        "length" => RewardConfig::Length {
            target: positive(needed("N")?)?,
        },
        "pattern" => {
            let regex = needed("REGEX")?;
            regex::Regex::new(regex).map_err(|error| error.to_string())?;
            RewardConfig::Pattern {
                regex: regex.into(),
            }
        }
        "learned" => {
            let folder = needed("DIR")?;
            // A separator distinguishes folders from stage names.
            let stage = if folder.contains('/') {
                folder.into()
            } else {
                format!("./{folder}")
            };
            RewardConfig::Learned { stage }
        }
        "classifier" => {
            let (model, label) = match needed("DIR#LABEL")?.rsplit_once('#') {
                Some((model, label)) => (model, Some(self::label(label)?)),
                None => (needed("DIR#LABEL")?, None),
            };
            RewardConfig::Classifier {
                model: model.into(),
                label,
                output: LabelOutput::default(),
                reads: ClassifierInput::default(),
            }
        }
        "graded" => RewardConfig::Graded(Box::new(GradedConfig::by(JudgeModel::Model(
            Init::Folder(needed("DIR")?.into()),
        )))),
        "command" => RewardConfig::command(words(needed("PROGRAM ARGS")?)?),
        _ => {
            return Err(
                "expected rouge-1, rouge-2, rouge-l, bleu, chrf, gold, length:N, pattern:REGEX, learned:DIR, classifier:DIR#LABEL, logprob:MODEL, graded:DIR or command:PROGRAM"
                    .into(),
            );
        }
    };
    Ok(RewardArg {
        title: text.into(),
        config,
    })
}

/// Splits a command at spaces; single and double quotes keep spaces together.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("a {quote} is never closed"));
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        return Err("expected command:PROGRAM ARGS".into());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("temper").chain(args.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_recipe_takes_sets_and_global_options_on_either_side() {
        let cli = parse(
            "--backend ndarray recipe r.ron --set seed=3 --set stages.ppo.kl_coef=0.1 --threads 2 --resume",
        )
        .unwrap();
        assert_eq!(cli.compute.backend, BackendChoice::NdArray);
        assert_eq!((cli.compute.device, cli.compute.threads), (0, Some(2)));
        let Command::Recipe(recipe) = cli.command else {
            panic!("not a recipe")
        };
        assert_eq!(recipe.set, ["seed=3", "stages.ppo.kl_coef=0.1"]);
        assert!(recipe.resume && !recipe.dry_run);
    }

    #[test]
    fn usage_errors_exit_with_two() {
        for wrong in [
            "recipe",
            "recipe r.ron --set seed",
            "recipe r.ron --backend tpu",
            "recipe r.ron --threads 0",
            "generate --model tiny",
            "generate --model tiny --prompt a --data b.jsonl",
            "generate --model tiny --prompt a --top-p 0",
            "generate --model tiny --prompt a --temperature -1",
            "generate --model tiny --prompt a --min-p 1.5",
            "generate --model tiny --prompt a --repetition-penalty 0",
            "generate --model tiny --prompt a --raw --system b",
            "generate --model tiny --data b.jsonl --raw",
            "generate --model tiny --run r --prompt a",
            "chat",
            "chat --model tiny --stage s",
            "chat --model tiny --against-adapter d",
            "serve",
            "serve --model tiny --stage s",
            "serve --run r --adapter a",
            "serve --model tiny --max-queue 0",
            "logprobs --model tiny --data a.jsonl",
            "eval --model tiny --data a.jsonl --reward blue",
            "eval --model tiny --data a.jsonl --reward length:many",
            "eval --model tiny --data a.jsonl --reward pattern:(",
            "export --run r --stage s",
            "export --run r --stage s --push nameless",
            "export --run r --stage s --to d --public",
            "train",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_subcommand_of_the_contract_parses() {
        for right in [
            "logprobs --model d --adapter a --data f.jsonl --output - --backend flex",
            "score --model d --data f.jsonl --output o.jsonl --device 1",
            "generate --model d --data f.jsonl --max-new-tokens 8 --temperature 0 --top-p 0.9 --top-k 5 --seed 7 --output -",
            "generate --run r --stage s --prompt a --stop x --stop y --min-p 0.05 --repetition-penalty 1.1 --num-responses 2 --json",
            "chat --model d --against e --system s --temperature 0 --continue",
            "chat --run r",
            "serve --model d --adapter a --adapter b=c --api-key k --port 0 --max-body 1MiB",
            "serve --run r --stage a,b --stage c --preferences p.jsonl --host 0.0.0.0",
            "eval --model d --data f.jsonl --reward rouge-l --output e.json",
            "inspect r.ron --stage sft --rows 2",
            "inspect --model m --peft Full",
            "export --run r --stage s --to d --merge",
            "export --run r --stage s --push me/m --public --revision v1",
            "doctor --backend wgpu",
            "doctor recipes/smollm2.ron",
            "recipe a.ron --no-check",
            "models --threads 1",
            "rate a.jsonl b.jsonl --bootstrap prompts --json",
        ] {
            parse(right).unwrap_or_else(|error| panic!("{right}: {error}"));
        }
    }

    #[test]
    fn reward_sources_are_read() {
        let config = |text: &str| reward(text).unwrap().config;
        assert_eq!(
            config("rouge-2:summary"),
            RewardConfig::Rouge {
                variant: RougeVariant::Rouge2,
                reference: "summary".into(),
                first_line: false,
            }
        );
        assert_eq!(config("length:8"), RewardConfig::Length { target: 8 });
        assert_eq!(
            config("pattern:a:b"),
            RewardConfig::Pattern {
                regex: "a:b".into()
            }
        );
        assert_eq!(
            config("learned:rm"),
            RewardConfig::Learned {
                stage: "./rm".into()
            }
        );
        assert_eq!(
            config("command:sh -c 'echo \"a b\"' ''"),
            RewardConfig::Command {
                command: vec![
                    "sh".into(),
                    "-c".into(),
                    "echo \"a b\"".into(),
                    String::new()
                ],
                timeout_s: 60.0,
                per_rank: false,
                retries: 2,
            }
        );
        let classifier = |label| RewardConfig::Classifier {
            model: "me/sst2".into(),
            label,
            output: LabelOutput::Logit,
            reads: ClassifierInput::PromptAndResponse,
        };
        let positive = Some(Label::Name("POSITIVE".into()));
        assert_eq!(config("classifier:me/sst2#POSITIVE"), classifier(positive));
        let second = Some(Label::Index(1));
        assert_eq!(config("classifier:me/sst2#1"), classifier(second));
        assert_eq!(config("classifier:me/sst2"), classifier(None));
        assert_eq!(reward("command:sh 'x").unwrap_err(), "a ' is never closed");
        assert_eq!(reward("length").unwrap_err(), "expected length:N");
    }
}
