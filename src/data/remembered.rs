//! Checks of large data sets on disk: files that have not changed are not read again to be found sound.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::atomic::write_atomic;
use crate::data::rows::Row;
use crate::data::{DataCheck, DataConfig, DataContext, RowKind};

/// Fewest bytes of files whose check is kept; fewer are read in a moment.
const LEAST_BYTES: u64 = 64 << 20;
/// How long a check is kept.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// The place of one check.
pub(crate) struct RememberedCheck {
    file: PathBuf,
}

/// What a sound check has found.
#[derive(Serialize, Deserialize)]
struct Kept {
    num_rows: Option<usize>,
    num_margins: usize,
    num_scored: usize,
    notices: Vec<String>,
    /// Columns, file and line.
    sample: Vec<(Map<String, Value>, PathBuf, usize)>,
}

impl RememberedCheck {
    /// The place of a check of `config` as rows of `kind`, if its files are large and the context keeps checks.
    pub(crate) fn of(
        config: &DataConfig,
        context: &DataContext,
        kind: RowKind,
        columns: &[String],
    ) -> Option<Self> {
        let path = config.source.local_file(&context.run_dir)?;
        let files = config.source.files(&path).ok()?;
        let key = key(config, kind, columns, &files, LEAST_BYTES)?;
        Some(Self {
            file: context.checks_dir.as_ref()?.join(format!("{key}.json")),
        })
    }

    /// The check, if it was found sound before.
    pub(crate) fn load(&self) -> Option<DataCheck> {
        let kept: Kept = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        let sample = kept.sample.into_iter();
        Some(DataCheck {
            num_rows: kept.num_rows,
            num_margins: kept.num_margins,
            num_scored: kept.num_scored,
            notices: kept.notices,
            sample: sample
                .map(|(columns, path, line)| Row {
                    columns,
                    path,
                    line,
                })
                .collect(),
            ..DataCheck::default()
        })
    }

    /// Keeps a check that found no problem. One that cannot be written is done again.
    pub(crate) fn store(&self, check: &DataCheck) {
        if !check.problems.is_empty() || !check.key_problems.is_empty() {
            return;
        }
        let kept = Kept {
            num_rows: check.num_rows,
            num_margins: check.num_margins,
            num_scored: check.num_scored,
            notices: check.notices.clone(),
            sample: (check.sample.iter())
                .map(|row| (row.columns.clone(), row.path.clone(), row.line))
                .collect(),
        };
        let (Some(dir), Ok(bytes)) = (self.file.parent(), serde_json::to_vec(&kept)) else {
            return;
        };
        if fs::create_dir_all(dir).is_ok() {
            remove_old(dir);
            write_atomic(&self.file, &bytes).ok();
        }
    }
}

/// The name of a check: everything that its result depends on, the program included. `None` for small files, and where the system
/// does not say when a file was changed.
fn key(
    config: &DataConfig,
    kind: RowKind,
    columns: &[String],
    files: &[PathBuf],
    least_bytes: u64,
) -> Option<String> {
    let mut stamps = Vec::with_capacity(files.len() + 1);
    let mut bytes = 0;
    for file in files {
        let stamp = stamp(file)?;
        bytes += stamp.0;
        stamps.push((fs::canonicalize(file).ok()?, stamp));
    }
    if bytes < least_bytes {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    stamps.push((program.clone(), stamp(&program)?));
    let what = json!([config, format!("{kind:?}"), columns, stamps]);
    let hash = Sha256::digest(what.to_string().as_bytes());
    Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Length of a file, and when it was changed, in nanoseconds.
fn stamp(file: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(file).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(changed.as_nanos()).ok()?))
}

/// Removes checks that are older than [`KEPT_FOR`].
fn remove_old(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|metadata| metadata.modified());
        let age = changed.map(|changed| SystemTime::now().duration_since(changed));
        if let Ok(Ok(age)) = age
            && age > KEPT_FOR
        {
            fs::remove_file(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataSource;

    #[test]
    fn a_check_holds_until_anything_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, "{\"text\":\"a\"}\n").unwrap();
        let mut config = DataConfig::of(DataSource::File(path.clone()));
        let files = [path.clone()];
        let named = |config: &DataConfig, kind, least| key(config, kind, &[], &files, least);
        let first = named(&config, RowKind::Text, 0).unwrap();
        assert_eq!(named(&config, RowKind::Text, 0), Some(first.clone()));
        assert_eq!(named(&config, RowKind::Text, 100), None, "a small file");
        assert_ne!(named(&config, RowKind::Prompt, 0), Some(first.clone()));
        config.limit = Some(3);
        assert_ne!(named(&config, RowKind::Text, 0), Some(first.clone()));
        config.limit = None;
        fs::write(&path, "{\"text\":\"ab\"}\n").unwrap();
        assert_ne!(named(&config, RowKind::Text, 0), Some(first));

        let remembered = RememberedCheck {
            file: dir.path().join("checks/key.json"),
        };
        assert!(remembered.load().is_none());
        let mut check = DataCheck {
            num_rows: Some(7),
            num_margins: 2,
            notices: vec!["n".into()],
            sample: vec![Row {
                columns: Map::from_iter([("text".to_owned(), json!("a"))]),
                path,
                line: 1,
            }],
            ..DataCheck::default()
        };
        remembered.store(&check);
        let found = remembered.load().unwrap();
        assert_eq!(format!("{found:?}"), format!("{check:?}"));
        fs::remove_file(&remembered.file).unwrap();
        (check.key_problems).push((".source", crate::error::Problem::new("", "bad")));
        remembered.store(&check);
        assert!(remembered.load().is_none());
    }
}
