//! Calls into the tokenizers library that end, whatever a foreign file holds.
//!
//! The library panics on some files, backtracks without end on others, and some grow a text without limit. Here a panic is an error
//! that names the file and the component; a file whose time is not known to be proportional to the text is loaded and used on
//! another thread, for a limited time; and what would lengthen a text too much is refused before it does.
//!
//! Not bounded: time and memory that are proportional to the text and to the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokenizers::{NormalizedString, Normalizer};

use super::components::{Components, Growth, TOKEN_BYTES};
use crate::error::{Error, Result};
use crate::guard::{Failure, contain, contain_within};

/// Usual files lengthen a text less than this; others have to stay within [`LENGTHENED`] bytes.
const USUAL_FACTOR: f64 = 128.0;
/// Most bytes of a text that an unusual file lengthens.
const LENGTHENED: f64 = 1e6;
/// Time of a watched call, with a second more for each [`PER_SECOND`] bytes.
const TIME: Duration = Duration::from_secs(2);
/// Bytes of text or file per second; a thousandth of what is usual.
const PER_SECOND: u64 = 1 << 20;

/// The library's tokenizer.
type Library = tokenizers::Tokenizer;

/// What a tokenizer's file may do, and the path to name in errors.
#[derive(Debug)]
pub(super) struct Limits {
    path: PathBuf,
    components: Components,
    /// A call took too long and still runs.
    stuck: AtomicBool,
}

impl Limits {
    /// Reads a `tokenizer.json`; `path`: the file to name.
    ///
    /// # Errors
    /// If it does not parse, or has what cannot be bounded.
    pub(super) fn read(json: &[u8], path: &Path) -> Result<Arc<Self>> {
        let components = Components::read(json).map_err(|e| Error::format(path, e))?;
        Ok(Arc::new(Self {
            path: path.to_path_buf(),
            components,
            stuck: AtomicBool::new(false),
        }))
    }

    /// Loads a tokenizer of `bytes` bytes.
    ///
    /// # Errors
    /// Those of `load`; and if it panics or takes too long.
    pub(super) fn load<T: Send + 'static>(
        &self,
        bytes: usize,
        load: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let parts = &self.components;
        // The library normalises added tokens as it loads.
        self.check_growth("normalizer", parts.normalizer.growth, TOKEN_BYTES)?;
        let outcome = match parts.normalizer.watched || parts.pre_tokenizer.watched {
            true => contain_within(time_for(bytes), load),
            false => contain(load),
        };
        outcome.map_err(|failure| self.error(&failure, "loading it"))?
    }

    /// Encodes a text, or a pair of texts, by `encode`.
    ///
    /// # Errors
    /// The library's; if it panics or takes too long; and if the text would grow too much or a pattern gives up on it.
    pub(super) fn encode<T: Send + 'static>(
        &self,
        library: &Arc<Library>,
        (text, second): (&str, Option<&str>),
        encode: impl FnOnce(&Library, &str, Option<&str>) -> tokenizers::Result<T> + Send + 'static,
    ) -> Result<T> {
        let parts = &self.components;
        let growth = Growth {
            factor: parts.normalizer.growth.factor * parts.pre_tokenizer.growth.factor,
            ..parts.normalizer.growth
        };
        let bytes = text.len() + second.map_or(0, str::len);
        self.check_growth("normalizer or pre_tokenizer", growth, bytes)?;
        let watched = parts.normalizer.watched || parts.pre_tokenizer.watched || parts.slow_model;
        if !watched {
            let outcome = contain(|| encode(library, text, second));
            let outcome = outcome.map_err(|failure| self.error(&failure, "encoding a text"))?;
            return outcome.map_err(|e| Error::format(&self.path, e.to_string()));
        }
        self.check_running()?;
        let (library, text, limit) = (library.clone(), text.to_owned(), time_for(bytes));
        let second = second.map(str::to_owned);
        let patterns = [&parts.normalizer, &parts.pre_tokenizer].map(|part| part.patterns.clone());
        let outcome = contain_within(limit, move || {
            for text in [Some(text.as_str()), second.as_deref()]
                .into_iter()
                .flatten()
            {
                check_patterns(&library, &patterns, text)?;
            }
            encode(&library, &text, second.as_deref())
        });
        let outcome = outcome.map_err(|failure| self.error(&failure, "encoding a text"))?;
        outcome.map_err(|e| Error::format(&self.path, e.to_string()))
    }

    /// The text of ids.
    ///
    /// # Errors
    /// As [`Limits::encode`].
    pub(super) fn decode(
        &self,
        library: &Arc<Library>,
        ids: &[u32],
        skip_special: bool,
    ) -> Result<String> {
        let part = &self.components.decoder;
        if part.growth.factor > USUAL_FACTOR || part.growth.more > LENGTHENED {
            let bytes = |id: &u32| library.id_to_token(*id).map_or(0, |token| token.len());
            self.check_growth("decoder", part.growth, ids.iter().map(bytes).sum())?;
        }
        let outcome = if part.watched {
            self.check_running()?;
            let (library, ids) = (library.clone(), ids.to_vec());
            contain_within(time_for(ids.len()), move || {
                library.decode(&ids, skip_special)
            })
        } else {
            contain(|| library.decode(ids, skip_special))
        };
        let outcome = outcome.map_err(|failure| self.error(&failure, "decoding tokens"))?;
        outcome.map_err(|e| Error::format(&self.path, e.to_string()))
    }

    fn check_growth(&self, what: &str, growth: Growth, bytes: usize) -> Result<()> {
        let Growth { factor, more } = growth;
        if factor <= USUAL_FACTOR && more <= LENGTHENED {
            return Ok(());
        }
        let longest = factor * bytes as f64 + more;
        if longest <= LENGTHENED {
            return Ok(());
        }
        Err(Error::format(
            &self.path,
            format!(
                "{what}: it may lengthen a text of {bytes} bytes to {longest:.0}; such a text may have at most {LENGTHENED:.0}"
            ),
        ))
    }

    /// Refuses further calls while one still runs.
    fn check_running(&self) -> Result<()> {
        match self.stuck.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::format(
                &self.path,
                "an earlier text took it too long",
            )),
        }
    }

    fn error(&self, failure: &Failure, doing: &str) -> Error {
        let message = match failure {
            Failure::TimeOut(limit) => {
                self.stuck.store(true, Ordering::Relaxed);
                format!(
                    "{doing} took more than {} s: a pattern or another of its parts needs too much time for it",
                    limit.as_secs()
                )
            }
            Failure::Panic { file, .. } => format!(
                "{}: the tokenizers library fails at {doing}: {failure}. The file is damaged, or has what the library cannot read",
                component(file)
            ),
        };
        Error::format(&self.path, message)
    }
}

/// The component that a source file of the libraries belongs to.
fn component(file: &str) -> &'static str {
    let folders = [
        ("pre_tokenizers", "pre_tokenizer"),
        ("normalizer", "normalizer"),
        ("spm_precompiled", "normalizer"),
        ("processors", "post_processor"),
        ("decoders", "decoder"),
        ("models", "model"),
        ("added_vocabulary", "added_tokens"),
        ("minijinja", "chat template"),
    ];
    let found = folders.iter().find(|(folder, _)| file.contains(folder));
    found.map_or("tokenizer", |(_, component)| component)
}

fn time_for(bytes: usize) -> Duration {
    TIME + Duration::from_secs(bytes as u64 / PER_SECOND)
}

/// Finds the matches of patterns that may give up: the library takes that for the end of a text.
fn check_patterns(
    library: &Library,
    [normalizer, pre_tokenizer]: &[Vec<fancy_regex::Regex>; 2],
    text: &str,
) -> tokenizers::Result<()> {
    let check = |patterns: &[fancy_regex::Regex], text: &str| {
        for pattern in patterns {
            if let Some(error) = pattern.find_iter(text).find_map(std::result::Result::err) {
                return Err(format!(
                    "the pattern {:?} gives up on a text: {error}",
                    pattern.as_str()
                ));
            }
        }
        Ok(())
    };
    check(normalizer, text)?;
    match library.get_normalizer() {
        Some(normalizer) if !pre_tokenizer.is_empty() => {
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized)?;
            check(pre_tokenizer, normalized.get())?;
        }
        _ => check(pre_tokenizer, text)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::super::Tokenizer;
    use super::super::testing;

    /// The toy with parts of its file replaced: where, and what by.
    fn changed(changes: &[(&str, Value)]) -> crate::error::Result<Tokenizer> {
        let mut files = testing::files(false, None);
        let mut file: Value = serde_json::from_slice(&testing::tokenizer_json(false)).unwrap();
        for (place, value) in changes {
            *file.pointer_mut(place).unwrap() = value.clone();
        }
        files.insert("tokenizer.json".into(), file.to_string().into_bytes());
        Tokenizer::from_files(files, std::path::Path::new("toy"))
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    fn split(pattern: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    }

    #[test]
    fn a_hostile_file_is_an_error_that_names_file_and_component() {
        let sequence = |part: Value, times: usize| json!({"type": "Sequence", "normalizers": vec![part; times]});
        let special =
            |ids: usize| json!({"X": {"id": "X", "ids": vec![1; ids], "tokens": vec!["a"; ids]}});
        let post = |special_tokens: Value| {
            json!({"type": "TemplateProcessing", "pair": [], "special_tokens": special_tokens,
            "single": vec![json!({"SpecialToken": {"id": "X", "type_id": 0}}); 100]})
        };
        let text = "a".repeat(40);
        let cases = [
            (
                "/normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                "normalizer: Precompiled",
            ),
            // A trie of 256 nodes that all point beyond it.
            (
                "/normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": format!("AAQAA{}", "/".repeat(1363))}),
                "normalizer: ",
            ),
            (
                "/normalizer",
                replace(json!({"String": ""}), &"x".repeat(9 << 20)),
                "normalizer: it may lengthen",
            ),
            (
                "/normalizer",
                sequence(replace(json!({"String": "a"}), "aa"), 40),
                "normalizer",
            ),
            (
                "/normalizer",
                sequence(replace(json!({"Regex": "a|"}), "aaa"), 20),
                "normalizer",
            ),
            (
                "/normalizer",
                json!({"type": "Prepend", "prepend": "x".repeat(9 << 20)}),
                "normalizer: Prepend",
            ),
            (
                "/normalizer",
                replace(json!({"Regex": "(a|aa)+b(?!c)"}), "b"),
                "gives up",
            ),
            (
                "/pre_tokenizer",
                json!({"type": "FixedLength", "length": 0}),
                "pre_tokenizer: FixedLength has length 0",
            ),
            (
                "/pre_tokenizer",
                split(""),
                "pre_tokenizer: an empty pattern",
            ),
            ("/pre_tokenizer", split("(a|aa|aaa)+b(?!c)"), "gives up"),
            (
                "/pre_tokenizer",
                split(&"(?=a{500})".repeat(100)),
                "pre_tokenizer: the pattern",
            ),
            (
                "/post_processor",
                post(json!({})),
                "post_processor: the template `single` names \"X\"",
            ),
            (
                "/post_processor",
                post(special(1000)),
                "post_processor: the template `single` has 100000 tokens",
            ),
            (
                "/decoder",
                replace(json!({"String": ""}), &"x".repeat(9 << 20)),
                "decoder: it may lengthen",
            ),
            (
                "/decoder",
                json!({"type": "Replace", "pattern": 3, "content": "a"}),
                "toy/tokenizer.json: ",
            ),
            (
                "/model/continuing_subword_prefix",
                json!("####"),
                "model: the tokenizers library fails at loading it",
            ),
            (
                "/model/vocab",
                json!({"a".repeat(8 << 20): 0, "a": 1}),
                "a token of 8388608 bytes",
            ),
            (
                "/model/vocab",
                json!({"a": 4_294_967_295_u32}),
                "token id 4294967295",
            ),
            (
                "/added_tokens/0/content",
                json!("a".repeat(8 << 20)),
                "a token of 8388608 bytes",
            ),
        ];
        let mut failures = Vec::new();
        for (place, value, expected) in cases {
            let shown = value.to_string().chars().take(80).collect::<String>();
            let start = Instant::now();
            let outcome = changed(&[(place, value)])
                .and_then(|tokenizer| tokenizer.encode(&text, true).map(|_| tokenizer))
                .and_then(|tokenizer| tokenizer.decode(&[97], true));
            let error = outcome.map_or_else(|e| e.to_string(), |text| format!("decoded {text:?}"));
            let named = error.starts_with("toy/tokenizer.json: ") && error.contains(expected);
            if !named || start.elapsed().as_secs() >= 4 {
                failures.push(format!(
                    "{place} {shown}: {error:.300} after {:?}",
                    start.elapsed()
                ));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn each_byte_of_a_file_can_be_lost() {
        let whole = testing::tokenizer_json(true);
        let head = whole.len() - 400;
        for at in (0..400).chain(head..whole.len()) {
            let mut files = testing::files(true, None);
            let bytes = files.get_mut("tokenizer.json").unwrap();
            bytes.remove(at);
            drop(Tokenizer::from_files(files, std::path::Path::new("toy")));
        }
    }

    #[test]
    fn a_text_that_takes_too_long_is_an_error_and_the_last_one() {
        let tokenizer = changed(&[("/pre_tokenizer", split(".*z|(?s:.)"))]).unwrap();
        assert_eq!(tokenizer.encode("hi", true).unwrap().len(), 2);
        let start = Instant::now();
        let error = tokenizer
            .encode(&"a".repeat(1 << 21), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("encoding a text took more than"), "{error}");
        assert!(start.elapsed().as_secs() < 8, "{:?}", start.elapsed());
        assert!(
            tokenizer
                .encode("hi", true)
                .unwrap_err()
                .to_string()
                .contains("earlier text")
        );
    }
}
