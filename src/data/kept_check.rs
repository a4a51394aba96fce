//! Checks of large data sets that found nothing to complain about, kept between runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::token_rows::{RowsCache, files_key};
use super::{DataCheck, DataConfig, DataContext, Row, RowKind, SourceColumn, check_source};
use crate::atomic::write_atomic;
use crate::outside;

/// Checks a data set by [`check_source`]. Without problems, the check of a large one is kept in `cache` under a hash of the files'
/// contents and of the settings, and found there the next time: hashing a gigabyte takes a second, parsing it several.
pub(super) fn check_or_find(
    config: &DataConfig,
    context: &DataContext,
    kind: RowKind,
    columns: &[SourceColumn],
    cache: &RowsCache,
) -> DataCheck {
    let path = path(config, context, kind, columns, cache);
    if let Some(kept) = path
        .as_ref()
        .and_then(|path| outside::read(path, outside::TABLES).ok())
        && let Ok(kept) = serde_json::from_slice::<KeptCheck>(&kept)
    {
        return kept.into();
    }
    let found = check_source(config, context, kind, columns);
    let is_clean =
        found.problems.is_empty() && found.key_problems.is_empty() && found.key_warnings.is_empty();
    if let Some(path) = path.filter(|_| is_clean)
        && cache.prepare().is_ok()
        && let Ok(text) = serde_json::to_vec(&KeptCheck::from(&found))
    {
        // Without a place to keep it, the next check takes as long as this one.
        let _ = write_atomic(&path, &text);
    }
    found
}

/// Where the check of a data set is kept; `None` for a small one, and where its files are not on this machine.
fn path(
    config: &DataConfig,
    context: &DataContext,
    kind: RowKind,
    columns: &[SourceColumn],
    cache: &RowsCache,
) -> Option<PathBuf> {
    let context = DataContext {
        cached_only: true,
        ..context.clone()
    };
    let files = cache.takes(config, &context).ok()??;
    let key = files_key(&files, config, &(format!("{kind:?}"), columns)).ok()?;
    Some(cache.check_path(&key))
}

/// A [`DataCheck`] without problems.
#[derive(Serialize, Deserialize)]
struct KeptCheck {
    notices: Vec<String>,
    num_rows: Option<usize>,
    sample: Vec<KeptRow>,
    num_margins: usize,
    num_scored: usize,
    num_labels: [usize; 2],
    num_probabilities: usize,
    num_safe: [usize; 2],
    ratings: Option<(f32, f32)>,
}

#[derive(Serialize, Deserialize)]
struct KeptRow {
    path: PathBuf,
    line: usize,
    columns: Map<String, Value>,
}

impl From<&DataCheck> for KeptCheck {
    fn from(check: &DataCheck) -> Self {
        let row = |row: &Row| KeptRow {
            path: row.path.clone(),
            line: row.line,
            columns: row.columns.clone(),
        };
        Self {
            notices: check.notices.clone(),
            num_rows: check.num_rows,
            sample: check.sample.iter().map(row).collect(),
            num_margins: check.num_margins,
            num_scored: check.num_scored,
            num_labels: check.num_labels,
            num_probabilities: check.num_probabilities,
            num_safe: check.num_safe,
            ratings: check.ratings,
        }
    }
}

impl From<KeptCheck> for DataCheck {
    fn from(kept: KeptCheck) -> Self {
        let row = |row: KeptRow| Row {
            path: row.path,
            line: row.line,
            columns: row.columns,
        };
        Self {
            notices: kept.notices,
            num_rows: kept.num_rows,
            sample: kept.sample.into_iter().map(row).collect(),
            num_margins: kept.num_margins,
            num_scored: kept.num_scored,
            num_labels: kept.num_labels,
            num_probabilities: kept.num_probabilities,
            num_safe: kept.num_safe,
            ratings: kept.ratings,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::DataSource;

    fn check(file: &Path, kind: RowKind, cache: &RowsCache) -> DataCheck {
        let config = DataConfig::of(DataSource::File(file.to_path_buf()));
        check_or_find(&config, &DataContext::default(), kind, &[], cache)
    }

    #[test]
    fn a_check_is_found_again_until_the_file_or_the_question_changes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RowsCache::new(folder.path().join("rows"), 0);
        let file = folder.path().join("rows.jsonl");
        std::fs::write(
            &file,
            "{\"text\": \"a b\", \"n\": 1.5}\n{\"text\": \"c\"}\n",
        )
        .unwrap();
        let num_kept = || std::fs::read_dir(folder.path().join("rows")).map_or(0, Iterator::count);

        let first = check(&file, RowKind::Text, &cache);
        assert_eq!((first.num_rows, num_kept()), (Some(2), 1));
        let again = check(&file, RowKind::Text, &cache);
        assert_eq!(again.sample, first.sample);
        assert_eq!((again.num_rows, num_kept()), (Some(2), 1));

        // Rows of another kind are another question; one with problems is asked each time.
        assert_ne!(check(&file, RowKind::Preference, &cache).problems, []);
        assert_eq!(num_kept(), 1);

        std::fs::write(&file, "{\"text\": \"other\"}\n").unwrap();
        assert_eq!(check(&file, RowKind::Text, &cache).num_rows, Some(1));
        assert_eq!(num_kept(), 2);
    }

    #[test]
    fn a_damaged_check_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RowsCache::new(folder.path().join("rows"), 0);
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, "{\"text\": \"a\"}\n").unwrap();
        check(&file, RowKind::Text, &cache);
        for entry in std::fs::read_dir(folder.path().join("rows")).unwrap() {
            std::fs::write(entry.unwrap().path(), "{").unwrap();
        }
        assert_eq!(check(&file, RowKind::Text, &cache).num_rows, Some(1));
    }
}
