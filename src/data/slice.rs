//! Splits of data sets of the hub and slices of them, as Hugging Face datasets writes them.

use std::ops::Range;

use crate::error::{Error, Result};

/// A split and the rows of it that are asked for: `train`, `train[:1000]`, `test[10:20]`, `train[10%:20%]`, `train[-500:]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSlice {
    /// The split's name.
    pub name: String,
    /// The first row; from the end if negative.
    start: Option<i64>,
    /// The row after the last one; from the end if negative.
    end: Option<i64>,
    /// Whether both are percentages of the split's rows.
    percent: bool,
}

impl SplitSlice {
    /// Parses a split. With a percent sign at one bound, both are percentages.
    ///
    /// # Errors
    /// With what was expected.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let expected = || {
            format!(
                "expected a split as in \"train\", \"train[:1000]\" or \"train[10%:20%]\", found \"{text}\""
            )
        };
        let (name, range) = match text.split_once('[') {
            None => (text, None),
            Some((name, rest)) => (name, Some(rest.strip_suffix(']').ok_or_else(expected)?)),
        };
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(expected());
        }
        let (start, end) = match range {
            None => ("", ""),
            Some(range) => range.split_once(':').ok_or_else(expected)?,
        };
        let bound = |text: &str| match text.trim().trim_end_matches('%') {
            "" => Ok(None),
            number => number.parse::<i64>().map(Some).map_err(|_| expected()),
        };
        let slice = Self {
            name: name.to_owned(),
            start: bound(start)?,
            end: bound(end)?,
            percent: start.contains('%') || end.contains('%'),
        };
        let bounds = [slice.start.unwrap_or(0), slice.end.unwrap_or(i64::MAX)];
        let [first, last] = bounds;
        if slice.percent && bounds.iter().any(|at| at.abs() > 100 && *at != i64::MAX) {
            return Err(format!("{}: a percentage is from -100 to 100", expected()));
        }
        match last <= first && (first < 0) == (last < 0) {
            true => Err(format!("{}, which has no rows", expected())),
            false => Ok(slice),
        }
    }

    /// The rows that are asked for, without an end if all after the first are; `count` counts the split's rows, where they are needed.
    ///
    /// # Errors
    /// If none are asked for, or rows that the split does not have; and those of `count`.
    ///
    /// # Source
    /// Hugging Face datasets 5.2, `arrow_reader.py`: percentages are rounded to the closest row, halves to the even one.
    pub(crate) fn rows(&self, count: impl FnOnce() -> Result<usize>) -> Result<Range<usize>> {
        let from_start = |at: Option<i64>| at.map(usize::try_from).transpose().ok();
        if let (false, Some(start), Some(end)) =
            (self.percent, from_start(self.start), from_start(self.end))
        {
            return Ok(start.unwrap_or(0)..end.unwrap_or(usize::MAX));
        }
        let len = count()?;
        let row = |at: i64| -> Result<usize> {
            let row = match self.percent {
                // Exact: both are far below 2^53.
                true => (at as f64 * len as f64 / 100.0).round_ties_even() as i64,
                false => at,
            };
            if row.unsigned_abs() > len as u64 {
                return Err(Error::Usage(format!(
                    "the split `{}` has {len} rows, not {}",
                    self.name,
                    row.abs()
                )));
            }
            let from = if row < 0 { len as i64 } else { 0 };
            Ok((from + row) as usize)
        };
        let start = self.start.map(row).transpose()?.unwrap_or(0);
        let end = self.end.map(row).transpose()?.unwrap_or(len);
        match start < end {
            true => Ok(start..end),
            false => Err(Error::Usage(format!(
                "the slice has none of the {len} rows of the split `{}`",
                self.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, len: usize) -> std::result::Result<Range<usize>, String> {
        let rows = SplitSlice::parse(text)?.rows(|| Ok(len));
        rows.map_err(|error| error.to_string())
    }

    #[test]
    fn slices_are_those_of_datasets() {
        // `ReadInstruction.from_spec(text).to_absolute({"train": len})` of datasets 5.2.
        for (text, len, expected) in [
            ("train[:5]", 30, 0..5),
            ("train[10:20]", 30, 10..20),
            ("train[:10%]", 15, 0..2),
            ("train[:10%]", 25, 0..2),
            ("train[10%:20%]", 15, 2..3),
            ("train[10:20%]", 15, 2..3),
            ("train[10%:20%]", 999, 100..200),
            ("train[33%:]", 7, 2..7),
            ("train[-10%:]", 15, 13..15),
            ("train[:-10%]", 15, 0..13),
            ("train[0%:100%]", 10, 0..10),
            ("train[-100%:]", 10, 0..10),
            ("train[:7%]", 50, 0..4),
            ("train[:10%]", 29_164, 0..2916),
            ("train[:1%]", 150, 0..2),
            ("train[:1%]", 250, 0..2),
            ("train[-2:]", 3, 1..3),
            ("train[:-2]", 3, 0..1),
        ] {
            assert_eq!(rows(text, len), Ok(expected), "{text} of {len}");
        }
        // Rows are not counted where nothing depends on their number.
        let uncounted = |text: &str| {
            let slice = SplitSlice::parse(text).unwrap();
            slice.rows(|| Err(Error::Usage("counted".into()))).ok()
        };
        assert_eq!(uncounted("train"), Some(0..usize::MAX));
        assert_eq!(uncounted("test_sft[5:]"), Some(5..usize::MAX));
        assert_eq!(uncounted("train[:1%]"), None);
    }

    #[test]
    fn wrong_slices_are_refused() {
        for text in [
            "",
            "train[",
            "train[5]",
            "train[:x]",
            "train+test",
            "[:5]",
            "train[:%%5]",
        ] {
            let error = SplitSlice::parse(text).unwrap_err();
            assert!(
                error.starts_with("expected a split as in"),
                "{text}: {error}"
            );
        }
        for (text, len, part) in [
            ("train[5:5]", 9, ", which has no rows"),
            ("train[20%:10%]", 9, ", which has no rows"),
            ("train[:101%]", 9, ": a percentage is from -100 to 100"),
            (
                "train[:10%]",
                5,
                "the slice has none of the 5 rows of the split `train`",
            ),
            ("train[-5:]", 3, "the split `train` has 3 rows, not 5"),
        ] {
            let error = rows(text, len).unwrap_err();
            assert!(error.ends_with(part), "{text}: {error}");
        }
    }
}
