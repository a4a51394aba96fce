//! All judgements, for exports and reports.

use rusqlite::params;

use super::{Annotator, Store, from_json};
use crate::error::Result;
use crate::label::answer::Answer;
use crate::label::task::Task;

/// A judgement with its task.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The task's number.
    pub task: i64,
    /// Who judged, by number.
    pub annotator: i64,
    /// The answer in the task's order; `None` if it was skipped.
    pub answer: Option<Answer>,
    /// Why it was skipped.
    pub skipped: Option<String>,
    /// The order in which the responses were shown.
    pub shown: Vec<usize>,
    /// Time that the annotator had the task before the eyes, in seconds.
    pub seconds: f64,
    /// When it was stored, in milliseconds since 1970.
    pub created: i64,
}

/// A task as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    /// Its number.
    pub id: i64,
    /// Its content.
    pub task: Task,
    /// The ranks that are known to be right, of a question with a known answer.
    pub gold: Option<Vec<usize>>,
    /// Whether all annotators judge it.
    pub shared: bool,
}

impl Store {
    /// All judgements that are not withdrawn, by task and then in the order in which they came.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        self.read(|connection| {
            let mut all = connection.prepare(
                "SELECT j.task, j.annotator, j.answer, j.skipped, j.shown, j.seconds, j.created FROM judgements j
                 JOIN tasks t ON t.id = j.task WHERE j.withdrawn IS NULL ORDER BY t.id, j.id",
            )?;
            let entry = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Entry> {
                let answer: Option<String> = row.get(2)?;
                let shown: String = row.get(4)?;
                Ok(Entry {
                    task: row.get(0)?,
                    annotator: row.get(1)?,
                    answer: answer.as_deref().map(from_json).transpose()?,
                    skipped: row.get(3)?,
                    shown: from_json(&shown)?,
                    seconds: row.get(5)?,
                    created: row.get(6)?,
                })
            };
            all.query_map([], entry)?.collect()
        })
    }

    /// All tasks by number.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn tasks(&self) -> Result<Vec<StoredTask>> {
        self.read(|connection| {
            let mut all =
                connection.prepare("SELECT id, content, gold, shared FROM tasks ORDER BY id")?;
            let task = |row: &rusqlite::Row<'_>| -> rusqlite::Result<StoredTask> {
                let (content, gold): (String, Option<String>) = (row.get(1)?, row.get(2)?);
                Ok(StoredTask {
                    id: row.get(0)?,
                    task: from_json(&content)?,
                    gold: gold.as_deref().map(from_json).transpose()?,
                    shared: row.get(3)?,
                })
            };
            all.query_map([], task)?.collect()
        })
    }

    /// All annotators, in the order in which they were added.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn annotators(&self) -> Result<Vec<Annotator>> {
        self.read(|connection| {
            let mut all = connection.prepare("SELECT id, name FROM annotators ORDER BY id")?;
            let annotator = |row: &rusqlite::Row<'_>| {
                Ok(Annotator {
                    id: row.get(0)?,
                    name: row.get(1)?,
                })
            };
            all.query_map(params![], annotator)?.collect()
        })
    }
}
