//! Comparisons by people, within a run: the stage serves the annotators' page until enough is judged.
//!
//! `labels.db` in the stage's folder has every judgement. `--resume` goes on with it; a run that begins anew moves it aside.
//!
//! # Source
//! Ziegler et al. 2019, arXiv:1909.08593, section 2.3 (online data collection); Touvron et al. 2023, arXiv:2307.09288, section 3.2.1.

mod config;
mod spec;

pub use config::{LabelConfig, Labeller};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::atomic::write_atomic;
use crate::collective;
use crate::data::read_rows;
use crate::error::{Error, Result, count};
use crate::label::{NewTask, Report, Site, Store, Terms, preference_rows, rating_rows, tasks_of};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, StageRecord};
use crate::rng::Seed;
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::config::Cadence;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};
use crate::train::shared::RowLog;
use crate::web::{Bind, Limits, Server};

/// The file of tasks and judgements in the stage's folder.
const STORE: &str = "labels.db";
/// Longest part of a prompt that an error shows, in characters.
const MOST_SHOWN: usize = 80;
/// How often the stage looks whether enough is judged.
const POLL: Duration = Duration::from_millis(200);

/// Serves the page until enough is judged; writes `train.jsonl`, `valid.jsonl` and, for forms with ratings, `ratings.jsonl`.
///
/// # Errors
/// Those of data, the store and the server; `Error::Interrupted`.
pub(super) fn label<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &LabelConfig,
) -> Result<Outcome> {
    let rows = read_rows(&config.data, &session.data_context())?;
    let seed = session.stage_seed(&config.name);
    let (tasks, unused) = tasks_of(
        &rows,
        &config.data.format,
        &config.form,
        config.max_pairs,
        seed.fork("tasks"),
    )
    .map_err(|error| of_stage(config, error))?;
    for (left_out, what) in [
        (unused.equal, "pairs of equal texts"),
        (unused.too_few, "rows with too few responses"),
    ] {
        if left_out > 0 {
            let text = format!("{}: {left_out} left out: {what}", config.name);
            session.reporter.message(&text);
        }
    }
    let data = (data_files(&config.data, session.run.path()), rows.len());
    session.record(&config.name, &format!("{:?}", config.by), &[data])?;
    let summary = format!("{} tasks", tasks.len());
    let cadence = Cadence {
        save_total_limit: 1,
        ..Cadence::default()
    };
    let (mut journal, _) = Journal::open(session, &config.name, &summary, 1, &cadence)?;
    let outcome = match config.by {
        Labeller::Scores => by_scores(config, &tasks, seed)?,
        Labeller::People if !collective::ranks().is_alone() => {
            return Err(Error::Stage {
                stage: config.name.clone(),
                message: "people are asked by one process: run this stage without mpirun, by `--stage`, and the others with it".into(),
            });
        }
        Labeller::People => by_people(session, config, &tasks, seed, &mut journal)?,
    };
    let Labels {
        rows,
        metrics,
        words,
        table,
    } = outcome;
    let log = RowLog::new(journal.dir(), STORE);
    let (train, valid) = log.split(&rows, config.valid_fraction, seed.fork("split"))?;
    if journal.position.step == 0 {
        journal.step(session, 0, &metrics)?;
    }
    let results = StageRecord {
        summary: format!("{train} comparisons for training, {valid} held out; {words}"),
        ..StageRecord::default()
    };
    let outcome = journal.finish(session, results)?;
    Ok(Outcome { table, ..outcome })
}

/// The error of rows without a task: it is that of a stage, as earlier ones may have written them, and none of the command.
fn of_stage(config: &LabelConfig, error: Error) -> Error {
    match error {
        Error::Usage(message) => Error::Stage {
            stage: config.name.clone(),
            message,
        },
        other => other,
    }
}

/// What came of the labelling.
struct Labels {
    /// Comparisons, those of a prompt together.
    rows: Vec<Vec<Value>>,
    metrics: Vec<(&'static str, f64)>,
    words: String,
    table: String,
}

/// What the rows' own scores say of the tasks.
fn by_scores(config: &LabelConfig, tasks: &[NewTask], seed: Seed) -> Result<Labels> {
    let (mut rows, mut ties) = (Vec::new(), 0);
    for NewTask { task, .. } in tasks {
        let [a, b] = task.scores.as_slice() else {
            return Err(Error::Stage {
                stage: config.name.clone(),
                message: format!(
                    "`by: Scores` needs a finite number for each response in the column `scores`; the rows of the prompt {:?} have not: \
                     score the responses of these rows by a Sample stage with a `reward`, or leave out `by`",
                    task.prompt_text()
                        .chars()
                        .take(MOST_SHOWN)
                        .collect::<String>()
                ),
            });
        };
        let (chosen, rejected) = match a.partial_cmp(b) {
            Some(std::cmp::Ordering::Greater) => (0, 1),
            Some(std::cmp::Ordering::Less) => (1, 0),
            _ => {
                ties += 1;
                continue;
            }
        };
        rows.push(json!({
            "prompt": task.prompt,
            "chosen": task.responses[chosen],
            "rejected": task.responses[rejected],
            "margin": (a - b).abs(),
            "chosen_probability": 1.0,
        }));
    }
    let count = rows.len();
    if let Some(enough) = config.enough {
        // The ones that people would have been asked first.
        let order = seed.fork("order").permutation(count);
        let kept: std::collections::BTreeSet<usize> = order.into_iter().take(enough).collect();
        rows = rows
            .into_iter()
            .enumerate()
            .filter(|(i, _)| kept.contains(i))
            .map(|(_, row)| row)
            .collect();
    }
    Ok(Labels {
        metrics: vec![
            ("label/comparisons", rows.len() as f64),
            ("label/ties", ties as f64),
        ],
        rows: by_prompt(vec![rows]),
        words: format!("by scores, {}", crate::error::count(ties, "tie")),
        table: String::new(),
    })
}

/// Serves the page until enough is judged.
fn by_people<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &LabelConfig,
    tasks: &[NewTask],
    seed: Seed,
    journal: &mut Journal,
) -> Result<Labels> {
    let path = journal.dir().join(STORE);
    if !session.resume
        && let Some(kept) = move_aside(&path)?
    {
        let text = format!(
            "{}: judgements of an earlier run are kept in {}",
            config.name,
            kept.display()
        );
        session.reporter.message(&text);
    }
    let terms = Terms {
        form: config.form.clone(),
        // SQLite's numbers and JSON's have a sign.
        seed: seed.fork("store").bits(0) >> 1,
        overlap: config.overlap,
    };
    let store = Arc::new(Store::begin(&path, &terms)?);
    store.add(tasks)?;
    // Only the gap to its end is left for a stage that was done and is resumed.
    if journal.position.step == 0 {
        wait(session, config, &store, journal)?;
    }
    let report = Report::new(&store)?;
    let (rows, ties) = preference_rows(&store)?;
    let ratings = rating_rows(&store)?;
    if !ratings.is_empty() {
        let text: String = ratings.iter().map(|row| format!("{row}\n")).collect();
        write_atomic(journal.dir().join("ratings.jsonl"), text.as_bytes())?;
    }
    let comparisons: usize = rows.iter().map(Vec::len).sum();
    let mut metrics = vec![
        ("label/judgements", report.judgements as f64),
        ("label/skips", report.skips as f64),
        ("label/comparisons", comparisons as f64),
        ("label/ties", ties as f64),
    ];
    let known = [
        ("label/agreement", report.agreement),
        ("label/alpha", report.alpha),
    ];
    metrics.extend(
        known
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    Ok(Labels {
        rows: by_prompt(rows),
        metrics,
        words: format!(
            "{} of {} by people, {}",
            count(report.judgements, "judgement"),
            count(report.judged, "task"),
            count(ties, "tie")
        ),
        table: report.to_string(),
    })
}

/// Serves the page until enough is judged, or the user stops the run.
fn wait<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &LabelConfig,
    store: &Arc<Store>,
    journal: &mut Journal,
) -> Result<()> {
    let bind = Bind {
        host: config.host,
        port: Some(config.port),
    };
    let server = Server::bind(bind, Limits::default())?;
    let site = Site::new(store.clone());
    let addresses = site.addresses(&config.annotators, &server.url())?;
    let annotators: Vec<_> = addresses
        .iter()
        .map(|(annotator, _)| annotator.clone())
        .collect();
    for earlier in other_stores(session.run.path(), store.path()) {
        store.adopt_tokens(&Store::open(&earlier)?)?;
    }
    let (judged, all) = store.judged()?;
    let wanted = config.enough.map_or(all, |enough| enough.min(all));
    if judged >= wanted && config.enough.is_some() || store.left(&annotators)? == 0 {
        return Ok(());
    }
    let mut text = format!(
        "{}: waits for people to judge {wanted} tasks ({judged} are); open",
        config.name
    );
    for (annotator, address) in &addresses {
        text.push_str(&format!("\n  {}: {address}", annotator.name));
    }
    session.reporter.message(&text);
    // People take hours, and models memory.
    session.free_bases();
    let _running = server.spawn(site.routes())?;
    let mut shown = None;
    loop {
        let (judged, _) = store.judged()?;
        if shown != Some(judged) {
            shown = Some(judged);
            session.reporter.rollout(&RolloutReport {
                what: "judged",
                done: judged.min(wanted),
                total: wanted,
                tokens: 0,
            });
        }
        if config.enough.is_some() && judged >= wanted || store.left(&annotators)? == 0 {
            return Ok(());
        }
        if session.interrupt.requested() {
            // Reports that the run was interrupted: the store is the state.
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
        std::thread::sleep(POLL);
    }
}

/// The stores of the run's other Label stages.
fn other_stores(run: &Path, own: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let stores = entries.map(|entry| entry.path().join(STORE));
    let mut stores: Vec<PathBuf> = stores.filter(|path| path != own && path.exists()).collect();
    stores.sort();
    stores
}

/// Rows of the same prompt together, in the order of first appearance, so that none is in both parts of a division.
fn by_prompt(rows: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut grouped: Vec<Vec<Value>> = Vec::new();
    for row in rows.into_iter().flatten() {
        let place = *places.entry(row["prompt"].to_string()).or_insert_with(|| {
            grouped.push(Vec::new());
            grouped.len() - 1
        });
        grouped[place].push(row);
    }
    grouped
}

/// Moves a store of an earlier run aside: judgements of people are never deleted. Returns where it went.
fn move_aside(path: &Path) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    // Closing the last connection folds the log into the file.
    drop(Store::open(path)?);
    let free = (1..)
        .map(|n| path.with_file_name(format!("labels-{n}.db")))
        .find(|path| !path.exists());
    let Some(free) = free else {
        return Ok(None);
    };
    std::fs::rename(path, &free).map_err(Error::io("move", path))?;
    for suffix in ["-wal", "-shm"] {
        let beside = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if beside(path).exists() {
            std::fs::rename(beside(path), beside(&free)).map_err(Error::io("move", path))?;
        }
    }
    Ok(Some(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_that_are_no_numbers_are_an_error_and_no_tie() {
        let config: LabelConfig =
            ron::from_str(r#"(name: "l", data: (source: Stage("s")), by: Scores)"#).unwrap();
        let of = |columns: Value| {
            let row = crate::data::Row {
                columns: columns.as_object().unwrap().clone(),
                path: "rows.jsonl".into(),
                line: 1,
            };
            let seed = Seed::new(1);
            let tasks = tasks_of(&[row], &config.data.format, &config.form, None, seed);
            let tasks = tasks.map_err(|error| of_stage(&config, error))?.0;
            by_scores(&config, &tasks, seed).map(|labels| labels.rows.len())
        };
        let row = |scores: Value| json!({"prompt": "p", "responses": ["a", "b"], "scores": scores});
        assert_eq!(of(row(json!([0.5, 2.0]))).unwrap(), 1);
        for scores in [
            json!([null, 2.0]),
            json!([1.0]),
            json!({"gold": [1.0, 2.0]}),
        ] {
            let error = of(row(scores)).unwrap_err();
            let says = "stage l: `by: Scores` needs a finite number for each response in the column `scores`; the rows of the prompt \"p\"";
            assert!(error.to_string().contains(says), "{error}");
        }
        // Rows without a task are no misuse of the command.
        let error = of(json!({"prompt": "p", "responses": ["a"], "scores": [1.0]})).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().starts_with("stage l: nothing to judge"),
            "{error}"
        );
    }

    #[test]
    fn rows_of_a_prompt_stay_together() {
        let row = |prompt: &str, n: usize| json!({"prompt": prompt, "n": n});
        let grouped = by_prompt(vec![
            vec![row("a", 1)],
            vec![row("b", 2)],
            vec![row("a", 3)],
        ]);
        assert_eq!(grouped, [vec![row("a", 1), row("a", 3)], vec![row("b", 2)]]);
    }
}
