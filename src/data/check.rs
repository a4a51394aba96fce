//! Whether a stage's data can be used, before anything is loaded.

use crate::data::records::RowParser;
use crate::data::rows::{self, DataContext, Row};
use crate::data::{DataConfig, DataSource};
use crate::error::{Error, Problem};

/// Rows whose columns are looked at: enough to see the file's shape.
const SAMPLE: usize = 100;
/// Problems listed of one file.
const MAX_PROBLEMS: usize = 10;

/// What a stage needs of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// `text` or `messages`.
    Text,
    /// `prompt` and `completion`, or `messages`.
    Completion,
    /// `Text` or `Completion`: trained on whole.
    TextOrCompletion,
    /// `chosen` and `rejected`, with or without `prompt`; or rows of a `Rank` stage.
    Preference,
    /// `prompt` or `messages`.
    Prompt,
    /// Several responses to a prompt with a score each, as stages leave them.
    Scored,
}

/// Everything wrong with a data source, with places such as `rows.jsonl:57`.
///
/// Every row of a local file that the stage would read is parsed, and the first hundred are looked at for the columns
/// that `expects` asks for or that the format's templates use. Files of the hub are not fetched, and the comparisons
/// of a `Rank` stage that has not run yet are not missed.
pub fn check_source(config: &DataConfig, context: &DataContext, expects: RowKind) -> Vec<Problem> {
    let mut problems = Vec::new();
    let parser = match RowParser::new(&config.format) {
        Ok(parser) => Some(parser),
        Err(e) => {
            problems.push(Problem::new("data.format", e.to_string()));
            None
        }
    };
    if config.limit == Some(0) {
        problems.push(Problem::new("data.limit", "expected at least 1, found 0"));
        return problems;
    }
    let path = match &config.source {
        DataSource::Posts { rows, .. } => {
            if *rows <= config.skip {
                problems.push(Problem::new(
                    "data.source",
                    format!(
                        "no rows: {rows} posts, of which the first {} are left out",
                        config.skip
                    ),
                ));
            }
            return problems;
        }
        DataSource::Hub { file, .. } => {
            problems.extend(check_hub_name(file));
            return problems;
        }
        DataSource::Stage(stage)
        | DataSource::HeldOut(stage)
        | DataSource::Ranked { stage, .. } => {
            let path = rows::local_path(&config.source, context);
            match path.filter(|path| path.exists()) {
                Some(path) => path,
                None if expects == RowKind::Preference => return problems,
                None => {
                    problems.push(Problem::new(
                        "data.source",
                        format!(
                            "the rows of stage `{stage}` are scored responses, expected {}",
                            expects.columns()
                        ),
                    ));
                    return problems;
                }
            }
        }
        // Replaced by what it stands for when the recipe is read.
        DataSource::Data(_) => return problems,
        DataSource::Jsonl(path) => path.clone(),
    };
    let place = path.display().to_string();
    let reader = match rows::open(&path) {
        Ok(reader) => reader,
        Err(Error::Io { source, .. }) => {
            let problem = Problem::new(place, format!("cannot read the file: {source}"));
            problems
                .push(problem.with_help(
                    "relative paths are taken from the folder where temper was started",
                ));
            return problems;
        }
        Err(e) => {
            problems.push(problem_of(e));
            return problems;
        }
    };
    let (mut seen, mut looked_at) = (0usize, 0);
    for row in reader
        .skip(config.skip)
        .take(config.limit.unwrap_or(usize::MAX))
    {
        seen += 1;
        let checked = row.and_then(|row| match &parser {
            Some(parser) if looked_at < SAMPLE => {
                looked_at += 1;
                check_row(parser, &row, expects)
            }
            _ => Ok(()),
        });
        if let Err(e) = checked {
            problems.push(problem_of(e));
            if problems.len() >= MAX_PROBLEMS {
                problems.push(Problem::new(
                    place,
                    format!("further rows were not checked after {MAX_PROBLEMS} problems"),
                ));
                return problems;
            }
        }
    }
    if seen == 0 {
        let message = match config.skip {
            0 => "no rows".to_owned(),
            skip => format!("no rows after the first {skip}, which `skip` leaves out"),
        };
        problems.push(Problem::new(place, message));
    }
    problems
}

impl RowKind {
    /// Whether rows of the kind `given` can be used where this kind is needed.
    pub fn takes(self, given: Self) -> bool {
        let of_scored = matches!(
            self,
            Self::Preference | Self::Completion | Self::TextOrCompletion
        );
        self == given || (given == Self::Scored && of_scored)
    }

    /// The columns it asks for, in words.
    pub fn columns(self) -> &'static str {
        match self {
            Self::Text => "`text` or `messages`",
            Self::Completion => "`prompt` and `completion`, or `messages`",
            Self::TextOrCompletion => "`text`, `prompt` and `completion`, or `messages`",
            Self::Preference => "`chosen` and `rejected`",
            Self::Prompt => "`prompt` or `messages`",
            Self::Scored => "`prompt_ids`, `response_ids` and `scores`",
        }
    }
}

fn check_row(parser: &RowParser<'_>, row: &Row, expects: RowKind) -> Result<(), Error> {
    match expects {
        RowKind::Text => parser.text(row).map(drop),
        RowKind::TextOrCompletion if is_plain_text(row) => parser.text(row).map(drop),
        RowKind::Completion | RowKind::TextOrCompletion => parser.completion(row).map(drop),
        RowKind::Scored => Ok(()),
        RowKind::Preference if row.columns.contains_key("response_ids") => Ok(()),
        RowKind::Preference => parser.preference(row).map(drop),
        RowKind::Prompt => parser.prompt(row).map(drop),
    }
}

/// Whether a row that may be `Text` or `Completion` is the former.
pub fn is_plain_text(row: &Row) -> bool {
    row.columns.contains_key("text") && !row.columns.contains_key("prompt")
}

fn check_hub_name(file: &str) -> Option<Problem> {
    let known = file.ends_with(".parquet")
        || file.ends_with(".jsonl")
        || file.ends_with(".jsonl.gz")
        || file.ends_with(".json");
    (!known).then(|| {
        Problem::new(
            "data.source",
            format!("{file}: expected a .jsonl, .jsonl.gz or .parquet file"),
        )
    })
}

fn problem_of(error: Error) -> Problem {
    match error {
        Error::Data {
            path,
            line,
            message,
        } => Problem::new(format!("{}:{line}", path.display()), message),
        Error::Format { path, message } => Problem::new(path.display().to_string(), message),
        other => Problem::new("data", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::RowFormat;

    fn config(source: DataSource) -> DataConfig {
        DataConfig {
            source,
            format: RowFormat::default(),
            skip: 0,
            limit: None,
        }
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
        check_source(&config, &DataContext::default(), expects)
            .iter()
            .map(|p| {
                p.to_string()
                    .replace(&format!("{}/", dir.path().display()), "")
            })
            .collect()
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
    fn every_bad_line_is_named() {
        let lines = format!(
            "{}{{\"text\": }}\n[1]\n{{\"body\": 1}}\n",
            "{\"text\": \"t\"}\n".repeat(56)
        );
        assert_eq!(
            problems(&lines, RowKind::Text, |_| ()),
            [
                "d.jsonl:57: expected one JSON object on the line, found bad JSON: expected value at column 10",
                "d.jsonl:58: expected a JSON object, found an array",
                "d.jsonl:59: expected `text` or `messages`; the row has the columns `body`",
            ]
        );
        let many = problems(&"{}\n".repeat(50), RowKind::Text, |_| ());
        assert_eq!(many.len(), 11);
        assert_eq!(
            many[10],
            "d.jsonl: further rows were not checked after 10 problems"
        );
    }

    #[test]
    fn bad_sources_and_formats_are_named() {
        assert_eq!(problems("\n", RowKind::Text, |_| ()), ["d.jsonl: no rows"]);
        let bad = problems("{\"text\": 1}", RowKind::Text, |c| {
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
            missing[0].starts_with("no/such.jsonl: cannot read the file: No such file"),
            "{missing:?}"
        );
        let hub = |file: &str| DataSource::Hub {
            repo: "a/b".into(),
            file: file.into(),
            revision: "main".into(),
        };
        let csv = problems("{}", RowKind::Text, |c| c.source = hub("x.csv"));
        assert_eq!(
            csv,
            ["data.source: x.csv: expected a .jsonl, .jsonl.gz or .parquet file"]
        );
        assert!(problems("{}", RowKind::Text, |c| c.source = hub("x.jsonl.gz")).is_empty());
        let posts = problems("{}", RowKind::Text, |c| {
            c.source = DataSource::Posts { rows: 0, seed: 1 }
        });
        assert_eq!(
            posts,
            ["data.source: no rows: 0 posts, of which the first 0 are left out"]
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
            cache_dir: None,
        };
        assert!(check_source(&config(source.clone()), &context, RowKind::Preference).is_empty());
        let wrong = check_source(&config(source), &context, RowKind::Text);
        assert_eq!(
            wrong[0].message,
            "the rows of stage `rank` are scored responses, expected `text` or `messages`"
        );
    }
}
