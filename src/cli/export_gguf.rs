//! `temper export --to NAME.gguf`: a stage's result for llama.cpp and Ollama.

use std::fs;
use std::path::Path;

use super::args::{ComputeArgs, ExportArgs};
use super::export::Export;
use super::model::UnloadedModel;
use super::output;
use super::probe::largest_difference;
use crate::atomic::{Temporary, temporary_name};
use crate::error::{Error, Result};
use crate::model::weights::gguf::{GgufAdapter, is_gguf};
use crate::model::weights::{GgufModel, TensorType};
use crate::model::{ModelSource, low_rank_layers};
use crate::ops::Numerics;
use crate::peft::files::ADAPTER_CONFIG;
use crate::report::grouped;
use crate::terminal;

/// Writes the result in `from`: a whole model, or an adapter alone or merged.
///
/// # Errors
/// `Error::Usage` for what llama.cpp has no form for, and a file that is there already; those of merging and writing.
pub(super) fn run(
    args: &ExportArgs,
    to: &Path,
    from: &Path,
    trained: Numerics,
    compute: &ComputeArgs,
) -> Result<()> {
    begin(to)?;
    let adapted = from.join(ADAPTER_CONFIG).is_file();
    if adapted && !args.merge {
        return adapter(from, to, args.dtype.unwrap_or(TensorType::F32));
    }
    let source = language_model(from, to)?;
    let name = stem(to);
    let tokenizer = source.tokenizer()?;
    let weights = source.open_weights()?;
    // What cannot be written is said before an adapter is merged.
    let model = GgufModel {
        name: &name,
        config: &source.config,
        weights: weights.as_ref(),
        tokenizer: &tokenizer,
    };
    if let Some(warning) = model.check()? {
        terminal::say(&format!("warning: {warning}"));
    }
    let merged = match adapted {
        true => temporary_beside(to)?,
        false => Temporary(None),
    };
    let folder = match adapted {
        true => {
            let export = Export {
                from,
                to: merged.path(),
                trained,
                compute,
            };
            let said = export.merged(None, args.as_trained)?;
            terminal::say(&said);
            merged.path()
        }
        false => from,
    };
    let whole = ModelSource::at(folder, None)?;
    let kind = args.dtype.unwrap_or(TensorType::F16);
    let weights = whole.open_weights()?;
    let model = GgufModel {
        name: &name,
        config: &whole.config,
        weights: weights.as_ref(),
        tokenizer: &tokenizer,
    };
    model.write(to, kind)?;
    let whole = UnloadedModel::of(whole, Numerics::default())?;
    let written = UnloadedModel::of(ModelSource::at(to, None)?, Numerics::default());
    let difference = match written {
        Ok(written) => format!(
            "; largest log-probability difference from f32: {:.1e}",
            largest_difference(&whole, &written, compute)?
        ),
        Err(_) => String::new(),
    };
    let (shown, size) = (to.display(), megabytes(to)?);
    output::print(&format!(
        "{shown}: {}, {size}{difference}\n\
         llama.cpp: llama-cli -m {shown}\n\
         Ollama:    echo \"FROM {shown}\" > Modelfile && ollama create {name} -f Modelfile && ollama run {name}\n",
        kind.name(),
    ))
}

/// Writes one LoRA adapter that stands for several, which `combine` puts into a folder.
///
/// # Errors
/// As [`run`], and those of `combine`.
pub(super) fn combined(to: &Path, combine: impl FnOnce(&Path) -> Result<String>) -> Result<()> {
    begin(to)?;
    let folder = temporary_beside(to)?;
    let said = combine(folder.path())?;
    terminal::say(&said);
    adapter(folder.path(), to, TensorType::F32)
}

/// Writes the LoRA adapter in `from`.
fn adapter(from: &Path, to: &Path, kind: TensorType) -> Result<()> {
    let source = language_model(from, to)?;
    if source.adapters.len() > 1 {
        return Err(refused(
            to,
            "the base of the adapter is another adapter; add --merge to write the whole model",
        ));
    }
    let layers = low_rank_layers(from, &source.config)?;
    let name = stem(to);
    let adapter = GgufAdapter {
        name: &name,
        config: &source.config,
        layers: &layers,
    };
    adapter.write(to, kind)?;
    let base = match is_gguf(&source.weights) {
        true => source.weights.display().to_string(),
        false => "BASE.gguf".into(),
    };
    let (shown, size) = (to.display(), megabytes(to)?);
    output::print(&format!(
        "{shown}: LoRA on {} layers, {}, {size}; {base} stands for its base\n\
         llama.cpp: llama-cli -m {base} --lora {shown}\n\
         Ollama:    printf 'FROM {base}\\nADAPTER {shown}\\n' > Modelfile && ollama create {name} -f Modelfile && ollama run {name}\n",
        layers.len(),
        kind.name(),
    ))
}

/// Refuses a file that is there, and makes the folders above it.
fn begin(to: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        return Err(refused(to, "already exists"));
    }
    match to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => fs::create_dir_all(parent).map_err(Error::io("create", parent)),
        None => Ok(()),
    }
}

/// The model in `from`, unless it is one with a score head.
fn language_model(from: &Path, to: &Path) -> Result<ModelSource> {
    let source = ModelSource::at(from, None)?;
    match source.score_head()? {
        None => Ok(source),
        Some(_) => Err(refused(
            to,
            "the stage's result is a reward model, and llama.cpp has none with a score head",
        )),
    }
}

fn refused(to: &Path, message: &str) -> Error {
    Error::Usage(format!("--to {}: {message}", to.display()))
}

/// A folder beside the file to write, which goes when it is dropped.
fn temporary_beside(to: &Path) -> Result<Temporary> {
    let to = std::path::absolute(to).map_err(Error::io("find", to))?;
    let folder = Temporary(Some(temporary_name(&to)?));
    fs::create_dir(folder.path()).map_err(Error::io("create", folder.path()))?;
    Ok(folder)
}

fn stem(to: &Path) -> String {
    let stem = to.file_stem().map(|stem| stem.to_string_lossy());
    stem.unwrap_or_default().into_owned()
}

fn megabytes(file: &Path) -> Result<String> {
    let bytes = fs::metadata(file).map_err(Error::io("read", file))?.len();
    Ok(format!("{} MB", grouped(bytes.div_ceil(1_000_000))))
}
