//! Folders and patterns as lists of files of rows.

use std::fs;
use std::path::{Path, PathBuf};

use super::{by_name, text};
use crate::error::{Error, Result};
use crate::suggest::nearest;

/// Most file names listed for a folder.
const MAX_NAMES: usize = 5;

/// A split of a data set, as file names tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    /// The words that stand for it in names of files and splits.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "training"],
            Self::Validation => &["validation", "valid", "val", "dev", "eval", "evaluation"],
            Self::Test => &["test", "testing"],
        }
    }

    /// The split that a name's words tell, such as `train` of `train-00000-of-00001.parquet`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphabetic()).collect();
        let all = [Self::Train, Self::Validation, Self::Test];
        (all.into_iter()).find(|split| split.words().iter().any(|word| words.contains(word)))
    }
}

/// The files that `path` names, sorted: itself, the files of rows in a folder, or those that match a pattern with `*`, `?`, `[..]`
/// or `**`. Of a folder, text files count only where there are no others, hidden files never.
///
/// # Errors
/// `Error::Format` if there are none, and for a folder with files of several splits.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.to_string_lossy();
    if path.is_dir() {
        return in_folder(path);
    }
    if path.exists() || !name.contains(['*', '?', '[']) {
        return Ok(vec![path.to_path_buf()]);
    }
    let matches = glob::glob(&name)
        .map_err(|e| Error::format(path, format!("not a pattern of files: {e}")))?;
    let mut found = Vec::new();
    for entry in matches {
        let file = entry.map_err(|e| Error::format(e.path(), format!("cannot read it: {e}")))?;
        if file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    match found.is_empty() {
        true => Err(Error::format(path, "no file matches the pattern")),
        false => Ok(found),
    }
}

fn in_folder(path: &Path) -> Result<Vec<PathBuf>> {
    let names = data_files(names_in(path));
    let split = |name: &String| Split::of(name);
    if let Some(train) = names.iter().find(|name| split(name) == Some(Split::Train)) {
        let other = (names.iter()).find(|name| split(name).is_some_and(|of| of != Split::Train));
        if let Some(other) = other {
            let message = format!(
                "the folder holds files of several splits (`{train}`, `{other}`): name those of one, as in `{}`",
                path.join("train*").display()
            );
            return Err(Error::format(path, message));
        }
    }
    match names.is_empty() {
        true => Err(Error::format(path, folder_message(path))),
        false => Ok(names.iter().map(|name| path.join(name)).collect()),
    }
}

/// Names of files of rows among `names`, sorted: those of data formats, or else those of plain text.
pub(crate) fn data_files(names: Vec<String>) -> Vec<String> {
    let format = |name: &String| by_name(Path::new(name)).map(|format| format.name);
    let is_text = |name: &String| format(name) == Some(text::FORMAT.name);
    let any_data = names
        .iter()
        .any(|name| format(name).is_some() && !is_text(name));
    let mut kept: Vec<String> = (names.into_iter())
        .filter(|name| format(name).is_some() && !(any_data && is_text(name)))
        .collect();
    kept.sort();
    kept
}

/// Names of the files in a folder, hidden ones left out.
fn names_in(path: &Path) -> Vec<String> {
    (fs::read_dir(path).into_iter().flatten())
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            (!name.starts_with('.') && entry.path().is_file()).then_some(name)
        })
        .collect()
}

/// The message for a folder that cannot be read as a file, with its files that may hold rows.
pub(super) fn folder_message(path: &Path) -> String {
    let all = names_in(path);
    let is_data = |name: &&String| {
        by_name(Path::new(name)).is_some_and(|format| format.name != text::FORMAT.name)
    };
    let mut names: Vec<String> = all.iter().filter(is_data).cloned().collect();
    names.sort();
    let more = match names.len().saturating_sub(MAX_NAMES) {
        0 => "",
        _ => ", ..",
    };
    names.truncate(MAX_NAMES);
    match names.is_empty() {
        true => "is a folder, expected a file of rows".to_owned(),
        false => format!(
            "is a folder, expected a file of rows; it holds {}{more}",
            names.join(", ")
        ),
    }
}

/// A file beside `path` whose name is near.
pub(crate) fn suggest_file(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let names = names_in(parent.unwrap_or(Path::new(".")));
    let near = nearest(&name, names.iter().map(String::as_str))?;
    Some(path.with_file_name(near))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_patterns_name_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("b")).unwrap();
        let touch = |name: &str| fs::write(root.join(name), "").unwrap();
        for name in [
            "2.jsonl",
            "10.csv.gz",
            "notes.md",
            ".hidden.csv",
            "b/3.jsonl",
        ] {
            touch(name);
        }
        let found = |path: &str| -> Result<Vec<String>> {
            let found = files(&root.join(path))?;
            let below = |file: &PathBuf| {
                let below = file.strip_prefix(root).unwrap();
                below.to_string_lossy().into_owned()
            };
            Ok(found.iter().map(below).collect())
        };
        assert_eq!(found("").unwrap(), ["10.csv.gz", "2.jsonl"]);
        assert_eq!(found("*.jsonl").unwrap(), ["2.jsonl"]);
        assert_eq!(found("**/*.jsonl").unwrap(), ["2.jsonl", "b/3.jsonl"]);
        assert_eq!(found("[0-9].jsonl").unwrap(), ["2.jsonl"]);
        // A name that is one, though it looks like a pattern; and one that does not exist.
        touch("[1].csv");
        assert_eq!(found("[1].csv").unwrap(), ["[1].csv"]);
        assert_eq!(found("none.csv").unwrap(), ["none.csv"]);
        let message = |path: &str| found(path).unwrap_err().to_string();
        assert!(message("*.tsv").ends_with("no file matches the pattern"));
        assert!(message("***").contains("not a pattern of files"));
        touch("train.jsonl");
        assert_eq!(found("").unwrap().len(), 4);
        touch("my_valid.jsonl");
        let several = message("");
        assert!(
            several.contains("several splits (`train.jsonl`, `my_valid.jsonl`)"),
            "{several}"
        );
        fs::create_dir(root.join("texts")).unwrap();
        assert!(message("texts").ends_with("is a folder, expected a file of rows"));
        touch("texts/a.txt");
        assert_eq!(found("texts").unwrap(), ["texts/a.txt"]);
        let near = suggest_file(&root.join("trian.jsonl"));
        assert_eq!(near, Some(root.join("train.jsonl")));
    }

    #[test]
    fn names_tell_splits() {
        for (name, split) in [
            ("train-00000-of-00001.parquet", Some(Split::Train)),
            ("tldr.valid.jsonl.gz", Some(Split::Validation)),
            ("data/dev.csv", Some(Split::Validation)),
            ("TEST_2.jsonl", Some(Split::Test)),
            ("latest.jsonl", None),
            ("trained.jsonl", None),
        ] {
            assert_eq!(Split::of(name), split, "{name}");
        }
    }
}
