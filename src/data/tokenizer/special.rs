//! Added tokens: which the files declare, with which ids, and which of them are special.
//!
//! # Source
//! transformers 5.23: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`. Here a token is
//! special if any file declares it so, and a declared id that the token cannot have is an error.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Model};

use super::components::TOKEN_BYTES;
use super::files::{ADDED_TOKENS, Files, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use crate::error::{Error, Result};

/// Keys of named special tokens, in the order of id assignment.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Key of the list of added tokens by id.
pub(super) const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";
/// Key of unnamed special tokens.
pub(super) const EXTRA: &str = "extra_special_tokens";
/// The older name of [`EXTRA`].
pub(super) const ADDITIONAL: &str = "additional_special_tokens";

/// Tokens declared by the files beside the vocabulary.
#[derive(Debug, Default)]
pub(super) struct DeclaredTokens {
    /// Tokens with declared ids, ascending, and the declaring file.
    listed: Vec<(u32, AddedToken, &'static str)>,
    /// Named special tokens, in the order of addition.
    named: Vec<(String, AddedToken)>,
    /// Unnamed special tokens.
    extra: Vec<AddedToken>,
    /// Texts that any file declares special, overridden files included.
    special: BTreeSet<String>,
}

impl DeclaredTokens {
    /// Reads the files. `defaults`: named tokens for names that the files do not set.
    ///
    /// `special_tokens_map.json` and `added_tokens.json` are older files: as in transformers, they are used only if the configuration
    /// has no `added_tokens_decoder`, and then override the configuration.
    ///
    /// # Errors
    /// If a file does not hold what it should.
    pub(super) fn read(files: &Files, defaults: &[(&str, &str)]) -> Result<Self> {
        let config = files.object(TOKENIZER_CONFIG)?;
        let older = files.object(SPECIAL_TOKENS_MAP)?;
        let legacy = !config.contains_key(ADDED_TOKENS_DECODER);
        let mut declared = Self::default();
        let counts = legacy.then_some(&older);
        declared.name(&config, counts, defaults);
        declared.list_extra(&config, counts);
        for object in [&config, &older] {
            let lists = [EXTRA, ADDITIONAL]
                .into_iter()
                .filter_map(|key| object.get(key));
            let named = NAMED.into_iter().filter_map(|key| object.get(key));
            let texts = lists
                .flat_map(tokens_of)
                .chain(named.filter_map(special_token));
            declared.special.extend(texts.map(|token| token.content));
        }
        let named = declared.named.iter().map(|(_, token)| token);
        let special = named
            .chain(&declared.extra)
            .map(|token| token.content.clone());
        declared.special.extend(special);
        declared.list(files, &config, legacy)?;
        Ok(declared)
    }

    fn name(
        &mut self,
        config: &Map<String, Value>,
        older: Option<&Map<String, Value>>,
        defaults: &[(&str, &str)],
    ) {
        for key in NAMED {
            let older = older.and_then(|older| older.get(key));
            let token = match older.filter(|value| !value.is_null()).or(config.get(key)) {
                // `null` in the configuration means that there is no such token.
                Some(value) => special_token(value),
                None => {
                    let default = defaults.iter().find(|(name, _)| *name == key);
                    default.and_then(|(_, text)| special_token(&Value::from(*text)))
                }
            };
            self.named
                .extend(token.map(|token| (key.to_owned(), token)));
        }
        // Model-specific tokens: `image_token`, or a map of names.
        let own = [older, Some(config)].into_iter().flatten();
        for (key, value) in own.clone().flat_map(|object| object.iter()) {
            if key.ends_with("_token") && !NAMED.contains(&key.as_str()) {
                self.name_own(key, value);
            }
        }
        for value in own.filter_map(|object| object.get(EXTRA)) {
            for (key, value) in value.as_object().into_iter().flatten() {
                self.name_own(key, value);
            }
        }
    }

    fn name_own(&mut self, key: &str, value: &Value) {
        if let Some(token) = special_token(value)
            && self.named.iter().all(|(name, _)| name != key)
        {
            self.named.push((key.to_owned(), token));
        }
    }

    /// Unnamed special tokens: `extra_special_tokens`, or else `additional_special_tokens`.
    fn list_extra(&mut self, config: &Map<String, Value>, older: Option<&Map<String, Value>>) {
        let list = |object: &Map<String, Value>, key: &str| match object.get(key) {
            Some(value @ Value::Array(_)) => tokens_of(value),
            _ => Vec::new(),
        };
        let says = |value: &Value| match value {
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => false,
        };
        self.extra = match config.get(EXTRA).is_some_and(says) {
            true => list(config, EXTRA),
            false => list(config, ADDITIONAL),
        };
        let Some(older) = older else { return };
        for token in list(older, EXTRA) {
            if self
                .extra
                .iter()
                .all(|known| known.content != token.content)
            {
                self.extra.push(token);
            }
        }
        if self.extra.is_empty() {
            self.extra = list(older, ADDITIONAL);
        }
    }

    /// Tokens with declared ids, from `added_tokens_decoder` or `added_tokens.json`.
    fn list(&mut self, files: &Files, config: &Map<String, Value>, legacy: bool) -> Result<()> {
        let bad = |file: &str, what: String| Err(Error::format(files.path(file), what));
        if legacy {
            for (content, id) in files.object(ADDED_TOKENS)? {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return bad(
                        ADDED_TOKENS,
                        format!("{content:?}: expected an id, found {id}"),
                    );
                };
                let special = self.special.contains(&content);
                self.listed
                    .push((id, AddedToken::from(content, special), ADDED_TOKENS));
            }
        } else if let Some(Value::Object(decoder)) = config.get(ADDED_TOKENS_DECODER) {
            for (id, value) in decoder {
                let (Ok(id), Some(token)) = (id.parse(), token(value, false)) else {
                    let what = format!("{ADDED_TOKENS_DECODER}: {id:?} is not a token");
                    return bad(TOKENIZER_CONFIG, what);
                };
                self.listed.push((id, token, TOKENIZER_CONFIG));
            }
        }
        self.listed.sort_by_key(|(id, ..)| *id);
        Ok(())
    }

    /// The text of a named token.
    pub(super) fn named(&self, key: &str) -> Option<&str> {
        let mut named = self.named.iter();
        let found = named.find(|(name, _)| name == key);
        found.map(|(_, token)| token.content.as_str())
    }

    /// All named tokens, by name.
    pub(super) fn names(&self) -> impl Iterator<Item = (String, String)> {
        let named = self.named.iter();
        named.map(|(name, token)| (name.clone(), token.content.clone()))
    }

    /// Adds the tokens: those with an id first, then named ones, then unnamed ones. New tokens get the ids after the last one.
    ///
    /// A new token without a row in the model's embedding, by `config.json`, is left out (except BOS and EOS).
    ///
    /// # Errors
    /// If a token would get another id than its file says, or the id of another token.
    pub(super) fn add_to(&self, inner: &mut tokenizers::Tokenizer, files: &Files) -> Result<()> {
        let mut known: HashMap<String, AddedToken> = inner
            .get_added_tokens_decoder()
            .into_values()
            .map(|token| (token.content.clone(), token))
            .collect();
        let mut changed = Vec::new();
        let mut put = |token: &AddedToken, known: &mut HashMap<String, AddedToken>| {
            if known.get(&token.content) != Some(token) {
                known.insert(token.content.clone(), token.clone());
                changed.push(token.clone());
            }
        };
        let special = |content: &str, known: &HashMap<String, AddedToken>| {
            self.special.contains(content) || known.get(content).is_some_and(|token| token.special)
        };
        for (_, token, file) in &self.listed {
            let mut token = token.clone();
            token.special |= special(&token.content, &known);
            // The older file has ids only.
            if *file != ADDED_TOKENS || !known.contains_key(&token.content) {
                put(&token, &mut known);
            }
        }
        for content in &self.special {
            if let Some(mut token) = known.get(content).cloned() {
                token.special = true;
                put(&token, &mut known);
            }
        }
        let room = files.embedding_rows()?;
        let mut next = next_id(inner) as usize + new_tokens(inner, known.keys());
        for (key, token) in &self.named {
            let is_new =
                inner.token_to_id(&token.content).is_none() && !known.contains_key(&token.content);
            if is_new {
                let has_room = room.is_none_or(|rows| next < rows);
                // A BOS or EOS without an embedding is refused where it is looked up.
                if !has_room && NAMED.contains(&key.as_str()) {
                    continue;
                }
                next += 1;
            }
            if !known.contains_key(&token.content) {
                put(token, &mut known);
            }
        }
        for token in &self.extra {
            if !known.contains_key(&token.content) {
                put(token, &mut known);
            }
        }
        add(inner, &changed, files)?;
        for (id, token, file) in &self.listed {
            let found = inner.token_to_id(&token.content);
            if found != Some(*id) {
                let what = match *file {
                    TOKENIZER_CONFIG => ADDED_TOKENS_DECODER,
                    _ => "it",
                };
                return Err(Error::format(
                    files.path(file),
                    format!(
                        "{what} says that {:?} is token {id}; the tokenizer has it as {found:?}",
                        token.content
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Adds tokens; refuses ids that are taken: the library miscounts vocabularies with gaps.
fn add(inner: &mut tokenizers::Tokenizer, tokens: &[AddedToken], files: &Files) -> Result<()> {
    let is_new = |token: &&AddedToken| inner.token_to_id(&token.content).is_none();
    let new: Vec<AddedToken> = tokens.iter().filter(is_new).cloned().collect();
    let mut lengths = tokens.iter().map(|token| token.content.len());
    if let Some(bytes) = lengths.find(|bytes| *bytes > TOKEN_BYTES) {
        let message =
            format!("a special token of {bytes} bytes; at most {TOKEN_BYTES} are possible");
        return Err(Error::format(files.origin(), message));
    }
    inner.add_tokens(tokens);
    for token in new {
        let id = inner.token_to_id(&token.content).unwrap_or_default();
        if let Some(owner) = inner.get_model().id_to_token(id) {
            return Err(Error::format(
                files.origin(),
                format!(
                    "the vocabulary has gaps, so that the new token {:?} would get id {id}, which is {owner:?}'s. List the \
                     token in tokenizer.json with an id of its own",
                    token.content
                ),
            ));
        }
    }
    Ok(())
}

/// The id that the library assigns to the next new token.
pub(super) fn next_id(inner: &tokenizers::Tokenizer) -> u32 {
    let size = inner.get_vocab_size(false) as u32;
    let last = inner.get_added_tokens_decoder().into_keys().max();
    last.map_or(size, |last| size.max(last + 1))
}

fn new_tokens<'a>(inner: &tokenizers::Tokenizer, texts: impl Iterator<Item = &'a String>) -> usize {
    texts
        .filter(|text| inner.token_to_id(text).is_none())
        .count()
}

/// The tokens of a list or a map.
fn tokens_of(value: &Value) -> Vec<AddedToken> {
    match value {
        Value::Array(list) => list.iter().filter_map(special_token).collect(),
        Value::Object(map) => map.values().filter_map(special_token).collect(),
        _ => Vec::new(),
    }
}

/// A token that is special by its place.
fn special_token(value: &Value) -> Option<AddedToken> {
    token(value, true).map(|token| token.special(true))
}

/// A token in transformers' form: a string, or an object with `content` and matching options.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let content = match value {
        Value::String(text) => text,
        object => object.get("content")?.as_str()?,
    };
    let special = flag("special").unwrap_or(special);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
