//! The embedded default task: short posts with a planted point, and their one-line summaries.
//!
//! A post has three or four short sentences: one filler, one or two asides whose facts are beside the point, and
//! exactly one sentence with the point: who did what to which object, where and when. For example
//!
//! ```text
//! Hello all. Ben was at the market on Friday. Last night Ana lost the red key at the station.
//!
//! TL;DR: Ana lost the red key at the station last night.
//! ```
//!
//! Summaries are as uneven as people's (see [`posts`] for the odds), so imitating them is mediocre by
//! construction, and [`gold_score`], which is known exactly, leaves room for improvement by learning from comparisons.

mod score;
mod words;

pub use score::{gold_score, ideal_summary};

use serde_json::{Map, Value, json};

use crate::rng::Seed;

/// Odds that a summary says almost nothing.
const VAGUE: f64 = 0.12;
/// Odds that a summary that is not vague states an aside instead of the point.
const DISTRACTED: f64 = 0.14;
/// Odds that a summary of the point leaves out the object's quality.
const NO_KIND: f64 = 0.30;
/// Odds that it leaves out the place.
const NO_WHERE: f64 = 0.30;
/// Odds that it leaves out the time.
const NO_WHEN: f64 = 0.35;
/// Odds that a passive summary leaves out who did it.
const NO_WHO: f64 = 0.30;
/// Odds that it takes one fact from an aside.
const SWAPPED: f64 = 0.15;
/// Odds that it ends in idle words.
const CHATTY: f64 = 0.10;
/// Odds that the text for language modelling is a thread, in which a reply quotes the whole post.
const THREAD: f64 = 0.5;
/// Odds that otherwise it ends in a sentence of the post, word for word, instead of a summary.
const QUOTED: f64 = 0.6;
/// Odds of the passive voice; of the rest, `FRONTED` start with the time.
const PASSIVE: f64 = 0.25;
/// Odds that an active summary starts with the time.
const FRONTED: f64 = 0.25;

/// The facts of one event, as words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts<'a> {
    /// A name.
    who: &'a str,
    /// A verb in the past tense.
    did: &'a str,
    /// The object's quality.
    kind: &'a str,
    /// The object.
    what: &'a str,
    /// Preposition and place.
    place: &'a str,
    /// Time, with its preposition if it has one.
    time: &'a str,
}

impl<'a> Facts<'a> {
    /// The template's sentence with a capital at its start.
    fn fill(&self, template: &str) -> String {
        capitalised(
            &template
                .replace("{who}", self.who)
                .replace("{did}", self.did)
                .replace("{kind}", self.kind)
                .replace("{what}", self.what)
                .replace("{where}", self.place)
                .replace("{when}", self.time),
        )
    }

    /// The facts as the row's `facts` column.
    fn to_json(self) -> Value {
        json!({
            "who": self.who, "did": self.did, "kind": self.kind,
            "what": self.what, "where": self.place, "when": self.time,
        })
    }

    /// The row's `facts`, if it has all of them.
    fn from_row(row: &'a Map<String, Value>) -> Option<Self> {
        let facts = row.get("facts")?;
        let text = |key: &str| facts.get(key)?.as_str();
        Some(Self {
            who: text("who")?,
            did: text("did")?,
            kind: text("kind")?,
            what: text("what")?,
            place: text("where")?,
            time: text("when")?,
        })
    }
}

/// The random numbers of one row, used in order.
struct PostRandom {
    seed: Seed,
    taken: u64,
}

impl PostRandom {
    fn below(&mut self, n: usize) -> usize {
        self.taken += 1;
        self.seed.below(self.taken - 1, n)
    }

    fn chance(&mut self, odds: f64) -> bool {
        self.taken += 1;
        self.seed.uniform(self.taken - 1) < odds
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len())]
    }

    /// A random member of `from` other than `not`.
    fn pick_other(&mut self, from: &[&'static str], not: &str) -> &'static str {
        let at = self.below(from.len() - 1);
        if from[at] == not {
            from[from.len() - 1]
        } else {
            from[at]
        }
    }

    fn facts(&mut self) -> Facts<'static> {
        Facts {
            who: self.pick(words::NAMES),
            did: self.pick(words::VERBS),
            kind: self.pick(words::KINDS),
            what: self.pick(words::THINGS),
            place: self.pick(words::PLACES),
            time: self.pick(words::TIMES),
        }
    }

    /// Facts that share nothing with `point`.
    fn other_facts(&mut self, point: &Facts) -> Facts<'static> {
        Facts {
            who: self.pick_other(words::NAMES, point.who),
            did: self.pick_other(words::VERBS, point.did),
            kind: self.pick_other(words::KINDS, point.kind),
            what: self.pick_other(words::THINGS, point.what),
            place: self.pick_other(words::PLACES, point.place),
            time: self.pick_other(words::TIMES, point.time),
        }
    }
}

/// A sentence with facts beside the point.
struct Aside {
    template: &'static str,
    facts: Facts<'static>,
}

/// The first `rows` posts of the stream `seed`. Row `i` depends on `seed` and `i` only.
///
/// # Columns
/// - `prompt`: the post, then `"\n\nTL;DR:"`
/// - `completion`: a space, then a summary as uneven as people's
/// - `text`: for language modelling: half of the time a thread, in which a reply quotes the post's sentences in another
///   order; else the prompt and what careless people write after it: 60 % of the time any sentence of the post, word for
///   word, else the completion. A model of this text learns the form and how to copy, but little of the task
/// - `ideal`: the best summary ([`ideal_summary`]), a clean reference for ROUGE
/// - `facts`: the planted facts `who`, `did`, `kind`, `what`, `where`, `when`
///
/// # Odds of the summaries
/// 12 % say almost nothing ("Ana needs some help."). Of the others 14 % state an aside. The rest state the point: 25 % of
/// them in the passive voice and a quarter of the active ones with the time first; each leaves out the object's quality
/// (30 %), the place (30 %) and the time (35 %) independently, and a passive one the person (30 %); 15 % take one
/// fact from an aside and 10 % end in idle words. About one summary in six is complete and faithful; the mean gold
/// score is 0.54.
pub fn posts(seed: u64, rows: usize) -> Vec<Map<String, Value>> {
    let seed = Seed::new(seed).fork("posts");
    (0..rows as u64)
        .map(|row| post(seed.fork_index(row)))
        .collect()
}

fn post(seed: Seed) -> Map<String, Value> {
    let mut random = PostRandom { seed, taken: 0 };
    let point = random.facts();
    let mut asides = vec![aside(&mut random, &point)];
    if random.chance(0.5) {
        asides.push(aside(&mut random, &point));
    }
    let mut sentences: Vec<String> = asides.iter().map(|a| a.facts.fill(a.template)).collect();
    let place_of_point = random.below(sentences.len() + 1);
    sentences.insert(place_of_point, point.fill(random.pick(words::POINTS)));
    let filler = capitalised(random.pick(words::FILLERS));
    let place_of_filler = if random.chance(0.5) {
        0
    } else {
        sentences.len()
    };
    sentences.insert(place_of_filler, filler);

    let prompt = format!("{}\n\nTL;DR:", sentences.join(" "));
    let completion = format!(" {}", summary(&mut random, &point, &asides));
    let mut row = Map::new();
    row.insert(
        "text".into(),
        text(&mut random, sentences, &prompt, &completion).into(),
    );
    row.insert("prompt".into(), prompt.into());
    row.insert("completion".into(), completion.into());
    row.insert("ideal".into(), score::ideal(&point).into());
    row.insert("facts".into(), point.to_json());
    row
}

/// The text for language modelling.
fn text(
    random: &mut PostRandom,
    mut sentences: Vec<String>,
    prompt: &str,
    completion: &str,
) -> String {
    if random.chance(THREAD) {
        let post = sentences.join(" ");
        let turns = 1 + random.below(sentences.len() - 1);
        sentences.rotate_left(turns);
        return format!("{post}\n\n> {}", sentences.join(" "));
    }
    if random.chance(QUOTED) {
        return format!("{prompt} {}", sentences[random.below(sentences.len())]);
    }
    format!("{prompt}{completion}")
}

fn aside(random: &mut PostRandom, point: &Facts) -> Aside {
    Aside {
        template: random.pick(words::ASIDES),
        facts: random.other_facts(point),
    }
}

/// A summary such as a person in a hurry might write.
fn summary(random: &mut PostRandom, point: &Facts<'static>, asides: &[Aside]) -> String {
    if random.chance(VAGUE) {
        return point.fill(random.pick(words::VAGUE));
    }
    let other = &asides[random.below(asides.len())];
    if random.chance(DISTRACTED) {
        return other.facts.fill(other.template);
    }
    let mut stated = *point;
    if random.chance(SWAPPED) {
        swap_one(random, &mut stated, other);
    }
    let kind = if random.chance(NO_KIND) {
        ""
    } else {
        stated.kind
    };
    let place = if random.chance(NO_WHERE) {
        ""
    } else {
        stated.place
    };
    let time = if random.chance(NO_WHEN) {
        ""
    } else {
        stated.time
    };
    let Facts { who, did, what, .. } = stated;
    let parts: Vec<&str> = if random.chance(PASSIVE) {
        let by = if random.chance(NO_WHO) {
            ["", ""]
        } else {
            ["by", who]
        };
        vec!["the", kind, what, "was", did, by[0], by[1], place, time]
    } else if random.chance(FRONTED) {
        vec![time, who, did, "the", kind, what, place]
    } else {
        vec![who, did, "the", kind, what, place, time]
    };
    let tail = if random.chance(CHATTY) {
        random.pick(words::TAILS)
    } else {
        ""
    };
    format!("{}{tail}.", sentence(&parts))
}

/// Replaces one fact by a fact that the aside states.
fn swap_one(random: &mut PostRandom, facts: &mut Facts<'static>, other: &Aside) {
    let slots = ["{who}", "{kind}", "{where}", "{when}"];
    let stated: Vec<&str> = slots
        .into_iter()
        .filter(|slot| other.template.contains(slot))
        .collect();
    match stated[random.below(stated.len())] {
        "{who}" => facts.who = other.facts.who,
        "{kind}" => (facts.kind, facts.what) = (other.facts.kind, other.facts.what),
        "{where}" => facts.place = other.facts.place,
        _ => facts.time = other.facts.time,
    }
}

/// The parts that are not empty, with spaces between and a capital at the start.
fn sentence(parts: &[&str]) -> String {
    let kept: Vec<&str> = parts
        .iter()
        .copied()
        .filter(|part| !part.is_empty())
        .collect();
    capitalised(&kept.join(" "))
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column<'a>(row: &'a Map<String, Value>, name: &str) -> &'a str {
        row[name].as_str().unwrap()
    }

    #[test]
    fn rows_are_pure_functions_of_seed_and_index() {
        assert_eq!(posts(7, 3), posts(7, 5)[..3]);
        assert_ne!(posts(7, 3), posts(8, 3));
        let row = &posts(1, 1)[0];
        // The golden row: a change of the generator changes every result obtained with it.
        assert_eq!(column(row, "prompt"), GOLDEN_PROMPT);
        assert_eq!(column(row, "completion"), GOLDEN_COMPLETION);
    }

    const GOLDEN_PROMPT: &str = "On Friday the heavy bike was dropped by Zoe on the train. It was quiet in the garden on Thursday. I do not know what to think.\n\nTL;DR:";
    const GOLDEN_COMPLETION: &str = " Zoe dropped the heavy bike.";

    #[test]
    fn a_post_holds_its_point_once_and_no_aside_shares_a_fact() {
        for row in posts(2, 2000) {
            let post = column(&row, "prompt").strip_suffix("\n\nTL;DR:").unwrap();
            assert!(post.is_ascii());
            let count = post.split(['.', '?']).filter(|s| !s.is_empty()).count();
            assert!((3..=4).contains(&count), "{post}");
            assert!((14..=50).contains(&post.split(' ').count()), "{post}");
            let words = post.to_lowercase().replace(['.', ',', '?'], "");
            let padded = format!(" {words} ");
            for (slot, value) in row["facts"].as_object().unwrap() {
                let value = format!(" {} ", value.as_str().unwrap().to_lowercase());
                assert_eq!(
                    padded.matches(&value).count(),
                    1,
                    "{slot} {value} in {post}"
                );
            }
        }
    }

    #[test]
    fn the_text_is_a_thread_a_quote_or_a_summary() {
        let rows = posts(5, 2000);
        let (mut threads, mut quotes) = (0, 0);
        for row in &rows {
            let (prompt, text) = (column(row, "prompt"), column(row, "text"));
            let post = prompt.strip_suffix("TL;DR:").unwrap();
            let follows = text.strip_prefix(post).unwrap();
            if let Some(reply) = follows.strip_prefix("> ") {
                let mut words: Vec<Vec<&str>> = [post, reply]
                    .map(|part| part.split_whitespace().collect())
                    .into();
                assert_ne!(words[0], words[1]);
                words.iter_mut().for_each(|part| part.sort_unstable());
                assert_eq!(words[0], words[1], "{text}");
                threads += 1;
            } else {
                let follows = follows.strip_prefix("TL;DR:").unwrap();
                let quoted = post.contains(&follows[1..]);
                assert!(quoted || follows == column(row, "completion"), "{text}");
                quotes += usize::from(quoted);
            }
        }
        assert!((940..1060).contains(&threads), "{threads}");
        // 0.6 of the other half, and the distracted summaries that are quotes by chance.
        assert!((560..720).contains(&quotes), "{quotes}");
    }

    #[test]
    fn summaries_are_complete_and_faithful_about_one_time_in_six() {
        let rows = posts(3, 4000);
        let perfect = rows
            .iter()
            .filter(|row| gold_score(row, column(row, "completion")) == 1.0)
            .count();
        let share = perfect as f64 / rows.len() as f64;
        assert!((0.13..0.20).contains(&share), "{share}");
    }

    #[test]
    fn the_noisy_summaries_leave_room_for_improvement() {
        let rows = posts(4, 4000);
        let mean = rows
            .iter()
            .map(|row| f64::from(gold_score(row, column(row, "completion"))))
            .sum::<f64>()
            / rows.len() as f64;
        // 0.544 with these rows; the ideal summaries score 1.
        assert!((0.53..0.56).contains(&mean), "{mean}");
        for row in &rows {
            assert_eq!(gold_score(row, column(row, "ideal")), 1.0, "{row:?}");
        }
    }
}
