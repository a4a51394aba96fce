//! Models that llama.cpp's `gguf-split` spread over files `name-00001-of-00003.gguf`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::header::{Header, MetadataValue};
use crate::error::{Error, Result, some_of};
use crate::model::weights::storage::Blob;

/// Whether a path names a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The names of all files of a model, by that of any; a name of another form is the only one.
pub(crate) fn parts_of(file: &str) -> Vec<String> {
    let split = || {
        let (rest, of) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(number) || !is_number(of) {
            return None;
        }
        let count: usize = of.parse().ok()?;
        let number: usize = number.parse().ok()?;
        let part = |number| format!("{name}-{number:05}-of-{of}.gguf");
        (1..=count)
            .contains(&number)
            .then(|| (1..=count).map(part).collect())
    };
    split().unwrap_or_else(|| vec![file.to_owned()])
}

/// The paths of all files of a model, by that of any.
pub(crate) fn paths_of(file: &Path) -> Vec<PathBuf> {
    match file.file_name().and_then(OsStr::to_str) {
        Some(name) => (parts_of(name).iter())
            .map(|part| file.with_file_name(part))
            .collect(),
        None => vec![file.to_path_buf()],
    }
}

/// Opens all files of a model, by the path of any.
///
/// # Errors
/// Those of reading; `Error::Format` for files that are missing or belong to another model.
pub(super) fn open(path: &Path) -> Result<Vec<(Blob, Header)>> {
    let paths = paths_of(path);
    let missing: Vec<_> = (paths.iter())
        .filter(|part| !part.exists())
        .filter_map(|part| part.file_name()?.to_str())
        .collect();
    if paths.len() > 1 && !missing.is_empty() {
        return Err(Error::format(
            path,
            format!(
                "the model is in {} files, and beside this one there is no {}",
                paths.len(),
                some_of(&missing)
            ),
        ));
    }
    let mut parts = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let blob = Blob::open(path)?;
        let header = Header::read(&blob)?;
        check(path, at, paths.len(), &header.metadata)?;
        parts.push((blob, header));
    }
    let metadata = &parts[0].1.metadata;
    let found: usize = parts.iter().map(|(_, header)| header.tensors.len()).sum();
    match number(metadata, "split.tensors.count") {
        Some(expected) if paths.len() > 1 && expected != found as u64 => Err(Error::format(
            path,
            format!(
                "the {} files of the model hold {found} tensors, and split.tensors.count says {expected}: \
                 are they of one download?",
                paths.len()
            ),
        )),
        _ => Ok(parts),
    }
}

/// Refuses a file that is not the part which its name says.
fn check(
    path: &Path,
    at: usize,
    count: usize,
    metadata: &BTreeMap<String, MetadataValue>,
) -> Result<()> {
    let says = number(metadata, "split.count").unwrap_or(1).max(1);
    let part = number(metadata, "split.no").unwrap_or(0);
    if says == count as u64 && part == at as u64 {
        return Ok(());
    }
    Err(Error::format(
        path,
        format!(
            "the file says that it is part {} of {says}, and its name that it is part {} of {count}; \
             parts are found by names as NAME-{:05}-of-{says:05}.gguf",
            part + 1,
            at + 1,
            part + 1,
        ),
    ))
}

fn number(metadata: &BTreeMap<String, MetadataValue>, key: &str) -> Option<u64> {
    metadata.get(key).and_then(MetadataValue::as_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_names_all() {
        assert_eq!(
            parts_of("q/m-00002-of-00003.gguf"),
            [
                "q/m-00001-of-00003.gguf",
                "q/m-00002-of-00003.gguf",
                "q/m-00003-of-00003.gguf"
            ]
        );
        for whole in [
            "m-of-x.gguf",
            "m.gguf",
            "m-00004-of-00003.gguf",
            "m-1-of-2.gguf",
        ] {
            assert_eq!(parts_of(whole), [whole]);
        }
        let paths = paths_of(Path::new("a/m-00001-of-00002.gguf"));
        assert_eq!(paths[1], Path::new("a/m-00002-of-00002.gguf"));
    }
}
