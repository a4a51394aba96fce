//! New special tokens, in the vocabulary and in the files that are written.

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::Tokenizer;
use super::files::{ADDED_TOKENS, Files, MODEL_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use super::special::{self, ADDED_TOKENS_DECODER, ADDITIONAL, EXTRA};
use crate::error::{Error, Result};

const VOCABULARY: &str = "tokenizer.json";

impl Tokenizer {
    /// The same tokenizer with more special tokens, and those of `texts` that it had as tokens before, with their ids.
    ///
    /// New tokens get the ids after the last one, and [`Tokenizer::save`] writes them.
    ///
    /// # Errors
    /// If the vocabulary has gaps, so that a new token would get the id of another, or a file does not hold what it should.
    ///
    /// # Source
    /// transformers 5.23, `add_tokens(texts, special_tokens=True)`.
    pub fn with_added_tokens(&self, texts: &[String]) -> Result<(Self, Vec<(String, u32)>)> {
        let (mut new, mut present) = (Vec::new(), Vec::new());
        for text in texts {
            match self.inner.token_to_id(text) {
                Some(id) => present.push((text.clone(), id)),
                None => new.push(text.as_str()),
            }
        }
        if new.is_empty() {
            return Ok((self.clone(), present));
        }
        let new: Vec<(u32, &str)> = (special::next_id(&self.inner)..).zip(new).collect();
        let mut files = (*self.files).clone();
        list(&mut files, &entries(&self.inner, &new))?;
        let added = Self::of(files)?;
        for (id, text) in new {
            let owner = self.inner.id_to_token(id);
            if owner.is_some() || added.inner.token_to_id(text) != Some(id) {
                return Err(Error::format(
                    self.files.origin(),
                    format!(
                        "the new token {text:?} would get id {id}, which is {:?}'s: the vocabulary has gaps. List the token in \
                         tokenizer.json with an id of its own",
                        owner.unwrap_or_default()
                    ),
                ));
            }
        }
        let rows = added
            .embeddings
            .filter(|&rows| rows < added.id_limit() as usize);
        let added = match rows {
            Some(_) => added.with_embeddings(added.id_limit() as usize)?,
            None => added,
        };
        Ok((added, present))
    }

    /// The same tokenizer beside an embedding of `rows` rows, whatever the base's `config.json` says.
    ///
    /// # Errors
    /// If `config.json` is not a JSON object.
    pub(crate) fn with_embeddings(&self, rows: usize) -> Result<Self> {
        let mut changed = self.clone();
        if self.embeddings.is_some_and(|known| known != rows) {
            let mut files = (*self.files).clone();
            let mut config = files.object(MODEL_CONFIG)?;
            config.insert("vocab_size".into(), rows.into());
            files.set(MODEL_CONFIG, config);
            changed.files = files.into();
            changed.embeddings = Some(rows);
        }
        Ok(changed)
    }
}

/// The tokens beside a vocabulary by id, new ones last.
fn entries(inner: &tokenizers::Tokenizer, new: &[(u32, &str)]) -> Vec<(u32, AddedToken)> {
    let mut entries: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
    entries.extend((new.iter()).map(|(id, text)| (*id, AddedToken::from(*text, true))));
    entries.sort_by_key(|(id, _)| *id);
    entries
}

/// Lists tokens in the files that list tokens: new ones, and those before them that have their ids by the order of other files.
fn list(files: &mut Files, entries: &[(u32, AddedToken)]) -> Result<()> {
    let whole = files.has(VOCABULARY);
    if whole {
        let mut vocabulary = files.object(VOCABULARY)?;
        let listed = vocabulary
            .entry("added_tokens")
            .or_insert_with(|| json!([]));
        if let Some(listed) = listed.as_array_mut() {
            for (id, token) in entries {
                if listed
                    .iter()
                    .all(|known| known["content"] != json!(token.content))
                {
                    let mut entry = Map::from_iter([("id".to_owned(), json!(id))]);
                    entry.extend(properties(token));
                    listed.push(entry.into());
                }
            }
        }
        files.set(VOCABULARY, vocabulary);
    }
    let mut config = files.object(TOKENIZER_CONFIG)?;
    if let Some(Value::Object(decoder)) = config.get_mut(ADDED_TOKENS_DECODER) {
        for (id, token) in entries {
            let entry = decoder.entry(id.to_string());
            entry.or_insert_with(|| properties(token).into());
        }
        files.set(TOKENIZER_CONFIG, config);
        return Ok(());
    }
    if whole && !files.has(ADDED_TOKENS) {
        return Ok(());
    }
    // The older form: ids in a file of their own, and special by another list.
    let mut ids = files.object(ADDED_TOKENS)?;
    let mut new = Vec::new();
    for (id, token) in entries {
        if !ids.contains_key(&token.content) {
            ids.insert(token.content.clone(), json!(id));
            new.extend(token.special.then(|| token.content.clone()));
        }
    }
    files.set(ADDED_TOKENS, ids);
    let older = files.object(SPECIAL_TOKENS_MAP)?;
    let (file, mut object) = match lists(&older) {
        Some(_) => (SPECIAL_TOKENS_MAP, older),
        None => (TOKENIZER_CONFIG, config),
    };
    let key = lists(&object).unwrap_or(ADDITIONAL);
    let texts = object.entry(key).or_insert_with(|| json!([]));
    if let Some(texts) = texts.as_array_mut() {
        let text = |known: &Value| known.get("content").unwrap_or(known).clone();
        let known: Vec<Value> = texts.iter().map(text).collect();
        let new = new.into_iter().map(Value::from);
        texts.extend(new.filter(|text| !known.contains(text)));
    }
    files.set(file, object);
    Ok(())
}

/// The key of an object's list of unnamed special tokens, if it has one that is not empty.
fn lists(object: &Map<String, Value>) -> Option<&'static str> {
    let has = |key: &&str| {
        let list = object.get(*key).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    [EXTRA, ADDITIONAL].into_iter().find(has)
}

/// A token in the form of the files.
fn properties(token: &AddedToken) -> Map<String, Value> {
    let properties = json!({
        "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip,
        "normalized": token.normalized, "special": token.special
    });
    match properties {
        Value::Object(properties) => properties,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::testing::*;
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn saved(tokenizer: &Tokenizer) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        Tokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn new_tokens_are_special_and_written() {
        let tok = tokenizer(false, None);
        let new = texts(&["<|think|>", "<|im_end|>", "<|/think|>"]);
        let (added, present) = tok.with_added_tokens(&new).unwrap();
        assert_eq!(present, [("<|im_end|>".to_owned(), IM_END)]);
        for tok in [&added, &saved(&added)] {
            let ids = tok.encode("hi<|think|>hi<|/think|>", true).unwrap();
            assert_eq!(ids, [HI, 262, HI, 263]);
            assert!(tok.is_special(262) && tok.is_special(263));
            assert_eq!(tok.decode(&ids, true).unwrap(), "hihi");
            assert_eq!((tok.vocab_size(), tok.id_limit()), (264, 264));
        }
        // What was there stays as it was.
        assert_eq!(added.encode("a</s>", true).unwrap(), [97, EOS]);
        let (same, present) = added.with_added_tokens(&new).unwrap();
        assert_eq!((same.vocab_size(), present.len()), (264, 3));
    }

    #[test]
    fn the_configuration_lists_them_if_it_lists_tokens() {
        let mut files = files(false, None);
        let config = json!({"eos_token": "</s>", "added_tokens_decoder": {
            "259": {"content": "</s>", "special": true, "normalized": false}}});
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
        let (added, _) = tok.with_added_tokens(&texts(&["<x>"])).unwrap();
        let config = added.files.object(TOKENIZER_CONFIG).unwrap();
        assert_eq!(
            config["added_tokens_decoder"]["262"],
            json!({"content": "<x>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        );
        assert_eq!(saved(&added).encode("<x>", true).unwrap(), [262]);
    }

    #[test]
    fn a_vocabulary_with_merges_lists_them_beside_it() {
        let vocab = r#"{"h":0,"i":1,"<|endoftext|>":2}"#;
        for more in [json!({}), json!({"additional_special_tokens": ["<a>"]})] {
            let first = if more == json!({}) { 3 } else { 4 };
            let files = BTreeMap::from([
                ("vocab.json".to_owned(), vocab.as_bytes().to_vec()),
                ("merges.txt".to_owned(), b"#version: 0.2\n".to_vec()),
                (
                    "special_tokens_map.json".to_owned(),
                    more.to_string().into_bytes(),
                ),
            ]);
            let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
            let (added, _) = tok.with_added_tokens(&texts(&["<x>", "<y>"])).unwrap();
            for tok in [&added, &saved(&added)] {
                assert_eq!(
                    tok.encode("h<y>i<x>", true).unwrap(),
                    [0, first + 1, 1, first]
                );
                assert!(tok.is_special(first) && tok.is_special(first + 1));
            }
        }
    }

    #[test]
    fn an_embedding_without_a_row_for_them_is_one_that_grows() {
        let with_rows = |rows: usize| {
            let mut files = files(false, None);
            let config = json!({"vocab_size": rows}).to_string().into_bytes();
            files.insert("config.json".into(), config);
            let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
            let (added, _) = tok.with_added_tokens(&texts(&["<x>"])).unwrap();
            added.embeddings()
        };
        assert_eq!(with_rows(262), Some(263));
        // Spare rows are used.
        assert_eq!(with_rows(320), Some(320));
    }
}
