//! Several data sets as one, with weights.

use rayon::prelude::*;

use crate::data::records::RowParser;
use crate::data::rows::{DataContext, Row};
use crate::data::stream::{RowStream, no_rows};
use crate::data::{DataConfig, RowFormat};
use crate::error::Result;

/// The rows of a mixture, in order.
pub(crate) struct Mixture {
    pub(crate) rows: Vec<Result<Row>>,
    /// What each set gives and what was recognised in it, for the user.
    pub(crate) notices: Vec<String>,
}

/// Reads all sets and mixes them.
///
/// # Errors
/// If a set cannot be opened or has no rows.
pub(crate) fn mixture(parts: &[(f64, DataConfig)], context: &DataContext) -> Result<Mixture> {
    let (mut sets, mut notices, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (_, config) in parts {
        let mut stream = RowStream::open(config, context)?;
        let mut rows: Vec<Result<Row>> = Vec::new();
        loop {
            let batch = stream.batch();
            if batch.is_empty() {
                break;
            }
            rows.extend(batch);
        }
        if rows.is_empty() {
            return Err(no_rows(config, stream.name()));
        }
        notices.extend(stream.notices());
        names.push(stream.name().display().to_string());
        sets.push(rendered(rows, &config.format)?);
    }
    let weights: Vec<f64> = parts.iter().map(|(weight, _)| *weight).collect();
    let lens: Vec<usize> = sets.iter().map(Vec::len).collect();
    let counts = counts(&weights, &lens);
    let shares: Vec<String> = (names.iter().zip(&counts).zip(&lens))
        .map(|((name, count), len)| format!("{count} of {len} rows of {name}"))
        .collect();
    notices.push(format!("the mixture has {}", shares.join(", ")));
    let mut sets: Vec<Vec<Option<Result<Row>>>> = (sets.into_iter())
        .map(|rows| rows.into_iter().map(Some).collect())
        .collect();
    let rows = (order(&counts, &lens).into_iter())
        // Each row is taken once.
        .filter_map(|(set, row)| sets[set][row].take())
        .collect();
    Ok(Mixture { rows, notices })
}

/// Rows with the columns that a set's templates give: the mixture is read with a format of its own.
fn rendered(rows: Vec<Result<Row>>, format: &RowFormat) -> Result<Vec<Result<Row>>> {
    if !format.has_templates() {
        return Ok(rows);
    }
    let parser = RowParser::new(format)?;
    let render = |row: Result<Row>| parser.rendered(row?);
    Ok(rows.into_par_iter().map(render).collect())
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

/// Set and row of each row of the mixture: `counts` rows of each set, spread evenly over the set and over the mixture.
fn order(counts: &[usize], lens: &[usize]) -> Vec<(usize, usize)> {
    let mut placed: Vec<(f64, usize, usize)> = Vec::new();
    for (set, (&count, &len)) in counts.iter().zip(lens).enumerate() {
        placed.extend((0..count).map(|i| {
            // Rows stay distinct: `count` is at most `len`.
            let row = (i as u128 * len as u128 / count as u128) as usize;
            ((i as f64 + 0.5) / count as f64, set, row)
        }));
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    placed.into_iter().map(|(_, set, row)| (set, row)).collect()
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
        assert_eq!(order(&[3, 1], &[6, 5]), [(0, 0), (0, 2), (1, 0), (0, 4)]);
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
