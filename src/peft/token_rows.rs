//! Rows of embedding and output head that are trained alone: PEFT's trainable tokens.
//!
//! # Source
//! PEFT 0.21, `TrainableTokensLayer`: rows are replaced, not added to. A head that is tied to the embedding has the same rows.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{AdapterMethod, AdapterSpec, Peft};
use crate::error::{Problem, Result};
use crate::ops::{ReplacedRows, replaced_order};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::settings::Settings;

/// Name of the rows in files, below the path of their table.
pub const TOKEN_ROWS: &str = "trainable_tokens_delta";

/// A token: its id, or what it is in the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum TokenName {
    /// Its id.
    Id(u32),
    /// An entry of the vocabulary, or a text that is one token.
    Text(String),
}

impl TokenName {
    /// Its id, if it is named by that.
    pub fn id(&self) -> Option<u32> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Text(_) => None,
        }
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for TokenName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = TokenName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token: its id or its text")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<TokenName, E> {
                let id = u32::try_from(id).map_err(|_| E::custom(format!("no token has id {id}")));
                id.map(TokenName::Id)
            }

            fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<TokenName, E> {
                let id = u32::try_from(id).map_err(|_| E::custom(format!("no token has id {id}")));
                id.map(TokenName::Id)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TokenName, E> {
                Ok(TokenName::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Name)
    }
}

/// PEFT's `trainable_token_indices`: tokens of the embedding, or of tables by the ends of their paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Of the embedding, and of a head that is tied to it.
    Embedding(Vec<TokenName>),
    /// Of each table.
    Tables(BTreeMap<String, Vec<TokenName>>),
}

impl<'de> Deserialize<'de> for TokenIndices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Indices;
        impl<'de> Visitor<'de> for Indices {
            type Value = TokenIndices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens, or a map of tables to lists of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TokenIndices, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(TokenIndices::Embedding(tokens))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenIndices, A::Error> {
                let mut tables = BTreeMap::new();
                while let Some((table, tokens)) = map.next_entry::<String, _>()? {
                    if tables.insert(table.clone(), tokens).is_some() {
                        return Err(A::Error::custom(format!("{table:?} is named twice")));
                    }
                }
                Ok(TokenIndices::Tables(tables))
            }
        }
        deserializer.deserialize_any(Indices)
    }
}

impl TokenIndices {
    /// Its lists, each with the end of its table's path; `None` for the embedding.
    pub fn lists(&self) -> Vec<(Option<&str>, &[TokenName])> {
        match self {
            Self::Embedding(tokens) => vec![(None, tokens.as_slice())],
            Self::Tables(tables) => {
                let lists = tables.iter();
                lists
                    .map(|(table, tokens)| (Some(table.as_str()), tokens.as_slice()))
                    .collect()
            }
        }
    }

    /// Whether no token is named by its text, as in files.
    pub(super) fn are_ids(&self) -> bool {
        let tokens = self.lists().into_iter().flat_map(|(_, tokens)| tokens);
        tokens.into_iter().all(|token| token.id().is_some())
    }

    pub(super) fn lists_mut(&mut self) -> Vec<&mut Vec<TokenName>> {
        match self {
            Self::Embedding(tokens) => vec![tokens],
            Self::Tables(tables) => tables.values_mut().collect(),
        }
    }
}

/// The rows of tables that settings of a method name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows<'a> {
    /// The key of the settings.
    pub key: &'static str,
    /// Between a table's path and [`TOKEN_ROWS`] in files: `"token_adapter."` beside another method.
    pub prefix: &'static str,
    /// Tokens by the end of their table's path; `None` for the embedding.
    pub tables: Vec<(Option<&'a str>, &'a [TokenName])>,
}

impl AdapterSpec {
    /// As [`AdapterMethod::token_rows`].
    pub fn token_rows(&self) -> Option<TokenRows<'_>> {
        by_settings!(self, layer config => config.token_rows(), rows _config => None)
    }

    /// The lists of tokens of the settings.
    fn token_lists(&mut self) -> Vec<&mut Vec<TokenName>> {
        by_settings!(self, layer config => config.token_lists(), rows _config => Vec::new())
    }
}

impl Peft {
    /// The same with ids in place of texts. `id_of` gives the id of a text.
    ///
    /// # Errors
    /// Those of `id_of`, all of them, below the key of the tokens.
    pub fn with_token_ids(
        &self,
        id_of: &dyn Fn(&str) -> Result<u32, String>,
    ) -> Result<Self, Vec<Problem>> {
        let Some(mut spec) = self.adapter() else {
            return Ok(self.clone());
        };
        let Some(key) = spec.token_rows().map(|rows| rows.key) else {
            return Ok(self.clone());
        };
        let mut problems = Vec::new();
        for token in spec.token_lists().into_iter().flatten() {
            if let TokenName::Text(text) = token {
                match id_of(text) {
                    Ok(id) => *token = TokenName::Id(id),
                    Err(message) => problems.push(Problem::new(key, message)),
                }
            }
        }
        match problems.is_empty() {
            true => Ok(spec.into()),
            false => Err(problems),
        }
    }
}

impl Settings {
    /// Lists of tokens that name at least one each, and none twice.
    pub fn token_rows(&mut self, rows: &TokenRows<'_>) {
        if rows.tables.is_empty() {
            self.note(Problem::new(rows.key, "names no table; leave it out"));
        }
        for (table, tokens) in &rows.tables {
            let of = table.map_or(String::new(), |table| format!(" of {table:?}"));
            if *table == Some("") {
                self.note(Problem::new(rows.key, "names a table by an empty path"));
            }
            if tokens.is_empty() {
                let message = format!("names no token{of}, so none would be trained");
                self.note(
                    Problem::new(rows.key, message)
                        .with_help("leave it out, or name tokens by text or id"),
                );
            }
            let mut named = HashSet::new();
            for token in tokens.iter() {
                if !named.insert(token) {
                    let message = format!("names {token} twice{of}");
                    self.note(Problem::new(rows.key, message));
                }
            }
        }
    }
}

/// Trained rows in place of some of a table's.
#[derive(Module, Debug)]
pub struct TrainedRows<B: Backend> {
    /// `[tokens, width]`, in f32 whatever the table is.
    pub rows: Param<Tensor<B, 2>>,
    order: Tensor<B, 1, Int>,
    #[module(skip)]
    at: Arc<Vec<u32>>,
    /// In files.
    #[module(skip)]
    key: String,
}

impl<B: Backend> TrainedRows<B> {
    /// The rows of the tokens `at` of a table with `vocab` rows; `key` is the name of the tensor in files.
    ///
    /// # Panics
    /// If a token is not in the table.
    pub fn new(rows: Tensor<B, 2>, at: Vec<u32>, vocab: usize, key: String) -> Self {
        let order = replaced_order(&at, vocab, &rows.device());
        Self {
            rows: Param::initialized(ParamId::new(), rows),
            order,
            at: Arc::new(at),
            key,
        }
    }

    /// The tokens, in the order of the rows.
    pub fn tokens(&self) -> &[u32] {
        &self.at
    }

    /// The name of the tensor in files.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Which rows of the table they stand for.
    pub fn replaced(&self) -> ReplacedRows<B> {
        ReplacedRows::new(self.at.clone(), self.order.clone())
    }

    /// The table, `[vocab, width]`, with the rows in it.
    pub fn merged(&self, table: Tensor<B, 2>) -> Tensor<B, 2> {
        let all = Tensor::cat(vec![table, self.rows.val().detach()], 0);
        all.select(0, self.order.clone())
    }

    /// Walks the trained parameters.
    pub fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let [_, width] = self.rows.val().dims();
        let meta = ParamMeta::single(ParamKind::Adapter, &*self.key, width, false);
        visit(&meta, ParamSlot::Matrix(&mut self.rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LoraConfig;

    fn lora(tokens: &str) -> Result<LoraConfig, String> {
        let options = ron::Options::default()
            .with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
        let text = format!("(trainable_token_indices: {tokens})");
        options.from_str(&text).map_err(|error| error.to_string())
    }

    fn messages(tokens: &str) -> Vec<String> {
        let problems = Peft::Lora(lora(tokens).unwrap()).problems();
        problems
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    #[test]
    fn tokens_are_named_by_id_or_text_for_the_embedding_or_by_table() {
        let (id, text) = (TokenName::Id, |text: &str| TokenName::Text(text.into()));
        let list = lora(r#"["<think>", 7]"#).unwrap();
        let expected = TokenIndices::Embedding(vec![text("<think>"), id(7)]);
        assert_eq!(list.trainable_token_indices, Some(expected));
        let map = lora(r#"{"lm_head": [1], "embed_tokens": [2, 3]}"#).unwrap();
        let lists = map.trainable_token_indices.clone().unwrap();
        assert_eq!(
            lists.lists(),
            [
                (Some("embed_tokens"), &[id(2), id(3)][..]),
                (Some("lm_head"), &[id(1)][..])
            ]
        );
        assert!(lora("[-1]").unwrap_err().contains("no token has id -1"));
        assert!(lora("[1.5]").unwrap_err().contains("its id or its text"));
        for config in [list, map] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<LoraConfig>(&json).unwrap(), config);
        }
    }

    #[test]
    fn lists_that_are_empty_or_name_a_token_twice_are_refused() {
        assert_eq!(messages("[1, 2]"), [""; 0]);
        assert_eq!(messages("[]"), ["names no token, so none would be trained"]);
        assert_eq!(messages("{}"), ["names no table; leave it out"]);
        assert_eq!(
            messages(r#"[1, "a", 1, "a"]"#),
            ["names 1 twice", "names \"a\" twice"]
        );
        assert_eq!(
            messages(r#"{"lm_head": []}"#),
            ["names no token of \"lm_head\", so none would be trained"]
        );
    }

    #[test]
    fn texts_become_ids_and_what_is_none_is_named() {
        let id_of = |text: &str| match text {
            "<think>" => Ok(9),
            text => Err(format!("{text:?} is no token")),
        };
        let peft = Peft::Lora(lora(r#"["<think>", 7]"#).unwrap());
        let resolved = peft.with_token_ids(&id_of).unwrap().adapter().unwrap();
        let rows = resolved.token_rows().unwrap();
        assert_eq!(
            rows.tables,
            [(None, &[TokenName::Id(9), TokenName::Id(7)][..])]
        );
        let peft = Peft::Lora(lora(r#"["<a>", 7, "<b>"]"#).unwrap());
        let problems = peft.with_token_ids(&id_of).unwrap_err();
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "trainable_token_indices: \"<a>\" is no token",
                "trainable_token_indices: \"<b>\" is no token"
            ]
        );
    }
}
