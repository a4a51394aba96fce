//! Who gets which task, and what comes back.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;

use super::{Annotator, Store, from_json, to_json};
use crate::error::Result;
use crate::label::answer::Answer;
use crate::label::task::Task;

/// How long a task stays with an annotator who does not show any sign of life, in milliseconds.
pub(crate) const LEASE_MS: i64 = 20 * 60 * 1000;
/// Longest reason for a skip in bytes.
const LONGEST_REASON: usize = 2000;

/// A task in an annotator's hands.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldTask {
    /// Its number.
    pub id: i64,
    /// Its content.
    pub task: Task,
    /// Identifies this showing: an answer that is sent twice is stored once.
    pub nonce: i64,
    /// The order in which its responses are shown.
    pub shown: Vec<usize>,
    /// The answer that the annotator has withdrawn, to be changed.
    pub draft: Option<Answer>,
}

/// What an annotator does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Judges this.
    Task(Box<HeldTask>),
    /// Waits: what is left is in the hands of others.
    Wait,
    /// Nothing: all is judged.
    Done,
}

/// How far an annotator and the project have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Tasks that the annotator has judged.
    pub mine: usize,
    /// Tasks that the annotator has skipped.
    pub skipped: usize,
    /// Tasks that at least one annotator has judged.
    pub judged: usize,
    /// All tasks.
    pub tasks: usize,
}

/// Tasks that are open for an annotator: not judged or skipped by this one, and unless all judge it, judged by nobody.
const OPEN: &str = "
    NOT EXISTS (SELECT 1 FROM judgements j WHERE j.task = t.id AND j.annotator = ?1 AND j.withdrawn IS NULL)
    AND (t.shared OR NOT EXISTS (SELECT 1 FROM judgements j WHERE j.task = t.id AND j.withdrawn IS NULL AND j.answer IS NOT NULL))";

/// ... and held by nobody else.
const FREE: &str = "
    AND (t.shared OR NOT EXISTS (SELECT 1 FROM leases l WHERE l.task = t.id AND l.annotator <> ?1 AND l.expires > ?2))";

impl Store {
    /// The task that the annotator holds, or else the next one, which nobody else gets until it is judged or the lease has expired.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub fn next(&self, annotator: &Annotator, now: i64) -> Result<Next> {
        let seed = self.seed().fork("shown").fork_index(annotator.id as u64);
        self.change(|change| {
            let held = format!(
                "SELECT t.id FROM leases m JOIN tasks t ON t.id = m.task WHERE m.annotator = ?1 AND {OPEN} {FREE} ORDER BY m.since DESC LIMIT 1"
            );
            let free = format!("SELECT t.id FROM tasks t WHERE {OPEN} {FREE} ORDER BY t.position LIMIT 1");
            let find = |sql: &str| -> rusqlite::Result<Option<i64>> {
                change.prepare(sql)?.query_row(params![annotator.id, now], |row| row.get(0)).optional()
            };
            let (id, is_held) = match (find(&held)?, find(&free)?) {
                (Some(id), _) => (id, true),
                (None, Some(id)) => (id, false),
                (None, None) => {
                    let open = format!("SELECT count(*) FROM tasks t WHERE {OPEN}");
                    let left: i64 = change.prepare(&open)?.query_row(params![annotator.id], |row| row.get(0))?;
                    return Ok(if left > 0 { Next::Wait } else { Next::Done });
                }
            };
            if is_held {
                change.execute(
                    "UPDATE leases SET expires = ?3 WHERE task = ?1 AND annotator = ?2",
                    params![id, annotator.id, now + LEASE_MS],
                )?;
            } else {
                let task: Task = from_json(&content(change, id)?)?;
                let of_task = seed.fork_index(id as u64);
                let count = if task.turns.is_empty() { task.responses.len() } else { 2 };
                lease(change, id, annotator.id, &of_task.permutation(count), None, now)?;
            }
            Ok(Next::Task(Box::new(self.held(change, id, annotator.id)?)))
        })
    }

    /// Extends the lease of a task that the annotator still looks at. Returns whether there is one.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub fn renew(&self, annotator: &Annotator, nonce: i64, now: i64) -> Result<bool> {
        self.change(|change| {
            let changed = change.execute(
                "UPDATE leases SET expires = ?3 WHERE annotator = ?1 AND nonce = ?2",
                params![annotator.id, nonce, now + LEASE_MS],
            )?;
            Ok(changed > 0)
        })
    }

    /// Stores an answer, given in the order shown; it is on disk when this returns. An answer with a nonce that is stored already is
    /// not stored again.
    ///
    /// # Errors
    /// The inner error is for the annotator: the task is not this annotator's, or the answer does not fit the form.
    pub fn judge(
        &self,
        annotator: &Annotator,
        nonce: i64,
        answer: Answer,
        seconds: f64,
        now: i64,
    ) -> Result<Result<(), String>> {
        let form = &self.terms.form;
        self.finish(annotator, nonce, seconds, now, |held| {
            let answer = answer.of_shown(form, &held.task, &held.shown)?;
            Ok((Some(answer), None))
        })
    }

    /// Stores that the annotator cannot judge a task; another one gets it.
    ///
    /// # Errors
    /// As [`Store::judge`].
    pub fn skip(
        &self,
        annotator: &Annotator,
        nonce: i64,
        reason: &str,
        seconds: f64,
        now: i64,
    ) -> Result<Result<(), String>> {
        self.finish(annotator, nonce, seconds, now, |_| match reason.trim() {
            "" => Err("say why the task is skipped".into()),
            reason if reason.len() > LONGEST_REASON => {
                Err(format!("a reason has at most {LONGEST_REASON} bytes"))
            }
            reason => Ok((None, Some(reason.to_owned()))),
        })
    }

    fn finish(
        &self,
        annotator: &Annotator,
        nonce: i64,
        seconds: f64,
        now: i64,
        outcome: impl FnOnce(&HeldTask) -> Result<(Option<Answer>, Option<String>), String>,
    ) -> Result<Result<(), String>> {
        self.change(|change| {
            let stored = change
                .prepare("SELECT 1 FROM judgements WHERE annotator = ?1 AND nonce = ?2 AND withdrawn IS NULL")?
                .query_row(params![annotator.id, nonce], |_| Ok(()))
                .optional()?;
            if stored.is_some() {
                return Ok(Ok(()));
            }
            let found: Option<(i64, i64)> = change
                .prepare("SELECT task, since FROM leases WHERE annotator = ?1 AND nonce = ?2")?
                .query_row(params![annotator.id, nonce], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((id, since)) = found else {
                return Ok(Err("this task is no longer yours; the page shows the next one".into()));
            };
            let held = self.held(change, id, annotator.id)?;
            let (answer, skipped) = match outcome(&held) {
                Ok(outcome) => outcome,
                Err(refused) => return Ok(Err(refused)),
            };
            // A clock that was set back, or a page that counts wrongly, makes no negative or endless time.
            let most = ((now - since).max(0) as f64 / 1000.0).max(0.0);
            let seconds = if seconds.is_finite() { seconds.clamp(0.0, most) } else { most };
            change.execute(
                "INSERT INTO judgements (task, annotator, nonce, answer, skipped, shown, seconds, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    annotator.id,
                    nonce,
                    answer.as_ref().map(to_json).transpose()?,
                    skipped,
                    to_json(&held.shown)?,
                    seconds,
                    now
                ],
            )?;
            change.execute("DELETE FROM leases WHERE task = ?1 AND annotator = ?2", params![id, annotator.id])?;
            Ok(Ok(()))
        })
    }

    /// Withdraws the annotator's last judgement or skip and hands its task back, shown as before. Returns whether there was one.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub fn undo(&self, annotator: &Annotator, now: i64) -> Result<bool> {
        self.change(|change| {
            let last: Option<(i64, i64, String, Option<String>)> = change
                .query_row(
                    "SELECT id, task, shown, answer FROM judgements WHERE annotator = ?1 AND withdrawn IS NULL ORDER BY id DESC LIMIT 1",
                    params![annotator.id],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
                )
                .optional()?;
            let Some((id, task, shown, answer)) = last else {
                return Ok(false);
            };
            change.execute("UPDATE judgements SET withdrawn = ?2 WHERE id = ?1", params![id, now])?;
            let shown: Vec<usize> = from_json(&shown)?;
            lease(change, task, annotator.id, &shown, answer.as_deref(), now)?;
            Ok(true)
        })
    }

    /// How far the annotator and the project have come.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn progress(&self, annotator: &Annotator) -> Result<Progress> {
        self.read(|connection| {
            let count = |sql: &str, of: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<usize> {
                let count: i64 = connection.prepare(sql)?.query_row(of, |row| row.get(0))?;
                Ok(count as usize)
            };
            Ok(Progress {
                mine: count(
                    "SELECT count(*) FROM judgements WHERE annotator = ?1 AND withdrawn IS NULL AND answer IS NOT NULL",
                    &[&annotator.id],
                )?,
                skipped: count(
                    "SELECT count(*) FROM judgements WHERE annotator = ?1 AND withdrawn IS NULL AND answer IS NULL",
                    &[&annotator.id],
                )?,
                judged: judged(connection)?,
                tasks: count("SELECT count(*) FROM tasks", &[])?,
            })
        })
    }

    /// Tasks that at least one annotator has judged, and all tasks.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn judged(&self) -> Result<(usize, usize)> {
        self.read(|connection| {
            let tasks: i64 =
                connection.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0))?;
            Ok((judged(connection)?, tasks as usize))
        })
    }

    /// Judgements that one of `annotators` can still give: open tasks summed over them, a task for all counted for each, another one once.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub fn left(&self, annotators: &[Annotator]) -> Result<usize> {
        self.read(|connection| {
            let mut open = std::collections::BTreeSet::new();
            let sql = format!("SELECT t.id, t.shared FROM tasks t WHERE {OPEN}");
            let mut find = connection.prepare(&sql)?;
            for annotator in annotators {
                let mut rows = find.query(params![annotator.id])?;
                while let Some(row) = rows.next()? {
                    let (task, shared): (i64, bool) = (row.get(0)?, row.get(1)?);
                    open.insert((task, if shared { annotator.id } else { 0 }));
                }
            }
            Ok(open.len())
        })
    }

    fn held(
        &self,
        change: &Transaction<'_>,
        id: i64,
        annotator: i64,
    ) -> rusqlite::Result<HeldTask> {
        let (nonce, shown, draft): (i64, String, Option<String>) = change.query_row(
            "SELECT nonce, shown, draft FROM leases WHERE task = ?1 AND annotator = ?2",
            params![id, annotator],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let shown: Vec<usize> = from_json(&shown)?;
        let draft: Option<Answer> = draft.as_deref().map(from_json).transpose()?;
        Ok(HeldTask {
            id,
            task: from_json(&content(change, id)?)?,
            nonce,
            draft: draft.map(|answer| answer.as_shown(&shown)),
            shown,
        })
    }
}

fn content(change: &Transaction<'_>, id: i64) -> rusqlite::Result<String> {
    change.query_row(
        "SELECT content FROM tasks WHERE id = ?1",
        params![id],
        |row| row.get(0),
    )
}

fn judged(connection: &Connection) -> rusqlite::Result<usize> {
    let count: i64 = connection.query_row(
        "SELECT count(DISTINCT task) FROM judgements WHERE withdrawn IS NULL AND answer IS NOT NULL",
        [],
        |row| row.get(0),
    )?;
    Ok(count as usize)
}

/// Gives a task to an annotator, who then holds no other one.
fn lease(
    change: &Transaction<'_>,
    task: i64,
    annotator: i64,
    shown: &[usize],
    draft: Option<&str>,
    now: i64,
) -> rusqlite::Result<()> {
    change.execute(
        "DELETE FROM leases WHERE annotator = ?1",
        params![annotator],
    )?;
    // Larger than all that are stored, also of leases that are gone.
    let nonce: i64 = change.query_row(
        "SELECT 1 + max(coalesce((SELECT max(nonce) FROM judgements), 0), coalesce((SELECT max(nonce) FROM leases), 0),
                coalesce((SELECT CAST(value AS INTEGER) FROM project WHERE name = 'nonce'), 0))",
        [],
        |row| row.get(0),
    )?;
    change.execute(
        "INSERT INTO project (name, value) VALUES ('nonce', ?1) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        params![nonce.to_string()],
    )?;
    change.execute(
        "INSERT INTO leases (task, annotator, nonce, shown, since, expires, draft) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![task, annotator, nonce, to_json(&shown)?, now, now + LEASE_MS, draft],
    )?;
    Ok(())
}
