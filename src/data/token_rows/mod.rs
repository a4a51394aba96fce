//! The encoded rows of a data set: read and encoded batch by batch, in memory or, of large sets, in a file that is kept.

mod cache;
mod file;
mod key;
mod stored;

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use cache::RowsCache;
use file::{RowsFile, RowsWriter};
pub(super) use key::files_key;
use serde::{Deserialize, Serialize};
pub use stored::TokenRow;

use crate::data::encode::{RowEncoding, encode_batch};
use crate::data::rows::DataContext;
use crate::data::stream::{RowStream, no_rows};
use crate::data::{DataConfig, EncodeReport, EncodedRows, Tokenizer};
use crate::error::{Error, Result};

/// Interval between two messages of a long encoding.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// The encoded rows of a data set.
#[derive(Debug)]
pub struct TokenRows<T> {
    store: Store<T>,
    counts: RowCounts,
}

#[derive(Debug)]
enum Store<T> {
    Memory(Vec<T>),
    /// Rows are read where they are used: memory does not grow with their number.
    File(RowsFile),
}

/// What is known of all encoded rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct RowCounts {
    report: EncodeReport,
    /// Rows that were read.
    num_read: usize,
    num_pairs: usize,
}

impl<T> Default for TokenRows<T> {
    fn default() -> Self {
        Self {
            store: Store::Memory(Vec::new()),
            counts: RowCounts::default(),
        }
    }
}

impl<T: TokenRow> From<Vec<T>> for TokenRows<T> {
    fn from(items: Vec<T>) -> Self {
        let report = EncodeReport {
            rows: items.len(),
            kept: items.len(),
            ..EncodeReport::default()
        };
        let counts = RowCounts {
            report,
            num_read: items.len(),
            num_pairs: items.iter().map(T::num_pairs).sum(),
        };
        Self {
            store: Store::Memory(items),
            counts,
        }
    }
}

impl<T: TokenRow> TokenRows<T> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Memory(items) => items.len(),
            Store::File(file) => file.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts of the rows by outcome, for the user.
    pub fn report(&self) -> &EncodeReport {
        &self.counts.report
    }

    /// Number of rows of the data set, those left out among them.
    pub fn num_read(&self) -> usize {
        self.counts.num_read
    }

    /// Pairs of a chosen and a rejected response in all rows.
    pub fn num_pairs(&self) -> usize {
        self.counts.num_pairs
    }

    /// The rows with these indices, in their order.
    ///
    /// # Panics
    /// If an index is not below [`TokenRows::len`].
    ///
    /// # Errors
    /// `Error::Io` if the file of the rows cannot be read.
    pub fn get(&self, indices: impl IntoIterator<Item = usize>) -> Result<Vec<Cow<'_, T>>> {
        indices.into_iter().map(|index| self.row(index)).collect()
    }

    /// All rows, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Result<Cow<'_, T>>> {
        (0..self.len()).map(|index| self.row(index))
    }

    fn row(&self, index: usize) -> Result<Cow<'_, T>> {
        match &self.store {
            Store::Memory(items) => Ok(Cow::Borrowed(&items[index])),
            Store::File(file) => Ok(Cow::Owned(file.row(index)?)),
        }
    }

    /// Tokens of each row that pass through a model.
    ///
    /// # Errors
    /// As [`TokenRows::get`].
    pub fn lens(&self) -> Result<Vec<usize>> {
        match &self.store {
            Store::Memory(items) => Ok(items.iter().map(T::num_tokens).collect()),
            Store::File(file) => file.lens(),
        }
    }

    /// All rows, in memory.
    ///
    /// # Errors
    /// As [`TokenRows::get`].
    pub fn into_vec(self) -> Result<Vec<T>> {
        match self.store {
            Store::Memory(items) => Ok(items),
            Store::File(file) => (0..file.len()).map(|index| file.row(index)).collect(),
        }
    }
}

/// Reads and encodes a data set. The encoded rows of a large one are kept in `cache` and taken from there the next time; `say` is
/// told so.
///
/// # Errors
/// As [`read_rows`](crate::data::read_rows); at the first row that cannot be encoded; and if no row is left.
pub(crate) fn token_rows<E: RowEncoding<Item: TokenRow>>(
    config: &DataConfig,
    context: &DataContext,
    tokenizer: &Tokenizer,
    encoding: &E,
    cache: &RowsCache,
    say: &mut dyn FnMut(&str),
) -> Result<TokenRows<E::Item>> {
    let rows = RowBatches {
        config,
        context,
        tokenizer,
        encoding,
    };
    let Some(files) = cache.takes(config, context)? else {
        return in_memory(&rows, say);
    };
    let path = cache.path(&key::of(config, &files, tokenizer, encoding)?);
    match RowsFile::open(&path) {
        Ok(Some((file, counts))) => {
            say(&format!(
                "tokenised rows from the cache: {} ({})",
                path.display(),
                file.size()
            ));
            let store = Store::File(file);
            return Ok(TokenRows { store, counts });
        }
        Ok(None) => {}
        Err(problem) => say(&format!("{}: {problem}; it is made anew", path.display())),
    }
    let made = cache.prepare().and_then(|()| {
        RowsWriter::write(&path, |writer| rows.each(say, |item| writer.push(&item)))
    });
    let problem = match made {
        Ok(()) => match RowsFile::open(&path) {
            Ok(Some((file, counts))) => {
                say(&format!(
                    "tokenised rows are kept in the cache: {} ({})",
                    path.display(),
                    file.size()
                ));
                let store = Store::File(file);
                return Ok(TokenRows { store, counts });
            }
            Ok(None) => "it has been removed".to_owned(),
            Err(problem) => problem,
        },
        Err(Error::Io { source, path, .. }) if cache.holds(&path) => source.to_string(),
        Err(error) => return Err(error),
    };
    say(&format!(
        "warning: tokenised rows cannot be kept in {}: {problem}. They are tokenised again and held in memory",
        path.display()
    ));
    in_memory(&rows, say)
}

/// All encoded rows in memory.
fn in_memory<E: RowEncoding<Item: TokenRow>>(
    rows: &RowBatches<'_, E>,
    say: &mut dyn FnMut(&str),
) -> Result<TokenRows<E::Item>> {
    let mut items = Vec::new();
    let counts = rows.each(say, |item| {
        items.push(item);
        Ok(())
    })?;
    let store = Store::Memory(items);
    Ok(TokenRows { store, counts })
}

/// A data set and how it is encoded.
struct RowBatches<'a, E> {
    config: &'a DataConfig,
    context: &'a DataContext,
    tokenizer: &'a Tokenizer,
    encoding: &'a E,
}

impl<E: RowEncoding<Item: TokenRow>> RowBatches<'_, E> {
    /// Reads and encodes all rows, a batch on all cores, and gives each to `take`.
    fn each(
        &self,
        say: &mut dyn FnMut(&str),
        mut take: impl FnMut(E::Item) -> Result<()>,
    ) -> Result<RowCounts> {
        let mut stream = RowStream::open(self.config, self.context)?;
        let (mut counts, mut first) = (RowCounts::default(), None::<PathBuf>);
        let mut said = Instant::now();
        loop {
            let rows = stream.batch().into_iter().collect::<Result<Vec<_>>>()?;
            let Some(row) = rows.first() else { break };
            first.get_or_insert_with(|| row.path.clone());
            let format = &self.config.format;
            let encoded = encode_batch(self.encoding, &rows, self.tokenizer, format)?;
            let EncodedRows { items, report } = encoded;
            counts.report.add(report);
            counts.num_read += rows.len();
            for item in items {
                counts.num_pairs += item.num_pairs();
                take(item)?;
            }
            if said.elapsed() > PROGRESS_EVERY {
                say(&format!("{} rows tokenised so far", counts.num_read));
                said = Instant::now();
            }
        }
        if counts.num_read == 0 {
            return Err(no_rows(self.config, stream.name()));
        }
        let (first, longest) = (first.as_deref(), self.encoding.max_length());
        counts.report.check_kept(first, longest)?;
        Ok(counts)
    }
}

#[cfg(test)]
mod tests;
