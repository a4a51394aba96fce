//! Data sets that were checked, each once however many stages read it.

use super::{DataCheck, DataConfig, DataContext, Row, RowKind, check_source, read_rows};
use crate::error::Result;

/// What was found of data sets.
#[derive(Debug, Default)]
pub struct CheckedData {
    context: DataContext,
    sets: Vec<CheckedSet>,
}

/// A data set, what was asked of it, and what was found.
#[derive(Debug)]
struct CheckedSet {
    config: DataConfig,
    kind: RowKind,
    columns: Vec<String>,
    found: DataCheck,
}

impl CheckedData {
    /// Nothing checked yet.
    pub fn new(context: DataContext) -> Self {
        Self {
            context,
            sets: Vec::new(),
        }
    }

    /// Checks a data set as [`check_source`] does; `None` if the same was asked of it before.
    pub fn check(
        &mut self,
        config: &DataConfig,
        kind: RowKind,
        columns: &[String],
    ) -> Option<&DataCheck> {
        let is_same =
            |set: &CheckedSet| set.config == *config && set.kind == kind && set.columns == columns;
        if self.sets.iter().any(is_same) {
            return None;
        }
        self.sets.push(CheckedSet {
            config: config.clone(),
            kind,
            columns: columns.to_vec(),
            found: check_source(config, &self.context, kind, columns),
        });
        self.sets.last().map(|set| &set.found)
    }

    /// What was found of a data set.
    pub fn found(&self, config: &DataConfig, kind: RowKind) -> Option<&DataCheck> {
        let is_same = |set: &&CheckedSet| set.config == *config && set.kind == kind;
        self.sets.iter().find(is_same).map(|set| &set.found)
    }

    /// All rows of a data set.
    ///
    /// # Errors
    /// As [`read_rows`].
    pub fn rows(&self, config: &DataConfig) -> Result<Vec<Row>> {
        read_rows(config, &self.context)
    }
}
