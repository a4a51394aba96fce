//! The folder in which encoded rows of large data sets are kept between runs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic::TEMPORARY_PREFIX;
use crate::data::rows::{DataContext, local_files};
use crate::data::{DataConfig, DataSource};
use crate::error::{Error, Result};

/// Bytes of files from which on their encoded rows are kept. Smaller ones are tokenised in seconds.
const LEAST_BYTES: u64 = 16 << 20;
/// A `limit` from which on they are kept.
const LEAST_ROWS: usize = 10_000;
/// Age of an unfinished file whose process has certainly ended.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The folder of encoded rows.
#[derive(Debug, Clone)]
pub(crate) struct RowsCache {
    folder: PathBuf,
    least_bytes: u64,
}

impl RowsCache {
    /// The folder that the environment names: `rows` in `TEMPERING_CACHE`, else in `$XDG_CACHE_HOME/tempering` or
    /// `~/.cache/tempering`.
    pub(crate) fn from_env() -> Self {
        Self::of(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The folder that `variable` names.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let user = variable("HOME").or_else(|| variable("USERPROFILE"));
        let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.or_else(|| Some(Path::new(user.as_deref()?).join(".cache")));
        let own = variable("TEMPERING_CACHE").map(PathBuf::from);
        let own = own.unwrap_or_else(|| caches.unwrap_or_else(env::temp_dir).join("tempering"));
        Self::new(own.join("rows"), LEAST_BYTES)
    }

    /// The folder `folder`, for data sets of at least `least_bytes`.
    pub(in crate::data) fn new(folder: PathBuf, least_bytes: u64) -> Self {
        Self {
            folder,
            least_bytes,
        }
    }

    /// The files of a data set, if it is large enough to be kept.
    ///
    /// # Errors
    /// If the files cannot be found.
    pub(in crate::data) fn takes(
        &self,
        config: &DataConfig,
        context: &DataContext,
    ) -> Result<Option<Vec<PathBuf>>> {
        if config.limit.is_some_and(|limit| limit < LEAST_ROWS) {
            return Ok(None);
        }
        let files = files(&config.source, context)?;
        let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let is_large = files.iter().map(bytes).sum::<u64>() >= self.least_bytes;
        Ok(is_large.then_some(files))
    }

    /// The file of the rows with this key.
    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.rows"))
    }

    /// The file of the check with this key.
    pub(in crate::data) fn check_path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.check.json"))
    }

    /// Whether `path` is in the folder, or is the folder.
    pub(super) fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.folder)
    }

    /// Makes the folder, and removes what processes that were killed have left in it.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(in crate::data) fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let entries = fs::read_dir(&self.folder).map_err(Error::io("read", &self.folder))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_temporary = name.to_string_lossy().starts_with(TEMPORARY_PREFIX);
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            let age = changed.ok().and_then(|changed| changed.elapsed().ok());
            if is_temporary && age.is_some_and(|age| age > STALE) {
                // Another process may remove it at the same time.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// The files of a source; none for generated rows.
fn files(source: &DataSource, context: &DataContext) -> Result<Vec<PathBuf>> {
    match source {
        DataSource::Posts { .. } => Ok(Vec::new()),
        DataSource::Mix(parts) => {
            let of_parts = parts.iter().map(|(_, part)| files(&part.source, context));
            Ok(of_parts.collect::<Result<Vec<_>>>()?.concat())
        }
        source => Ok(local_files(source, context)?.files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_the_folder() {
        let of = |variables: &[(&str, &str)]| {
            let cache = RowsCache::of(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            });
            cache.folder
        };
        let home = ("HOME", "/home/a");
        assert_eq!(of(&[home]), Path::new("/home/a/.cache/tempering/rows"));
        let xdg = ("XDG_CACHE_HOME", "/x");
        assert_eq!(of(&[home, xdg]), Path::new("/x/tempering/rows"));
        assert_eq!(
            of(&[home, xdg, ("TEMPERING_CACHE", "/t")]),
            Path::new("/t/rows")
        );
    }
}
