//! `temper models`.

use std::fs;
use std::path::Path;

use clap::Args;

use super::output::print;
use crate::error::Result;
use crate::hub::{Hub, decimal};
use crate::model::manifest::{self, Source};
use crate::model::{Fetch, Finder, HubModel, Manifest, ModelSource};

/// `temper models`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper models
  temper models --fetch smollm2-135m
  temper models --fetch Qwen/Qwen3-0.6B@main
  temper models --fetch owner/name:model.Q4_K_M.gguf

A model of the Hugging Face hub is downloaded on first use, too. The cache is the one of Python's huggingface_hub (HF_HOME, HF_HUB_CACHE), and
so are HF_TOKEN or the token of `hf auth login`, HF_ENDPOINT, HF_HUB_OFFLINE=1 and HF_HUB_DISABLE_PROGRESS_BARS=1.")]
pub struct ModelsArgs {
    /// Download this model, or the newest commit of it; may be repeated
    #[arg(long, value_name = "NAME")]
    pub fetch: Vec<String>,
}

/// Lists the known models and those in the hub's cache, or downloads some.
///
/// # Errors
/// Those of [`Finder::update`]; when stdout cannot be written.
pub(super) fn run(args: &ModelsArgs) -> Result<()> {
    let hub = Hub::from_env();
    if args.fetch.is_empty() {
        return print(&listing(&Finder::with_hub(hub.clone(), Fetch::All), &hub));
    }
    let finder = Finder::with_hub(hub, Fetch::All);
    for name in &args.fetch {
        let source = finder.update(name)?;
        print(&fetched(name, &source))?;
    }
    Ok(())
}

/// Where a model lies, with the adapters on it.
fn fetched(name: &str, source: &ModelSource) -> String {
    let folders = source.adapters.iter().rev().chain([&source.dir]);
    folders
        .map(|folder| {
            format!(
                "{name}: {} ({})\n",
                folder.display(),
                decimal(bytes_in(folder))
            )
        })
        .collect()
}

/// Two lines a model, of at most 80 columns.
fn listing(finder: &Finder, hub: &Hub) -> String {
    let row = |name: &str, disk: &str, about: &str, licence: &str| {
        let line = format!("{name:<16} {disk:<9} {about:<33} {licence}");
        format!("{}\n", line.trim_end())
    };
    let mut text = row("name", "on disk", "about", "licence");
    let mut listed = Vec::new();
    for model in manifest::list() {
        let of_hub = HubModel::of(&model);
        let disk = match (&model.source, finder.on_disk(&model)) {
            (Source::Embedded, _) => "built in".to_owned(),
            (_, Some(folder)) => decimal(bytes_in(&folder)),
            (_, None) => "-".to_owned(),
        };
        text.push_str(&row(&model.name, &disk, &model.about, &model.licence));
        text.push_str(&row("", "", &origin(&model), ""));
        listed.extend(of_hub.map(|of| of.repo.id));
    }
    let mut others = hub.cached_models();
    others.retain(|cached| !listed.contains(&cached.id));
    if !others.is_empty() {
        let cache = hub.settings().cache.display();
        text.push_str(&format!("\nothers in the cache of the hub, {cache}\n"));
    }
    for cached in others {
        text.push_str(&format!("{:<26} {}\n", decimal(cached.bytes), cached.id));
    }
    text.push_str(
        "\nAny model of the hub goes by owner/name[@revision][:file.gguf], and is\n\
         downloaded on first use, or by: temper models --fetch NAME\n",
    );
    text
}

fn origin(model: &Manifest) -> String {
    match &model.source {
        Source::Embedded => model.how.clone(),
        Source::Local => format!("to be converted: --fetch {} says how", model.name),
        Source::Hub { repo, revision } => format!("{repo}@{revision}"),
    }
}

/// Bytes of the files in a folder, links followed.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().filter_map(|entry| {
        let data = fs::metadata(entry.path()).ok()?;
        data.is_file().then_some(data.len())
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubSettings;

    #[test]
    fn the_list_fits_80_columns() {
        let root = tempfile::tempdir().unwrap();
        let blobs = root.path().join("models--me--other/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("x"), [0; 2000]).unwrap();
        let hub = Hub::new(HubSettings {
            cache: root.path().to_path_buf(),
            ..HubSettings::from_env()
        });
        let text = listing(&Finder::with_hub(hub.clone(), Fetch::All), &hub);
        let of_the_cache = root.path().to_str().unwrap();
        for line in text.lines().filter(|line| !line.contains(of_the_cache)) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for part in [
            " 135 M parameters, chat, 269 MB    Apache-2.0\n",
            "HuggingFaceTB/SmolLM2-135M-Instruct@main\n",
            "tiny             built in  ",
            "2.00 kB                    me/other\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
