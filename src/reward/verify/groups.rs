//! Groups of a regular expression against columns.

use std::collections::BTreeMap;

use regex::Regex;

use super::column;
use crate::error::Result;
use crate::reward::{Completion, RewardSource};

/// 1 if the expression matches and each of its named groups holds the text of its column, else 0. White space around both is
/// ignored. Of several matches the last counts: the answer comes after the reasoning.
pub(in crate::reward) struct Groups {
    pub(in crate::reward) regex: Regex,
    /// Column by group.
    pub(in crate::reward) columns: BTreeMap<String, String>,
    pub(in crate::reward) ignore_case: bool,
    pub(in crate::reward) name: String,
}

impl RewardSource for Groups {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        (completions.iter())
            .map(|completion| {
                let found = self.regex.captures_iter(&completion.response).last();
                let mut right = found.is_some();
                for (group, name) in &self.columns {
                    let expected = column(completion, name, &self.name)?;
                    let text = found.as_ref().and_then(|found| found.name(group));
                    right &= text.is_some_and(|text| self.is_equal(text.as_str(), &expected));
                }
                Ok(f32::from(u8::from(right)))
            })
            .collect()
    }
}

impl Groups {
    fn is_equal(&self, found: &str, expected: &str) -> bool {
        let (found, expected) = (found.trim(), expected.trim());
        match self.ignore_case {
            true => found.to_lowercase() == expected.to_lowercase(),
            false => found == expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_group_has_to_hold_its_column() {
        let mut source = Groups {
            regex: Regex::new(r"(?s)<name>(?P<name>.*?)</name>.*<year>(?P<year>\d+)</year>")
                .unwrap(),
            columns: [("name", "who"), ("year", "when")]
                .map(|(group, column)| (group.to_owned(), column.to_owned()))
                .into(),
            ignore_case: true,
            name: "groups".into(),
        };
        let row = json!({"who": "Ada", "when": 1843});
        let completions = [
            "<name> ada </name> in <year>1843</year>",
            "<name>Ada</name> in <year>1815</year>",
            "Ada, 1843",
            "<name>Bob</name><year>1</year> no: <name>ADA</name><year>1843</year>",
        ]
        .map(|response| Completion {
            response: response.into(),
            row: row.as_object().unwrap().clone(),
            ..Completion::default()
        });
        assert_eq!(source.score(&completions[..3]).unwrap(), [1.0, 0.0, 0.0]);
        assert_eq!(source.score(&completions[3..]).unwrap(), [0.0]);
        source.regex =
            Regex::new(r"<name>(?P<name>[^<]*)</name><year>(?P<year>\d+)</year>").unwrap();
        assert_eq!(source.score(&completions[3..]).unwrap(), [1.0]);
    }
}
