//! Which files of a data set's repository hold a split, where none are named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::data::file::{Split, data_files};
use crate::error::{Error, Result};
use crate::hub::{Hub, HubError, MAIN, Reason, Repo};
use crate::suggest::{did_you_mean, quoted};

/// The branch with the hub's own conversion of a data set to parquet: `<config>/<split>/0000.parquet`.
const CONVERSION: &str = "refs/convert/parquet";
/// The problem of a repository with scripts alone, say.
const NO_FILES: &str = "the repository has no files of rows";

/// The files of a repository that hold `split` of the configuration `config`, in order.
///
/// Names tell it as Hugging Face datasets reads them: `data/train-00000-of-00002.parquet` and `en/train.jsonl` hold `train`; where no
/// name tells a split, all files are `train`.
///
/// # Errors
/// If there are none, or those of several configurations; the message lists what there is.
fn split_files(
    names: Vec<String>,
    config: Option<&str>,
    split: &str,
) -> Result<Vec<String>, String> {
    let is_data = |name: &String| {
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        let about = name.ends_with(".md") || name.to_ascii_uppercase().contains("LICENSE");
        !hidden && !about
    };
    let names = names.into_iter().filter(is_data);
    let files = data_files(names.collect());
    if files.is_empty() {
        return Err(NO_FILES.to_owned());
    }
    let files = match config {
        Some(config) => of_config(files, config)?,
        None => files,
    };
    let known: BTreeSet<&str> = files.iter().filter_map(|name| split_of(name)).collect();
    let wanted: Vec<String> = match known.is_empty() {
        true if Split::of(split) == Some(Split::Train) => files.clone(),
        true => Vec::new(),
        false => {
            let is_same = |name: &&String| split_of(name).is_some_and(|of| is_split(of, split));
            files.iter().filter(is_same).cloned().collect()
        }
    };
    if wanted.is_empty() {
        let near = did_you_mean(split, known.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; {near}"));
        return Err(match known.is_empty() {
            true => format!(
                "no file's name tells the split `{split}`; the files are {}",
                quoted_few(&files)
            ),
            false => format!(
                "there is no split `{split}`; there are {}{near}",
                quoted(known)
            ),
        });
    }
    let folders: BTreeSet<&str> = wanted.iter().map(|name| folder(name)).collect();
    if folders.len() > 1 {
        return Err(format!(
            "the split `{split}` is in several folders; name one by `config`: {}",
            quoted(folders)
        ));
    }
    Ok(wanted)
}

/// The files below a folder of the configuration's name, or whose names begin with it.
fn of_config(files: Vec<String>, config: &str) -> Result<Vec<String>, String> {
    let is_of = |name: &&String| {
        let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
        let rest = file.strip_prefix(config);
        folders.split('/').any(|folder| folder == config)
            || rest.is_some_and(|rest| rest.starts_with(['-', '_', '.']))
    };
    let found: Vec<String> = files.iter().filter(is_of).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let folders: BTreeSet<&str> = files.iter().map(|name| folder(name)).collect();
    let near = did_you_mean(config, folders.iter().copied());
    let near = near.map_or(String::new(), |near| format!("; {near}"));
    Err(format!(
        "there is no configuration `{config}`; the folders with data are {}{near}",
        quoted(folders)
    ))
}

/// The split that a file's path names: what stands before `-00000-of-00001`, a folder below the configuration's, or the word
/// for a split in its name.
fn split_of(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if let Some((before, number)) = name
        .split_once("-of-")
        .and_then(|(head, _)| head.rsplit_once('-'))
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(before);
    }
    let stem = name.split('.').next().unwrap_or(name);
    if !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit()) {
        // The hub's conversion; that of a large set begins with `partial-`.
        let folder = path.rsplit('/').nth(1)?;
        return Some(folder.strip_prefix("partial-").unwrap_or(folder));
    }
    let split = Split::of(name)?;
    split.words().iter().copied().find(|word| {
        (name
            .to_ascii_lowercase()
            .split(|c: char| !c.is_ascii_alphabetic()))
        .any(|of| of == *word)
    })
}

/// Whether two names mean one split: `validation` and `valid` do.
fn is_split(found: &str, wanted: &str) -> bool {
    let plain = |name: &str| {
        let all = [Split::Train, Split::Validation, Split::Test];
        all.into_iter().find(|split| split.words().contains(&name))
    };
    found == wanted || plain(found).is_some() && plain(found) == plain(wanted)
}

/// The folder whose name tells the configuration; that of the hub's conversion is above the split's.
fn folder(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let is_numbered = name
        .split('.')
        .next()
        .is_some_and(|stem| stem.bytes().all(|b| b.is_ascii_digit()));
    match is_numbered {
        true => folder.rsplit_once('/').map_or(folder, |(config, _)| config),
        false => folder,
    }
}

fn quoted_few(names: &[String]) -> String {
    let few = quoted(names.iter().take(5).map(String::as_str));
    match names.len() > 5 {
        true => format!("{few}, .."),
        false => few,
    }
}

/// The files of a split on this machine, in order; those that the cache lacks are downloaded.
///
/// The repository's own files are taken where their names tell the split, else the hub's conversion of the set to parquet. Where the
/// hub cannot be reached, what was downloaded before is used if it is whole.
///
/// # Errors
/// If there is no such repository, configuration or split, or a file cannot be fetched.
pub(crate) fn fetch_split(
    hub: &Hub,
    repo: &Repo,
    config: Option<&str>,
    split: &str,
) -> Result<Vec<PathBuf>> {
    let fetch = |repo: &Repo| -> Result<Result<Vec<PathBuf>, String>, HubError> {
        let listing = hub.listing(repo)?;
        let names = listing.files.iter().map(|file| file.name.clone());
        match split_files(names.collect(), config, split) {
            Ok(files) => {
                let folder = hub.files(repo, &listing, &files)?;
                Ok(Ok(files.iter().map(|file| folder.join(file)).collect()))
            }
            Err(message) => Ok(Err(message)),
        }
    };
    let message = match fetch(repo) {
        Ok(Ok(paths)) => return Ok(paths),
        Ok(Err(message)) => message,
        Err(error) if matches!(error.reason, Reason::Offline | Reason::Unreachable) => {
            return cached_split(hub, repo, config, split).ok_or_else(|| error.into());
        }
        Err(error) => return Err(error.into()),
    };
    // There is one conversion, of the main branch.
    let converted = match repo.revision == MAIN {
        true => fetch(&repo.at(CONVERSION)).ok(),
        false => None,
    };
    match converted {
        Some(Ok(paths)) => Ok(paths),
        Some(Err(converted)) if message == NO_FILES => {
            Err(Error::format(repo.to_string(), converted))
        }
        _ => Err(Error::format(repo.to_string(), message)),
    }
}

/// The files of a split in the cache, if they are whole as far as their names tell.
pub(crate) fn cached_split(
    hub: &Hub,
    repo: &Repo,
    config: Option<&str>,
    split: &str,
) -> Option<Vec<PathBuf>> {
    let converted = repo.at(CONVERSION);
    [repo, &converted].into_iter().find_map(|repo| {
        let folder = hub.snapshot(repo)?;
        let mut names = Vec::new();
        names_below(&folder, "", &mut names);
        let files = split_files(names, config, split).ok()?;
        is_whole(&files).then(|| files.iter().map(|file| folder.join(file)).collect())
    })
}

/// Whether files that say how many they are, `-of-00002`, are as many.
fn is_whole(files: &[String]) -> bool {
    let number = |name: &String| -> Option<usize> {
        let (_, rest) = name.rsplit_once("-of-")?;
        rest.split('.').next()?.parse().ok()
    };
    files
        .iter()
        .filter_map(number)
        .all(|count| count == files.len())
}

/// Paths of all files below a folder, with `/`.
fn names_below(folder: &Path, above: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (path, name) = (entry.path(), format!("{above}{name}"));
        match path.is_dir() {
            true => names_below(&path, &format!("{name}/"), names),
            false => names.push(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::hub::HubSettings;
    use crate::hub::loopback::LoopbackHub;

    fn files(names: &[&str], config: Option<&str>, split: &str) -> Result<Vec<String>, String> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        split_files(names, config, split)
    }

    #[test]
    fn names_tell_the_files_of_a_split() {
        let pushed = [
            "README.md",
            ".gitattributes",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        assert_eq!(files(&pushed, None, "train").unwrap(), pushed[2..4]);
        assert_eq!(files(&pushed, None, "test").unwrap(), pushed[4..]);
        assert_eq!(
            files(&pushed, None, "validation").unwrap_err(),
            "there is no split `validation`; there are `test`, `train`"
        );
        // Splits of other names are told apart.
        let named = [
            "data/train_sft-00000-of-00001.parquet",
            "data/train_prefs-00000-of-00001.parquet",
        ];
        assert_eq!(files(&named, None, "train_prefs").unwrap(), named[1..]);
        assert_eq!(
            files(&named, None, "train").unwrap_err(),
            "there is no split `train`; there are `train_prefs`, `train_sft`"
        );
        // Words for splits; files without any are all of `train`.
        let words = ["valid.jsonl.gz", "my-train.jsonl.gz"];
        assert_eq!(files(&words, None, "train").unwrap(), words[1..]);
        assert_eq!(files(&words, None, "validation").unwrap(), words[..1]);
        assert_eq!(
            files(&["b.csv", "a.csv"], None, "train").unwrap(),
            ["a.csv", "b.csv"]
        );
        assert_eq!(
            files(&["a.csv"], None, "test").unwrap_err(),
            "no file's name tells the split `test`; the files are `a.csv`"
        );
        let scripts = ["README.md", "load.py"];
        assert_eq!(
            files(&scripts, None, "train").unwrap_err(),
            "the repository has no files of rows"
        );
    }

    #[test]
    fn folders_are_configurations() {
        let names = ["de/train.jsonl", "en/test.jsonl", "en/train.jsonl"];
        assert_eq!(
            files(&names, None, "train").unwrap_err(),
            "the split `train` is in several folders; name one by `config`: `de`, `en`"
        );
        assert_eq!(files(&names, Some("en"), "train").unwrap(), names[2..]);
        assert_eq!(
            files(&names, Some("enn"), "train").unwrap_err(),
            "there is no configuration `enn`; the folders with data are `de`, `en`; did you mean `en`?"
        );
        // The hub's conversion to parquet.
        let converted = [
            "main/test/0000.parquet",
            "main/train/0000.parquet",
            "main/train/0001.parquet",
            "socratic/partial-train/0000.parquet",
        ];
        assert_eq!(
            files(&converted, Some("main"), "train").unwrap(),
            converted[1..3]
        );
        assert_eq!(
            files(&converted, Some("socratic"), "train").unwrap(),
            converted[3..]
        );
        assert!(
            files(&converted, None, "train")
                .unwrap_err()
                .ends_with("`main`, `socratic`")
        );
    }

    #[test]
    fn a_split_is_fetched_from_the_repository_or_from_its_conversion() {
        let row = |i: usize| format!("{{\"text\":\"{i}\"}}\n").into_bytes();
        let served = LoopbackHub::serve(BTreeMap::from([
            ("datasets/me/own/README.md".to_owned(), b"#".to_vec()),
            ("datasets/me/own/data/train-1.jsonl".to_owned(), row(1)),
            ("datasets/me/own/data/train-2.jsonl".to_owned(), row(2)),
            ("datasets/me/own/data/test.jsonl".to_owned(), row(3)),
            ("datasets/me/script/load.py".to_owned(), b"#".to_vec()),
        ]));
        served.put_converted("datasets/me/script", "main/train/0000.parquet", "PAR1");
        served.put_converted("datasets/me/script", "other/train/0000.parquet", "PAR1");
        let dir = tempfile::tempdir().unwrap();
        let hub = |offline| {
            Hub::new(HubSettings {
                endpoint: served.endpoint.clone(),
                cache: dir.path().to_path_buf(),
                token: None,
                offline,
                progress: false,
                retry_wait: Duration::ZERO,
            })
        };
        let (online, offline) = (hub(false), hub(true));
        let own = Repo::dataset("me/own", MAIN);
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            paths.iter().map(name).collect()
        };
        assert!(cached_split(&online, &own, None, "train").is_none());
        let fetched = fetch_split(&online, &own, None, "train").unwrap();
        assert_eq!(fs::read(&fetched[1]).unwrap(), row(2));
        assert_eq!(names(fetched), ["train-1.jsonl", "train-2.jsonl"]);
        // Without the hub, what is there is used.
        let again = fetch_split(&offline, &own, None, "train").unwrap();
        assert_eq!(names(again), ["train-1.jsonl", "train-2.jsonl"]);
        assert!(fetch_split(&offline, &own, None, "test").is_err());
        let gone = fetch_split(&online, &own, None, "dev")
            .unwrap_err()
            .to_string();
        assert_eq!(
            gone,
            "me/own: there is no split `dev`; there are `test`, `train`"
        );

        let script = Repo::dataset("me/script", MAIN);
        let converted = fetch_split(&online, &script, Some("main"), "train").unwrap();
        assert!(converted[0].ends_with("main/train/0000.parquet"));
        let several = fetch_split(&online, &script, None, "train")
            .unwrap_err()
            .to_string();
        assert!(
            several.ends_with("name one by `config`: `main`, `other`"),
            "{several}"
        );
        assert_eq!(
            served.downloads(),
            [
                "datasets/me/own/data/train-1.jsonl",
                "datasets/me/own/data/train-2.jsonl",
                "datasets/me/script/main/train/0000.parquet",
            ]
        );
    }
}
