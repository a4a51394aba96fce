//! `temper export`.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{ComputeArgs, ExportArgs};
use super::card::{CARD, CardOf};
use super::combine;
use super::export_gguf;
use super::model::{UnloadedModel, warn};
use super::output;
use super::padding::Padding;
use super::probe::largest_difference;
use super::push;
use super::stage_result::result_of;
use crate::atomic::{TEMPORARY_PREFIX, Temporary, sync_parent, temporary_name, write_atomic};
use crate::backend::{Task, dispatch};
use crate::data::{CHAT_TEMPLATES, Tokenizer};
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::model::config::set_dtype;
use crate::model::portable_base;
use crate::model::weights::gguf::is_gguf;
use crate::model::weights::{
    self, Dtype, StoreAs, TensorType, write_safetensors_with, write_snapshot,
};
use crate::model::{ModelConfig, ModelSource, SCORE_OFFSET, stored_tensors};
use crate::ops::{ModelBackend, Numerics, Precision};
use crate::outside;
use crate::params::Parameters;
use crate::peft::Adaptable;
use crate::peft::base::write_base;
use crate::peft::files::ADAPTER_CONFIG;
use crate::recipe;
use crate::terminal;

/// Copies a stage's result or another model, or merges its adapter into the base.
///
/// # Errors
/// `Error::Usage` if there is no result or the folder is in use; those of loading and writing.
pub(super) fn run(args: &ExportArgs, compute: &ComputeArgs) -> Result<()> {
    match &args.push.push {
        Some(repo) => push::run(args, repo, compute),
        // clap asks for one of the two.
        None => write(
            args,
            args.to.as_deref().unwrap_or(Path::new(".")),
            None,
            compute,
        ),
    }
}

/// Writes the export to `to`. `pushed`: the repository that it is for, which its card names.
pub(super) fn write(
    args: &ExportArgs,
    to: &Path,
    pushed: Option<(&str, &Hub)>,
    compute: &ComputeArgs,
) -> Result<()> {
    let (from, trained) = match (&args.run, &args.stage, &args.model) {
        (Some(run), Some(stage), _) => (result_of(run, stage)?, numerics_of(run)),
        (_, _, Some(model)) => (files_of(model)?, Numerics::default()),
        _ => return combine::run(args, to, compute),
    };
    if is_gguf(to) {
        return export_gguf::run(args, to, &from, trained, compute);
    }
    let dtype = args.dtype.map(store_as).transpose()?;
    write_folder(to, |written| {
        let export = Export {
            from: &from,
            to: written,
            trained,
            compute,
        };
        let said = match (from.join(ADAPTER_CONFIG).is_file(), args.merge) {
            _ if is_gguf(&from) => export.merged(dtype, false)?,
            (true, true) => export.merged(dtype, args.as_trained)?,
            (true, false) => export.adapter(dtype)?,
            (false, _) => export.model(dtype)?,
        };
        if let (Some(run), Some(stage)) = (&args.run, &args.stage) {
            let card = CardOf {
                run,
                stage,
                library: match written.join(ADAPTER_CONFIG).is_file() {
                    true => "peft",
                    false => "transformers",
                },
                repo: pushed.map(|(repo, _)| repo),
                hub: pushed.map(|(_, hub)| hub),
            };
            // A run of an older version may have no report; its weights are exported all the same.
            match card.text() {
                Ok(text) => write_atomic(written.join(CARD), text.as_bytes())?,
                Err(error) => {
                    terminal::say(&format!("warning: no model card was written: {error}"))
                }
            }
        }
        Ok(said)
    })
}

/// The outermost adapter of a model, its GGUF file, or its folder.
fn files_of(model: &str) -> Result<PathBuf> {
    let source = ModelSource::find(model)?;
    warn(&source.notes);
    Ok(match source.adapters.last() {
        Some(adapter) => adapter.clone(),
        None if is_gguf(&source.weights) => source.weights,
        None => source.dir,
    })
}

/// The number format in safetensors.
fn store_as(kind: TensorType) -> Result<StoreAs> {
    match kind {
        TensorType::F32 => Ok(StoreAs::F32),
        TensorType::F16 => Ok(StoreAs::F16),
        TensorType::Bf16 => Ok(StoreAs::Bf16),
        TensorType::Q8_0 | TensorType::Q4_0 => Err(Error::Usage(format!(
            "--dtype {}: only a GGUF file stores blocks; name one, `--to NAME.gguf`",
            kind.name().to_lowercase()
        ))),
    }
}

/// Fills a folder that is not there yet, or empty, by `write`, whose answer is printed; until all is written it is another one.
pub(super) fn write_folder(
    target: &Path,
    write: impl FnOnce(&Path) -> Result<String>,
) -> Result<()> {
    if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Usage(format!(
            "--to {}: already exists and is not empty",
            target.display()
        )));
    }
    // A link to a folder is followed and kept.
    let to = match target.canonicalize() {
        Ok(to) if to.is_dir() => to,
        Ok(_) => {
            return Err(Error::Usage(format!(
                "--to {}: is not a folder",
                target.display()
            )));
        }
        Err(_) if target.is_symlink() => {
            return Err(Error::Usage(format!(
                "--to {}: a link to a folder that does not exist",
                target.display()
            )));
        }
        Err(_) => absolute(target)?,
    };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let folder = Temporary(Some(temporary_name(&to)?));
    let written = folder.path().to_path_buf();
    fs::create_dir(&written).map_err(Error::io("create", target))?;
    let summary = write(&written)?;
    // An empty folder of that name is replaced; on systems where rename does not do that, it is removed first.
    if to.is_dir() {
        fs::remove_dir(&to).map_err(Error::io("replace", target))?;
    }
    fs::rename(&written, &to).map_err(Error::io("rename a temporary folder to", target))?;
    folder.keep();
    sync_parent(&to)?;
    // An upload without `--to` leaves no folder to name.
    match is_temporary(target) {
        true => eprintln!("{summary}"),
        false => output::print(&format!("{}: {summary}\n", target.display()))?,
    }
    Ok(())
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with(TEMPORARY_PREFIX)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// Storage and product precision of the run's frozen weights; f32 by default.
fn numerics_of(run: &Path) -> Numerics {
    let recipe = recipe::load(&run.join("recipe.ron"), &[]);
    recipe.map_or_else(|_| Numerics::default(), |recipe| recipe.numerics())
}

/// The export of a result to a folder.
pub(super) struct Export<'a> {
    /// The stage's result.
    pub(super) from: &'a Path,
    /// The folder to fill.
    pub(super) to: &'a Path,
    /// How the run kept the frozen weights.
    pub(super) trained: Numerics,
    /// Where to compute.
    pub(super) compute: &'a ComputeArgs,
}

impl Export<'_> {
    /// Copies the adapter, with a base name that PEFT can resolve.
    fn adapter(&self, dtype: Option<StoreAs>) -> Result<String> {
        if dtype.is_some() {
            return Err(Error::Usage(
                "--dtype: an adapter is stored in f32; add --merge to write a whole model".into(),
            ));
        }
        copy(self.from, self.to)?;
        let Some(base) = portable_base(self.from)? else {
            return Ok("adapter copied".into());
        };
        if Path::new(&base).join(ADAPTER_CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "{}: the base of the adapter is the adapter {base}, which PEFT would ignore; add --merge",
                self.from.display()
            )));
        }
        let file = self.to.join(ADAPTER_CONFIG);
        let text = outside::read_text(&file, outside::SETTINGS)?;
        let mut config: Value =
            serde_json::from_str(&text).map_err(|e| Error::format(&file, e.to_string()))?;
        if let Value::Object(config) = &mut config {
            write_base(config, Some(&base));
        }
        write_atomic(&file, format!("{config:#}\n").as_bytes())?;
        Ok(format!("adapter copied; its base is {base}"))
    }

    /// Copies a whole model, optionally in another number format.
    fn model(&self, dtype: Option<StoreAs>) -> Result<String> {
        copy(self.from, self.to)?;
        let trained = self.found(self.from, Numerics::default())?;
        let padding = self.finish(&trained, dtype)?;
        Ok(match dtype {
            None => format!("model copied{padding}"),
            Some(_) => format!("model copied; {}{padding}", self.difference(&trained)?),
        })
    }

    /// Writes the base in f32 with the adapter, if there is one, merged into its weights.
    pub(super) fn merged(&self, dtype: Option<StoreAs>, as_trained: bool) -> Result<String> {
        let trained = self.found(self.from, self.trained)?;
        warn(&trained.source.notes);
        let numerics = match as_trained {
            true => self.trained,
            false => Numerics::default(),
        };
        let base = self.found(self.from, numerics)?;
        if let Some(adapter) = base.source.adapter()? {
            adapter.check_mergeable()?;
        }
        let merge = MergeTask {
            model: &base,
            to: self.to,
        };
        dispatch(self.compute.backend, self.compute.device, merge)?;
        if let Ok(tokenizer) = base.tokenizer() {
            tokenizer.save(self.to)?;
            let mut config = ModelConfig::load(self.to)?.raw().clone();
            tokenizer.name_eos(&mut config);
            write_config(self.to, &config.into())?;
        }
        let padding = self.finish(&trained, dtype)?;
        let rounds = !as_trained && self.trained.storage != Precision::F32;
        let hint = match rounds {
            true => " into the base's file (with --as-trained into the base as the run kept it)",
            false => "",
        };
        let difference = self.difference(&trained)?;
        let done = match base.source.adapters.is_empty() {
            true => "converted",
            false => "merged",
        };
        Ok(format!("{done}{hint}; {difference}{padding}"))
    }

    fn found(&self, folder: &Path, numerics: Numerics) -> Result<UnloadedModel> {
        let source = ModelSource::find(&folder.display().to_string())?;
        UnloadedModel::of(source, numerics)
    }

    /// Finishes the written folder: converts the number format, adds a padding token, and sets both in the configuration.
    fn finish(&self, trained: &UnloadedModel, dtype: Option<StoreAs>) -> Result<String> {
        let mut config: Value = ModelConfig::load(self.to)?.raw().clone().into();
        let (mut said, mut rows) = (String::new(), 0);
        if trained.is_reward_model()? {
            match Tokenizer::load(self.to) {
                Ok(tokenizer) => {
                    let padding = Padding::choose(&tokenizer, &trained.config);
                    padding.write_tokenizer(self.to)?;
                    config["pad_token_id"] = json!(padding.id);
                    let vocab = trained.config.vocab_size();
                    rows = (padding.id as usize + 1).saturating_sub(vocab);
                    config["vocab_size"] = json!(vocab + rows);
                    said = format!("; rows are padded with {:?} ({})", padding.text, padding.id);
                }
                Err(_) => without_end_as_padding(&mut config, &trained.config),
            }
        }
        let file = self.to.join("model.safetensors");
        if file.is_file() && (dtype.is_some() || rows > 0) {
            rewrite(&file, dtype, trained.config.embedding_name(), rows)?;
        }
        if let Some(stored) = stored_dtype(self.to, trained.config.embedding_name())? {
            set_dtype(&mut config, stored);
        }
        write_config(self.to, &config)?;
        Ok(said)
    }

    /// Reports the difference between the written files and the trained model.
    fn difference(&self, trained: &UnloadedModel) -> Result<String> {
        let written = self.found(self.to, Numerics::default())?;
        let largest = largest_difference(trained, &written, self.compute)?;
        let what = match trained.is_reward_model()? {
            true => "score",
            false => "log-probability",
        };
        let base = match trained.numerics == Numerics::default() {
            true => String::new(),
            false => format!(" (base in {})", trained.numerics.name()),
        };
        Ok(format!(
            "largest {what} difference of the files written from the model as trained{base}: {largest:.1e}"
        ))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let file = entry.map_err(Error::io("read", from))?.path();
        let Some(name) = file.file_name() else {
            continue;
        };
        if file.is_file() {
            fs::copy(&file, to.join(name)).map_err(Error::io("copy", &file))?;
        } else if name == CHAT_TEMPLATES {
            let folder = to.join(name);
            fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
            copy(&file, &folder)?;
        }
    }
    Ok(())
}

/// Removes a padding token that responses can end with; without a tokenizer no other token can be chosen.
///
/// transformers then reads the score at the last token, and refuses batches of several rows instead of misreading them.
fn without_end_as_padding(raw: &mut Value, config: &ModelConfig) {
    let pad = raw.get("pad_token_id").and_then(Value::as_u64);
    if pad.is_some_and(|pad| config.eos_ids().iter().any(|&end| u64::from(end) == pad)) {
        raw["pad_token_id"] = Value::Null;
    }
}

/// Rewrites a weight file in another number format, if given, and appends `rows` rows of zeros to the embedding.
fn rewrite(file: &Path, dtype: Option<StoreAs>, embedding: &str, rows: usize) -> Result<()> {
    let source = weights::open(file)?;
    let embedding = weights::resolve(source.as_ref(), embedding);
    let shapes: Vec<(String, Vec<usize>)> = (source.names().into_iter())
        .map(|name| {
            let mut shape = source.shape(&name).unwrap_or_default();
            if let (true, Some(first)) = (embedding.as_ref() == Some(&name), shape.first_mut()) {
                *first += rows;
            }
            (name, shape)
        })
        .collect();
    let specs: Vec<(&str, &[usize])> = (shapes.iter())
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    let dtype = dtype.unwrap_or_default();
    write_safetensors_with(file, dtype, &specs, |i| {
        let (name, shape) = &shapes[i];
        let mut values = source.read(name)?;
        values.resize(shape.iter().product(), 0.0);
        dtype.check_range(name, &values)?;
        Ok(Cow::Owned(values))
    })
}

/// The number format of a folder's weights, judged by the embedding; `None` for GGUF's formats.
fn stored_dtype(folder: &Path, embedding: &str) -> Result<Option<StoreAs>> {
    let source = weights::open(folder)?;
    let name = weights::resolve(source.as_ref(), embedding);
    Ok(match name.and_then(|name| source.dtype(&name)) {
        Some(Dtype::F32) => Some(StoreAs::F32),
        Some(Dtype::F16) => Some(StoreAs::F16),
        Some(Dtype::Bf16) => Some(StoreAs::Bf16),
        _ => None,
    })
}

fn write_config(folder: &Path, config: &Value) -> Result<()> {
    write_atomic(
        folder.join("config.json"),
        format!("{config:#}\n").as_bytes(),
    )
}

/// Merges a model's adapter and writes weights and configuration.
struct MergeTask<'a> {
    model: &'a UnloadedModel,
    to: &'a Path,
}

impl Task for MergeTask<'_> {
    type Output = ();

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<()> {
        let is_reward = self.model.is_reward_model()?;
        let mut json = self.model.config.to_json_as(is_reward, StoreAs::F32);
        if is_reward {
            let mut model = self.model.reward_model::<B>(&device)?;
            match json.as_object_mut() {
                Some(json) if model.offset != 0.0 => {
                    drop(json.insert(SCORE_OFFSET.into(), json!(model.offset)))
                }
                Some(json) => drop(json.shift_remove(SCORE_OFFSET)),
                None => {}
            }
            model.merge_adapters()?;
            self.write(&mut model)?;
        } else {
            let mut model = self.model.language_model::<B>(&device)?;
            model.merge_adapters()?;
            if self.model.config.tie_word_embeddings() && model.has_own_head() {
                let untied = self.model.config.untied()?;
                json = untied.to_json_as(false, StoreAs::F32);
            }
            self.write(&mut model)?;
        }
        write_config(self.to, &json)
    }
}

impl MergeTask<'_> {
    fn write<B: ModelBackend>(&self, model: &mut dyn Parameters<B>) -> Result<()> {
        write_snapshot(self.to.join("model.safetensors"), &stored_tensors(model))
    }
}
