//! Several data sets as one, with weights.

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::data::records::RowParser;
use crate::data::rows::{DataContext, Row};
use crate::data::stream::{RowStream, no_rows};
use crate::data::{DataConfig, RowFormat};
use crate::error::Result;

/// The rows of a mixture, in order.
pub(crate) struct Mixture {
    sets: Vec<MixedSet>,
    /// What each set gives and what was recognised in it, for the user.
    pub(crate) notices: Vec<String>,
}

/// A set of a mixture, read as far as its rows have been taken.
struct MixedSet {
    stream: RowStream,
    format: RowFormat,
    /// Rows of the set.
    len: usize,
    /// Rows of it that the mixture has, and how many of them were taken.
    count: usize,
    taken: usize,
    /// The rows that were read, from row `first` of the set on.
    rows: VecDeque<Result<Row>>,
    first: usize,
}

/// Counts the rows of all sets, and opens them to be mixed.
///
/// # Errors
/// If a set cannot be opened or has no rows.
pub(crate) fn mixture(parts: &[(f64, DataConfig)], context: &DataContext) -> Result<Mixture> {
    let (mut lens, mut notices, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (_, config) in parts {
        let mut stream = RowStream::open(config, context)?;
        let mut len = 0;
        loop {
            match stream.batch().len() {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 {
            return Err(no_rows(config, stream.name()));
        }
        notices.extend(stream.notices());
        names.push(stream.name().display().to_string());
        lens.push(len);
    }
    let weights: Vec<f64> = parts.iter().map(|(weight, _)| *weight).collect();
    let counts = counts(&weights, &lens);
    let shares: Vec<String> = (names.iter().zip(&counts).zip(&lens))
        .map(|((name, count), len)| format!("{count} of {len} rows of {name}"))
        .collect();
    notices.push(format!("the mixture has {}", shares.join(", ")));
    let sets = (parts.iter().zip(lens.iter().zip(&counts))).map(|((_, config), (&len, &count))| {
        Ok(MixedSet {
            stream: RowStream::open(config, context)?,
            format: config.format.clone(),
            len,
            count,
            taken: 0,
            rows: VecDeque::new(),
            first: 0,
        })
    });
    Ok(Mixture {
        sets: sets.collect::<Result<_>>()?,
        notices,
    })
}

impl Iterator for Mixture {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        // The first one of several.
        let next = (self.sets.iter_mut())
            .filter(|set| set.taken < set.count)
            .min_by(|a, b| a.place().total_cmp(&b.place()))?;
        next.take()
    }
}

impl MixedSet {
    /// Place of the next row in the mixture, from 0 to 1: the rows of a set are spread evenly.
    fn place(&self) -> f64 {
        (self.taken as f64 + 0.5) / self.count as f64
    }

    /// The next row; the rows that are taken are spread evenly over the set.
    fn take(&mut self) -> Option<Result<Row>> {
        // Rows stay distinct: `count` is at most `len`.
        let row = (self.taken as u128 * self.len as u128 / self.count as u128) as usize;
        self.taken += 1;
        while self.first + self.rows.len() <= row {
            self.first += self.rows.len();
            self.rows = rendered(self.stream.batch(), &self.format).into();
            if self.rows.is_empty() {
                return None; // The file has become shorter.
            }
        }
        self.rows.drain(..row - self.first);
        self.first = row + 1;
        self.rows.pop_front()
    }
}

/// Columns that say what is prompt and what is answer.
const ANSWERS: [&str; 5] = ["prompt", "completion", "messages", "chosen", "rejected"];

/// Rows with the columns that a set's templates give: the mixture is read with a format of its own. Of a set with a template for
/// `text` alone, rows are text: they lose the columns that would make them prompts with answers.
fn rendered(rows: Vec<Result<Row>>, format: &RowFormat) -> Vec<Result<Row>> {
    if !format.has_templates() {
        return rows;
    }
    match RowParser::new(format) {
        Ok(parser) => {
            let templates = format.templates();
            let is_text = (templates.iter()).all(|(name, t)| t.is_some() == (*name == "text"));
            let render = |row: Result<Row>| {
                let mut row = parser.rendered(row?)?;
                if is_text {
                    row.columns
                        .retain(|name, _| !ANSWERS.contains(&name.as_str()));
                }
                Ok(row)
            };
            rows.into_par_iter().map(render).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

/// Rows of each set: its share of all weights of as many rows as there can be without one twice.
fn counts(weights: &[f64], lens: &[usize]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let shares = || weights.iter().map(|weight| weight / sum);
    let most = (shares().zip(lens))
        .map(|(share, &len)| len as f64 / share)
        .fold(f64::INFINITY, f64::min);
    (shares().zip(lens))
        .map(|(share, &len)| ((most * share).round() as usize).min(len))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::{DataSource, read_rows};

    #[test]
    fn shares_are_those_of_the_weights() {
        // 10 rows are 0.4 of 25; 0.6 of them are 15 of 100.
        assert_eq!(counts(&[0.6, 0.4], &[100, 10]), [15, 10]);
        assert_eq!(counts(&[3.0, 2.0], &[100, 10]), [15, 10]);
        assert_eq!(counts(&[1.0, 1.0, 2.0], &[7, 5, 100]), [5, 5, 10]);
    }

    #[test]
    fn a_mixture_reads_each_set_by_its_own_columns() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            DataConfig::of(DataSource::File(path))
        };
        let lines = |n: usize, line: &dyn Fn(usize) -> String| -> String {
            (0..n).map(|i| line(i) + "\n").collect()
        };
        let mut a = write(
            "a.csv",
            format!("q,a\n{}", lines(8, &|i| format!("q{i},a{i}"))),
        );
        a.format.prompt = Some("{{ q }}?".into());
        a.format.completion = Some("{{ a }}".into());
        let b = write(
            "b.jsonl",
            lines(3, &|i| {
                format!("{{\"prompt\":\"p{i}\",\"completion\":\"c\"}}")
            }),
        );
        let mut mix = DataConfig::of(DataSource::Mix(vec![(0.4, a), (0.6, b)]));
        let prompts = |mix: &DataConfig| -> Vec<String> {
            let rows = read_rows(mix, &DataContext::default()).unwrap();
            let prompt = |row: &Row| row.columns["prompt"].as_str().unwrap().to_owned();
            rows.iter().map(prompt).collect()
        };
        assert_eq!(prompts(&mix), ["p0", "q0?", "p1", "q4?", "p2"]);
        // A set of which only the text is named is text.
        if let DataSource::Mix(parts) = &mut mix.source {
            let mut text = parts[1].1.clone();
            text.format.text = Some("{{ prompt }} {{ completion }}".into());
            let text = DataConfig::of(DataSource::Mix(vec![(1.0, text)]));
            let rows = read_rows(&text, &DataContext::default()).unwrap();
            let columns: Vec<&String> = rows[0].columns.keys().collect();
            assert_eq!(
                (columns, &rows[0].columns["text"]),
                (vec![&"text".to_owned()], &"p0 c".into())
            );
        }
        (mix.skip, mix.limit) = (1, Some(2));
        assert_eq!(prompts(&mix), ["q0?", "p1"]);
        let context = DataContext::default();
        let stream = RowStream::open(&mix, &context).unwrap();
        let notice = stream.notices().pop().unwrap();
        assert!(
            notice.starts_with("the mixture has 2 of 8 rows of ")
                && notice.contains("a.csv, 3 of 3 rows of "),
            "{notice}"
        );
    }
}
