//! The gold scorer of the embedded posts.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::{Facts, words};

/// Taken off per wrong fact: a name, action, quality, object, place or time of the vocabulary that is not the planted one.
const WRONG: f64 = 0.2;
/// Taken off per word beyond [`MAX_WORDS`].
const EXCESS: f64 = 0.05;
/// Taken off per repeated word, except [`SMALL_WORDS`].
const REPEATED: f64 = 0.1;
/// Taken off per word that no post or summary uses.
const JUNK: f64 = 0.1;
/// Words that say all six facts in the longest way, the passive voice.
const MAX_WORDS: usize = 12;
/// Words that a good summary may use twice.
const SMALL_WORDS: &[&str] = &["the", "a", "at", "in", "on", "by", "was", "and"];

/// The exact quality of a summary in `[-1, 1]`; 1 is complete, faithful and short.
///
/// With words lowercased and punctuation ignored:
///
/// ```text
/// score = stated / 6 - 0.2 wrong - 0.05 excess - 0.1 repeated - 0.1 junk,   cut to [-1, 1]
/// ```
///
/// - `stated`: number of planted facts in the summary: the name, the verb, the object, the quality between article and object
///   ("the red key"), place and time each with their preposition
/// - `wrong`: distinct values of the six kinds that are not the planted ones, be they from an aside or invented
/// - `excess`: words beyond 12
/// - `repeated`: repeated words, articles and prepositions excepted
/// - `junk`: words that no post uses
///
/// A response without words scores -1. A row without `facts` has no score: NaN.
pub fn gold_score(row: &Map<String, Value>, response: &str) -> f32 {
    let Some(facts) = Facts::from_row(row) else {
        return f32::NAN;
    };
    let text = response.to_lowercase();
    let said: Vec<&str> = split(&text).collect();
    if said.is_empty() {
        return -1.0;
    }
    let whole_thing = format!("the {} {}", facts.kind, facts.what);
    let planted = [
        facts.who,
        facts.did,
        facts.what,
        &whole_thing,
        facts.place,
        facts.time,
    ];
    let stated = planted.iter().filter(|phrase| says(&said, phrase)).count();

    let mut seen = HashSet::new();
    let (mut wrong, mut repeated, mut junk) = (0, 0, 0);
    for &word in &said {
        if !seen.insert(word) {
            repeated += usize::from(!SMALL_WORDS.contains(&word));
        } else {
            wrong += usize::from(is_wrong(&facts, word));
        }
        junk += usize::from(!vocabulary().contains(word));
    }
    let excess = said.len().saturating_sub(MAX_WORDS);
    let score = stated as f64 / planted.len() as f64
        - WRONG * wrong as f64
        - EXCESS * excess as f64
        - REPEATED * repeated as f64
        - JUNK * junk as f64;
    score.clamp(-1.0, 1.0) as f32
}

/// The summary that scores 1: all six facts in the active voice, e.g. "Ana lost the red key at the station last night.";
/// `None` for a row without `facts`.
pub fn ideal_summary(row: &Map<String, Value>) -> Option<String> {
    Facts::from_row(row).map(|facts| ideal(&facts))
}

pub(super) fn ideal(facts: &Facts) -> String {
    facts.fill("{who} {did} the {kind} {what} {where} {when}.")
}

/// The words of `text`: runs of letters and digits.
fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// Whether `said` contains the words of `phrase` in sequence.
fn says(said: &[&str], phrase: &str) -> bool {
    let phrase = phrase.to_lowercase();
    let wanted: Vec<&str> = split(&phrase).collect();
    said.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether the lowercase `word` is a value of one of the six kinds, but not the planted one.
fn is_wrong(facts: &Facts, word: &str) -> bool {
    let kinds = [
        (words::NAMES, facts.who),
        (words::VERBS, facts.did),
        (words::KINDS, facts.kind),
        (words::THINGS, facts.what),
        (words::PLACES, facts.place),
        (words::TIMES, facts.time),
    ];
    kinds.iter().any(|(values, planted)| {
        !last_word(planted).eq_ignore_ascii_case(word)
            && values
                .iter()
                .any(|value| last_word(value).eq_ignore_ascii_case(word))
    })
}

/// The word that distinguishes a value from the others of its kind.
fn last_word(phrase: &str) -> &str {
    phrase.rsplit(' ').next().unwrap_or(phrase)
}

/// Every word that a post or summary can hold, in lower case.
fn vocabulary() -> &'static HashSet<String> {
    static WORDS: OnceLock<HashSet<String>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let slots = ["{who}", "{did}", "{kind}", "{what}", "{where}", "{when}"];
        let lists = [
            words::NAMES,
            words::VERBS,
            words::KINDS,
            words::THINGS,
            words::PLACES,
            words::TIMES,
            words::POINTS,
            words::ASIDES,
            words::FILLERS,
            words::VAGUE,
            words::TAILS,
        ];
        lists
            .into_iter()
            .flatten()
            .flat_map(|entry| {
                let text = slots
                    .iter()
                    .fold(entry.to_lowercase(), |t, s| t.replace(s, " "));
                split(&text).map(str::to_string).collect::<Vec<_>>()
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> Map<String, Value> {
        let row = json!({"facts": {
            "who": "Ana", "did": "lost", "kind": "red", "what": "key",
            "where": "at the station", "when": "last night",
        }});
        row.as_object().unwrap().clone()
    }

    #[test]
    fn scores_of_literal_summaries() {
        let sixth = 1.0 / 6.0;
        let cases = [
            // (summary, stated / 6 - penalties)
            ("Ana lost the red key at the station last night.", 1.0),
            (" Last night Ana lost the red key at the station.", 1.0),
            // 12 words: still not too long.
            (
                "The red key was lost by Ana at the station last night.",
                1.0,
            ),
            ("Ana lost the key at the station.", 4.0 * sixth),
            ("Ana lost something.", 2.0 * sixth),
            // Place and time from an aside: two wrong.
            (
                "Ana lost the red key at the market on Friday.",
                4.0 * sixth - 0.4,
            ),
            // States an aside: nothing of the point, three wrong.
            ("Ben was at the market on Friday.", -0.6),
            // The quality belongs to the object: "red" alone does not state it.
            (
                "Ana lost the key at the red station last night.",
                4.0 * sixth,
            ),
            // 14 words: two too many, none repeated.
            (
                "Ana lost the red key at the station last night and we talked about.",
                1.0 - 0.1,
            ),
            // "ana" and "key" once more.
            (
                "Ana Ana lost the red key key at the station last night.",
                1.0 - 0.2,
            ),
            // Two words that no post holds.
            (
                "Ana lost the red key at the station last night xq zz.",
                1.0 - 0.2,
            ),
            ("", -1.0),
            (" ...\n", -1.0),
        ];
        for (summary, expected) in cases {
            let score = f64::from(gold_score(&row(), summary));
            assert!(
                (score - expected).abs() < 1e-6,
                "{summary:?}: {score}, expected {expected}"
            );
        }
        assert_eq!(gold_score(&row(), &"qq ".repeat(40)), -1.0);
        assert!(gold_score(&Map::new(), "Ana").is_nan());
    }

    #[test]
    fn the_ideal_summary_scores_one_and_nothing_else_of_its_words_beats_it() {
        let ideal = ideal_summary(&row()).unwrap();
        assert_eq!(ideal, "Ana lost the red key at the station last night.");
        assert_eq!(gold_score(&row(), &ideal), 1.0);
        let words: Vec<&str> = ideal.split(' ').collect();
        for cut in 0..words.len() {
            let mut fewer = words.clone();
            fewer.remove(cut);
            assert!(
                gold_score(&row(), &fewer.join(" ")) < 1.0,
                "without {}",
                words[cut]
            );
        }
        assert_eq!(ideal_summary(&Map::new()), None);
    }

    #[test]
    fn the_vocabulary_is_small_and_its_slots_do_not_overlap() {
        let total = vocabulary().len();
        assert!((180..300).contains(&total), "{total}");
        let lists = [
            words::NAMES,
            words::VERBS,
            words::KINDS,
            words::THINGS,
            words::PLACES,
            words::TIMES,
        ];
        let mut seen = HashSet::new();
        for value in lists.into_iter().flatten() {
            assert!(seen.insert(last_word(value)), "{value} stands in two lists");
            assert!(value.is_ascii());
        }
    }
}
