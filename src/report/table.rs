//! Tables that are both aligned text and Markdown.

/// A table with a header row: columns are aligned for a terminal, and the same text is a Markdown table.
///
/// Columns whose cells are all numbers (or `-`, or empty) are aligned to the right. Cells are kept on one line, and `|` in them is
/// escaped.
///
/// # Panics
/// If a row has another number of cells than the header.
pub fn table<H: AsRef<str>, C: AsRef<str>>(headers: &[H], rows: &[Vec<C>]) -> String {
    let headers: Vec<String> = headers.iter().map(|h| cell(h.as_ref())).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            assert_eq!(row.len(), headers.len(), "a row must fit the header");
            row.iter().map(|c| cell(c.as_ref())).collect()
        })
        .collect();
    let numeric: Vec<bool> = (0..headers.len())
        .map(|i| !rows.is_empty() && rows.iter().all(|row| is_number(&row[i])))
        .collect();
    let widths: Vec<usize> = (0..headers.len())
        .map(|i| {
            let cells = rows.iter().map(|row| row[i].chars().count());
            // Markdown wants at least three dashes in the rule.
            cells
                .max()
                .unwrap_or(0)
                .max(headers[i].chars().count())
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
        format!("| {} |\n", padded.join(" | "))
    };
    let rule: Vec<String> = (0..headers.len())
        .map(|i| {
            let dashes = "-".repeat(widths[i] + 1);
            if numeric[i] {
                format!("{dashes}:")
            } else {
                format!("{dashes}-")
            }
        })
        .collect();
    let mut text = line(&headers);
    text.push_str(&format!("|{}|\n", rule.join("|")));
    for row in &rows {
        text.push_str(&line(row));
    }
    text
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
