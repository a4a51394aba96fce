//! Groups the problems of rows: a mistake that every row has is one problem.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Problem};

/// Most kinds of problems reported per data set.
const MAX_PROBLEMS: usize = 10;

/// Problems of rows grouped by kind, each with the number of its rows.
#[derive(Default)]
pub(crate) struct ProblemGroups {
    groups: Vec<ProblemGroup>,
    by_shape: HashMap<String, usize>,
}

struct ProblemGroup {
    place: RowPlace,
    message: String,
    count: usize,
    last: RowPlace,
}

/// A file, and a line of it; 0 stands for the whole file, and no file for the whole data set.
#[derive(Clone, PartialEq)]
struct RowPlace {
    file: Option<PathBuf>,
    line: usize,
}

impl ProblemGroups {
    /// Adds the error of a row, or of a whole file.
    pub(crate) fn add(&mut self, error: Error) {
        let (file, line, message) = match error {
            Error::Data {
                path,
                line,
                message,
            } => (Some(path), line, message),
            Error::Format { path, message } => (Some(path), 0, message),
            other => (None, 0, other.to_string()),
        };
        let place = RowPlace { file, line };
        // Digits are dropped: positions differ from row to row.
        let shape: String = message.chars().filter(|c| !c.is_ascii_digit()).collect();
        match self.by_shape.get(&shape) {
            Some(&at) => {
                self.groups[at].count += 1;
                self.groups[at].last = place;
            }
            None => {
                self.by_shape.insert(shape, self.groups.len());
                self.groups.push(ProblemGroup {
                    last: place.clone(),
                    place,
                    message,
                    count: 1,
                });
            }
        }
    }

    /// The problems of the data set that messages name `path`.
    pub(crate) fn problems(self, path: &Path) -> Vec<Problem> {
        let name = |place: &RowPlace| {
            let file = place.file.as_deref().unwrap_or(path).display();
            match place.line {
                0 => file.to_string(),
                line => format!("{file}:{line}"),
            }
        };
        let more = self.groups.len().saturating_sub(MAX_PROBLEMS);
        let mut problems: Vec<Problem> = (self.groups.into_iter().take(MAX_PROBLEMS))
            .map(|group| {
                let last = match group.last.file == group.place.file {
                    true => group.last.line.to_string(),
                    false => name(&group.last),
                };
                let others = match group.count - 1 {
                    0 => String::new(),
                    1 => format!(" (1 more row like it: {last})"),
                    more => format!(" ({more} more rows like it, the last is {last})"),
                };
                Problem::new(name(&group.place), format!("{}{others}", group.message))
            })
            .collect();
        if more > 0 {
            let message = format!("{more} more kinds of problems");
            problems.push(Problem::new(path.display().to_string(), message));
        }
        problems
    }
}
