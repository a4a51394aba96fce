//! Checks every row of a stage's data before anything is loaded.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::Value;

use crate::data::complaints::column_names;
use crate::data::effects::Effects;
use crate::data::encode::{Judgements, check_labelled, check_scored, count_labels};
use crate::data::file::{name_problem, suggest_file};
use crate::data::problems::ProblemGroups;
use crate::data::records::{CompletionRow, Content, RowParser, chat_options};
use crate::data::rows::{self, DataContext, Row};
use crate::data::shape::Shaping;
use crate::data::source_column::SourceColumn;
use crate::data::stream::{RowStream, no_rows};
use crate::data::{DataConfig, DataSource, RowKind, SampleBy};
use crate::error::{Error, Problem, Result};

/// Rows of [`DataCheck::sample`] from the start of the data.
const SAMPLE_ROWS: usize = 128;
/// Rows of [`DataCheck::sample`] whose use depends on the tokenizer.
const UNCERTAIN_ROWS: usize = 16;
/// Interval between two progress lines of a long check.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// The result of checking every row of a data set.
#[derive(Debug, Clone, Default)]
pub struct DataCheck {
    /// Problems of rows, each kind once, at places such as `rows.jsonl:57`.
    pub problems: Vec<Problem>,
    /// Problems of the data set's own keys: the key below the data set (`.source`), and the problem.
    pub key_problems: Vec<(&'static str, Problem)>,
    /// Settings without effect, by key.
    pub key_warnings: Vec<(&'static str, Problem)>,
    /// What was recognised by its columns, a line for each layout.
    pub notices: Vec<String>,
    /// Rows that the stage will read; unknown until a file is fetched or an earlier stage has run.
    pub num_rows: Option<usize>,
    /// The first rows, and rows whose use depends on the tokenizer.
    pub sample: Vec<Row>,
    /// Number of rows with a number in the column `margin`.
    pub num_margins: usize,
    /// Number of rows of scored responses.
    pub num_scored: usize,
    /// Of rows that are to have labels, the number of desirable responses and of others.
    pub num_labels: [usize; 2],
    /// Number of rows with a `chosen_probability`.
    pub num_probabilities: usize,
    /// Number of responses labelled as safe and as unsafe.
    pub num_safe: [usize; 2],
    /// Lowest and highest `rating`.
    pub ratings: Option<(f32, f32)>,
}

/// Checks every row of a data set, after `skip` and up to `limit`: the columns that `expects` needs or that the format's
/// templates name, their types, and `columns`, which the stage's reward sources read.
///
/// Rows are parsed on all cores; long checks report progress on stderr. Files of the hub that are not in the cache are fetched
/// if `context` allows it and skipped otherwise, as are rows of a stage that has not run yet.
pub fn check_source(
    config: &DataConfig,
    context: &DataContext,
    expects: RowKind,
    columns: &[SourceColumn],
) -> DataCheck {
    let mut check = DataCheck::default();
    let context = &DataContext {
        cached_only: context.cached_only || !context.fetch,
        ..context.clone()
    };
    let parser = match RowParser::new(&config.format) {
        Ok(parser) => Some(parser),
        Err(e) => {
            check.at_key(".format", e.to_string());
            None
        }
    };
    if config.limit == Some(0) {
        check.at_key(".limit", "expected at least 1, found 0");
        return check;
    }
    // Layouts that refuse kinds of rows leave rows as they are, so that they are recognised here, too. An unknown layout is reported
    // where the rows are read.
    let shaping = Shaping::of(&config.format).unwrap_or(Shaping::AsNamed);
    let look = |row: &Row| {
        let shape = shaping.shape(&row.columns);
        if let Some(why) = shape.and_then(|shape| shape.refusal(expects)) {
            return Err(row.error(why));
        }
        match &parser {
            Some(parser) => look(parser, row, expects, columns),
            None => Ok(Look {
                usability: Usability::Certain,
                judgements: Judgements::default(),
                effects: Effects::default(),
            }),
        }
    };
    match &config.source {
        DataSource::Posts { rows, .. } if config.valid_fraction == 0.0 => {
            check.posts(*rows, config, context, expects, &look);
        }
        DataSource::Hub { file, .. } => {
            let problem = file.as_deref().and_then(name_problem);
            match problem {
                Some(message) => {
                    check.at_key(".source", message);
                    return check;
                }
                None if rows::is_present(&config.source, context) => {
                    check.stream(config, context, expects, &look);
                }
                None => return check,
            }
        }
        source if source.is_of_stages() => {
            let paths = source.local_files(&context.run_dir);
            match paths.iter().all(|path| path.exists()) {
                true => check.stream(config, context, expects, &look),
                false if expects.takes(RowKind::Preference) => return check,
                false => {
                    let stages = source.stages();
                    let stage = stages.first().map_or("", |rows| rows.stage);
                    let expected = expects.columns();
                    check.at_key(
                        ".source",
                        format!(
                            "the rows of stage `{stage}` are scored responses, expected {expected}"
                        ),
                    );
                    return check;
                }
            }
        }
        // Replaced by the named set when the recipe is read.
        DataSource::Data(_) => return check,
        DataSource::Mix(_) if rows::is_present(&config.source, context) => {
            check.stream(config, context, expects, &look);
        }
        // What is here of it already.
        DataSource::Mix(parts) => {
            for (_, part) in parts {
                if part.source.is_of_stages() || !rows::is_present(&part.source, context) {
                    continue;
                }
                let part = DataConfig {
                    format: match part.format.has_templates() {
                        true => part.format.clone(),
                        false => config.format.clone(),
                    },
                    ..part.clone()
                };
                let found = check_source(&part, context, expects, columns);
                check.key_problems.extend(found.key_problems);
                check.problems.extend(found.problems);
            }
            return check;
        }
        // Files, and posts of which a part is held out.
        _ => {
            check.stream(config, context, expects, &look);
        }
    }
    if let Some(parser) = &parser {
        check.unused_templates(parser, expects);
    }
    check
}

impl DataCheck {
    fn at_key(&mut self, key: &'static str, message: impl Into<String>) {
        self.key_problems.push((key, Problem::new("", message)));
    }

    /// Checks the embedded posts: all have the same columns, so the first rows suffice.
    fn posts(
        &mut self,
        rows: usize,
        config: &DataConfig,
        context: &DataContext,
        expects: RowKind,
        look: &(impl Fn(&Row) -> Result<Look> + Sync),
    ) {
        if rows <= config.skip {
            self.at_key(
                ".source",
                format!(
                    "no rows: {rows} posts, of which the first {} are left out",
                    config.skip
                ),
            );
            return;
        }
        let left = rows - config.skip;
        self.num_rows = Some(config.limit.map_or(left, |limit| left.min(limit)));
        let first = DataConfig {
            limit: Some(config.limit.unwrap_or(SAMPLE_ROWS).min(SAMPLE_ROWS)),
            ..config.clone()
        };
        match rows::read_rows(&first, context) {
            Ok(sample) => {
                let (mut groups, mut effects) = (ProblemGroups::default(), Effects::default());
                for row in &sample {
                    match look(row) {
                        Ok(look) => effects = effects.or(look.effects),
                        Err(error) => groups.add(error),
                    }
                }
                self.sample = sample;
                self.problems = groups.problems(Path::new("posts"));
                self.without_effect(config, expects, effects, false);
            }
            Err(error) => self.at_key(".source", error.to_string()),
        }
    }

    /// Checks all rows of files.
    fn stream(
        &mut self,
        config: &DataConfig,
        context: &DataContext,
        expects: RowKind,
        look: &(impl Fn(&Row) -> Result<Look> + Sync),
    ) {
        let mut stream = match RowStream::open(config, context) {
            Ok(stream) => stream,
            Err(Error::Io { source, path, .. }) => {
                let message = format!("cannot read {}: {source}", path.display());
                let mut problem = Problem::new("", message);
                if source.kind() == ErrorKind::NotFound {
                    problem = problem.with_help(match suggest_file(&path) {
                        Some(near) => format!("did you mean {}?", near.display()),
                        None => "relative paths are taken from the folder where temper was started"
                            .to_owned(),
                    });
                }
                self.key_problems.push((".source", problem));
                return;
            }
            Err(error) if matches!(config.source, DataSource::Hub { .. }) => {
                return self.at_key(".source", error.to_string());
            }
            // The format's own key has been reported.
            Err(Error::Usage(message)) => return self.at_key(".format", message),
            Err(error) => {
                let path = config.source.file().unwrap_or(Path::new("")).to_path_buf();
                let mut groups = ProblemGroups::default();
                groups.add(error);
                self.problems = groups.problems(&path);
                return;
            }
        };
        let (mut seen, mut groups, mut uncertain) = (0usize, ProblemGroups::default(), Vec::new());
        let mut effects = Effects::default();
        let mut said = Instant::now();
        loop {
            let batch = stream.batch();
            if batch.is_empty() {
                break;
            }
            seen += batch.len();
            let looked: Vec<Result<(Row, Look)>> = (batch.into_par_iter())
                .map(|row| {
                    let row = row?;
                    let look = look(&row)?;
                    Ok((row, look))
                })
                .collect();
            for outcome in looked {
                match outcome {
                    Ok((row, look)) => {
                        let usability = look.usability;
                        effects = effects.or(look.effects);
                        self.judged(&look.judgements);
                        let margin = row.columns.get("margin");
                        self.num_margins += usize::from(margin.is_some_and(Value::is_number));
                        self.num_scored += usize::from(is_scored(&row));
                        if expects == RowKind::Labelled {
                            count_labels(&row, &config.format, &mut self.num_labels);
                        }
                        if self.sample.len() < SAMPLE_ROWS {
                            self.sample.push(row);
                        } else if usability == Usability::DependsOnTokens
                            && uncertain.len() < UNCERTAIN_ROWS
                        {
                            uncertain.push(row);
                        }
                    }
                    Err(error) => groups.add(error),
                }
            }
            if said.elapsed() > PROGRESS_EVERY {
                // The run has no reporter yet.
                crate::terminal::say(&format!(
                    "checking {}: {seen} rows so far",
                    stream.name().display()
                ));
                said = Instant::now();
            }
        }
        self.sample.append(&mut uncertain);
        self.num_rows = Some(seen);
        if seen == 0 {
            groups.add(no_rows(config, stream.name()));
        }
        self.problems = groups.problems(stream.name());
        self.notices = stream.notices();
        // The sets of a mixture divide their text themselves.
        let is_mixture = matches!(config.source, DataSource::Mix(_));
        self.without_effect(config, expects, effects, is_mixture || stream.has_text());
    }

    /// Reports keys of the format that have no effect on any row, and a column to shorten that there is not.
    fn without_effect(
        &mut self,
        config: &DataConfig,
        expects: RowKind,
        effects: Effects,
        has_text: bool,
    ) {
        let Some(first) = self.sample.first() else {
            return;
        };
        let format = &config.format;
        let problem = effects.problem(format, first);
        (self.key_problems).extend(problem.map(|problem| (".format.shorten", problem)));
        (self.key_warnings).extend(effects.warnings(format, expects));
        if format.sample_by != SampleBy::Line && !has_text {
            let message =
                "has no effect: it divides plain text into rows, and the data are not plain text";
            self.key_warnings
                .push((".format.sample_by", Problem::new("", message)));
        }
    }

    /// Counts what a row says of its responses.
    fn judged(&mut self, judgements: &Judgements) {
        self.num_probabilities += usize::from(judgements.chosen_probability.is_some());
        for safe in judgements.safe.iter().flatten() {
            self.num_safe[usize::from(!safe)] += 1;
        }
        for &rating in &judgements.ratings {
            let (low, high) = self.ratings.unwrap_or((rating, rating));
            self.ratings = Some((low.min(rating), high.max(rating)));
        }
    }

    /// Warns of unused templates that name an unknown column: a typo in the template's key would go unnoticed.
    fn unused_templates(&mut self, parser: &RowParser<'_>, expects: RowKind) {
        let Some(row) = self.sample.first() else {
            return;
        };
        for (key, name, named) in parser.templates() {
            let foreign = named.iter().find(|column| {
                let has = |row: &Row| row.columns.contains_key(*column);
                !self.sample.iter().any(has)
            });
            if let (false, Some(column)) = (expects.uses(name), foreign) {
                let message = format!(
                    "names the column `{column}`, which no row has, and is not used by this stage; the rows have {}",
                    column_names(&row.columns)
                );
                self.key_warnings.push((key, Problem::new("", message)));
            }
        }
    }
}

/// Whether a valid row can certainly be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usability {
    Certain,
    /// Depends on its tokens: a chat template may mark other turns than the assistant's; an empty prompt needs a BOS.
    DependsOnTokens,
}

/// What a check of a row has found.
#[derive(Debug, Clone)]
struct Look {
    usability: Usability,
    judgements: Judgements,
    effects: Effects,
}

/// Checks one row.
fn look(
    parser: &RowParser<'_>,
    row: &Row,
    expects: RowKind,
    columns: &[SourceColumn],
) -> Result<Look> {
    let mut judgements = Judgements::default();
    let is_empty = |content: &Content| matches!(content, Content::Text(text) if text.is_empty());
    let uncertain = match expects {
        _ if is_scored(row) && expects.takes(RowKind::Scored) => {
            check_scored(row)?;
            false
        }
        RowKind::Scored => {
            return Err(row.error(format!(
                "expected {}; the row has {}",
                expects.columns(),
                column_names(&row.columns)
            )));
        }
        RowKind::Text => is_empty(&parser.text(row)?),
        RowKind::TextOrCompletion if is_plain_text(row) => is_empty(&parser.text(row)?),
        RowKind::Completion | RowKind::TextOrCompletion => match parser.completion(row)? {
            CompletionRow::Conversation(messages) => !messages
                .iter()
                .any(|message| message["role"] == "assistant"),
            CompletionRow::Text { completion, .. } => completion.is_empty(),
            CompletionRow::Messages { .. } => false,
        },
        RowKind::Preference | RowKind::Responses => {
            margin(row)?;
            parser.preference(row)?;
            judgements = Judgements::of_preference(parser, row)?;
            false
        }
        RowKind::Rated => {
            parser.completion(row)?;
            judgements = Judgements::of_rated(parser, row)?;
            false
        }
        RowKind::Labelled => {
            check_labelled(parser, row)?;
            false
        }
        RowKind::Prompt => is_empty(&parser.prompt(row)?),
    };
    chat_options(row, parser.format())?;
    for column in columns {
        column.check(row)?;
    }
    let usability = match uncertain {
        true => Usability::DependsOnTokens,
        false => Usability::Certain,
    };
    Ok(Look {
        usability,
        judgements,
        effects: Effects::on(parser, row, expects)?,
    })
}

/// A column's value as true or false: a boolean, or 1 or 0.
pub fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64()? {
            0.0 => Some(false),
            1.0 => Some(true),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a row of kind `TextOrCompletion` is text.
pub(crate) fn is_plain_text(row: &Row) -> bool {
    row.columns.contains_key("text") && !row.columns.contains_key("prompt")
}

/// Whether the row holds scored responses, as stages write them.
pub(crate) fn is_scored(row: &Row) -> bool {
    row.columns.contains_key("response_ids")
}

/// The margin of a preference row; 0 if it has none.
///
/// # Errors
/// If the column `margin` is not a number.
pub(crate) fn margin(row: &Row) -> Result<f64> {
    match row.columns.get("margin") {
        None | Some(Value::Null) => Ok(0.0),
        Some(margin) => margin.as_f64().ok_or_else(|| {
            row.error(format!(
                "column `margin`: expected a number, found {}",
                rows::json_kind(margin)
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::jinja;
    use crate::data::{AssistantTurns, RowFormat, SampleBy};

    fn config(source: DataSource) -> DataConfig {
        DataConfig::of(source)
    }

    /// Problems of a file with these lines, its folder's name cut off.
    fn problems(
        lines: &str,
        expects: RowKind,
        change: impl FnOnce(&mut DataConfig),
    ) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, lines).unwrap();
        let mut config = config(DataSource::Jsonl(path));
        change(&mut config);
        let check = check_source(&config, &DataContext::default(), expects, &[]);
        let folder = format!("{}/", dir.path().display());
        let keys = (check.key_problems.iter())
            .map(|(key, problem)| format!("data{key}: {}", problem.message).replace(&folder, ""));
        let rows = (check.problems.iter()).map(|problem| problem.to_string().replace(&folder, ""));
        keys.chain(rows).collect()
    }

    #[test]
    fn what_is_trained_on_whole_may_be_text_or_a_completion() {
        let kind = RowKind::TextOrCompletion;
        for row in [
            r#"{"text": "a"}"#,
            r#"{"prompt": "a", "completion": "b"}"#,
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
        ] {
            assert_eq!(problems(row, kind, |_| ()), Vec::<String>::new());
        }
        assert_eq!(
            problems(r#"{"prompt": "a"}"#, kind, |_| ()),
            [
                "d.jsonl:1: expected `prompt` and `completion`, or `messages`; the row has the columns `prompt`"
            ]
        );
    }

    #[test]
    fn good_files_have_no_problems() {
        let row = r#"{"text":"t","prompt":"p","completion":"c","chosen":"a","rejected":"b"}"#;
        for kind in [
            RowKind::Text,
            RowKind::Completion,
            RowKind::Preference,
            RowKind::Prompt,
        ] {
            assert!(problems(row, kind, |_| ()).is_empty());
        }
        let ranked = r#"{"prompt_ids":[1],"response_ids":[[2]],"scores":[1]}"#;
        assert!(problems(ranked, RowKind::Preference, |_| ()).is_empty());
        let rename = |c: &mut DataConfig| c.format.text = Some("{{ body }}".into());
        assert!(problems(r#"{"body":"b"}"#, RowKind::Text, rename).is_empty());
    }

    #[test]
    fn every_kind_of_bad_row_is_named_once() {
        let lines = format!(
            "{}{{\"text\": }}\n[1]\n{{\"body\": 1}}\n{{\"text\": 5}}\n{{\"text\" }}\n{{\"body\": 2}}\n{{\"body\": 3}}\n{{\"text\": null}}\n",
            "{\"text\": \"t\"}\n".repeat(1000)
        );
        assert_eq!(
            problems(&lines, RowKind::Text, |_| ()),
            [
                "d.jsonl:1001: expected one JSON object on the line, found bad JSON: expected value at column 10",
                "d.jsonl:1002: expected a JSON object, found an array",
                "d.jsonl:1003: expected `text` or `messages`; the row has the columns `body` (2 more rows like it, the last is 1007)",
                "d.jsonl:1004: column `text`: expected a string or a list of messages, found a number",
                "d.jsonl:1005: expected one JSON object on the line, found bad JSON: expected `:` at column 9",
                "d.jsonl:1008: column `text` is null; expected `text` or `messages`",
            ]
        );
        let other = |i| format!("{{\"{}\": 1}}\n", "x".repeat(i));
        let lines: String = (1..=13).map(other).collect();
        let many = problems(&lines, RowKind::Text, |_| ());
        assert_eq!(many.len(), 11);
        assert_eq!(many[10], "d.jsonl: 3 more kinds of problems");
    }

    #[test]
    fn a_row_far_down_is_found() {
        let good = r#"{"prompt":"a","chosen":" b","rejected":" c"}"#;
        let lines = format!(
            "{}{{\"prompt\":\"a\",\"chosen\":\" b\",\"rejected\":null}}\n",
            format!("{good}\n").repeat(150)
        );
        assert_eq!(
            problems(&lines, RowKind::Preference, |_| ()),
            ["d.jsonl:151: column `rejected` is null; expected `chosen` and `rejected`"]
        );
        let cut = |c: &mut DataConfig| c.limit = Some(150);
        assert!(problems(&lines, RowKind::Preference, cut).is_empty());
    }

    #[test]
    fn types_of_every_column_that_is_read_are_looked_at() {
        for (row, problem) in [
            (
                r#"{"chosen":"a","rejected":"b","margin":"1"}"#,
                "column `margin`: expected a number, found a string",
            ),
            (
                r#"{"chosen":"a","rejected":"b","tools":3,"chat_template_kwargs":[]}"#,
                "column `chat_template_kwargs`: expected an object, found an array",
            ),
            (
                r#"{"prompt_ids":[1],"response_ids":[[2]],"scores":["1"]}"#,
                "not a row of scored responses: invalid type: string \"1\", expected f64",
            ),
        ] {
            let found = problems(row, RowKind::Preference, |_| ());
            assert_eq!(found, [format!("d.jsonl:1: {problem}")]);
        }
    }

    #[test]
    fn columns_of_reward_sources_are_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(
            &path,
            "{\"prompt\":\"a\",\"ideal\":\"b\"}\n{\"prompt\":\"a\"}\n",
        )
        .unwrap();
        let config = config(DataSource::Jsonl(path));
        let check = check_source(
            &config,
            &DataContext::default(),
            RowKind::Prompt,
            &[SourceColumn::Text("ideal".to_owned())],
        );
        assert_eq!(check.problems.len(), 1);
        assert!(
            check.problems[0].to_string().ends_with(
                "d.jsonl:2: a reward source reads the column `ideal`; the row has the columns `prompt`"
            ),
            "{}",
            check.problems[0]
        );
        assert_eq!(check.num_rows, Some(2));
    }

    #[test]
    fn columns_of_templates_are_missed_where_they_are_needed() {
        let row = Row {
            columns: serde_json::from_str("{\"ideal\":\"b\",\"kind\":\"short\"}").unwrap(),
            path: "d.jsonl".into(),
            line: 1,
        };
        for (text, missed) in [
            ("{{ response }} {{ row.ideal }}", None),
            (
                "{{ response }} {{ row.ideal }} {{ row.nosuch }}",
                Some("nosuch"),
            ),
            (
                "{% if row.a is defined %}{{ row.a }}{% endif %}{{ row.b }}",
                Some("b"),
            ),
            ("{{ row.nosuch | default('none') }}", None),
            (
                "{% if row.kind == 'long' %}{{ row.a }}{% else %}{{ row.ideal }}{% endif %}",
                None,
            ),
            (
                "{% if row.kind == 'short' %}{{ row.a.b }}{% endif %}",
                Some("a"),
            ),
            ("{{ 1 // 0 }}{{ row.nosuch }}", None),
        ] {
            let columns = jinja::items_read(&jinja::strict(text).unwrap(), "row");
            let text = text.to_owned();
            let column = SourceColumn::OfTemplate { text, columns };
            let found = column.check(&row).err().map(|error| error.to_string());
            let expected = missed.map(|name| {
                format!(
                    "d.jsonl:1: a reward source reads the column `{name}`; the row has the columns `ideal`, `kind`"
                )
            });
            assert_eq!(found, expected, "{column:?}");
        }
        let column = SourceColumn::Text("ideal".into());
        assert!(
            column.is_missed("a reward source reads the column `ideal`; the row has no columns")
        );
        assert!(
            !column.is_missed("a reward source reads the column `ideals`; the row has no columns")
        );
    }

    #[test]
    fn flags_are_true_or_false_or_1_or_0() {
        let found = |value: &str| {
            let columns = serde_json::from_str(&format!("{{\"tag\":{value}}}")).unwrap();
            let row = Row {
                columns,
                path: "d.jsonl".into(),
                line: 1,
            };
            let checked = SourceColumn::Flag("tag".into()).check(&row);
            checked.map_err(|error| error.to_string())
        };
        for right in ["true", "false", "0", "1", "1.0"] {
            assert_eq!(found(right), Ok(()));
        }
        assert_eq!(
            found("2").unwrap_err(),
            "d.jsonl:1: column `tag`, which a reward source reads: expected true or false, or 1 or 0, found 2"
        );
        assert!(found("\"yes\"").unwrap_err().ends_with("found a string"));
    }

    #[test]
    fn answers_have_a_number() {
        let found = |value: &str| {
            let columns = serde_json::from_str(&format!("{{\"answer\":{value}}}")).unwrap();
            let row = Row {
                columns,
                path: "d.jsonl".into(),
                line: 1,
            };
            let checked = SourceColumn::Number("answer".into()).check(&row);
            checked.map_err(|error| error.to_string())
        };
        for right in ["42", "\"6 * 7 #### 42\"", "-0.5"] {
            assert_eq!(found(right), Ok(()));
        }
        let place = "d.jsonl:1: column `answer`, which a reward source reads: expected a number, or text with one, found";
        assert_eq!(found("\"many\""), Err(format!("{place} \"many\"")));
        assert_eq!(found("[1]"), Err(format!("{place} an array")));
    }

    #[test]
    fn the_sample_has_the_first_rows_and_uncertain_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        let good =
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
        let odd = good.replace("assistant", "gpt");
        fs::write(&path, format!("{}{odd}\n", format!("{good}\n").repeat(300))).unwrap();
        let config = config(DataSource::Jsonl(path));
        let check = check_source(&config, &DataContext::default(), RowKind::Completion, &[]);
        assert!(check.problems.is_empty());
        let lines: Vec<usize> = check.sample.iter().map(|row| row.line).collect();
        let expected: Vec<usize> = (1..=128).chain([301]).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_template_that_slips_is_named_used_or_not() {
        let row = r#"{"messages":[{"role":"user","content":"a"}],"post":"p"}"#;
        let used = problems(row, RowKind::Text, |c| {
            c.format.text = Some("{{ psot }}".into())
        });
        assert_eq!(
            used,
            [
                "d.jsonl:1: format.text names `psot`, which the row lacks; it has the columns `messages`, `post`"
            ]
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, row).unwrap();
        let mut config = config(DataSource::Jsonl(path));
        let mut warnings = |template: &str| {
            config.format.text = Some(template.into());
            let check = check_source(&config, &DataContext::default(), RowKind::Prompt, &[]);
            assert!(check.problems.is_empty());
            (check.key_warnings.into_iter())
                .map(|(key, problem)| format!("{key}: {}", problem.message))
                .collect::<Vec<_>>()
        };
        assert_eq!(warnings("{{ post }}"), Vec::<String>::new());
        assert_eq!(
            warnings("{{ mesages }}"),
            [
                ".format.text: names the column `mesages`, which no row has, and is not used by this stage; the rows have the columns `messages`, `post`"
            ]
        );
    }

    /// Warnings of the check of a file with these lines.
    fn warnings(lines: &str, expects: RowKind, change: impl FnOnce(&mut RowFormat)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, lines).unwrap();
        let mut config = config(DataSource::File(path));
        change(&mut config.format);
        let check = check_source(&config, &DataContext::default(), expects, &[]);
        assert!(check.problems.is_empty() && check.key_problems.is_empty());
        (check.key_warnings.into_iter())
            .map(|(key, problem)| format!("{key}: {}", problem.message))
            .collect()
    }

    #[test]
    fn keys_for_conversations_are_said_to_be_idle_without_any() {
        let text = r#"{"prompt":"a","completion":"b"}"#;
        let chat =
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
        let all = |format: &mut RowFormat| {
            format.system = Some("s".into());
            format.chat_template_kwargs.insert("k".into(), true.into());
            format.assistant_turns = AssistantTurns::Last;
            format.sample_by = SampleBy::Document;
        };
        let no_chat = "has no effect: no row is a conversation, which the chat template renders";
        let by = ".format.sample_by: has no effect: it divides plain text into rows, and the data are not plain text";
        let turns = ".format.assistant_turns: has no effect: no row is a conversation (`messages`) whose turns are trained on";
        assert_eq!(
            warnings(text, RowKind::Completion, all),
            [
                format!(".format.system: {no_chat}"),
                format!(".format.chat_template_kwargs: {no_chat}"),
                turns.to_owned(),
                by.to_owned(),
            ]
        );
        // One conversation among the rows is enough.
        let mixed = format!("{text}\n{chat}\n");
        assert_eq!(warnings(&mixed, RowKind::Completion, all), [by]);
        // A text prompt as a user's message is a conversation, whose answer is trained on whole.
        let chats = |format: &mut RowFormat| {
            all(format);
            format.chat = true;
        };
        assert_eq!(warnings(text, RowKind::Completion, chats), [turns, by]);
        assert_eq!(
            warnings(text, RowKind::Completion, |_| ()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn plain_text_is_divided() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.txt");
        fs::write(&path, "a\n\nb\n").unwrap();
        let mut config = config(DataSource::File(path));
        config.format.sample_by = SampleBy::Paragraph;
        let check = check_source(&config, &DataContext::default(), RowKind::Text, &[]);
        assert_eq!((check.num_rows, check.key_warnings.len()), (Some(2), 0));
    }

    #[test]
    fn a_column_to_shorten_must_be_there() {
        let row = r#"{"prompt":"a","post":"b","id":3}"#;
        for (column, wrong) in [("post", false), ("psot", true), ("id", true)] {
            let found = problems(row, RowKind::Prompt, |c| {
                c.format.shorten = Some(column.into())
            });
            assert_eq!(found.len(), usize::from(wrong), "{column}: {found:?}");
        }
        let found = problems(row, RowKind::Prompt, |c| {
            c.format.shorten = Some("psot".into())
        });
        assert_eq!(
            found,
            [
                "data.format.shorten: names the column `psot`, which is text in no row; the rows have the columns `prompt`, `post`, `id`"
            ]
        );
    }

    #[test]
    fn bad_sources_and_formats_are_named() {
        assert_eq!(problems("\n", RowKind::Text, |_| ()), ["d.jsonl: no rows"]);
        let bad = problems("{\"text\": \"t\"}", RowKind::Text, |c| {
            c.format.prompt = Some("{{ a".into())
        });
        assert!(
            bad[0].starts_with("data.format: format.prompt: syntax error"),
            "{bad:?}"
        );
        let missing = problems("{}", RowKind::Text, |c| {
            c.source = DataSource::Jsonl("no/such.jsonl".into())
        });
        assert!(
            missing[0].starts_with("data.source: cannot read no/such.jsonl: No such file"),
            "{missing:?}"
        );
        let hub = |file: &str| DataSource::Hub {
            repo: "a/b".into(),
            file: Some(file.into()),
            config: None,
            split: None,
            revision: "main".into(),
        };
        let script = problems("{}", RowKind::Text, |c| c.source = hub("x.py"));
        assert_eq!(
            script,
            ["data.source: x.py: expected parquet, a JSON array, JSONL, CSV or plain text"]
        );
        assert!(problems("{}", RowKind::Text, |c| c.source = hub("x.jsonl.gz")).is_empty());
        let posts = problems("{}", RowKind::Text, |c| {
            c.source = DataSource::Posts { rows: 0, seed: 1 }
        });
        assert_eq!(
            posts,
            ["data.source: no rows: 0 posts, of which the first 0 are left out"]
        );
        // Posts have columns, too.
        let slip = problems("{}", RowKind::Prompt, |c| {
            c.source = DataSource::Posts { rows: 9, seed: 1 };
            c.format.prompt = Some("{{ promt }}".into());
        });
        assert_eq!(slip.len(), 1);
        assert!(
            slip[0].starts_with("posts:1: format.prompt names `promt`"),
            "{slip:?}"
        );
    }

    #[test]
    fn a_stage_that_has_not_run_is_not_missed() {
        let source = DataSource::Ranked {
            stage: "rank".into(),
            valid: false,
        };
        let context = DataContext {
            run_dir: "no/such".into(),
            ..DataContext::default()
        };
        let check = |kind| check_source(&config(source.clone()), &context, kind, &[]);
        let fine = check(RowKind::Preference);
        assert!(fine.key_problems.is_empty() && fine.num_rows.is_none());
        assert_eq!(
            check(RowKind::Text).key_problems[0].1.message,
            "the rows of stage `rank` are scored responses, expected `text` or `messages`"
        );
    }
}
