//! `temper serve`.

mod load;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use self::load::{Group, groups};
use super::args::{ComputeArgs, ModelArgs, at_most, positive};
use super::model::UnloadedModel;
use super::size::bytes;
use crate::backend::{Task, dispatch};
use crate::error::{Error, Result};
use crate::generate::continuous::Room;
use crate::ops::{MatmulPrecision, ModelBackend, Precision};
use crate::report::grouped;
use crate::serve::{Catalog, Engine, Place, Prepared, RequestLimits, ServeConfig};
use crate::web::Bind;

/// The environment's name of the key.
const KEY: &str = "TEMPERING_API_KEY";
/// The port if none is named.
const PORT: u16 = 8000;
/// Most tokens of a prompt with its response, unless the user says otherwise: a longer one takes the cache of many others.
const MAX_LENGTH: usize = 8192;

/// `temper serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Endpoints: /v1/models, /v1/chat/completions, /v1/completions, /v1/score (reward models), /health, /metrics, and a chat page at /.
Adapters of one base share its weights; each model is asked for by its name.

Examples:
  temper serve --model smollm2-135m
  temper serve --run runs/smollm2 --stage sft,ppo,rm --preferences thumbs.jsonl
  temper serve --model smollm2-135m --adapter runs/a/sft/adapter --adapter other=runs/b/sft/adapter --port 9000

docs/serve.md has the fields, the limits and the metrics."
)]
pub struct ServeArgs {
    /// A model: a name of `temper models`, `owner/name` of the hub, a folder or a GGUF file, with another name in requests as
    /// NAME=MODEL; may be repeated
    #[arg(
        long,
        value_name = "[NAME=]DIR|NAME",
        required_unless_present = "run",
        help_heading = "Model"
    )]
    pub model: Vec<String>,
    /// Adapters to serve beside the bare --model, under the names of their folders or as NAME=DIR; may be repeated
    #[arg(
        long,
        value_name = "[NAME=]DIR",
        requires = "model",
        help_heading = "Model"
    )]
    pub adapter: Vec<String>,
    /// A run folder, whose stages' results are served under the names of the stages
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub run: Option<PathBuf>,
    /// Stages of --run, separated by commas [default: the last one that has left a model or an adapter]
    #[arg(
        long,
        value_name = "NAME,..",
        requires = "run",
        value_delimiter = ',',
        help_heading = "Model"
    )]
    pub stage: Vec<String>,
    /// Store the frozen weights in fewer bits [default: as the adapter's base was stored in training, else f32]
    #[arg(long, value_name = "PRECISION", value_enum, help_heading = "Model")]
    pub base_precision: Option<Precision>,
    /// Round both sides of products with weights
    #[arg(long, value_name = "PRECISION", value_enum, default_value_t = MatmulPrecision::F32, help_heading = "Model")]
    pub matmul_precision: MatmulPrecision,
    /// Where to listen.
    #[command(flatten)]
    pub bind: Bind,
    /// The key that clients have to show [default: TEMPERING_API_KEY of the environment, which other users do not see]
    #[arg(long, value_name = "KEY", help_heading = "Limits")]
    pub api_key: Option<String>,
    /// Most tokens of a prompt with its response [default: the model's context, at most 8192]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub max_length: Option<usize>,
    /// Most new tokens of a chat's answer, unless its request says otherwise
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive, help_heading = "Limits")]
    pub max_new_tokens: usize,
    /// Most responses in progress
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_most::<4096>, help_heading = "Limits")]
    pub max_rows: usize,
    /// Most tokens in the KV cache of a base, unless one response needs more; responses that do not fit wait
    #[arg(long, value_name = "N", default_value_t = 16 * 1024, value_parser = positive, help_heading = "Limits")]
    pub cache_tokens: usize,
    /// Most responses and rows that wait; further requests get status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive, help_heading = "Limits")]
    pub max_queue: usize,
    /// Largest body of a request; larger ones get status 413
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = bytes, help_heading = "Limits")]
    pub max_body: u64,
    /// Seconds that a request may take
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = at_most::<1_000_000>, help_heading = "Limits")]
    pub request_timeout: usize,
    /// Seconds for requests in progress after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = at_most::<1_000_000>, help_heading = "Limits")]
    pub drain_timeout: usize,
    /// Keep the chat page's thumbs in this file, as rows of preferences for Dpo and RewardModel; it grows
    #[arg(long, value_name = "FILE.jsonl")]
    pub preferences: Option<PathBuf>,
    /// Root of the randomness of requests without a seed
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
}

/// A model to serve: its name in requests, and its files.
#[derive(Debug, Clone)]
struct Named {
    name: String,
    model: UnloadedModel,
}

/// Serves until a signal comes.
///
/// # Errors
/// Those of finding and loading the models, of listening, and of the backend.
pub(super) fn run(args: &ServeArgs, compute: &ComputeArgs) -> Result<()> {
    let named = find(args)?;
    let max_length = args.max_length.unwrap_or(MAX_LENGTH);
    let (groups, served) = groups(named, max_length)?;
    let key = args.api_key.clone().or_else(|| std::env::var(KEY).ok());
    let prepared = Prepared::new(ServeConfig {
        bind: args.bind.or_port(PORT),
        key: key.filter(|key| !key.is_empty()),
        max_queue: args.max_queue,
        max_body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        limits: RequestLimits {
            max_new_tokens: args.max_new_tokens,
            time: Duration::from_secs(args.request_timeout as u64),
        },
        drain: Duration::from_secs(args.drain_timeout as u64),
        preferences: args.preferences.clone(),
        seed: args.seed,
    })?;
    let task = ServeTask {
        groups,
        catalog: Catalog::new(served),
        room: Room {
            rows: args.max_rows,
            tokens: args.cache_tokens,
        },
        prepared,
    };
    dispatch(compute.backend, compute.device, task)
}

/// All models that the options name.
fn find(args: &ServeArgs) -> Result<Vec<Named>> {
    let plain = ModelArgs {
        model: None,
        run: None,
        stage: None,
        adapter: None,
        base_precision: args.base_precision,
        matmul_precision: args.matmul_precision,
    };
    let mut named = Vec::new();
    let mut add = |name: String, model: ModelArgs| -> Result<()> {
        let model = UnloadedModel::find(&model)?;
        named.push(Named { name, model });
        Ok(())
    };
    for text in &args.model {
        let (name, model) = split(text);
        let model = ModelArgs {
            model: Some(model),
            ..plain.clone()
        };
        add(name, model)?;
    }
    if !args.adapter.is_empty() && args.model.len() != 1 {
        return Err(Error::Usage(format!(
            "--adapter goes on the one --model; there are {}: serve an adapter with a base of its own as another --model",
            args.model.len()
        )));
    }
    for text in &args.adapter {
        let (name, adapter) = split(text);
        let model = ModelArgs {
            model: args.model.first().map(|text| split(text).1),
            adapter: Some(PathBuf::from(adapter)),
            ..plain.clone()
        };
        add(name, model)?;
    }
    if let Some(run) = &args.run {
        let mut stages: Vec<Option<String>> = args.stage.iter().cloned().map(Some).collect();
        if stages.is_empty() {
            stages.push(None);
        }
        for stage in stages {
            let model = ModelArgs {
                run: Some(run.clone()),
                stage: stage.clone(),
                ..plain.clone()
            };
            let name = match stage {
                Some(stage) => stage,
                None => super::stage_result::last_result_of(run)?.0,
            };
            add(name, model)?;
        }
    }
    for (at, one) in named.iter().enumerate() {
        if named[..at].iter().any(|other| other.name == one.name) {
            return Err(Error::Usage(format!(
                "two models are called {}; give one another name: --model NAME=MODEL, --adapter NAME=DIR",
                one.name
            )));
        }
    }
    Ok(named)
}

/// The name and the model of `NAME=MODEL`, or of a model without a name: that of its folder, or of the stage whose folder holds it.
fn split(text: &str) -> (String, String) {
    if let Some((name, model)) = text.split_once('=')
        && !name.is_empty()
        && !name.contains(['/', '\\'])
        && !Path::new(text).exists()
    {
        return (name.to_owned(), model.to_owned());
    }
    let path = Path::new(text);
    let last = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let name = match last(path).as_deref() {
        _ if !path.exists() => None,
        Some("adapter" | "model") => path.parent().and_then(last),
        _ => last(path),
    };
    (name.unwrap_or_else(|| text.to_owned()), text.to_owned())
}

/// Serving on a backend.
struct ServeTask {
    groups: Vec<Group>,
    catalog: Catalog,
    room: Room,
    prepared: Prepared,
}

impl Task for ServeTask {
    type Output = ();

    fn run<B: ModelBackend>(self, device: B::Device, backend: &'static str) -> Result<()> {
        let (mut policies, mut rewards) = (Vec::new(), Vec::new());
        for group in self.groups {
            let loaded = group.load::<B>(&device)?;
            policies.extend(Some(loaded.policies).filter(|policies| !policies.is_empty()));
            rewards.extend(loaded.rewards);
        }
        let names = |reward: bool| -> Vec<&str> {
            let models = self.catalog.iter();
            let chosen = models.filter(|m| matches!(m.place, Place::Reward(_)) == reward);
            chosen.map(|model| model.name.as_str()).collect()
        };
        for (kind, names) in [("policy", names(false)), ("reward model", names(true))] {
            if !names.is_empty() {
                eprintln!("{kind}: {}", names.join(", "));
            }
        }
        let room = grouped(self.room.tokens as u64);
        eprintln!("on {backend}, {room} tokens of KV cache a base; Ctrl-C ends");
        eprintln!("listening on {}", self.prepared.url());
        let engine = Engine::new(policies, rewards, self.room, device);
        self.prepared.run(engine, self.catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_their_folder_or_as_the_user_says() {
        let temp = tempfile::tempdir().unwrap();
        let stage = temp.path().join("run/sft");
        std::fs::create_dir_all(stage.join("adapter")).unwrap();
        let name = |text: &str| split(text).0;
        assert_eq!(name(stage.join("adapter").to_str().unwrap()), "sft");
        assert_eq!(name(stage.to_str().unwrap()), "sft");
        assert_eq!(name("owner/name"), "owner/name");
        assert_eq!(split("mine=a/b=c"), ("mine".into(), "a/b=c".into()));
        assert_eq!(name("a/b=c"), "a/b=c");
    }
}
