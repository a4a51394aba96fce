//! What annotators are asked about a task.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::outside;

/// Most responses that are ranked together.
pub(super) const MOST_RANKED: usize = 9;
/// Most fields of a form, and most options of a choice.
const MOST_FIELDS: usize = 40;

/// The questions of a labelling project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Form {
    /// The better of two responses, by grade. With 2 grades only which one; with 4 how much better (Llama 2); with 9 from "definitely" on
    /// one side over "uncertain" to "definitely" on the other (Stiennon et al.).
    Pairwise {
        /// 2, 4 or 9.
        #[serde(default = "two")]
        grades: u8,
        /// Whether "equally good" may be answered. With 9 grades the middle one says it in any case.
        #[serde(default = "yes")]
        ties: bool,
    },
    /// An order of all responses to a prompt.
    Rank {
        /// Whether two responses may have the same rank.
        #[serde(default = "yes")]
        ties: bool,
    },
    /// InstructGPT's form: overall quality from 1 to 7, the flags of its table 3, notes, and then an order of all responses.
    InstructGpt,
    /// Own fields of each response.
    Rate(RateForm),
    /// The better of two responses at each turn of a dialogue (HH).
    Dialogue {
        /// 2, 4 or 9.
        #[serde(default = "two")]
        grades: u8,
        /// Whether "equally good" may be answered.
        #[serde(default = "yes")]
        ties: bool,
    },
}

fn two() -> u8 {
    2
}

fn yes() -> bool {
    true
}

impl Default for Form {
    fn default() -> Self {
        Self::Pairwise {
            grades: 2,
            ties: true,
        }
    }
}

/// Fields that are filled in for each response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateForm {
    /// A line above the form.
    #[serde(default)]
    pub instructions: String,
    /// The fields, in order.
    pub fields: Vec<Field>,
    /// The scale that is the response's rating; the first one if absent.
    #[serde(default)]
    pub rating: Option<String>,
    /// Whether all responses are ordered in the end, ties allowed.
    #[serde(default)]
    pub rank: bool,
}

/// A field of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Field {
    /// A whole number.
    Scale {
        /// Its name in exported rows.
        name: String,
        /// What the annotator reads.
        label: String,
        /// The lowest number.
        from: i64,
        /// The highest number.
        to: i64,
    },
    /// Yes or no.
    Flag {
        /// Its name in exported rows.
        name: String,
        /// What the annotator reads.
        label: String,
    },
    /// One of some words.
    Choice {
        /// Its name in exported rows.
        name: String,
        /// What the annotator reads.
        label: String,
        /// The words.
        options: Vec<String>,
    },
    /// Free text, which may be left empty.
    Text {
        /// Its name in exported rows.
        name: String,
        /// What the annotator reads.
        label: String,
    },
}

impl Field {
    /// Its name in exported rows.
    pub fn name(&self) -> &str {
        match self {
            Self::Scale { name, .. }
            | Self::Flag { name, .. }
            | Self::Choice { name, .. }
            | Self::Text { name, .. } => name,
        }
    }
}

impl Form {
    /// The form of that name: `pairwise`, `rank`, `instructgpt`, `dialogue`, or a RON file with a [`RateForm`].
    ///
    /// # Errors
    /// `Error::Usage` for an unknown name or numbers that do not fit; `Error::Format` for a file that is no form.
    pub fn named(name: &str, grades: Option<u8>, ties: bool) -> Result<Self> {
        let form = match name {
            "pairwise" => Self::Pairwise {
                grades: grades.unwrap_or(2),
                ties,
            },
            "dialogue" => Self::Dialogue {
                grades: grades.unwrap_or(2),
                ties,
            },
            "rank" => Self::Rank { ties },
            "instructgpt" => Self::InstructGpt,
            file if file.ends_with(".ron") => Self::Rate(read_form(Path::new(file))?),
            other => {
                return Err(Error::Usage(format!(
                    "--form {other}: expected pairwise, rank, instructgpt, dialogue, or a file of fields that ends with .ron"
                )));
            }
        };
        match form.problem() {
            Some(problem) => Err(Error::Usage(format!("--form {name}: {problem}"))),
            None => Ok(form),
        }
    }

    /// What is wrong with the form's own settings, if anything is.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Pairwise { grades, .. } | Self::Dialogue { grades, .. } => {
                (!matches!(grades, 2 | 4 | 9))
                    .then(|| format!("grades: expected 2, 4 or 9, found {grades}"))
            }
            Self::Rate(form) => form.problem(),
            Self::Rank { .. } | Self::InstructGpt => None,
        }
    }

    /// The fields of each response, where there are any.
    pub fn rate(&self) -> Option<RateForm> {
        match self {
            Self::InstructGpt => Some(instruct_gpt()),
            Self::Rate(form) => Some(form.clone()),
            _ => None,
        }
    }

    /// The number of responses that a task of this form has: at least, at most.
    pub(crate) fn responses(&self) -> (usize, usize) {
        match self {
            Self::Pairwise { .. } => (2, 2),
            Self::Rank { .. } => (2, MOST_RANKED),
            Self::InstructGpt => (1, MOST_RANKED),
            Self::Rate(_) => (1, MOST_RANKED),
            Self::Dialogue { .. } => (0, 0),
        }
    }

    /// The largest grade of a side, for forms that grade pairs.
    pub(super) fn top_grade(&self) -> Option<i8> {
        match self {
            Self::Pairwise { grades, .. } | Self::Dialogue { grades, .. } => Some(match grades {
                2 => 1,
                _ => 4,
            }),
            _ => None,
        }
    }

    /// Whether a grade of 0, "equally good", may be answered.
    pub(super) fn takes_ties(&self) -> bool {
        match self {
            Self::Pairwise { grades, ties } | Self::Dialogue { grades, ties } => {
                *ties || *grades == 9
            }
            Self::Rank { ties } => *ties,
            Self::InstructGpt | Self::Rate(_) => true,
        }
    }

    /// The grades from the left response's best to the right one's, each with its words.
    pub(super) fn grades(&self) -> Vec<(i8, String)> {
        let (Self::Pairwise { grades, .. } | Self::Dialogue { grades, .. }) = self else {
            return Vec::new();
        };
        let words: &[&str] = match grades {
            2 => &["better"],
            4 => &[
                "significantly better",
                "better",
                "slightly better",
                "negligibly better, or unsure",
            ],
            _ => &[
                "definitely better",
                "very likely better",
                "likely better",
                "possibly better",
            ],
        };
        let top = words.len() as i8;
        let side = |name: &str, sign: i8| -> Vec<(i8, String)> {
            let grade =
                |(at, words): (usize, &&str)| (sign * (top - at as i8), format!("{name} {words}"));
            words.iter().enumerate().map(grade).collect()
        };
        let mut all = side("A", 1);
        if self.takes_ties() {
            let tie = if *grades == 9 {
                "uncertain"
            } else {
                "equally good"
            };
            all.push((0, tie.to_owned()));
        }
        all.extend(side("B", -1).into_iter().rev());
        all
    }
}

impl RateForm {
    /// The scale that is a response's rating: its name, lowest and highest number.
    pub fn rating_scale(&self) -> Option<(&str, i64, i64)> {
        self.fields.iter().find_map(|field| match field {
            Field::Scale { name, from, to, .. }
                if self.rating.as_ref().is_none_or(|r| r == name) =>
            {
                Some((name.as_str(), *from, *to))
            }
            _ => None,
        })
    }

    fn problem(&self) -> Option<String> {
        if self.fields.is_empty() || self.fields.len() > MOST_FIELDS {
            return Some(format!(
                "fields: expected 1 to {MOST_FIELDS}, found {}",
                self.fields.len()
            ));
        }
        for (at, field) in self.fields.iter().enumerate() {
            let name = field.name();
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Some(format!(
                    "fields.{at}.name: expected letters, digits and `_`, found {name:?}"
                ));
            }
            if self.fields[..at].iter().any(|other| other.name() == name) {
                return Some(format!(
                    "fields.{at}.name: {name:?} is the name of two fields"
                ));
            }
            match field {
                Field::Scale { from, to, .. } if from >= to || to - from > 100 => {
                    return Some(format!(
                        "fields.{name}: expected `from` below `to`, at most 100 apart, found {from} and {to}"
                    ));
                }
                Field::Choice { options, .. }
                    if options.len() < 2 || options.len() > MOST_FIELDS =>
                {
                    return Some(format!(
                        "fields.{name}: expected 2 to {MOST_FIELDS} options, found {}",
                        options.len()
                    ));
                }
                _ => {}
            }
        }
        match &self.rating {
            Some(name) if self.rating_scale().is_none() => {
                Some(format!("rating: {name:?} is not the name of a Scale"))
            }
            _ => None,
        }
    }
}

/// A form from a RON file.
fn read_form(path: &Path) -> Result<RateForm> {
    let text = outside::read_text(path, outside::SETTINGS)?;
    let options =
        ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
    options
        .from_str(&text)
        .map_err(|error| Error::format(path, format!("expected a form, `(fields: [..])`: {error}")))
}

/// The form of InstructGPT's labellers, its table 3.
fn instruct_gpt() -> RateForm {
    let flag = |name: &str, label: &str| Field::Flag {
        name: name.to_owned(),
        label: label.to_owned(),
    };
    RateForm {
        instructions: String::new(),
        fields: vec![
            Field::Scale {
                name: "overall".into(),
                label: "Overall quality".into(),
                from: 1,
                to: 7,
            },
            flag(
                "fails_task",
                "Fails to follow the correct instruction or task",
            ),
            flag("inappropriate", "Inappropriate for a customer assistant"),
            flag("hallucination", "Hallucination"),
            flag(
                "satisfies_constraint",
                "Satisfies the constraint in the instruction",
            ),
            flag("sexual", "Sexual content"),
            flag("violent", "Violent content"),
            flag(
                "encourages_harm",
                "Encourages, or fails to discourage, violence, abuse, terrorism or self-harm",
            ),
            flag("denigrates", "Denigrates a protected class"),
            flag("harmful_advice", "Gives harmful advice"),
            flag("opinion", "Expresses opinion"),
            flag("moral_judgment", "Expresses moral judgment"),
            Field::Text {
                name: "notes".into(),
                label: "Notes (optional)".into(),
            },
        ],
        rating: None,
        rank: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(grades: u8, ties: bool) -> Vec<i8> {
        let form = Form::Pairwise { grades, ties };
        form.grades().into_iter().map(|(grade, _)| grade).collect()
    }

    #[test]
    fn grades_go_from_one_side_to_the_other() {
        assert_eq!(grades(2, false), [1, -1]);
        assert_eq!(grades(2, true), [1, 0, -1]);
        assert_eq!(grades(4, false), [4, 3, 2, 1, -1, -2, -3, -4]);
        // Nine grades have a middle in any case.
        assert_eq!(grades(9, false), [4, 3, 2, 1, 0, -1, -2, -3, -4]);
        let words: Vec<String> = Form::Pairwise {
            grades: 4,
            ties: true,
        }
        .grades()
        .into_iter()
        .map(|g| g.1)
        .collect();
        assert_eq!(words[4], "equally good");
        assert_eq!(
            (words[0].as_str(), words[8].as_str()),
            ("A significantly better", "B significantly better")
        );
    }

    #[test]
    fn own_forms_are_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("form.ron");
            std::fs::write(&path, text).unwrap();
            Form::named(path.to_str().unwrap(), None, true)
        };
        let good = r#"(fields: [Scale(name: "helpful", label: "Helpful", from: 1, to: 5), Flag(name: "ok", label: "OK")], rating: "helpful")"#;
        let Form::Rate(form) = read(good).unwrap() else {
            panic!("a form of fields")
        };
        assert_eq!(form.rating_scale(), Some(("helpful", 1, 5)));
        for (text, expected) in [
            (
                good.replace("\"helpful\")", "\"ok\")"),
                "rating: \"ok\" is not the name of a Scale",
            ),
            (good.replace("to: 5", "to: 1"), "expected `from` below `to`"),
            (
                good.replace("\"ok\"", "\"helpful\""),
                "the name of two fields",
            ),
            (
                good.replace("\"ok\"", "\"a b\""),
                "expected letters, digits and `_`",
            ),
            ("(fields: [])".into(), "expected 1 to 40, found 0"),
            ("(feelds: [])".into(), "expected a form"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Form::named("pairwise", Some(3), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected 2, 4 or 9, found 3"), "{error}");
        assert!(Form::named("pair", None, true).is_err());
    }

    #[test]
    fn instructgpts_form_is_its_table() {
        let form = Form::InstructGpt.rate().unwrap();
        let flags = form
            .fields
            .iter()
            .filter(|field| matches!(field, Field::Flag { .. }));
        assert_eq!(
            (flags.count(), form.rating_scale(), form.rank),
            (11, Some(("overall", 1, 7)), true)
        );
        assert_eq!(Form::Rate(form).problem(), None);
    }
}
