//! The files of a tokenizer: read from one folder or several layered ones, edited, written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::templates;
use crate::data::lfs_pointer;
use crate::error::{Error, Result};
use crate::outside;

/// `tokenizer_config.json`
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// `special_tokens_map.json`
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
/// `added_tokens.json`
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
/// `generation_config.json`
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
/// `config.json`: read for EOS and vocabulary size; never written, since it belongs to the model.
pub(super) const MODEL_CONFIG: &str = "config.json";

/// Files of a vocabulary; they belong together.
const VOCABULARY: [&str; 6] = [
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
];
/// Files with properties of tokens.
const TOKENS: [&str; 3] = [TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS];
/// Files of the model.
const MODEL: [&str; 2] = [GENERATION_CONFIG, MODEL_CONFIG];

/// Whether a file with this path is read as part of a tokenizer, or of the model's configuration beside it.
pub(crate) fn is_tokenizer_file(path: &str) -> bool {
    let names = VOCABULARY.iter().chain(&TOKENS).chain(&MODEL);
    names.chain(&templates::FILES).any(|name| path == *name)
        || (path.strip_prefix(templates::FOLDER))
            .is_some_and(|file| file.starts_with('/') && file.ends_with(".jinja"))
}

/// Files by name, each with its folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    bytes: BTreeMap<String, Vec<u8>>,
    folders: BTreeMap<String, PathBuf>,
    origin: PathBuf,
}

impl Files {
    /// Files in memory; `origin`: the path for error messages.
    pub(super) fn new(bytes: BTreeMap<String, Vec<u8>>, origin: &Path) -> Self {
        Self {
            bytes,
            folders: BTreeMap::new(),
            origin: origin.to_path_buf(),
        }
    }

    /// A hash of all names and contents.
    pub(super) fn hash(&self) -> Sha256 {
        let mut hash = Sha256::new();
        for (name, content) in &self.bytes {
            for part in [name.as_bytes(), content] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash
    }

    /// Whether a folder has a vocabulary.
    pub(super) fn any_in(folder: &Path) -> bool {
        VOCABULARY.iter().any(|name| folder.join(name).exists())
    }

    /// The files of a tokenizer in `folder`.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut bytes = BTreeMap::new();
        let mut keep = |name: String, path: &Path| -> Result<()> {
            let content = outside::read(path, outside::TABLES)?;
            if let Some(error) = lfs_pointer(path, &content) {
                return Err(error);
            }
            bytes.insert(name, content);
            Ok(())
        };
        let names = VOCABULARY.iter().chain(&TOKENS).chain(&MODEL);
        for name in names.chain(&templates::FILES) {
            let path = folder.join(name);
            // What is there and no regular file is refused, not left out.
            if path.exists() {
                keep((*name).to_owned(), &path)?;
            }
        }
        let more = folder.join(templates::FOLDER);
        if more.is_dir() {
            for entry in fs::read_dir(&more).map_err(Error::io("read", &more))? {
                let path = entry.map_err(Error::io("read", &more))?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(name) = name.filter(|name| name.ends_with(".jinja") && path.is_file()) {
                    keep(format!("{}/{name}", templates::FOLDER), &path)?;
                }
            }
        }
        Ok(Self::new(bytes, folder))
    }

    /// The files of layered folders, where earlier ones override later ones: the vocabulary of the first folder that has one, with the
    /// token properties in that folder and those before it; the templates of the first folder with any; each of the model's files
    /// from the first folder that has it.
    ///
    /// # Errors
    /// `Error::Io`, and if a template file does not parse.
    pub(super) fn layered(folders: &[&Path]) -> Result<Self> {
        let layers = folders
            .iter()
            .map(|folder| Self::read(folder))
            .collect::<Result<Vec<_>>>()?;
        let Some(first) = layers.first() else {
            return Err(Error::Usage("a tokenizer needs a folder".into()));
        };
        if layers.len() == 1 {
            return Ok(first.clone());
        }
        let has_vocabulary = |files: &Self| VOCABULARY.iter().any(|name| files.has(name));
        let owner = layers.iter().position(has_vocabulary);
        let origin = owner.map_or(&first.origin, |at| &layers[at].origin);
        let mut merged = Self::new(BTreeMap::new(), origin);
        let upper = &layers[..owner.map_or(0, |at| at + 1)];
        for name in VOCABULARY {
            merged.take(name, upper.last());
        }
        for name in TOKENS {
            merged.take(name, upper.iter().find(|files| files.has(name)));
        }
        // A vocabulary alone does not define the EOS.
        if !merged.has(TOKENIZER_CONFIG) {
            let below = layers.iter().find(|files| files.has(TOKENIZER_CONFIG));
            merged.take(TOKENIZER_CONFIG, below);
        }
        for name in MODEL {
            merged.take(name, layers.iter().find(|files| files.has(name)));
        }
        for layer in &layers {
            let found = templates::find(layer)?;
            if found.is_empty() {
                continue;
            }
            let names: Vec<String> = layer.bytes.keys().cloned().collect();
            for name in names.iter().filter(|name| templates::is_template(name)) {
                merged.take(name, Some(layer));
            }
            // A template in an overridden configuration moves into a file of its own.
            if templates::find(&merged)? != found {
                merged.bytes.retain(|name, _| !templates::is_template(name));
                for (name, template) in &found {
                    let file = templates::file_name(name);
                    merged
                        .folders
                        .insert(file.clone(), layer.folder(templates::FILES[0]));
                    merged.bytes.insert(file, template.source.clone().into());
                }
            }
            break;
        }
        Ok(merged)
    }

    fn take(&mut self, name: &str, from: Option<&Self>) {
        if let Some((files, bytes)) = from.and_then(|files| Some((files, files.get(name)?))) {
            self.bytes.insert(name.to_owned(), bytes.to_vec());
            self.folders.insert(name.to_owned(), files.folder(name));
        }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folders.get(name).unwrap_or(&self.origin).clone()
    }

    /// The path for errors that concern no single file.
    pub(super) fn origin(&self) -> &Path {
        &self.origin
    }

    /// Path of a file, present or not.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder(name).join(name)
    }

    /// Whether there is such a file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.bytes.contains_key(name)
    }

    /// A file's content.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.bytes.get(name).map(Vec::as_slice)
    }

    /// The names of all files.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.bytes.keys().map(String::as_str)
    }

    /// A file as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .map_err(|e| Error::format(self.path(name), format!("expected UTF-8: {e}")))
        };
        self.get(name).map(text).transpose()
    }

    /// A file as a JSON object; an empty one if there is no such file.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn object(&self, name: &str) -> Result<Map<String, Value>> {
        match self.get(name) {
            None => Ok(Map::new()),
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|e| Error::format(self.path(name), e.to_string())),
        }
    }

    /// Rows of the model's embedding, from its configuration.
    ///
    /// # Errors
    /// As [`Files::object`].
    pub(super) fn embedding_rows(&self) -> Result<Option<usize>> {
        let config = self.object(MODEL_CONFIG)?;
        let text = config.get("text_config");
        let rows = config
            .get("vocab_size")
            .or_else(|| text.and_then(|text| text.get("vocab_size")));
        let rows = rows.and_then(Value::as_u64);
        Ok(rows.and_then(|rows| usize::try_from(rows).ok()))
    }

    /// Sets a file's content to an object.
    pub(super) fn set(&mut self, name: &str, object: Map<String, Value>) {
        let text = format!("{:#}\n", Value::Object(object));
        self.bytes.insert(name.to_owned(), text.into_bytes());
    }

    /// Writes all files but the model's `config.json` into `folder`.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for (name, bytes) in self.bytes.iter().filter(|(name, _)| *name != MODEL_CONFIG) {
            let path = folder.join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != folder) {
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}
