//! A user's words for a model: a path, a name of `temper models`, or a repository of the hub.

use std::fmt;
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest, Source};
use crate::error::{Error, Result};
use crate::hub::{MAIN, Repo};
use crate::suggest::{did_you_mean, quoted};

/// A model as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A file or folder that exists.
    Path(PathBuf),
    /// A model known by name.
    Known(Manifest),
    /// A repository of the hub: `owner/name`, `owner/name@revision`, `owner/name:file.gguf`, `owner/name@revision:file.gguf`.
    Hub(HubModel),
}

/// A model of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The repository, with its revision.
    pub repo: Repo,
    /// The weight file that is meant, where the repository holds several models.
    pub file: Option<String>,
}

/// Endings of files that a user has, rather than of names of repositories.
const FILE_ENDINGS: [&str; 7] = [
    ".gguf",
    ".safetensors",
    ".json",
    ".bin",
    ".pt",
    ".pth",
    ".jsonl",
];

impl Reference {
    /// What `text` means. What exists as a path is that path, whatever else has the name.
    ///
    /// # Errors
    /// `Error::Usage` for a path that does not exist and for an unknown name.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.exists() {
            return Ok(Self::Path(path.to_path_buf()));
        }
        if let Some(found) = Self::by_name(text) {
            return Ok(found);
        }
        if text.contains(['/', '\\']) {
            return Err(Error::Usage(format!(
                "model {text}: no such file or folder, and not the name of a repository of the hub, `owner/name`"
            )));
        }
        let manifests = manifest::list();
        let names = || manifests.iter().map(|model| model.name.as_str());
        let help = match did_you_mean(text, names()) {
            Some(help) => help,
            None => format!(
                "expected one of {}, or `owner/name` of a repository of the hub",
                quoted(names())
            ),
        };
        Err(Error::Usage(format!(
            "model {text}: neither a file or folder nor a known model; {help}"
        )))
    }

    /// A known model, or a repository of the hub; `None` for anything else.
    pub fn by_name(text: &str) -> Option<Self> {
        if let Some(known) = manifest::known(text) {
            return Some(Self::Known(known));
        }
        HubModel::parse(text).map(Self::Hub)
    }
}

impl HubModel {
    /// The model that `owner/name[@revision][:file]` means, also as the address of a page, `https://huggingface.co/owner/name`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = ["https://huggingface.co/", "hf.co/", "hf://"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (id, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        let is_file = file.is_none() && FILE_ENDINGS.iter().any(|ending| id.ends_with(ending));
        if !Repo::is_id(id) || is_file || revision.is_empty() || file == Some("") {
            return None;
        }
        Some(Self {
            repo: Repo::model(id, revision),
            file: file.map(str::to_owned),
        })
    }

    /// The repository of a known model.
    pub fn of(manifest: &Manifest) -> Option<Self> {
        match &manifest.source {
            Source::Hub { repo, revision } => Some(Self {
                repo: Repo::model(repo, revision),
                file: None,
            }),
            Source::Embedded | Source::Local => None,
        }
    }
}

/// As the user writes it.
impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => self.repo.fmt(f),
            Some(file) => write!(f, "{}:{file}", self.repo),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_revisions_and_files() {
        let parse = |text: &str| {
            let model = HubModel::parse(text)?;
            Some((model.repo.id, model.repo.revision, model.file))
        };
        let of = |id: &str, revision: &str, file: Option<&str>| {
            Some((id.to_owned(), revision.to_owned(), file.map(str::to_owned)))
        };
        assert_eq!(parse("me/m"), of("me/m", "main", None));
        assert_eq!(parse("me/m@refs/pr/1"), of("me/m", "refs/pr/1", None));
        assert_eq!(parse("me/m:a/b.gguf"), of("me/m", "main", Some("a/b.gguf")));
        assert_eq!(parse("me/m@v1:b.gguf"), of("me/m", "v1", Some("b.gguf")));
        assert_eq!(
            parse("https://huggingface.co/me/m"),
            of("me/m", "main", None)
        );
        for other in [
            "m",
            "a/b/c",
            "./m",
            "../m",
            "/m",
            "me/m@",
            "me/m:",
            "runs/m.gguf",
            "C:/m",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        let text = "me/m@v1:b.gguf";
        assert_eq!(HubModel::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn what_exists_is_a_path() {
        let root = tempfile::tempdir().unwrap();
        let text = root.path().to_str().unwrap();
        assert_eq!(
            Reference::parse(text).unwrap(),
            Reference::Path(root.path().into())
        );
        let known = Reference::parse("Qwen/Qwen2.5-0.5B").unwrap();
        assert!(matches!(known, Reference::Known(manifest) if manifest.name == "qwen2.5-0.5b"));
        // At another revision it is a repository like others.
        let other = Reference::parse("Qwen/Qwen2.5-0.5B@v1").unwrap();
        assert!(matches!(other, Reference::Hub(model) if model.repo.revision == "v1"));
        let message = |text: &str| Reference::parse(text).unwrap_err().to_string();
        assert!(message("no/such/folder").contains("no such file or folder"));
        let unknown = message("unheard-of");
        assert!(
            unknown.contains("nor a known model; expected one of `tiny`, `smollm2-135m`"),
            "{unknown}"
        );
        let near = message("smolm2-135m");
        assert!(near.ends_with("did you mean `smollm2-135m`?"), "{near}");
    }
}
