//! Checks of data sets, each done once for all stages that read it.

use super::kept_check::check_or_find;
use super::{DataCheck, DataConfig, DataContext, Row, RowKind, RowsCache, SourceColumn, read_rows};
use crate::error::Result;

/// The checks of all data sets of a recipe.
#[derive(Debug, Default)]
pub struct CheckedData {
    context: DataContext,
    sets: Vec<CheckedSet>,
}

/// A data set, the kind of rows expected, and the result of its check.
#[derive(Debug)]
struct CheckedSet {
    config: DataConfig,
    kind: RowKind,
    columns: Vec<SourceColumn>,
    found: DataCheck,
}

impl CheckedData {
    /// No checks yet.
    pub fn new(context: DataContext) -> Self {
        Self {
            context,
            sets: Vec::new(),
        }
    }

    /// Checks a data set by [`check_source`](super::check_source); `None` if the same check was done before.
    pub fn check(
        &mut self,
        config: &DataConfig,
        kind: RowKind,
        columns: &[SourceColumn],
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
            found: check_or_find(config, &self.context, kind, columns, &RowsCache::from_env()),
        });
        self.sets.last().map(|set| &set.found)
    }

    /// The check of a data set.
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
