//! Rows in memory and in files are the same, and no wrong file is taken.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::data::encode::{Preferences, Prompts, Texts, TextsOrCompletions};
use crate::data::tokenizer::testing::{self, CHATML};
use crate::data::{DataSource, Part, encode_completions, read_rows};

const COMPLETIONS: TextsOrCompletions = TextsOrCompletions {
    max_length: 12,
    completion_only: true,
    texts: false,
};

/// A data set of these lines.
fn data(folder: &Path, lines: &str) -> DataConfig {
    let path = folder.join("d.jsonl");
    fs::write(&path, lines).unwrap();
    DataConfig::of(DataSource::File(path))
}

/// Pairs of which each third is cut, with line ends of all kinds.
fn pairs(count: usize) -> String {
    let row = |i: usize| {
        let completion = "x".repeat(3 + 7 * usize::from(i.is_multiple_of(3)));
        format!("{{\"prompt\":\"{i}\",\"completion\":\"{completion}\",\"margin\":{i}}}\r\n\n")
    };
    (0..count).map(row).collect()
}

/// The rows of a data set, in memory and twice by way of a file, and what was said.
fn three<E: RowEncoding<Item: TokenRow>>(
    folder: &Path,
    config: &DataConfig,
    tokenizer: &Tokenizer,
    encoding: &E,
) -> ([TokenRows<E::Item>; 3], Vec<String>) {
    let context = DataContext::default();
    let mut said = Vec::new();
    let mut rows = |least_bytes: u64| {
        let cache = RowsCache::new(folder.join("rows"), least_bytes);
        let mut say = |text: &str| said.push(text.to_owned());
        token_rows(config, &context, tokenizer, encoding, &cache, &mut say).unwrap()
    };
    let rows = [rows(u64::MAX), rows(0), rows(0)];
    (rows, said)
}

fn check_same<E: RowEncoding<Item: TokenRow + PartialEq + std::fmt::Debug>>(
    config: &DataConfig,
    tokenizer: &Tokenizer,
    encoding: &E,
) -> Vec<E::Item> {
    let folder = tempfile::tempdir().unwrap();
    let ([memory, made, found], said) = three(folder.path(), config, tokenizer, encoding);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("tokenised rows are kept in the cache: "));
    assert!(said[1].starts_with("tokenised rows from the cache: "));
    for rows in [&made, &found] {
        assert!(matches!(rows.store, Store::File(_)));
        assert_eq!(rows.counts, memory.counts);
        assert_eq!(rows.lens().unwrap(), memory.lens().unwrap());
    }
    let last = memory.len() - 1;
    let some: Vec<_> = [last, 0, last].into();
    assert_eq!(found.get(some.clone()).unwrap(), memory.get(some).unwrap());
    let expected = memory.into_vec().unwrap();
    assert_eq!(made.into_vec().unwrap(), expected);
    let one_by_one: Vec<_> = found.iter().map(|row| row.unwrap().into_owned()).collect();
    assert_eq!(one_by_one, expected);
    // Neither an index nor an unfinished file is left.
    assert_eq!(fs::read_dir(folder.path().join("rows")).unwrap().count(), 1);
    expected
}

#[test]
fn rows_of_a_file_are_those_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = testing::tokenizer(true, Some(CHATML));
    let config = data(folder.path(), &pairs(40));
    let examples = check_same(&config, &tokenizer, &COMPLETIONS);
    let rows = read_rows(&config, &DataContext::default()).unwrap();
    let whole = encode_completions(&rows, &tokenizer, &config.format, 12, true).unwrap();
    assert_eq!(examples, whole.items);
    let part = DataConfig {
        valid_fraction: 0.3,
        part: Part::HeldOut,
        skip: 1,
        ..config.clone()
    };
    check_same(&part, &tokenizer, &COMPLETIONS);

    let conversation = json!({"messages": [
        {"role": "user", "content": "a\u{0}\u{e9}"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ], "label": 1.0, "big": u64::MAX, "tools": [{"name": "f"}]});
    let conversations = data(folder.path(), &format!("{conversation}\n{conversation}\n"));
    let encoding = TextsOrCompletions {
        max_length: 100,
        ..COMPLETIONS
    };
    check_same(&conversations, &tokenizer, &encoding);
    let prompts = check_same(&conversations, &tokenizer, &Prompts { max_length: 100 });
    assert_eq!(prompts[0].row["label"], json!(1.0));
    assert!(
        prompts[0]
            .conversation
            .as_ref()
            .unwrap()
            .options
            .tools
            .is_some()
    );
    let preference =
        json!({"prompt": "p", "chosen": "c", "rejected": "rr", "margin": 0.1, "by": {"who": 3}});
    let ranked =
        json!({"prompt_ids": [1], "response_ids": [[2], [3], [4]], "scores": [0.5, -1.0, 0.5]});
    let lines = format!("{preference}\n{ranked}\n{preference}\n");
    let preferences = data(folder.path(), &lines);
    let all = Preferences {
        max_length: 9,
        with_best: false,
    };
    let items = check_same(&preferences, &tokenizer, &all);
    assert_eq!(items[0].pairs, [(0, 1, 0.1)]);
    assert_eq!(items[0].label("by.who").as_deref(), Some("3"));
    // Two responses are best: the row is counted, and not used.
    let best = Preferences {
        with_best: true,
        ..all
    };
    assert_eq!(
        check_same(&preferences, &tokenizer, &best),
        [items[0].clone(), items[2].clone()]
    );
}

#[test]
fn texts_and_completions_may_be_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = testing::tokenizer(false, None);
    let config = data(
        folder.path(),
        "{\"text\":\"abc\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n",
    );
    let encoding = TextsOrCompletions {
        max_length: 9,
        completion_only: false,
        texts: true,
    };
    let rows = check_same(&config, &tokenizer, &encoding);
    assert_eq!((rows[0].prompt_len, rows[1].prompt_len), (0, 1));
}

#[test]
fn a_damaged_file_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = testing::tokenizer(false, None);
    let config = data(folder.path(), &pairs(9));
    let ([memory, ..], _) = three(folder.path(), &config, &tokenizer, &COMPLETIONS);
    let path = fs::read_dir(folder.path().join("rows")).unwrap().next();
    let path = path.unwrap().unwrap().path();
    let whole = fs::read(&path).unwrap();
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let other_version = {
        let mut bytes = changed(15);
        let sum = crc32fast::hash(&bytes[..bytes.len() - 4]);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    for (bytes, problem) in [
        (Vec::new(), "is damaged or not whole"),
        (whole[..whole.len() - 1].to_vec(), "is damaged or not whole"),
        (whole[..20].to_vec(), "is damaged or not whole"),
        (changed(30), "is damaged or not whole"),
        (changed(whole.len() - 1), "is damaged or not whole"),
        (other_version, "was written by another version"),
    ] {
        fs::write(&path, bytes).unwrap();
        let ([_, made, _], said) = three(folder.path(), &config, &tokenizer, &COMPLETIONS);
        assert!(
            said[0].ends_with(&format!("{problem}; it is made anew")),
            "{said:?}"
        );
        let made: Vec<_> = made.into_vec().unwrap();
        assert!(memory.iter().map(|row| row.unwrap().into_owned()).eq(made));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // A folder that cannot be written to.
    fs::remove_dir_all(folder.path().join("rows")).unwrap();
    fs::write(folder.path().join("rows"), "").unwrap();
    let ([_, made, _], said) = three(folder.path(), &config, &tokenizer, &COMPLETIONS);
    assert!(matches!(made.store, Store::Memory(_)));
    assert!(
        said[1].contains("warning: tokenised rows cannot be kept in "),
        "{said:?}"
    );
}

#[test]
fn all_that_ids_depend_on_is_in_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = testing::tokenizer(false, None);
    let config = data(folder.path(), &pairs(3));
    let files = [folder.path().join("d.jsonl")];
    let key = |config: &DataConfig, tokenizer: &Tokenizer, encoding: &TextsOrCompletions| {
        key::of(config, &files, tokenizer, encoding).unwrap()
    };
    let first = key(&config, &tokenizer, &COMPLETIONS);
    assert_eq!(key(&config, &tokenizer, &COMPLETIONS), first);
    let mut others = vec![
        key(&config, &testing::tokenizer(true, None), &COMPLETIONS),
        key(
            &config,
            &testing::tokenizer(false, Some(CHATML)),
            &COMPLETIONS,
        ),
        key(
            &config,
            &tokenizer.with_eos_token("b").unwrap(),
            &COMPLETIONS,
        ),
        key(
            &config,
            &tokenizer,
            &TextsOrCompletions {
                max_length: 13,
                ..COMPLETIONS
            },
        ),
        key::of(&config, &files, &tokenizer, &Texts { max_length: 12 }).unwrap(),
        key(
            &DataConfig {
                skip: 1,
                ..config.clone()
            },
            &tokenizer,
            &COMPLETIONS,
        ),
    ];
    let mut templated = config.clone();
    templated.format.prompt = Some("{{ prompt }}.".into());
    others.push(key(&templated, &tokenizer, &COMPLETIONS));
    // The same length and, where the clock is coarse, the same time.
    let changed = fs::read_to_string(&files[0]).unwrap().replace("xxx", "xyx");
    fs::write(&files[0], changed).unwrap();
    others.push(key(&config, &tokenizer, &COMPLETIONS));
    others.push(first);
    let count = others.len();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), count);
}

#[test]
fn small_sets_and_first_rows_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let config = data(folder.path(), &pairs(3));
    let cache = RowsCache::new(folder.path().join("rows"), 100);
    let takes = |config: &DataConfig| {
        let files = cache.takes(config, &DataContext::default()).unwrap();
        files.is_some()
    };
    assert!(takes(&config));
    assert!(!takes(&DataConfig {
        limit: Some(9_999),
        ..config.clone()
    }));
    assert!(takes(&DataConfig {
        limit: Some(10_000),
        ..config.clone()
    }));
    assert!(!takes(&data(folder.path(), &pairs(1))));
    assert!(!takes(&DataConfig::of(DataSource::Posts {
        rows: 1_000_000,
        seed: 1
    })));
    let both = vec![(1.0, config.clone()), (1.0, config)];
    assert!(takes(&DataConfig::of(DataSource::Mix(both))));
}
