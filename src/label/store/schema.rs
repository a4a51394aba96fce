//! The tables of a project.

use std::path::Path;

use rusqlite::{Connection, Transaction, params};

use super::{Terms, from_json, to_json};
use crate::error::{Error, Result};

/// Version of the tables.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE project (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE annotators (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL) STRICT;
-- An annotator may have several: each start of the server makes one, since only their hashes are kept.
CREATE TABLE tokens (hash TEXT PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators, created INTEGER NOT NULL) STRICT;
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, position INTEGER NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE, shared INTEGER NOT NULL,
    content TEXT NOT NULL, gold TEXT
) STRICT;
-- Who holds a task. An expired one stays until its task is judged, so that a late answer is not lost.
CREATE TABLE leases (
    task INTEGER NOT NULL REFERENCES tasks, annotator INTEGER NOT NULL REFERENCES annotators, nonce INTEGER NOT NULL,
    shown TEXT NOT NULL, since INTEGER NOT NULL, expires INTEGER NOT NULL, draft TEXT, PRIMARY KEY (task, annotator)
) STRICT;
-- Nothing is deleted: an undone judgement is withdrawn.
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks, annotator INTEGER NOT NULL REFERENCES annotators,
    nonce INTEGER NOT NULL, answer TEXT, skipped TEXT, shown TEXT NOT NULL, seconds REAL NOT NULL, created INTEGER NOT NULL,
    withdrawn INTEGER, CHECK ((answer IS NULL) <> (skipped IS NULL))
) STRICT;
CREATE INDEX judgements_by_task ON judgements (task, annotator);
CREATE INDEX judgements_by_annotator ON judgements (annotator, id);
CREATE UNIQUE INDEX one_judgement ON judgements (task, annotator) WHERE withdrawn IS NULL;
";

/// Creates the tables of a project.
pub(super) fn create(change: &Transaction<'_>, terms: &Terms) -> rusqlite::Result<()> {
    change.execute_batch(TABLES)?;
    change.pragma_update(None, "user_version", VERSION)?;
    let mut put = change.prepare("INSERT INTO project (name, value) VALUES (?1, ?2)")?;
    put.execute(params!["form", to_json(&terms.form)?])?;
    put.execute(params!["seed", to_json(&terms.seed)?])?;
    put.execute(params!["overlap", to_json(&terms.overlap)?])?;
    Ok(())
}

/// The terms of a project.
///
/// # Errors
/// `Error::Format` if it is none, or of a newer version.
pub(super) fn terms(connection: &Connection, path: &Path) -> Result<Terms> {
    let read = || -> rusqlite::Result<(i64, Option<Terms>)> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != VERSION {
            return Ok((version, None));
        }
        let value = |name: &str| -> rusqlite::Result<String> {
            connection.query_row(
                "SELECT value FROM project WHERE name = ?1",
                params![name],
                |row| row.get(0),
            )
        };
        let terms = Terms {
            form: from_json(&value("form")?)?,
            seed: from_json(&value("seed")?)?,
            overlap: from_json(&value("overlap")?)?,
        };
        Ok((version, Some(terms)))
    };
    match read() {
        Ok((_, Some(terms))) => Ok(terms),
        Ok((version, None)) => Err(Error::format(
            path,
            format!(
                "expected judgements of version {VERSION}, found version {version}; 0 is a file of another program"
            ),
        )),
        Err(error) => Err(Error::format(
            path,
            format!("not a file of judgements: {error}"),
        )),
    }
}
