//! `temper models`.

use super::output::print;
use crate::error::Result;
use crate::model::manifest::{self, Source};
use crate::report::table;

/// Prints the models known by name.
///
/// # Errors
/// When stdout cannot be written.
pub(super) fn run() -> Result<()> {
    let rows: Vec<Vec<String>> = manifest::list()
        .into_iter()
        .map(|model| {
            let source = match model.source {
                Source::Embedded => "in this program".to_owned(),
                Source::Local => model.how,
                Source::Hub { repo, revision } => format!("{repo}@{revision}"),
            };
            vec![model.name, model.family, model.licence, model.about, source]
        })
        .collect();
    print(&table(
        &["name", "family", "licence", "about", "source"],
        &rows,
    ))
}
