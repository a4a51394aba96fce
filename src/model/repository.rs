//! A repository of the hub as a model: which of its files are the configuration, the tokenizer and the weights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::files::{AbsentWeights, Fetch, ModelFiles};
use super::manifest;
use super::offset::SIDECAR;
use super::presence::{INDEX, has, has_model, is_whole};
use super::reference::HubModel;
use super::weights::gguf::parts_of;
use super::weights::safetensors;
use crate::data::{Tokenizer, is_tokenizer_file};
use crate::error::{Error, Result};
use crate::hub::{Hub, HubError, Listing, MAIN, Reason, Repo, decimal};
use crate::peft::bottleneck_files;
use crate::peft::files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::suggest::did_you_mean;

/// The weights of a repository.
#[derive(Debug, PartialEq, Eq)]
enum Weights {
    /// These files.
    Files(Vec<String>),
    /// The shards that [`INDEX`] names.
    Sharded,
}

/// The model in the cache, if it is whole.
pub(super) fn cached(hub: &Hub, model: &HubModel) -> Option<ModelFiles> {
    let folder = hub.snapshot(&model.repo)?;
    let whole = match &model.file {
        Some(file) => parts_of(file).iter().all(|part| has(&folder, part)),
        None => is_whole(&folder),
    };
    whole.then(|| files(model, folder, None))
}

/// Downloads what the cache does not have of a model. `check` refuses the folder of a configuration that is not supported.
///
/// # Errors
/// `Error::Usage` for a repository that is not there, is refused, or holds no weights that are read; `Error::Hub`; `Error::Format`
/// for a configuration that is not supported, before any weights are downloaded.
pub(super) fn download(
    hub: &Hub,
    model: &HubModel,
    fetch: Fetch,
    check: &dyn Fn(&Path) -> Result<()>,
) -> Result<ModelFiles> {
    let repo = &model.repo;
    let listing = match hub.listing(repo) {
        Ok(listing) => listing,
        Err(error) => {
            // The cache may have all that the repository has: not every model comes with a tokenizer.
            let unreachable = matches!(error.reason, Reason::Unreachable | Reason::Offline);
            let folder = hub.snapshot(repo).filter(|folder| has_model(folder));
            return match folder.filter(|_| unreachable && model.file.is_none()) {
                Some(folder) => Ok(files(model, folder, None)),
                None => Err(refused(model, error)),
            };
        }
    };
    let weights = Weights::of(model, &listing)?;
    let names = listing.files.iter().map(|file| &file.name);
    let description: Vec<String> = names.filter(|name| is_description(name)).cloned().collect();
    let folder = hub.files(repo, &listing, &description)?;
    let is_adapter = model.file.is_none() && has(&folder, ADAPTER_CONFIG);
    // A GGUF file holds what the repository may lack: configuration and tokenizer.
    let is_gguf = matches!(&weights, Weights::Files(files) if files[0].ends_with(".gguf"));
    let described =
        is_adapter || has(&folder, "config.json") && (!is_gguf || Tokenizer::is_in(&folder));
    if has(&folder, "config.json") && !is_adapter {
        check(&folder)?;
    }
    let weights = match weights {
        Weights::Files(files) => files,
        Weights::Sharded => {
            let shards = safetensors::shards(&folder.join(INDEX))?;
            shards.into_iter().collect()
        }
    };
    let bytes = |name: &String| listing.file(name).map_or(0, |file| file.bytes);
    let absent: Vec<&String> = weights.iter().filter(|name| !has(&folder, name)).collect();
    let absent = AbsentWeights {
        model: model.to_string(),
        bytes: absent.into_iter().map(bytes).sum(),
    };
    match fetch {
        Fetch::Description if !described => Err(Error::Usage(format!(
            "model {model}: the repository has no configuration or no tokenizer beside the weights, {}, which hold them; download them with: temper models --fetch {model}",
            decimal(absent.bytes)
        ))),
        Fetch::Description | Fetch::Check if described => {
            let absent = Some(absent).filter(|absent| absent.bytes > 0);
            Ok(files(model, folder, absent))
        }
        _ => {
            let folder = hub.files(repo, &listing, &weights)?;
            Ok(files(model, folder, None))
        }
    }
}

fn files(model: &HubModel, folder: PathBuf, absent: Option<AbsentWeights>) -> ModelFiles {
    ModelFiles {
        name: model.to_string(),
        weights: match &model.file {
            Some(file) => folder.join(file),
            None => folder.clone(),
        },
        dir: folder,
        hub: Some(model.clone()),
        absent,
    }
}

/// Whether a file of a repository is part of the configuration or the tokenizer.
fn is_description(name: &str) -> bool {
    is_tokenizer_file(name) || matches!(name, "config.json" | ADAPTER_CONFIG | SIDECAR | INDEX)
}

impl Weights {
    /// The weights that `model` means.
    ///
    /// # Errors
    /// `Error::Usage` if there are none, several, or pickled ones alone.
    fn of(model: &HubModel, listing: &Listing) -> Result<Self> {
        let has = |name: &str| listing.file(name).is_some();
        let wrong = |message: String| Err(Error::Usage(format!("model {model}: {message}")));
        let all = |ending: &str| -> Vec<&str> {
            let names = listing.files.iter().map(|file| file.name.as_str());
            names.filter(|name| name.ends_with(ending)).collect()
        };
        let named = |file: &str| {
            let files = parts_of(file);
            let Some(part) = files.iter().find(|part| !has(part)) else {
                return Ok(Self::Files(files));
            };
            let known = [all(".gguf"), all(".safetensors")].concat();
            let help = match did_you_mean(file, known.iter().copied()) {
                Some(help) => help,
                None => format!("it has {}", listed(&known)),
            };
            wrong(format!("the repository has no file {part}; {help}"))
        };
        if let Some(file) = &model.file {
            return match is_pickled(file) {
                true => wrong(pickled(&model.repo, file)),
                false => named(file),
            };
        }
        let safe = match has(ADAPTER_CONFIG) {
            true if has(bottleneck_files::WEIGHTS) => bottleneck_files::WEIGHTS,
            true => ADAPTER_WEIGHTS,
            false => "model.safetensors",
        };
        if has(safe) {
            return Ok(Self::Files(vec![safe.to_owned()]));
        }
        if has(INDEX) {
            return Ok(Self::Sharded);
        }
        // Parts of a split file are one.
        let gguf: BTreeSet<String> = (all(".gguf").into_iter())
            .filter_map(|file| parts_of(file).into_iter().next())
            .collect();
        let gguf: Vec<&str> = gguf.iter().map(String::as_str).collect();
        if let [one] = gguf.as_slice() {
            return named(one);
        }
        if !gguf.is_empty() {
            return wrong(format!(
                "the repository has {} GGUF files; name one, as {}:{}. There are {}",
                gguf.len(),
                model.repo,
                gguf[0],
                listed(&gguf)
            ));
        }
        let names = listing.files.iter().map(|file| file.name.as_str());
        match names.into_iter().find(|name| is_pickled(name)) {
            Some(file) => wrong(pickled(&model.repo, file)),
            None => wrong(format!(
                "the repository has no weights that are read: no {safe}, {INDEX} or *.gguf"
            )),
        }
    }
}

fn is_pickled(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn pickled(repo: &Repo, file: &str) -> String {
    let from = match repo.revision.as_str() {
        MAIN => format!("\"{}\"", repo.id),
        revision => format!("\"{}\", revision=\"{revision}\"", repo.id),
    };
    format!(
        "{file} is pickled by PyTorch, which can run code, and is not read. A branch with model.safetensors may wait among the \
         repository's pull requests ({}@refs/pr/N). Or convert it once, with transformers: \
         AutoModelForCausalLM.from_pretrained({from}).save_pretrained(\"folder\"), AutoTokenizer likewise, and name the folder",
        repo.id
    )
}

/// A few names, and how many more there are.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [first @ .., _] if names.len() <= 12 => {
            let last = names[first.len()];
            match first {
                [] => last.to_owned(),
                _ => format!("{} and {last}", first.join(", ")),
            }
        }
        _ => format!("{} and {} more", names[..12].join(", "), names.len() - 12),
    }
}

/// The error for a repository that the hub does not give.
fn refused(model: &HubModel, error: HubError) -> Error {
    match error.reason {
        Reason::NoRepository => {}
        // The user may mean a path.
        Reason::Unreachable | Reason::Offline => {
            return Error::Hub {
                place: format!("model {model}"),
                message: format!(
                    "no such file or folder; as a repository of the hub: {}",
                    error.message
                ),
            };
        }
        _ => return error.into(),
    }
    let manifests = manifest::list();
    let known = manifests.iter().filter_map(HubModel::of);
    let known: Vec<String> = known.map(|model| model.repo.id).collect();
    let help = did_you_mean(&model.repo.id, known.iter().map(String::as_str));
    let help = help.map_or(String::new(), |help| format!("; {help}"));
    Error::Usage(format!(
        "model {model}: no such file or folder, and {}{help}",
        error.message
    ))
}

#[cfg(test)]
mod tests;
