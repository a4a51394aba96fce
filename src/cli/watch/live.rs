//! The pages of a run as they are now, made anew when a file of the run changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::checkpoint::RunDir;
use crate::error::{Error, Result};
use crate::recipe::{Recipe, find_run, run_report};
use crate::report::{
    Interrupt, StageReport, StageState, findings, run_body, stage_body, text_of_html,
};
use crate::terminal;

/// Time between two looks at the files.
const PERIOD: Duration = Duration::from_secs(1);
/// Looking takes at most one in so many parts of the time: a large run is read less often.
const SHARE: u32 = 10;
/// Files of a stage whose change changes the page.
const FILES: [&str; 5] = [
    "metrics.jsonl",
    "timing.jsonl",
    "samples.jsonl",
    "stage.json",
    "DONE",
];

/// Contents of pages by their path: empty for the run, else the stage's name.
type Bodies = BTreeMap<String, Arc<str>>;

/// A run that is watched.
pub(super) struct Live {
    run: PathBuf,
    /// The recipe's name.
    pub(super) title: String,
    bodies: RwLock<Bodies>,
    /// Counts changes.
    version: watch::Sender<u64>,
}

/// Length and time of each file, and whether a process works on the run.
#[derive(Debug, Default, PartialEq)]
struct State {
    files: Vec<Option<(u64, SystemTime)>>,
    in_use: bool,
}

impl State {
    fn of(run: &Path, recipe: &Recipe) -> Self {
        let found = |path: PathBuf| {
            let data = fs::metadata(path).ok()?;
            Some((data.len(), data.modified().ok()?))
        };
        let of_stages = recipe.stages.iter().flat_map(|stage| {
            let dir = run.join(stage.name());
            FILES.map(|name| dir.join(name))
        });
        let of_run = ["run.json", "recipe.ron"].map(|name| run.join(name));
        Self {
            files: of_stages.chain(of_run).map(found).collect(),
            in_use: RunDir::is_in_use(run),
        }
    }
}

impl Live {
    /// The pages as they are.
    ///
    /// # Errors
    /// As [`run_report`].
    pub(super) fn new(run: &Path) -> Result<Self> {
        let recipe = find_run(run)?;
        let bodies = bodies(run, &recipe, RunDir::is_in_use(run))?;
        Ok(Self {
            run: run.to_path_buf(),
            title: recipe.name,
            bodies: RwLock::new(bodies),
            version: watch::Sender::new(1),
        })
    }

    /// The content of a page; `None` if there is no such stage.
    pub(super) fn body(&self, page: &str) -> Option<Arc<str>> {
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        bodies.get(page).cloned()
    }

    /// Tells of changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Makes the pages anew on a thread of its own whenever a file changes, until `stop`.
    pub(super) fn follow(self: &Arc<Self>, stop: &Interrupt) -> JoinHandle<()> {
        let (live, stop) = (Arc::clone(self), stop.clone());
        std::thread::spawn(move || {
            let mut known = State::default();
            let mut complaint = String::new();
            let mut pause = PERIOD;
            let mut last = Instant::now();
            while !stop.requested() {
                std::thread::sleep(PERIOD.min(Duration::from_millis(200)));
                if last.elapsed() < pause {
                    continue;
                }
                let begin = Instant::now();
                match live.look(&mut known) {
                    Ok(()) => complaint.clear(),
                    // A file may be read while it is replaced: the next look may do. What stays is said once.
                    Err(error) if complaint != error.to_string() => {
                        complaint = error.to_string();
                        terminal::say(&format!("warning: the page stays as it was: {complaint}"));
                    }
                    Err(_) => {}
                }
                last = Instant::now();
                pause = PERIOD.max(begin.elapsed() * SHARE);
            }
        })
    }

    /// Makes the pages anew if the files differ from `known`.
    fn look(&self, known: &mut State) -> Result<()> {
        // Stages may change with a resume.
        let recipe = find_run(&self.run)?;
        let state = State::of(&self.run, &recipe);
        if state == *known {
            return Ok(());
        }
        let bodies = bodies(&self.run, &recipe, state.in_use)?;
        *known = state;
        let mut old = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        if *old != bodies {
            *old = bodies;
            self.version.send_modify(|version| *version += 1);
        }
        Ok(())
    }
}

/// The contents of all pages.
fn bodies(run: &Path, recipe: &Recipe, in_use: bool) -> Result<Bodies> {
    let mut report = run_report(recipe, run, in_use)?;
    for stage in &mut report.stages {
        // Findings are written at a stage's end; of one that goes on they are those so far.
        if stage.state == StageState::Running {
            stage.record.findings = findings(&stage.logs.metrics);
        }
    }
    let plot = |e: String| Error::format(run, format!("cannot plot a chart: {e}"));
    let begun = (report.stages.iter()).filter(|stage| stage.state != StageState::Waiting);
    let links: Vec<String> = begun
        .map(|stage| {
            let name = text_of_html(&stage.name);
            format!("<a href=\"/{name}/report.html\">{name}</a>")
        })
        .collect();
    let links = match links.is_empty() {
        true => String::new(),
        false => format!("<p class=\"soft\">All of {}</p>\n", links.join(" · ")),
    };
    let whole = format!("{links}{}", run_body(&report).map_err(plot)?);
    let mut bodies = Bodies::from([(String::new(), whole.into())]);
    for stage in &report.stages {
        if stage.state != StageState::Waiting {
            let title = format!("{} of recipe {}", stage.name, report.title);
            let about = StageReport {
                title: &title,
                record: &stage.record,
                logs: &stage.logs,
                next_command: "",
            };
            let body = stage_body(&about).map_err(plot)?;
            bodies.insert(stage.name.clone(), body.into());
        }
    }
    Ok(bodies)
}
