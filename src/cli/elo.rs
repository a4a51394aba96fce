//! `temper elo`: ratings of policies, or of responses, from comparisons.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output;
use crate::data::{ComparedResponses, read_compared};
use crate::error::{Error, Result};
use crate::report::{PolicyRatings, PromptGame, RatingRules, response_scores, write_rating_page};
use crate::rng::Seed;
use crate::stats::{Game, elo, outcome};
use crate::suggest::quoted;
use crate::train::COMPARED;

/// `temper elo`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper elo labels.jsonl                                policies by what people preferred
  temper elo runs/smollm2/compare --html ratings.html    by the reward sources of a Compare stage
  temper elo people.jsonl judge.jsonl --anchor sft --json
  temper elo ranked.jsonl --of responses --output scores.jsonl     a score for each response, for a regression

Rows: `chosen` and `rejected` with `chosen_policy` and `rejected_policy` (a tie by `tie: true`, a judge's confidence by
`chosen_probability`), `responses` with `scores` or `ranks` and `policies`, Chatbot Arena's `model_a`, `model_b` and `winner`,
OpenAI's comparisons of summaries, UltraFeedback's completions. Ties count as half a win for both.")]
pub struct EloArgs {
    /// Files or folders of comparisons, or the folder of a Compare stage, RUN/STAGE
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What is rated
    #[arg(long, value_enum, default_value_t = Rated::Policies, value_name = "WHAT")]
    pub of: Rated,
    /// Only the judgements of this source, e.g. a reward source of a Compare stage [default: each]
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Scores that differ by this or less are a tie
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative, allow_negative_numbers = true)]
    pub tie_margin: f64,
    /// The policy that has 1000 points [default: the first of the rows]
    #[arg(long, value_name = "POLICY")]
    pub anchor: Option<String>,
    /// Points that a win against an equal moves, twice; of Elo game by game
    #[arg(long, value_name = "POINTS", default_value_t = 4.0, value_parser = not_negative, allow_negative_numbers = true)]
    pub k: f64,
    /// What the bootstrap draws; with prompts, all comparisons on one prompt stay together
    #[arg(long, value_enum, default_value_t = Unit::Comparisons, value_name = "UNIT")]
    pub bootstrap: Unit,
    /// With --of responses: how strongly scores are held at zero; their standard deviation before any comparison is 1/sqrt of it
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero, allow_negative_numbers = true)]
    pub prior: f64,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Print JSON in place of tables
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Write the ratings as JSON, or a line of JSON for each response, into this file; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a page with a plot, the tables and the matrix of wins
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
}

/// What is rated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rated {
    /// The policies that the rows name
    Policies,
    /// Each response, among those to its prompt
    Responses,
}

/// What a bootstrap draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// Comparisons, as Chatbot Arena does
    Comparisons,
    /// Prompts with all their comparisons
    Prompts,
}

fn not_negative(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number of at least 0".into()),
    }
}

fn above_zero(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number above 0".into()),
    }
}

/// Reads comparisons and prints or writes ratings.
///
/// # Errors
/// `Error::Usage` if nothing can be rated; those of reading and writing.
pub(super) fn run(args: &EloArgs) -> Result<()> {
    for path in args.output.iter().chain(&args.html) {
        output::check(path)?;
    }
    let mut left_out = LeftOut::default();
    let mut rows = Vec::new();
    for file in &args.files {
        for row in read_compared(&rows_of(file)?)? {
            match row {
                Some(row) if row.responses.len() > 1 => rows.push(row),
                Some(_) => left_out.alone += 1,
                None => left_out.unjudged += 1,
            }
        }
    }
    let sources = sources(&rows, args.source.as_deref())?;
    match args.of {
        Rated::Policies => rate_policies(args, &rows, &sources, &mut left_out)?,
        Rated::Responses => rate_responses(args, &rows, &sources, &mut left_out)?,
    }
    left_out.say();
    Ok(())
}

/// What no rating is made of, by the reason.
#[derive(Debug, Default)]
struct LeftOut {
    unjudged: usize,
    alone: usize,
    unnamed: usize,
    same_policy: usize,
    same_text: usize,
    unscored: usize,
}

impl LeftOut {
    /// Says what was left out on stderr.
    fn say(&self) {
        let counted = [
            (self.unjudged, "rows without a judgement"),
            (self.alone, "rows with fewer than two responses"),
            (self.unnamed, "rows that name no policies"),
            (self.same_policy, "comparisons of a policy with itself"),
            (
                self.same_text,
                "comparisons of a response with an equal one",
            ),
            (self.unscored, "pairs with a response that has no score"),
        ];
        for (count, what) in counted {
            if count > 0 {
                eprintln!("left out: {count} {what}");
            }
        }
    }
}

/// The rows of a file or folder; of a Compare stage's folder its responses with scores.
fn rows_of(path: &Path) -> Result<PathBuf> {
    let compared = path.join(COMPARED);
    if compared.is_file() {
        return Ok(compared);
    }
    if path.join("stage.json").is_file() && !path.join("train.jsonl").is_file() {
        return Err(Error::Usage(format!(
            "{}: expected {COMPARED}, which a Compare stage writes, found none; the stage is of another kind, has not finished, or was \
             run by an older version",
            path.display()
        )));
    }
    let rows = path.join("train.jsonl");
    Ok(match rows.is_file() && path.join("stage.json").is_file() {
        true => rows,
        false => path.to_path_buf(),
    })
}

/// The sources of judgements, or the one that is asked for.
fn sources(rows: &[ComparedResponses], wanted: Option<&str>) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    for source in rows.iter().flat_map(|row| row.scores.keys()) {
        if !found.contains(source) {
            found.push(source.clone());
        }
    }
    match wanted {
        _ if found.is_empty() => Err(Error::Usage(
            "the files have no comparison: expected rows with two responses and a judgement".into(),
        )),
        None => Ok(found),
        Some(name) if found.iter().any(|source| source == name) => Ok(vec![name.to_owned()]),
        Some(name) => Err(Error::Usage(format!(
            "--source {name}: expected one of {}",
            quoted(found.iter().map(String::as_str))
        ))),
    }
}

/// All pairs of a row's responses by one source: indices and the outcome for the first.
fn pairs(
    row: &ComparedResponses,
    source: &str,
    tie_margin: f64,
    left_out: &mut LeftOut,
) -> Vec<(usize, usize, f64)> {
    let Some(scores) = row.scores.get(source) else {
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for i in 0..scores.len() {
        for j in i + 1..scores.len() {
            if scores[i].is_nan() || scores[j].is_nan() {
                left_out.unscored += 1;
                continue;
            }
            let won = outcome(scores[i], scores[j], tie_margin);
            pairs.push((i, j, row.probability.unwrap_or(won)));
        }
    }
    pairs
}

/// Numbers names in the order in which they come.
#[derive(Debug, Default)]
struct Numbering {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Numbering {
    fn of(&mut self, name: &str) -> usize {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }
}

fn rate_policies(
    args: &EloArgs,
    rows: &[ComparedResponses],
    sources: &[String],
    left_out: &mut LeftOut,
) -> Result<()> {
    left_out.unnamed = rows.iter().filter(|row| row.policies.is_empty()).count();
    if left_out.unnamed == rows.len() {
        return Err(Error::Usage(
            "no row names the policies of its responses: expected `chosen_policy` and `rejected_policy`, or `policies`; \
             `--of responses` rates responses without them"
                .into(),
        ));
    }
    let rules = RatingRules {
        anchor: args.anchor.clone(),
        k: args.k,
        by_prompt: args.bootstrap == Unit::Prompts,
        seed: Seed::new(args.seed),
    };
    let mut ratings = Vec::new();
    for source in sources {
        let (mut names, mut prompts) = (Numbering::default(), Numbering::default());
        let mut games = Vec::new();
        for row in rows.iter().filter(|row| !row.policies.is_empty()) {
            let prompt = prompts.of(&row.prompt);
            for (i, j, outcome) in pairs(row, source, args.tie_margin, left_out) {
                let [first, second] = [i, j].map(|at| names.of(&row.policies[at]));
                if first == second {
                    left_out.same_policy += 1;
                    continue;
                }
                let game = Game {
                    first,
                    second,
                    outcome,
                    weight: 1.0,
                };
                games.push(PromptGame { game, prompt });
            }
        }
        ratings.push(PolicyRatings::of(source, &names.names, &games, &rules)?);
    }
    for of_source in &ratings {
        for warning in &of_source.warnings {
            eprintln!("warning: {}: {warning}", of_source.source);
        }
    }
    if let Some(path) = &args.html {
        write_rating_page(path, &ratings)?;
        eprintln!("{}: ratings, plot and wins", path.display());
    }
    let out = match (&args.output, args.json) {
        (Some(path), _) => path.as_path(),
        (None, true) => Path::new("-"),
        (None, false) => {
            let texts: Vec<String> = ratings.iter().map(PolicyRatings::text).collect();
            return output::print(&texts.join("\n"));
        }
    };
    output::write_object(out, &ratings)
}

/// A response with its score: a row for a regression.
#[derive(Debug, Serialize)]
struct RatedResponse {
    prompt: String,
    response: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    source: String,
    /// Log-strength: the difference of two is the log-odds that the one is preferred.
    score: f64,
    /// The same on the scale of Elo, 1000 being the mean of the responses to the prompt.
    rating: f64,
    comparisons: usize,
}

fn rate_responses(
    args: &EloArgs,
    rows: &[ComparedResponses],
    sources: &[String],
    left_out: &mut LeftOut,
) -> Result<()> {
    if let Some(path) = &args.html {
        return Err(Error::Usage(format!(
            "--html {}: the page shows policies; leave out --of responses",
            path.display()
        )));
    }
    let (mut rated, mut apart) = (Vec::new(), 0);
    let mut num_prompts = 0;
    for source in sources {
        let mut prompts = Numbering::default();
        let mut of_prompt: Vec<(Numbering, Vec<Option<String>>, Vec<Game>)> = Vec::new();
        for row in rows {
            let prompt = prompts.of(&row.prompt);
            if prompt == of_prompt.len() {
                of_prompt.push(Default::default());
            }
            let (texts, policies, games) = &mut of_prompt[prompt];
            for (i, j, outcome) in pairs(row, source, args.tie_margin, left_out) {
                let [first, second] = [i, j].map(|at| {
                    let number = texts.of(&row.responses[at]);
                    if number == policies.len() {
                        policies.push(row.policies.get(at).cloned());
                    }
                    number
                });
                if first == second {
                    left_out.same_text += 1;
                    continue;
                }
                games.push(Game {
                    first,
                    second,
                    outcome,
                    weight: 1.0,
                });
            }
        }
        num_prompts = num_prompts.max(of_prompt.len());
        for (prompt, (texts, policies, games)) in prompts.names.iter().zip(&of_prompt) {
            let (scores, groups) = response_scores(texts.names.len(), games, args.prior);
            apart += usize::from(groups.len() > 1);
            // Around their mean, which is zero.
            let mut with_mean = scores.clone();
            with_mean.push(0.0);
            let points = elo(&with_mean, scores.len());
            for (i, response) in texts.names.iter().enumerate() {
                let comparisons = games
                    .iter()
                    .filter(|game| game.first == i || game.second == i);
                rated.push(RatedResponse {
                    prompt: prompt.clone(),
                    response: response.clone(),
                    policy: policies[i].clone(),
                    source: source.clone(),
                    score: scores[i],
                    rating: points[i],
                    comparisons: comparisons.count(),
                });
            }
        }
    }
    if apart > 0 {
        eprintln!(
            "warning: the responses to {apart} prompts are in groups that no comparison connects; scores of different groups say nothing \
             of each other"
        );
    }
    let summary = format!("{} responses to {num_prompts} prompts rated", rated.len());
    match &args.output {
        Some(path) => {
            output::write_lines(path, &rated)?;
            eprintln!("{}: {summary}", path.display());
        }
        None => {
            eprintln!("{summary}");
            output::write_lines(Path::new("-"), &rated)?;
        }
    }
    Ok(())
}
