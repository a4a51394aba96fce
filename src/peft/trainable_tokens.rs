//! Trainable tokens as a method of its own: rows of embedding and output head, and nothing else.
//!
//! # Source
//! PEFT 0.21, `TrainableTokensConfig`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::{AdapterConfig, Keys};
use super::method::AdapterMethod;
use super::targets::{LinearSpec, TargetModules, Targets};
use super::token_rows::{TokenName, TokenRows};
use crate::error::{Problem, Result};
use crate::settings::Settings;

/// Rows of tables that are trained alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct TrainableTokensConfig {
    /// The tables, by the ends of their paths: `"embed_tokens"`, `"lm_head"`; the embedding, and a head that is tied to it, if it is
    /// empty.
    pub target_modules: Vec<String>,
    /// The tokens whose rows are trained.
    pub token_indices: Vec<TokenName>,
}

/// The keys of its own in `adapter_config.json`.
const TOKENS: &str = "token_indices";

impl AdapterMethod for TrainableTokensConfig {
    const PEFT_TYPE: &'static str = "TRAINABLE_TOKENS";

    const HAS_EXCLUDE_MODULES: bool = false;

    const HAS_MODULES_TO_SAVE: bool = false;

    const OWN_TARGETS: bool = true;

    fn problems(&self, settings: &mut Settings) {
        let mut named = HashSet::new();
        for (index, entry) in self.target_modules.iter().enumerate() {
            if entry.is_empty() {
                settings.note(Problem::new(format!("target_modules.{index}"), "is empty"));
            } else if !named.insert(entry) {
                let message = format!("names {entry:?} twice");
                settings.note(Problem::new(format!("target_modules.{index}"), message));
            }
        }
        if let Some(mut rows) = self.token_rows() {
            // One list for all tables.
            rows.tables.truncate(1);
            rows.tables.iter_mut().for_each(|(table, _)| *table = None);
            settings.token_rows(&rows);
        }
    }

    /// It sits on no linear layer.
    fn targets(&self, _: &[LinearSpec]) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    fn tensors(&self, _: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        Vec::new()
    }

    fn token_rows(&self) -> Option<TokenRows<'_>> {
        let tokens = self.token_indices.as_slice();
        let tables = self.target_modules.iter();
        Some(TokenRows {
            key: TOKENS,
            prefix: "",
            tables: match self.target_modules.is_empty() {
                true => vec![(None, tokens)],
                false => tables.map(|table| (Some(table.as_str()), tokens)).collect(),
            },
        })
    }

    fn token_lists(&mut self) -> Vec<&mut Vec<TokenName>> {
        vec![&mut self.token_indices]
    }

    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
        if let TargetModules::One(pattern) = &targets.target_modules
            && pattern.contains(|c| r"\()[]|*+?^$".contains(c))
        {
            return Err(format!(
                "\"target_modules\": \"{pattern}\" is a regular expression; beside {TOKENS} only names of tables are read"
            ));
        }
        let list = |value: &Value| {
            let ids: Vec<u32> = serde_json::from_value(value.clone()).ok()?;
            Some(ids.into_iter().map(TokenName::Id).collect())
        };
        Ok(Self {
            target_modules: targets.target_modules.entries().to_vec(),
            token_indices: keys.read(TOKENS, Vec::new(), list)?,
        })
    }

    fn accepts(key: &str, _: &Value) -> Option<bool> {
        // How rows began is not seen in trained ones.
        [TOKENS, "init_weights"].contains(&key).then_some(true)
    }

    fn own_targets(&self) -> Option<Targets> {
        Some(Targets::of(TargetModules::List(Vec::new())))
    }

    fn write(&self, _: &AdapterConfig) -> Value {
        let tables = match self.target_modules.is_empty() {
            true => Value::Null,
            false => json!(self.target_modules),
        };
        json!({"init_weights": true, "target_modules": tables, TOKENS: self.token_indices})
    }
}
