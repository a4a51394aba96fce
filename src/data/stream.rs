//! The rows of a data set in batches, from all of its files, with the columns that their layout gives them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::file::RowReader;
use crate::data::mixture::mixture;
use crate::data::posts::posts;
use crate::data::rows::{self, DataContext, Row};
use crate::data::shape::{Shape, Shaping};
use crate::data::split::part_of;
use crate::data::{DataConfig, DataSource, RowFormat};
use crate::error::{Error, Result};

/// Rows of a data set after `skip` and up to `limit`.
pub(crate) struct RowStream {
    config: DataConfig,
    shaping: Shaping,
    /// What is read, for messages: the file, folder or pattern.
    name: PathBuf,
    reader: Option<RowReader>,
    files: VecDeque<PathBuf>,
    /// Rows of the files before those that the source means, and rows that it means, as far as they have not been read.
    before: usize,
    within: usize,
    to_skip: usize,
    left: usize,
    shapes: Vec<(&'static Shape, usize)>,
    /// What a mixture holds.
    mixed: Vec<String>,
    /// Whether a file so far was plain text.
    has_text: bool,
}

impl RowStream {
    /// Opens the first file. Files of the hub that are not in the cache are downloaded.
    ///
    /// # Errors
    /// If there is no file, the first one cannot be read or is of no known format, and for an unknown `shape`.
    pub(crate) fn open(config: &DataConfig, context: &DataContext) -> Result<Self> {
        let left = config.limit.unwrap_or(usize::MAX);
        let mut stream = Self {
            config: config.clone(),
            shaping: Shaping::of(&config.format)?,
            name: PathBuf::new(),
            reader: None,
            files: VecDeque::new(),
            before: 0,
            within: usize::MAX,
            to_skip: config.skip,
            left,
            shapes: Vec::new(),
            mixed: Vec::new(),
            has_text: false,
        };
        if let DataSource::Mix(parts) = &config.source {
            let mixture = mixture(parts, context)?;
            stream.name = PathBuf::from("the mixture");
            stream.mixed.clone_from(&mixture.notices);
            stream.reader = Some(RowReader::of(&stream.name, Box::new(mixture)));
            return Ok(stream);
        }
        if let DataSource::Posts { rows, seed } = config.source {
            // Posts are generated one by one: fewer rows are the first rows of more.
            let path = Path::new("posts");
            let first = match config.valid_fraction > 0.0 {
                true => rows,
                false => rows.min(config.skip.saturating_add(left)),
            };
            let posts = posts(seed, first);
            let row = move |(i, columns)| {
                Ok(Row {
                    columns,
                    path: path.to_path_buf(),
                    line: i + 1,
                })
            };
            let rows = posts.into_iter().enumerate().map(row);
            stream.name = path.to_path_buf();
            stream.reader = Some(RowReader::of(path, Box::new(rows)));
            return Ok(stream);
        }
        let local = rows::local_files(&config.source, context)?;
        stream.name = local.name;
        stream.files = local.files.into();
        if let Some(slice) = local.slice {
            let rows = slice.rows(|| stream.count_rows())?;
            (stream.before, stream.within) = (rows.start, rows.end - rows.start);
        }
        stream.next_file()?;
        Ok(stream)
    }

    /// What is read, for messages.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// What was recognised so far, for the user: the layouts, and the parts of a mixture.
    pub(crate) fn notices(&self) -> Vec<String> {
        let shapes = self.shapes.iter();
        let shapes = shapes.filter_map(|(shape, rows)| shape.notice(&self.name, *rows));
        self.mixed.iter().cloned().chain(shapes).collect()
    }

    /// Whether a file that was read so far is plain text.
    pub(crate) fn has_text(&self) -> bool {
        self.has_text
    }

    /// Rows of all files.
    fn count_rows(&self) -> Result<usize> {
        let (source, format) = (&self.config.source, &self.config.format);
        let count = |path: &PathBuf| source.open(path, format)?.count_rows();
        self.files.iter().map(count).sum()
    }

    fn next_file(&mut self) -> Result<()> {
        self.reader = None;
        if let Some(path) = self.files.pop_front() {
            let reader = self.config.source.open(&path, &self.config.format)?;
            self.has_text |= reader.is_text();
            self.reader = Some(reader);
        }
        Ok(())
    }

    /// The next rows; empty at the end of the data set.
    pub(crate) fn batch(&mut self) -> Vec<Result<Row>> {
        match self.next_batch() {
            Ok(rows) => {
                self.left -= rows.len();
                rows
            }
            Err(error) => vec![Err(error)],
        }
    }

    fn next_batch(&mut self) -> Result<Vec<Result<Row>>> {
        while self.left > 0 && self.within > 0 {
            let Some(reader) = &mut self.reader else {
                break;
            };
            if self.before > 0 {
                self.before -= reader.skip_rows(self.before)?;
            }
            let most = match self.config.valid_fraction > 0.0 {
                // Which rows count is known when they have been parsed.
                true => self.within,
                false => {
                    let skipped = reader.skip_rows(self.to_skip.min(self.within))?;
                    self.to_skip -= skipped;
                    self.within -= skipped;
                    self.left.min(self.within)
                }
            };
            let rows = reader.batch(most);
            self.within -= rows.len();
            if rows.is_empty() {
                self.next_file()?;
                continue;
            }
            let rows = self.selected(rows);
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
        Ok(Vec::new())
    }

    /// The rows of the part after `skip` and up to `limit`, with the columns of their layouts.
    fn selected(&mut self, rows: Vec<Result<Row>>) -> Vec<Result<Row>> {
        let (shaping, config) = (self.shaping, &self.config);
        let shaped: Vec<Option<(Result<Row>, Option<&'static Shape>)>> = (rows.into_par_iter())
            .map(|row| {
                let (row, shape) = match row {
                    Ok(row) => shape_row(row, shaping, &config.format),
                    Err(error) => (Err(error), None),
                };
                // Bad rows are in both parts.
                let is_in = config.valid_fraction == 0.0
                    || row.as_ref().map_or(true, |row| {
                        part_of(&row.columns, config.valid_fraction) == config.part
                    });
                is_in.then_some((row, shape))
            })
            .collect();
        let mut rows = Vec::with_capacity(shaped.len());
        for (row, shape) in shaped.into_iter().flatten() {
            if self.to_skip > 0 {
                self.to_skip -= 1;
                continue;
            }
            if rows.len() == self.left {
                break;
            }
            if let Some(shape) = shape {
                let is_same = |(other, _): &&mut (&Shape, usize)| other.name() == shape.name();
                match self.shapes.iter_mut().find(is_same) {
                    Some((_, count)) => *count += 1,
                    None => self.shapes.push((shape, 1)),
                }
            }
            rows.push(row);
        }
        rows
    }
}

/// A row with the columns of its layout, and the layout.
fn shape_row(
    mut row: Row,
    shaping: Shaping,
    format: &RowFormat,
) -> (Result<Row>, Option<&'static Shape>) {
    match shaping.shape(&row.columns) {
        None => (Ok(row), None),
        Some(shape) => match shape.convert(&mut row, format) {
            Ok(()) => (Ok(row), Some(shape)),
            Err(error) => (Err(error), None),
        },
    }
}

/// The error for a data set without rows, named `path` in messages.
pub(crate) fn no_rows(config: &DataConfig, path: &Path) -> Error {
    if config.valid_fraction > 0.0 && config.skip == 0 && config.limit != Some(0) {
        let message = format!(
            "no rows are in the part {:?} with a `valid_fraction` of {}",
            config.part, config.valid_fraction
        );
        return Error::format(path, message);
    }
    Error::format(
        path,
        match (config.skip, config.limit) {
            (_, Some(0)) => "no rows: limit is 0".to_owned(),
            (0, _) => "no rows".to_owned(),
            (skip, _) => format!("no rows after the first {skip}, which `skip` leaves out"),
        },
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::{Part, read_rows};

    fn config(source: DataSource) -> DataConfig {
        DataConfig::of(source)
    }

    #[test]
    fn the_files_of_a_folder_are_one_set() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "a.csv",
            "instruction,input,output\ni,,one\n\"i\n2\",x,two\n",
        );
        write("b.jsonl", "{\"prompt\":\"p\",\"completion\":\"three\"}\n");
        write("c.jsonl", "");
        write(
            "d.json",
            "[{\"conversations\":[{\"from\":\"human\",\"value\":\"h\"}]}]",
        );
        let mut config = config(DataSource::File(dir.path().into()));
        let read = |config: &DataConfig| -> Result<Vec<String>> {
            let rows = read_rows(config, &DataContext::default())?;
            let shown = |row: &Row| {
                let name = row.path.file_name().unwrap().to_string_lossy();
                let last = row.columns.values().next_back().unwrap();
                format!("{name}:{}: {last}", row.line)
            };
            Ok(rows.iter().map(shown).collect())
        };
        let error = read(&config).unwrap_err().to_string();
        assert!(
            error.ends_with("c.jsonl: no rows: the file is empty"),
            "{error}"
        );
        write("c.jsonl", "\n");
        let error = read(&config).unwrap();
        assert_eq!(
            error,
            [
                "a.csv:2: \"one\"",
                "a.csv:3: \"two\"",
                "b.jsonl:1: \"three\"",
                "d.json:1: [{\"role\":\"user\",\"content\":\"h\"}]"
            ]
        );
        // `skip` and `limit` count the rows of all files.
        (config.skip, config.limit) = (1, Some(2));
        assert_eq!(
            read(&config).unwrap(),
            ["a.csv:3: \"two\"", "b.jsonl:1: \"three\""]
        );
        config.skip = 4;
        let error = read(&config).unwrap_err().to_string();
        assert!(
            error.ends_with("no rows after the first 4, which `skip` leaves out"),
            "{error}"
        );
        (config.skip, config.limit) = (0, None);
        let context = DataContext::default();
        let mut stream = RowStream::open(&config, &context).unwrap();
        while !stream.batch().is_empty() {}
        let found: Vec<_> = (stream.shapes.iter())
            .map(|(shape, count)| (shape.name(), *count))
            .collect();
        assert_eq!(found, [("alpaca", 2), ("sharegpt", 1)]);
    }

    #[test]
    fn two_parts_are_all_rows_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        let lines: String = (0..200)
            .map(|i| format!("{{\"text\":\"{i}\"}}\n"))
            .collect();
        fs::write(&path, lines).unwrap();
        let lines = |part: Part, skip: usize, limit: Option<usize>| -> Vec<usize> {
            let config = DataConfig {
                valid_fraction: 0.25,
                part,
                skip,
                limit,
                ..config(DataSource::File(path.clone()))
            };
            let rows = read_rows(&config, &DataContext::default()).unwrap();
            rows.iter().map(|row| row.line).collect()
        };
        let (train, held_out) = (lines(Part::Train, 0, None), lines(Part::HeldOut, 0, None));
        assert!((30..70).contains(&held_out.len()), "{}", held_out.len());
        let mut both = [train, held_out.clone()].concat();
        both.sort_unstable();
        assert_eq!(both, (1..=200).collect::<Vec<_>>());
        // `skip` and `limit` count the rows of the part.
        assert_eq!(lines(Part::HeldOut, 2, Some(3)), held_out[2..5]);
        let none = DataConfig {
            valid_fraction: 1e-9,
            part: Part::HeldOut,
            ..config(DataSource::File(path.clone()))
        };
        let error = read_rows(&none, &DataContext::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with(
                "no rows are in the part HeldOut with a `valid_fraction` of 0.000000001"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_slice_of_a_split_spans_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("datasets--me--own");
        let snapshot = repo.join("snapshots/c0ffee/data");
        for folder in [repo.join("refs"), snapshot.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(repo.join("refs/main"), "c0ffee").unwrap();
        let lines = |rows: std::ops::Range<usize>| -> String {
            rows.map(|i| format!("{{\"text\":\"{i}\"}}\n\n")).collect()
        };
        fs::write(snapshot.join("train-00000-of-00002.jsonl"), lines(0..10)).unwrap();
        fs::write(snapshot.join("train-00001-of-00002.jsonl"), lines(10..15)).unwrap();
        let context = DataContext {
            cache_dir: Some(dir.path().to_path_buf()),
            cached_only: true,
            ..DataContext::default()
        };
        let read = |split: &str, skip: usize, limit: Option<usize>| -> Result<Vec<usize>> {
            let source = DataSource::Hub {
                repo: "me/own".into(),
                file: None,
                config: None,
                split: Some(split.into()),
                revision: "main".into(),
            };
            let config = DataConfig {
                skip,
                limit,
                ..config(source)
            };
            let rows = read_rows(&config, &context)?;
            let text = |row: &Row| row.columns["text"].as_str().unwrap().parse().unwrap();
            Ok(rows.iter().map(text).collect())
        };
        // The bounds are those of datasets 5.2 for 15 rows.
        assert_eq!(read("train[10%:20%]", 0, None).unwrap(), [2]);
        assert_eq!(read("train[-30%:]", 0, None).unwrap(), [11, 12, 13, 14]);
        assert_eq!(read("train[:10%]", 0, None).unwrap(), [0, 1]);
        assert_eq!(read("train[50%:]", 1, Some(3)).unwrap(), [9, 10, 11]);
        assert_eq!(read("train[-2:]", 0, None).unwrap(), [13, 14]);
        let error = read("train[-16:]", 0, None).unwrap_err().to_string();
        assert_eq!(error, "the split `train` has 15 rows, not 16");
    }
}
