//! `temper export`.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::{Value, json};

use super::args::{ComputeArgs, ExportArgs, ModelArgs};
use super::logprobs::measure;
use super::model::FoundModel;
use super::output;
use super::rows::IdsRow;
use super::score::last_scores;
use crate::atomic::{Temporary, sync_parent, temporary_name, write_atomic};
use crate::backend::{Task, dispatch};
use crate::data::{Row, Tokenizer};
use crate::error::{Error, Result};
use crate::model::weights::{self, StoreAs, write_safetensors_with, write_snapshot};
use crate::model::{LanguageModel, ModelConfig, SCORE_OFFSET, ScalarModel, stored_tensors};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::peft::Adaptable;
use crate::peft::files::ADAPTER_CONFIG;
use crate::rng::Seed;

/// Read by a merged model and by the model with its adapter, to compare the two.
const PROBE: &str = "A merged model must say what the model with its adapter says: the same words, with the same odds.";

/// Copies a stage's result, or merges its adapter into the base.
///
/// # Errors
/// `Error::Usage` if there is no result or the folder is in use; those of loading and writing.
pub(super) fn run(args: &ExportArgs, compute: &ComputeArgs) -> Result<()> {
    let from = result_of(&args.run, &args.stage)?;
    if fs::read_dir(&args.to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Usage(format!(
            "--to {}: already exists and is not empty",
            args.to.display()
        )));
    }
    // A link to a folder is followed, and stays.
    let to = match args.to.canonicalize() {
        Ok(to) if to.is_dir() => to,
        Ok(_) => {
            return Err(Error::Usage(format!(
                "--to {}: is no folder",
                args.to.display()
            )));
        }
        Err(_) if args.to.is_symlink() => {
            return Err(Error::Usage(format!(
                "--to {}: a link to a folder that does not exist",
                args.to.display()
            )));
        }
        Err(_) => absolute(&args.to)?,
    };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let folder = Temporary(Some(temporary_name(&to)?));
    let written = folder.path().to_path_buf();
    fs::create_dir(&written).map_err(Error::io("create", &args.to))?;
    let is_adapter = from.join(ADAPTER_CONFIG).is_file();
    let summary = if args.merge && is_adapter {
        let model = FoundModel::find(&ModelArgs::of(from.display().to_string()))?;
        let merge = Merge {
            tokenizer: model.tokenizer().ok(),
            model: &model,
            to: &written,
        };
        let difference = dispatch(compute.backend, compute.device, merge)?;
        let what = if model.is_reward_model()? {
            "score"
        } else {
            "log-probability"
        };
        format!(
            "merged; largest {what} difference from the model with its adapter: {difference:.1e}"
        )
    } else {
        copy(&from, &written)?;
        (if is_adapter {
            "adapter copied"
        } else {
            "model copied"
        })
        .to_owned()
    };
    if let Some(dtype) = args.dtype {
        convert(&written, dtype)?;
    }
    // An empty folder of that name is replaced; where the system does not do that, it goes first.
    if to.is_dir() {
        fs::remove_dir(&to).map_err(Error::io("replace", &args.to))?;
    }
    fs::rename(&written, &to).map_err(Error::io("rename a temporary folder to", &args.to))?;
    folder.keep();
    sync_parent(&to)?;
    output::print(&format!("{}: {summary}\n", args.to.display()))
}

/// The folder with a stage's result.
fn result_of(run: &Path, stage: &str) -> Result<PathBuf> {
    let folder = run.join(stage);
    if !folder.is_dir() {
        return Err(Error::Usage(format!(
            "--run {}: there is no stage {stage}",
            run.display()
        )));
    }
    ["adapter", "model"]
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.join(ADAPTER_CONFIG).is_file() || path.join("config.json").is_file())
        .ok_or_else(|| {
            Error::Usage(format!(
                "{}: no adapter/ and no model/; the stage has not finished",
                folder.display()
            ))
        })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let file = entry.map_err(Error::io("read", from))?.path();
        if let (true, Some(name)) = (file.is_file(), file.file_name()) {
            fs::copy(&file, to.join(name)).map_err(Error::io("copy", &file))?;
        }
    }
    if to.join("config.json").is_file() {
        let config = ModelConfig::load(to)?;
        if config.is_classifier() {
            let stops = Tokenizer::load(to)
                .map(|tokenizer| tokenizer.stop_ids().to_vec())
                .unwrap_or_default();
            write_config(
                to,
                classifier_config(config.raw().clone().into(), &config, &stops),
            )?;
        }
    }
    Ok(())
}

/// The `config.json` of a sequence classifier, without a padding token that a response can end with.
///
/// transformers reads the score at the last token that is not `pad_token_id`. Where padding and EOS are one token, that
/// is the token before the EOS, which the model was not trained to judge at: the scores would be others, silently.
/// Without a padding token transformers reads the last token, and refuses to batch rows instead of misreading them.
fn classifier_config(mut raw: Value, config: &ModelConfig, stop_ids: &[u32]) -> Value {
    let pad = raw
        .get("pad_token_id")
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok());
    if pad.is_some_and(|pad| stop_ids.contains(&pad) || config.eos_ids().contains(&pad)) {
        raw["pad_token_id"] = Value::Null;
    }
    raw
}

/// Rewrites a folder's weights in another number format.
fn convert(folder: &Path, dtype: StoreAs) -> Result<()> {
    let file = folder.join("model.safetensors");
    if !file.is_file() {
        return Err(Error::Usage(
            "--dtype: an adapter is stored in f32; add --merge to write a whole model".into(),
        ));
    }
    let source = weights::open(&file)?;
    let shapes: Vec<(String, Vec<usize>)> = (source.names().into_iter())
        .map(|name| {
            let shape = source.shape(&name).unwrap_or_default();
            (name, shape)
        })
        .collect();
    let specs: Vec<(&str, &[usize])> = (shapes.iter())
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    write_safetensors_with(&file, dtype, &specs, |i| {
        let name = &shapes[i].0;
        let values = source.read(name)?;
        let too_large = |x: &&f32| dtype == StoreAs::F16 && x.abs() > f16::MAX.to_f32();
        match values.iter().find(too_large) {
            Some(x) => Err(Error::Usage(format!(
                "--dtype f16: {name} holds {x}, and f16 ends at {}; take bf16",
                f16::MAX
            ))),
            None => Ok(Cow::Owned(values)),
        }
    })?;
    let mut config: Value = ModelConfig::load(folder)?.raw().clone().into();
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(dtype.torch_name());
        }
    }
    write_config(folder, config)
}

fn write_config(folder: &Path, config: Value) -> Result<()> {
    write_atomic(
        folder.join("config.json"),
        format!("{config:#}\n").as_bytes(),
    )
}

/// Merges a model's adapter and writes the result; gives the largest difference that this makes.
struct Merge<'a> {
    model: &'a FoundModel,
    tokenizer: Option<Tokenizer>,
    to: &'a Path,
}

impl Task for Merge<'_> {
    type Output = f64;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<f64> {
        let config = &self.model.config;
        let probe = self.probe()?;
        let is_reward = self.model.is_reward_model()?;
        let mut json = config.to_json(is_reward);
        // The file is written in f32, whatever the base was stored in.
        for key in ["dtype", "torch_dtype"] {
            if json.get(key).is_some() {
                json[key] = json!("float32");
            }
        }
        let expected = if is_reward {
            let mut model = self.model.reward_model::<B>(&device)?;
            let expected = last_scores(&model, &[probe.ids.as_slice()], &device);
            let stops = self
                .tokenizer
                .as_ref()
                .map_or_else(Vec::new, |t| t.stop_ids().to_vec());
            json = classifier_config(json, config, &stops);
            match json.as_object_mut() {
                Some(json) if model.offset != 0.0 => {
                    drop(json.insert(SCORE_OFFSET.into(), json!(model.offset)))
                }
                Some(json) => drop(json.shift_remove(SCORE_OFFSET)),
                None => {}
            }
            model.merge_adapters();
            self.write(&mut model)?;
            expected
        } else {
            let mut model = self.model.language_model::<B>(&device)?;
            let expected = self.logprobs(&model, &probe, &device)?;
            model.merge_adapters();
            self.write(&mut model)?;
            expected
        };
        write_config(self.to, json)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(self.to)?;
        }
        // What was written, not what was meant to be.
        let merged = FoundModel::find(&ModelArgs::of(self.to.display().to_string()))?;
        let found = if is_reward {
            let model: ScalarModel<B> = merged.reward_model(&device)?;
            last_scores(&model, &[probe.ids.as_slice()], &device)
        } else {
            self.logprobs(&merged.language_model::<B>(&device)?, &probe, &device)?
        };
        let differences = expected
            .iter()
            .zip(&found)
            .map(|(a, b)| f64::from((a - b).abs()));
        Ok(differences.fold(0.0, f64::max))
    }
}

impl Merge<'_> {
    /// A short text; without a tokenizer, ids drawn from the vocabulary.
    fn probe(&self) -> Result<IdsRow> {
        let (vocab, most) = (
            self.model.config.vocab_size(),
            self.model.config.max_positions(),
        );
        let mut ids = match &self.tokenizer {
            Some(tokenizer) => tokenizer.encode_document(PROBE)?,
            None => (0..24)
                .map(|i| Seed::new(0).below(i, vocab) as u32)
                .collect(),
        };
        ids.truncate(most);
        let measured = (0..ids.len()).map(|i| i > 0).collect();
        Ok(IdsRow { ids, measured })
    }

    fn logprobs<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        probe: &IdsRow,
        device: &B::Device,
    ) -> Result<Vec<f32>> {
        let row = Row {
            columns: serde_json::Map::new(),
            path: self.to.to_path_buf(),
            line: 0,
        };
        Ok(measure(model, &[row], std::slice::from_ref(probe), device)?.concat())
    }

    fn write<B: ModelBackend>(&self, model: &mut dyn Parameters<B>) -> Result<()> {
        write_snapshot(self.to.join("model.safetensors"), &stored_tensors(model))
    }
}
