//! `temper export --push`: the exported files and their model card, uploaded to the hub.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{ComputeArgs, ExportArgs};
use super::card::{CARD, CardOf};
use super::export::write;
use super::output;
use crate::atomic::{Temporary, temporary_name, write_atomic};
use crate::error::{Error, Result};
use crate::hub::{Hub, MAIN, Push, PushFile, Pushed, Repo, decimal};
use crate::model::weights::gguf::is_gguf;
use crate::peft::files::ADAPTER_CONFIG;

/// Options of an upload.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hub")]
pub struct PushArgs {
    /// Upload to this model repository of the hub, owner/name; it is made, private, if it does not exist. The token is HF_TOKEN, or the one
    /// that `hf auth login` stored
    #[arg(long, value_name = "OWNER/NAME", value_parser = repository)]
    pub push: Option<String>,
    /// Make a new repository public
    #[arg(long, requires = "push")]
    pub public: bool,
    /// The branch to commit to; it is made if it does not exist
    #[arg(long, value_name = "BRANCH", default_value = MAIN, requires = "push")]
    pub revision: String,
}

fn repository(text: &str) -> std::result::Result<String, String> {
    match Repo::is_id(text) {
        true => Ok(text.to_owned()),
        false => Err("expected owner/name of letters, digits, `-`, `_` and `.`".into()),
    }
}

/// Exports and uploads.
///
/// # Errors
/// Those of the export, before anything is sent; those of the upload.
pub(super) fn run(args: &ExportArgs, repo: &str, compute: &ComputeArgs) -> Result<()> {
    let hub = Hub::from_env();
    let target = Repo::model(repo, args.push.revision.as_str());
    // Before hours of merging.
    hub.may_push(&target)?;
    let mut temporary = None;
    let to = match &args.to {
        Some(to) => to.clone(),
        None => {
            let beside = args.run.clone().unwrap_or_default().join("push");
            temporary
                .insert(Temporary(Some(temporary_name(&beside)?)))
                .path()
                .to_path_buf()
        }
    };
    if is_exported(&to) {
        eprintln!("{}: exists, and is uploaded as it is", to.display());
    } else {
        write(args, &to, Some((repo, &hub)), compute)?;
    }
    let card_folder;
    let mut files = match is_gguf(&to) {
        true => {
            card_folder = Temporary(Some(temporary_name(&to.with_file_name("card"))?));
            gguf_with_card(args, &to, (repo, &hub), card_folder.path())?
        }
        false => files_below(&to)?,
    };
    files.sort_by(|left, right| left.name.cmp(&right.name));
    let summary = match &args.stage {
        Some(stage) => format!(
            "Upload {stage} with tempering {}",
            env!("CARGO_PKG_VERSION")
        ),
        None => format!("Upload with tempering {}", env!("CARGO_PKG_VERSION")),
    };
    let pushed = hub.push(&Push {
        repo: &target,
        files: &files,
        private: !args.push.public,
        summary: &summary,
    })?;
    if args.push.public && !pushed.created {
        eprintln!("{repo} exists: --public changes nothing of who may see it");
    }
    output::print(&said(&pushed, !args.push.public))
}

/// What came of it, in a line or two.
fn said(pushed: &Pushed, private: bool) -> String {
    let mut parts = Vec::new();
    match &pushed.commit {
        Some(commit) => parts.push(format!(
            "{} files committed as {}, {} sent",
            pushed.committed,
            commit.get(..12).unwrap_or(commit),
            decimal(pushed.sent)
        )),
        None => parts.push("nothing to commit: the branch has all files as they are".to_owned()),
    }
    if pushed.present > 0 {
        parts.push(format!("{} large files were there already", pushed.present));
    }
    if pushed.unchanged > 0 && pushed.commit.is_some() {
        parts.push(format!("{} files unchanged", pushed.unchanged));
    }
    if pushed.ignored > 0 {
        parts.push(format!(
            "{} files left out by the repository's .gitignore",
            pushed.ignored
        ));
    }
    let created = match (pushed.created, private) {
        (true, true) => " (new, private)",
        (true, false) => " (new, public)",
        (false, _) => "",
    };
    format!("{}{created}: {}\n", pushed.page, parts.join("; "))
}

/// Whether the folder holds an export, or the GGUF file is there.
fn is_exported(to: &Path) -> bool {
    match is_gguf(to) {
        true => to.is_file(),
        false => to.join("config.json").is_file() || to.join(ADAPTER_CONFIG).is_file(),
    }
}

/// The files below a folder, hidden ones aside.
fn files_below(folder: &Path) -> Result<Vec<PushFile>> {
    let mut files = Vec::new();
    let mut folders: Vec<(PathBuf, String)> = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let path = entry.map_err(Error::io("read", &folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            match path.is_dir() {
                true => folders.push((path, format!("{name}/"))),
                false => files.push(PushFile { name, path }),
            }
        }
    }
    Ok(files)
}

/// The GGUF file, and a card if it is of a run.
fn gguf_with_card(
    args: &ExportArgs,
    to: &Path,
    (repo, hub): (&str, &Hub),
    folder: &Path,
) -> Result<Vec<PushFile>> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let mut files = vec![PushFile {
        name: name.into_owned(),
        path: to.to_path_buf(),
    }];
    if let (Some(run), Some(stage)) = (&args.run, &args.stage) {
        let card = CardOf {
            run,
            stage,
            library: "gguf",
            repo: Some(repo),
            hub: Some(hub),
        };
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(CARD);
        write_atomic(&path, card.text()?.as_bytes())?;
        files.push(PushFile {
            name: CARD.into(),
            path,
        });
    }
    Ok(files)
}
