//! Models known by name: the manifests under `models/`, and the folders that hold them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ron::extensions::Extensions;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::presence::is_whole;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::outside;

/// Description of a model known by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The name.
    pub name: String,
    /// `model_type` of its `config.json`.
    pub family: String,
    /// One-line description.
    pub about: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Origin of its files.
    pub source: Source,
    /// Instructions for getting the files.
    pub how: String,
}

/// Origin of a model's files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Source {
    /// Embedded in the program.
    Embedded,
    /// Provided by the user.
    Local,
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

/// The texts of all manifests.
const MANIFESTS: [&str; 9] = [
    include_str!("../../models/tiny/manifest.ron"),
    include_str!("../../models/smollm2-135m/manifest.ron"),
    include_str!("../../models/qwen3-0.6b-base/manifest.ron"),
    include_str!("../../models/qwen3-0.6b/manifest.ron"),
    include_str!("../../models/qwen2.5-0.5b/manifest.ron"),
    include_str!("../../models/gpt2/manifest.ron"),
    include_str!("../../models/pythia-160m/manifest.ron"),
    include_str!("../../models/pythia-1b/manifest.ron"),
    include_str!("../../models/opt-125m/manifest.ron"),
];

/// The files of `models/tiny/`; empty if the model has not been trained yet.
const EMBEDDED: [(&str, &[u8]); 4] = [
    (
        "config.json",
        include_bytes!("../../models/tiny/config.json"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../models/tiny/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../models/tiny/tokenizer_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../models/tiny/model.safetensors"),
    ),
];

/// The models known by name.
pub fn list() -> Vec<Manifest> {
    let options = ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
    MANIFESTS
        .iter()
        // A unit test parses every manifest, and they cannot change after the build.
        .filter_map(|text| options.from_str(text).ok())
        .collect()
}

/// The known model with this name or Hugging Face repository (`Qwen/Qwen2.5-0.5B`).
pub fn known(name: &str) -> Option<Manifest> {
    let is_repo = |source: &Source| match source {
        Source::Hub { repo, .. } => repo.eq_ignore_ascii_case(name),
        Source::Embedded | Source::Local => false,
    };
    let mut manifests = list();
    let index = manifests
        .iter()
        .position(|model| model.name == name || is_repo(&model.source))?;
    Some(manifests.swap_remove(index))
}

/// The folder `<root>/<name>` of a known model that holds all of it; an embedded model is unpacked into the last root if there is none.
///
/// # Errors
/// `Error::Io`.
pub(super) fn folder(manifest: &Manifest) -> Result<Option<PathBuf>> {
    folder_in(manifest, &roots())
}

fn folder_in(manifest: &Manifest, roots: &[PathBuf]) -> Result<Option<PathBuf>> {
    let folders: Vec<PathBuf> = roots.iter().map(|root| root.join(&manifest.name)).collect();
    if let Some(dir) = folders.iter().find(|dir| is_whole(dir)) {
        return Ok(Some(dir.clone()));
    }
    match (&manifest.source, folders.last()) {
        (Source::Embedded, Some(dir)) if EMBEDDED.iter().all(|(_, bytes)| !bytes.is_empty()) => {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            for (name, bytes) in EMBEDDED {
                write_atomic(dir.join(name), bytes)?;
            }
            Ok(Some(dir.clone()))
        }
        _ => Ok(None),
    }
}

/// Where to put the files of a known model, for errors.
pub(super) fn place_for(manifest: &Manifest) -> String {
    let folders = roots().map(|root| root.join(&manifest.name).display().to_string());
    format!(
        "put config.json, the files of the tokenizer and the weights into {} ({})",
        folders.join(" or "),
        manifest.how
    )
}

/// The folders with known models, each in a subfolder of its name.
fn roots() -> [PathBuf; 2] {
    [PathBuf::from("models"), home().join("models")]
}

/// `$TEMPERING_HOME`, else `tempering` in the user's cache folder (`~/.cache/tempering`).
pub fn home() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    variable("TEMPERING_HOME").map_or_else(
        || {
            variable("XDG_CACHE_HOME")
                .or_else(|| variable("LOCALAPPDATA"))
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
                .unwrap_or_else(std::env::temp_dir)
                .join("tempering")
        },
        PathBuf::from,
    )
}

/// The SHA-256 of a file in hexadecimal.
///
/// # Errors
/// `Error::Io`.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut file = outside::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::families;

    #[test]
    fn every_manifest_parses() {
        let names: Vec<String> = list().into_iter().map(|m| m.name).collect();
        assert_eq!(
            names,
            [
                "tiny",
                "smollm2-135m",
                "qwen3-0.6b-base",
                "qwen3-0.6b",
                "qwen2.5-0.5b",
                "gpt2",
                "pythia-160m",
                "pythia-1b",
                "opt-125m"
            ]
        );
        for manifest in list() {
            let known = families().any(|family| family == manifest.family);
            assert!(known, "{}", manifest.name);
        }
    }

    #[test]
    fn a_known_model_goes_by_its_repository_too() {
        let name = |repo: &str| known(repo).map(|manifest| manifest.name);
        assert_eq!(name("Qwen/Qwen2.5-0.5B").as_deref(), Some("qwen2.5-0.5b"));
        assert_eq!(name("qwen2.5-0.5b").as_deref(), Some("qwen2.5-0.5b"));
        // The instruction-tuned one is another model.
        assert_eq!(name("Qwen/Qwen2.5-0.5B-Instruct"), None);
    }

    #[test]
    fn a_local_model_is_found_when_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let roots = ["first", "second"].map(|r| root.path().join(r));
        let manifest = list().remove(1);
        let dir = roots[1].join("smollm2-135m");
        fs::create_dir_all(&dir).unwrap();
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::write(dir.join(file), b"{}").unwrap();
        }
        let gguf = dir.join("SmolLM2-135M-Instruct.Q4_1.gguf");
        fs::write(&gguf, b"").unwrap();
        assert_eq!(folder_in(&manifest, &roots).unwrap(), None);
        let help = place_for(&manifest);
        assert!(
            help.contains("weights into models/smollm2-135m or "),
            "{help}"
        );
        fs::write(&gguf, b"GGUF").unwrap();
        assert_eq!(folder_in(&manifest, &roots).unwrap(), Some(dir));
    }
}
