//! The file of a labelling project: tasks, annotators, who holds which task, judgements.
//!
//! SQLite in WAL mode with `synchronous=FULL`: a judgement that was acknowledged is on disk. All changes are transactions that take the
//! write lock first, so that two servers on one file do not hand out a task twice.

mod annotators;
mod lease;
mod read;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::form::Form;
use super::task::NewTask;
use crate::error::{Error, Result};
use crate::rng::Seed;

pub use annotators::Annotator;
pub(crate) use annotators::check_names;
pub use lease::{HeldTask, Next, Progress};
pub use read::{Entry, StoredTask};

/// How long a change waits for one of another process.
const BUSY: Duration = Duration::from_secs(20);

/// Settings of a project, which stay the same for all its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// What is asked.
    pub form: Form,
    /// Seed of the order of tasks, of the order in which responses are shown, and of the choice of the shared pool.
    pub seed: u64,
    /// Fraction of tasks that every annotator judges.
    pub overlap: f64,
}

/// A labelling project.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
    terms: Terms,
}

impl Store {
    /// Opens the project at `path`, or begins one there.
    ///
    /// # Errors
    /// `Error::Usage` if the file is of a project with other terms, with what differs; `Error::Format` if it is no project.
    pub fn begin(path: &Path, terms: &Terms) -> Result<Self> {
        if !path.exists() {
            let store = Self::connect(path, terms.clone())?;
            store.harden()?;
            store.change(|change| schema::create(change, terms))?;
            return Ok(store);
        }
        let store = Self::open(path)?;
        let differs = |what: &str, old: String, new: String| {
            Error::Usage(format!(
                "{}: the project was begun with {what} {old}, and now {what} is {new}; give it as before, or another --store",
                path.display()
            ))
        };
        let old = &store.terms;
        if old.form != terms.form {
            return Err(differs(
                "form",
                format!("{:?}", old.form),
                format!("{:?}", terms.form),
            ));
        }
        if old.seed != terms.seed {
            return Err(differs(
                "seed",
                old.seed.to_string(),
                terms.seed.to_string(),
            ));
        }
        if old.overlap != terms.overlap {
            return Err(differs(
                "overlap",
                old.overlap.to_string(),
                terms.overlap.to_string(),
            ));
        }
        Ok(store)
    }

    /// Opens the project at `path`.
    ///
    /// # Errors
    /// `Error::Io` if there is no such file; `Error::Format` if it is no project, or one of a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        // SQLite would create it.
        std::fs::metadata(path).map_err(Error::io("open", path))?;
        let unknown = Terms {
            form: Form::default(),
            seed: 0,
            overlap: 0.0,
        };
        let mut store = Self::connect(path, unknown)?;
        let terms = schema::terms(&store.lock(), path)?;
        store.terms = terms;
        store.harden()?;
        Ok(store)
    }

    /// Opens the file, and changes nothing of it.
    fn connect(path: &Path, terms: Terms) -> Result<Self> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY)?;
            Ok(connection)
        };
        let connection = open()
            .map_err(|error| Error::format(path, format!("not a file of judgements: {error}")))?;
        Ok(Self {
            path: path.to_path_buf(),
            connection: Mutex::new(connection),
            terms,
        })
    }

    /// Makes commits durable.
    fn harden(&self) -> Result<()> {
        self.read(|connection| {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // The log is written through at each commit: a judgement survives a loss of power, too.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)
        })
    }

    /// The project's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The project's settings.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The root of the project's randomness.
    fn seed(&self) -> Seed {
        Seed::new(self.terms.seed).fork("label")
    }

    /// Adds the tasks that are not yet there, in an order drawn by the seed; returns their number.
    ///
    /// Those with a known answer, and a part of the others as `overlap` says, are for all annotators.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub fn add(&self, tasks: &[NewTask]) -> Result<usize> {
        let (seed, overlap) = (self.seed(), self.terms.overlap);
        self.change(|change| {
            let first: i64 = change.query_row("SELECT coalesce(max(position) + 1, 0) FROM tasks", [], |row| row.get(0))?;
            let mut known = change.prepare("SELECT 1 FROM tasks WHERE digest = ?1")?;
            let mut seen = std::collections::HashSet::new();
            let mut fresh = Vec::new();
            for task in tasks {
                let digest = task.digest();
                let is_known = known.query_row(params![digest], |_| Ok(())).optional()?.is_some();
                if !is_known && seen.insert(digest.clone()) {
                    fresh.push((task, digest));
                }
            }
            let order = seed.fork("order").fork_index(first as u64).permutation(fresh.len());
            let plain = fresh.iter().filter(|(task, _)| task.gold.is_none()).count();
            let mut shared_left = (overlap * plain as f64).round() as usize;
            let mut insert = change
                .prepare("INSERT INTO tasks (position, digest, shared, content, gold) VALUES (?1, ?2, ?3, ?4, ?5)")?;
            // The order is random, so that the first ones are a random choice; annotators meet them early, and again among the others.
            let mut placed: Vec<(usize, bool)> = Vec::new();
            for &index in &order {
                let is_gold = fresh[index].0.gold.is_some();
                let shared = is_gold || shared_left > 0;
                shared_left -= usize::from(shared && !is_gold);
                placed.push((index, shared));
            }
            let mixed = seed.fork("places").fork_index(first as u64).permutation(placed.len());
            for (place, &at) in mixed.iter().enumerate() {
                let (index, shared) = placed[at];
                let (task, digest) = &fresh[index];
                let gold = task.gold.as_ref().map(to_json).transpose()?;
                insert.execute(params![first + place as i64, digest, shared, to_json(&task.task)?, gold])?;
            }
            Ok(fresh.len())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while it was held left no transaction open: the guard rolled it back.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a transaction that writes; it is on disk when this returns.
    fn change<T>(&self, body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.lock();
        let run = || -> rusqlite::Result<T> {
            let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let outcome = body(&change)?;
            change.commit()?;
            Ok(outcome)
        };
        run().map_err(|error| self.failed(&error))
    }

    /// Reads.
    fn read<T>(&self, body: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        body(&self.lock()).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &rusqlite::Error) -> Error {
        Error::format(&self.path, format!("the file of judgements: {error}"))
    }
}

/// A value as JSON, for a column.
fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A column's value.
fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    let failed = |error: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    };
    serde_json::from_str(text).map_err(failed)
}

#[cfg(test)]
mod tests;
