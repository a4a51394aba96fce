//! `temper export --to NAME.gguf`: a stage's result for llama.cpp and Ollama.

use std::fs;
use std::path::Path;

use super::args::{ComputeArgs, ExportArgs};
use super::export::{Export, largest_difference};
use super::model::UnloadedModel;
use super::output;
use crate::atomic::{Temporary, temporary_name};
use crate::error::{Error, Result};
use crate::model::ModelSource;
use crate::model::weights::{GgufModel, TensorType};
use crate::ops::Numerics;
use crate::peft::files::ADAPTER_CONFIG;
use crate::report::grouped;

/// Writes the result in `from`, its adapter merged.
///
/// # Errors
/// `Error::Usage` for what llama.cpp has no form for, and a file that is there already; those of merging and writing.
pub(super) fn run(
    args: &ExportArgs,
    from: &Path,
    trained: Numerics,
    compute: &ComputeArgs,
) -> Result<()> {
    let to = args.to.as_path();
    let refuse = |message: &str| Err(Error::Usage(format!("--to {}: {message}", to.display())));
    if to.symlink_metadata().is_ok() {
        return refuse("already exists");
    }
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let source = ModelSource::at(from, None)?;
    if source.score_head()?.is_some() {
        return refuse(
            "the stage's result is a reward model, and llama.cpp has none with a score head",
        );
    }
    let name = to
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let tokenizer = source.tokenizer()?;
    let weights = source.open_weights()?;
    // What cannot be written is said before an adapter is merged.
    let model = GgufModel {
        name: &name,
        config: &source.config,
        weights: weights.as_ref(),
        tokenizer: &tokenizer,
    };
    model.check()?;
    let adapted = from.join(ADAPTER_CONFIG).is_file();
    if adapted && !args.merge {
        return refuse("the stage's result is an adapter; add --merge to write the whole model");
    }
    let merged = Temporary(match adapted {
        true => Some(temporary_name(
            &std::path::absolute(to).map_err(Error::io("find", to))?,
        )?),
        false => None,
    });
    let folder = match adapted {
        true => {
            fs::create_dir(merged.path()).map_err(Error::io("create", merged.path()))?;
            let export = Export {
                from,
                to: merged.path(),
                trained,
                compute,
            };
            let said = export.merged(None, args.as_trained)?;
            eprintln!("{said}");
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
    let bytes = fs::metadata(to).map_err(Error::io("read", to))?.len();
    let whole = UnloadedModel::of(whole, Numerics::default())?;
    let written = UnloadedModel::of(ModelSource::at(to, None)?, Numerics::default());
    let difference = match written {
        Ok(written) => format!(
            "; largest log-probability difference from f32: {:.1e}",
            largest_difference(&whole, &written, compute)?
        ),
        Err(_) => String::new(),
    };
    let shown = to.display();
    output::print(&format!(
        "{shown}: {}, {} MB{difference}\n\
         llama.cpp: llama-cli -m {shown}\n\
         Ollama:    echo \"FROM {shown}\" > Modelfile && ollama create {name} -f Modelfile && ollama run {name}\n",
        kind.name(),
        grouped(bytes.div_ceil(1_000_000)),
    ))
}
