//! `temper label`: people judge responses in a browser.

mod draw;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};

use super::args::{ComputeArgs, at_most, positive};
use super::output;
use super::respond::SamplingArgs;
use crate::data::{DataConfig, DataContext, DataSource, Row, RowFormat, read_rows};
use crate::error::{Error, Result, count};
use crate::label::{
    Annotator, Form, NewTask, Report, Site, Store, Terms, Unused, check_names, export,
    open_browser, tasks_of,
};
use crate::report::Interrupt;
use crate::rng::Seed;
use crate::web::{Bind, Limits, Server};

/// Where the page is, unless `--port` says otherwise.
const PORT: u16 = 8642;

/// `temper label`.
#[derive(Debug, Clone, Args)]
#[command(
    group = ArgGroup::new("output").args(["export", "report"]),
    after_help = "Rows of --data: {\"prompt\", \"responses\": [..]} or {\"prompt\", \"chosen\", \"rejected\"}; for forms with ratings also
{\"prompt\", \"completion\"}; for dialogues {\"turns\": [{\"prompt\", \"responses\": [.., ..], \"continued\": 0}, ..]}. Also read:
`policies` (who wrote each response; annotators do not see it) and `gold` (the index of the best response, or all ranks: a question
that every annotator gets and whose answer is compared).

Examples:
  temper label --run runs/people --stage pairs --store labels.db --annotators ann,bob --overlap 0.15
  temper label --run runs/people --policies sft,ppo --data prompts.jsonl --store blind.db --grades 4
  temper label --data responses.jsonl --store ranked.db --form rank
  temper label --store labels.db                          go on another day
  temper label --store labels.db --report
  temper label --store labels.db --export labels          rows for RewardModel, Dpo, Kto and `temper elo`

Each annotator gets an address with a token; Ctrl-C ends the server, and nothing is lost. Another machine reaches it through a tunnel:
ssh -L 8642:127.0.0.1:8642 HOST"
)]
pub struct LabelArgs {
    /// The file of tasks and judgements; it is made if absent
    #[arg(long, value_name = "FILE.db")]
    pub store: PathBuf,
    /// A run folder, whose stage's rows or policies are judged
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub run: Option<PathBuf>,
    /// The stage of --run that has written responses: a Sample or Rank stage
    #[arg(long, value_name = "NAME", requires = "run", conflicts_with_all = ["data", "policies"])]
    pub stage: Option<String>,
    /// Stages of --run whose policies respond to the prompts of --data; `base` is the recipe's model
    #[arg(
        long,
        value_name = "A,B",
        requires = "run",
        requires = "data",
        value_delimiter = ','
    )]
    pub policies: Vec<String>,
    /// A file of responses, or with --policies of prompts
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub data: Option<PathBuf>,
    /// What is asked: pairwise, rank, instructgpt, dialogue, or a file of own fields [default: as the store has it, else pairwise]
    #[arg(long, value_name = "FORM|FILE.ron")]
    pub form: Option<String>,
    /// Grades of pairwise and dialogue: 2 (which one), 4 (and how much) or 9 [default: 2]
    #[arg(long, value_name = "2|4|9")]
    pub grades: Option<u8>,
    /// Two responses cannot be equally good
    #[arg(long)]
    pub no_ties: bool,
    /// Names of annotators, separated by commas [default: those of the store, else annotator]
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        conflicts_with = "output"
    )]
    pub annotators: Vec<String>,
    /// Fraction of tasks that all annotators judge, 0.1 to 0.2 to measure agreement [default: as the store has it, else 0: each task once]
    #[arg(long, value_name = "X", value_parser = fraction)]
    pub overlap: Option<f64>,
    /// Most pairs of a prompt's responses that are asked about, drawn at random [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_pairs: Option<usize>,
    /// Seed of the order of tasks and of the order in which responses are shown [default: as the store has it, else 1]
    #[arg(long, value_name = "N")]
    pub order_seed: Option<u64>,
    /// With --policies, responses of each policy to each prompt
    #[arg(long, default_value_t = 1, value_name = "N", requires = "policies", value_parser = at_most::<64>)]
    pub num_responses: usize,
    /// How the responses of --policies are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where the page is served.
    #[command(flatten)]
    pub bind: Bind,
    /// Open the first annotator's page in a browser
    #[arg(long, conflicts_with = "output")]
    pub open: bool,
    /// Addresses that were given out before are no longer valid
    #[arg(long, conflicts_with = "output")]
    pub new_tokens: bool,
    /// End when all is judged
    #[arg(long, conflicts_with = "output")]
    pub until_done: bool,
    /// Write rows for training into this folder
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// Print agreement, annotators and times
    #[arg(long)]
    pub report: bool,
    /// With --report, as JSON
    #[arg(long, requires = "report")]
    pub json: bool,
}

fn fraction(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("expected a fraction from 0 to 1".into()),
    }
}

/// Adds tasks and serves the page, or exports or reports.
///
/// # Errors
/// `Error::Usage` for settings that do not fit the store; those of data, models, the store and the server.
pub(super) fn run(args: &LabelArgs, compute: &ComputeArgs) -> Result<()> {
    if let Some(dir) = &args.export {
        return write_rows(&Store::open(&args.store)?, dir);
    }
    if args.report {
        let report = Report::new(&Store::open(&args.store)?)?;
        return match args.json {
            true => output::write_object(Path::new("-"), &report),
            false => output::print(&report.to_string()),
        };
    }
    let has_tasks = args.stage.is_some() || args.data.is_some();
    if args.run.is_some() && !has_tasks {
        return Err(Error::Usage(
            "--run: say what is judged: `--stage NAME` of a Sample or Rank stage, or `--policies A,B --data prompts.jsonl`".into(),
        ));
    }
    if !has_tasks && !args.store.exists() {
        return Err(Error::Usage(format!(
            "--store {}: there is no such file yet; say what is judged: `--data FILE`, or `--run DIR --stage NAME`",
            args.store.display()
        )));
    }
    if !args.annotators.is_empty()
        && let Err(problem) = check_names(&names(args, &[]))
    {
        return Err(Error::Usage(format!("--annotators: {problem}")));
    }
    let terms = terms(args)?;
    // What is wrong with the data is said before a store is made.
    let tasks = match has_tasks {
        true => Some(tasks(args, &terms, compute)?),
        false => None,
    };
    let store = Arc::new(Store::begin(&args.store, &terms)?);
    if let Some((tasks, unused)) = tasks {
        let added = store.add(&tasks)?;
        eprintln!(
            "{} of {} are new{}",
            count(added, "task"),
            tasks.len(),
            said(unused)
        );
    }
    serve(args, &store)
}

/// The terms of the store, or those of the options for a new one.
fn terms(args: &LabelArgs) -> Result<Terms> {
    let old = match args.store.exists() {
        true => Some(Store::open(&args.store)?.terms().clone()),
        false => None,
    };
    let says_form = args.form.is_some() || args.grades.is_some() || args.no_ties;
    let form = match &old {
        Some(old) if !says_form => old.form.clone(),
        _ => Form::named(
            args.form.as_deref().unwrap_or("pairwise"),
            args.grades,
            !args.no_ties,
        )?,
    };
    if args.grades.is_some() && !matches!(form, Form::Pairwise { .. } | Form::Dialogue { .. }) {
        return Err(Error::Usage(
            "--grades: only pairwise and dialogue have grades".into(),
        ));
    }
    Ok(Terms {
        form,
        seed: args
            .order_seed
            .or(old.as_ref().map(|old| old.seed))
            .unwrap_or(1),
        overlap: args
            .overlap
            .or(old.as_ref().map(|old| old.overlap))
            .unwrap_or(0.0),
    })
}

fn tasks(args: &LabelArgs, terms: &Terms, compute: &ComputeArgs) -> Result<(Vec<NewTask>, Unused)> {
    let rows = match (&args.run, &args.stage, &args.data) {
        (Some(run), Some(stage), _) => rows_of_stage(run, stage)?,
        (_, _, Some(data)) if args.policies.is_empty() => super::rows::read(data)?,
        (Some(run), _, Some(data)) => draw::responses(args, run, data, compute)?,
        _ => {
            return Err(Error::Usage(
                "expected --data, or --run with --stage or --policies".into(),
            ));
        }
    };
    let seed = Seed::new(terms.seed).fork("tasks");
    tasks_of(
        &rows,
        &RowFormat::default(),
        &terms.form,
        args.max_pairs,
        seed,
    )
}

/// The rows that a stage has written.
fn rows_of_stage(run: &Path, stage: &str) -> Result<Vec<Row>> {
    let folder = run.join(stage);
    let parts: Vec<PathBuf> = (["train.jsonl", "valid.jsonl"]
        .map(|name| folder.join(name))
        .into_iter())
    .filter(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0))
    .collect();
    if parts.is_empty() {
        return Err(Error::Usage(format!(
            "--run {} --stage {stage}: no rows in {}/train.jsonl; expected a Sample or Rank stage that has finished",
            run.display(),
            folder.display()
        )));
    }
    let mut rows = Vec::new();
    for path in parts {
        rows.extend(read_rows(
            &DataConfig::of(DataSource::Jsonl(path)),
            &DataContext::default(),
        )?);
    }
    Ok(rows)
}

/// What of the rows makes no task.
fn said(unused: Unused) -> String {
    let mut parts = Vec::new();
    if unused.equal > 0 {
        parts.push(format!(
            "{} of equal texts left out",
            count(unused.equal, "pair")
        ));
    }
    if unused.too_few > 0 {
        parts.push(format!(
            "{} with too few responses left out",
            count(unused.too_few, "row")
        ));
    }
    parts.iter().map(|part| format!("; {part}")).collect()
}

fn serve(args: &LabelArgs, store: &Arc<Store>) -> Result<()> {
    let names = names(args, &store.annotators()?);
    if args.new_tokens {
        eprintln!(
            "{} no longer valid",
            count(store.revoke_tokens()?, "earlier address")
        );
    }
    // Without a port the usual one, so that addresses stay valid; a second project at once gets another.
    let usual = Server::bind(args.bind.or_port(PORT), Limits::default());
    let server = match (args.bind.port, usual) {
        (None, Err(_)) => Server::bind(args.bind, Limits::default())?,
        (_, bound) => bound?,
    };
    let site = Site::new(store.clone());
    let addresses = site.addresses(&names, &server.url())?;
    let (judged, tasks) = store.judged()?;
    eprintln!("{judged} of {tasks} tasks judged; Ctrl-C ends, and the same command goes on later");
    let mut text = String::new();
    for (annotator, address) in &addresses {
        text.push_str(&format!("{}: {address}\n", annotator.name));
    }
    output::print(&text)?;
    if let Some((_, address)) = addresses.first().filter(|_| args.open) {
        open_browser(address);
    }
    let interrupt = Interrupt::on_signal()?;
    if args.until_done {
        let annotators: Vec<Annotator> = addresses
            .into_iter()
            .map(|(annotator, _)| annotator)
            .collect();
        stop_when_done(store.clone(), annotators, interrupt.clone());
    }
    server.serve(site.routes(), &interrupt)?;
    let (judged, tasks) = store.judged()?;
    eprintln!(
        "{judged} of {tasks} tasks judged, all in {}",
        args.store.display()
    );
    Ok(())
}

/// The annotators: those of the options, or those of the store.
fn names(args: &LabelArgs, stored: &[Annotator]) -> Vec<String> {
    let mut names: Vec<String> = args
        .annotators
        .iter()
        .map(|name| name.trim().to_owned())
        .collect();
    if names.is_empty() {
        names = stored
            .iter()
            .map(|annotator| annotator.name.clone())
            .collect();
    }
    if names.is_empty() {
        names.push("annotator".into());
    }
    names
}

/// Ends the server soon after the last task is judged: the page still shows that all is done.
fn stop_when_done(store: Arc<Store>, annotators: Vec<Annotator>, interrupt: Interrupt) {
    std::thread::spawn(move || {
        while !interrupt.requested() {
            std::thread::sleep(std::time::Duration::from_millis(500));
            // What cannot be read now can be later, or the requests say so.
            if store.left(&annotators).is_ok_and(|left| left == 0) {
                std::thread::sleep(std::time::Duration::from_secs(2));
                interrupt.request();
            }
        }
    });
}

fn write_rows(store: &Store, dir: &Path) -> Result<()> {
    let done = export(store, dir)?;
    let dir = dir.display();
    let mut text = format!(
        "{dir}/preferences.jsonl: {}",
        count(done.preferences, "row")
    );
    if done.ties > 0 {
        text.push_str(&format!("; {} left out", count(done.ties, "tie")));
    }
    text.push_str(&format!(
        "\n{dir}/labels.jsonl: {}",
        count(done.labels, "row")
    ));
    if done.neutral > 0 {
        text.push_str(&format!(
            "; {} neither good nor bad left out",
            count(done.neutral, "response")
        ));
    }
    if done.ratings > 0 {
        text.push_str(&format!(
            "\n{dir}/ratings.jsonl: {}",
            count(done.ratings, "row")
        ));
    }
    if done.compared > 0 {
        text.push_str(&format!(
            "\n{dir}/comparisons.jsonl: {} of policies, for `temper elo`",
            count(done.compared, "row")
        ));
    }
    text.push_str(&format!(
        "\n{dir}/judgements.jsonl: {}\n",
        count(done.judgements, "judgement")
    ));
    output::print(&text)
}
