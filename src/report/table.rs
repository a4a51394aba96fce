//! Tables that are both aligned text and Markdown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table with a header row.
///
/// As text, columns are aligned for a terminal, and the same text is a Markdown table. Columns whose cells are all numbers (or `-`, or
/// empty) are aligned to the right. Cells are kept on one line, and `|` in them is escaped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The names of the columns.
    pub header: Vec<String>,
    /// The rows, each with a cell for every column.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these rows.
    ///
    /// # Panics
    /// If a row has another number of cells than the header.
    pub fn new<H: AsRef<str>, C: AsRef<str>>(header: &[H], rows: &[Vec<C>]) -> Self {
        let row = |row: &Vec<C>| -> Vec<String> {
            assert_eq!(row.len(), header.len(), "a row must fit the header");
            row.iter().map(|c| c.as_ref().to_owned()).collect()
        };
        Self {
            header: header.iter().map(|h| h.as_ref().to_owned()).collect(),
            rows: rows.iter().map(row).collect(),
        }
    }

    /// Whether each column holds numbers alone.
    pub(super) fn numeric(&self) -> Vec<bool> {
        let is_numeric = |column: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(column));
            !self.rows.is_empty() && cells.all(|cell| is_number(cell))
        };
        (0..self.header.len()).map(is_numeric).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.header.iter().map(|h| cell(h)).collect();
        let rows: Vec<Vec<String>> = (self.rows.iter())
            .map(|row| row.iter().map(|c| cell(c)).collect())
            .collect();
        let numeric = self.numeric();
        let widths: Vec<usize> = (0..header.len())
            .map(|i| {
                let cells = rows.iter().map(|row| row[i].chars().count());
                // Markdown wants at least three dashes in the rule.
                cells
                    .max()
                    .unwrap_or(0)
                    .max(header[i].chars().count())
                    .max(3)
            })
            .collect();
        let line = |cells: &[String]| {
            let padded: Vec<String> = (0..cells.len())
                .map(|i| {
                    let (text, width) = (&cells[i], widths[i]);
                    if numeric[i] {
                        format!("{text:>width$}")
                    } else {
                        format!("{text:<width$}")
                    }
                })
                .collect();
            format!("| {} |", padded.join(" | "))
        };
        let rule: Vec<String> = (0..header.len())
            .map(|i| {
                let dashes = "-".repeat(widths[i] + 1);
                if numeric[i] {
                    format!("{dashes}:")
                } else {
                    format!("{dashes}-")
                }
            })
            .collect();
        writeln!(f, "{}", line(&header))?;
        writeln!(f, "|{}|", rule.join("|"))?;
        for row in &rows {
            writeln!(f, "{}", line(row))?;
        }
        Ok(())
    }
}

/// The text of a [`Table`].
///
/// # Panics
/// As [`Table::new`].
pub fn table<H: AsRef<str>, C: AsRef<str>>(header: &[H], rows: &[Vec<C>]) -> String {
    Table::new(header, rows).to_string()
}

fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

fn is_number(cell: &str) -> bool {
    cell.is_empty() || cell == "-" || cell.trim_end_matches(['%', 's']).parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_words_to_the_left() {
        let rows = vec![
            vec!["base", "0.10", "0"],
            vec!["ppo (kl 0.05)", "-", "12.5"],
        ];
        assert_eq!(
            table(&["policy", "gold", "kl"], &rows),
            "| policy        | gold |   kl |\n\
             |---------------|-----:|-----:|\n\
             | base          | 0.10 |    0 |\n\
             | ppo (kl 0.05) |    - | 12.5 |\n"
        );
    }

    #[test]
    fn cells_stay_on_one_line() {
        let rows = vec![vec!["a|b\n c"]];
        assert_eq!(
            table(&["x"], &rows),
            "| x      |\n|--------|\n| a\\|b c |\n"
        );
    }
}
