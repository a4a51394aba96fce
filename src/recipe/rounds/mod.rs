//! `Repeat(name: .., rounds: N, start: {..}, stages: [..])`: rounds of stages that are written once.
//!
//! Each round becomes plain stages, named `<stage>-<round>`, before anything else is checked: plans, resumption and reports know of
//! them only. Within a Repeat
//!
//! - `Stage("x")`, `HeldOut("x")` and `stage: "x"` are this round's `x`,
//! - `Last("x")` is that of the round before; in the first round, what `start` says,
//! - `Rounds("x")` and `HeldOutRounds("x")` are the rows of all rounds' `x` so far,
//! - `Each([a, b, c])` is the value of the round, for any key.
//!
//! After a Repeat, `Stage("x")` and `Last("x")` are those of its last round. A Repeat may hold another one, whose stages are named
//! `<stage>-<outer round>-<inner round>`.

mod names;

use std::collections::BTreeSet;
use std::ops::Range;

use super::scan::{Field, Kind, Node};
use crate::suggest::{did_you_mean, quoted};
use names::closing_quote;

/// Keys of a Repeat.
const KEYS: [&str; 4] = ["name", "rounds", "start", "stages"];
/// Most stages that a recipe may have in all.
const MAX_STAGES: usize = 10_000;

/// A stage as it will run: one of the file, or a round's copy.
#[derive(Debug)]
pub(super) struct ExpandedStage<'a> {
    /// Its text.
    pub(super) node: &'a Node,
    /// Its key path: by name, or by index if the name is missing or not unique.
    pub(super) path: String,
    /// The key path of the first round's copy, for copies of later rounds.
    pub(super) first_copy: Option<String>,
    /// What differs from its text.
    pub(super) edits: Edits,
    /// Whether a reference could not be resolved, which is among the problems.
    pub(super) is_broken: bool,
}

/// Changes of a text.
#[derive(Debug, Clone, Default)]
pub(super) struct Edits {
    /// Characters to leave out.
    pub(super) blanks: Vec<Range<usize>>,
    /// Texts to insert, each before the character of that index.
    pub(super) insertions: Vec<(usize, String)>,
}

/// A problem with a Repeat, at the character of that index.
#[derive(Debug, PartialEq)]
pub(super) struct RoundsProblem {
    pub(super) at: usize,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// The stages of a recipe, and the problems of its Repeats.
#[derive(Debug, Default)]
pub(super) struct ExpandedStages<'a> {
    pub(super) stages: Vec<ExpandedStage<'a>>,
    pub(super) problems: Vec<RoundsProblem>,
}

/// The stages of the list `items` as they will run.
pub(super) fn expand<'a>(text: &'a [char], items: &'a [Node]) -> ExpandedStages<'a> {
    let mut expander = Expander {
        text,
        declared: Vec::new(),
        instances: Vec::new(),
        used: BTreeSet::new(),
        paths: BTreeSet::new(),
        found: ExpandedStages::default(),
    };
    expander.declare(items, &mut Vec::new());
    expander.stages(items, &mut Vec::new());
    expander.unused_starts(items);
    expander.found
}

/// The variant's name that a value begins with; empty if it has none.
pub(super) fn variant(text: &[char], node: &Node) -> String {
    let name = text[node.span.clone()].iter();
    name.take_while(|c| c.is_alphanumeric() || **c == '_')
        .collect()
}

/// The values of `Each([..])`.
pub(super) fn each<'a>(text: &[char], node: &'a Node) -> Option<&'a [Node]> {
    match &node.kind {
        Kind::Items(items) if variant(text, node) == "Each" => match items.as_slice() {
            [
                Node {
                    kind: Kind::Items(values),
                    ..
                },
            ] => Some(values),
            _ => Some(&[]),
        },
        _ => None,
    }
}

/// A Repeat in one of its rounds.
#[derive(Debug, Clone)]
struct Round<'a> {
    /// Where its text begins: identifies it.
    id: usize,
    name: String,
    /// From 1.
    round: usize,
    rounds: usize,
    start: &'a [Field],
}

/// A stage of a Repeat: its name, and the Repeats around it with their numbers of rounds.
struct Declared {
    name: String,
    repeats: Vec<(usize, usize)>,
}

/// A stage that has been expanded: its name in the text, the rounds it is of, its own name.
struct Instance {
    base: String,
    rounds: Vec<(usize, usize)>,
    name: String,
}

struct Expander<'a> {
    text: &'a [char],
    declared: Vec<Declared>,
    instances: Vec<Instance>,
    /// Entries of `start` that were used, by the Repeat and the name.
    used: BTreeSet<(usize, String)>,
    /// The paths of the stages in `found`.
    paths: BTreeSet<String>,
    found: ExpandedStages<'a>,
}

impl<'a> Expander<'a> {
    fn is_repeat(&self, node: &Node) -> bool {
        variant(self.text, node) == "Repeat"
    }

    /// Notes the stages below Repeats.
    fn declare(&mut self, items: &[Node], repeats: &mut Vec<(usize, usize)>) {
        for node in items {
            if self.is_repeat(node) {
                repeats.push((node.span.start, self.rounds(node).unwrap_or(1)));
                self.declare(stages_of(node), repeats);
                repeats.pop();
            } else if let (Some(name), false) = (name_of(node), repeats.is_empty()) {
                self.declared.push(Declared {
                    name: name.to_owned(),
                    repeats: repeats.clone(),
                });
            }
        }
    }

    /// The number of rounds of a Repeat, if it is one.
    fn rounds(&self, node: &Node) -> Option<usize> {
        let value = &node.field("rounds")?.value;
        let digits: String = self.text[value.span.clone()].iter().collect();
        digits.parse().ok().filter(|&rounds| rounds >= 1)
    }

    fn stages(&mut self, items: &'a [Node], here: &mut Vec<Round<'a>>) {
        for node in items {
            if self.found.stages.len() >= MAX_STAGES {
                return;
            }
            match self.is_repeat(node) {
                true => self.repeat(node, here),
                false => self.stage(node, here),
            }
        }
    }

    fn repeat(&mut self, node: &'a Node, here: &mut Vec<Round<'a>>) {
        let name = name_of(node).unwrap_or_default().to_owned();
        let path = match name.is_empty() {
            true => "stages".to_owned(),
            false => format!("stages.{name}"),
        };
        // A Repeat within another one is checked once.
        let is_first = here.iter().all(|round| round.round == 1);
        if is_first && !self.check_repeat(node, &path, &name) {
            return;
        }
        let Some(rounds) = self.rounds(node) else {
            return;
        };
        let start = match node.field("start").map(|field| &field.value.kind) {
            Some(Kind::Fields(start)) => start.as_slice(),
            _ => &[],
        };
        for round in 1..=rounds {
            here.push(Round {
                id: node.span.start,
                name: name.clone(),
                round,
                rounds,
                start,
            });
            let before = self.found.stages.len();
            self.stages(stages_of(node), here);
            here.pop();
            if self.found.stages.len() == before {
                break; // So are the other rounds, however many they are.
            }
        }
        if is_first && self.found.stages.len() >= MAX_STAGES {
            let message = format!("these are more than {MAX_STAGES} stages");
            self.problem(node.span.start, &format!("{path}.rounds"), message, None);
        }
    }

    /// Checks the keys of a Repeat; returns whether it can be expanded.
    fn check_repeat(&mut self, node: &Node, path: &str, name: &str) -> bool {
        let before = self.found.problems.len();
        let fields = match &node.kind {
            Kind::Fields(fields) => fields.as_slice(),
            _ => &[],
        };
        for field in fields {
            if !KEYS.contains(&field.key.as_str()) {
                let message = format!("unknown key `{}`; known keys: {}", field.key, quoted(KEYS));
                let help = did_you_mean(&field.key, KEYS);
                let key = format!("{path}.{}", field.key);
                self.problem(field.key_span.start, &key, message, help);
            }
        }
        for key in ["name", "rounds", "stages"] {
            if node.field(key).is_none() {
                let message = format!("required key `{key}` of the Repeat is missing");
                self.problem(node.span.start, path, message, None);
            }
        }
        if let Some(field) = node.field("name")
            && name.is_empty()
        {
            let message = "expected a string in double quotes, not empty".to_owned();
            self.problem(field.key_span.start, &format!("{path}.name"), message, None);
        }
        if let (Some(field), None) = (node.field("rounds"), self.rounds(node)) {
            let found: String = self.text[field.value.span.clone()].iter().collect();
            let message = format!("expected a whole number of at least 1, found `{found}`");
            self.problem(
                field.key_span.start,
                &format!("{path}.rounds"),
                message,
                None,
            );
        }
        if let Some(field) = node.field("stages")
            && stages_of(node).is_empty()
        {
            let message = "expected a list of stages, at least one".to_owned();
            self.problem(
                field.key_span.start,
                &format!("{path}.stages"),
                message,
                None,
            );
        }
        if let Some(field) = node.field("start")
            && !matches!(field.value.kind, Kind::Fields(_))
        {
            let message = "expected a map in `{` and `}`".to_owned();
            let help = Some("e.g. `start: {\"ppo\": Stage(\"sft\")}`".to_owned());
            self.problem(
                field.key_span.start,
                &format!("{path}.start"),
                message,
                help,
            );
        }
        self.found.problems.len() == before
    }

    fn stage(&mut self, node: &'a Node, here: &[Round<'a>]) {
        let base = name_of(node).unwrap_or_default();
        let suffix = |rounds: &mut dyn Iterator<Item = usize>| -> String {
            rounds.map(|round| format!("-{round}")).collect()
        };
        let name = format!(
            "{base}{}",
            suffix(&mut here.iter().map(|round| round.round))
        );
        let index = self.found.stages.len();
        let by_name = format!("stages.{name}");
        let path = match base.is_empty() || self.paths.contains(&by_name) {
            true => format!("stages.{index}"),
            false => by_name,
        };
        self.paths.insert(path.clone());
        let is_copy = here.iter().any(|round| round.round > 1);
        let ones = suffix(&mut here.iter().map(|_| 1));
        let first_copy = is_copy.then(|| format!("stages.{base}{ones}"));
        let before = self.found.problems.len();
        let mut edits = Edits::default();
        if let (Some(field), false) = (node.field("name"), here.is_empty())
            && matches!(field.value.kind, Kind::Text(_))
        {
            let added = suffix(&mut here.iter().map(|round| round.round));
            edits
                .insertions
                .push((closing_quote(self.text, &field.value), added));
        }
        self.edit(node, None, &path, here, &mut edits);
        edits.insertions.sort_by_key(|(at, _)| *at);
        let is_broken = self.found.problems.len() > before;
        if !base.is_empty() {
            self.instances.push(Instance {
                base: base.to_owned(),
                rounds: here.iter().map(|round| (round.id, round.round)).collect(),
                name,
            });
        }
        // The same mistake in a later round is said once.
        if is_copy {
            self.found.problems.truncate(before);
        }
        self.found.stages.push(ExpandedStage {
            node,
            path,
            first_copy,
            edits,
            is_broken,
        });
    }

    /// Reports what a `start` says in vain.
    fn unused_starts(&mut self, items: &[Node]) {
        let text = self.text;
        let repeats = items.iter().filter(|node| variant(text, node) == "Repeat");
        for node in repeats {
            if let Some(Kind::Fields(start)) = node.field("start").map(|field| &field.value.kind)
                && self.found.problems.is_empty()
            {
                for field in start {
                    if !self.used.contains(&(node.span.start, field.key.clone())) {
                        let message = format!(
                            "no `Last(\"{0}\")` or `Rounds(\"{0}\")` needs it",
                            field.key
                        );
                        let path = format!("stages.{}.start", name_of(node).unwrap_or_default());
                        self.problem(
                            field.key_span.start,
                            &path,
                            message,
                            Some("leave it out".into()),
                        );
                    }
                }
            }
            self.unused_starts(stages_of(node));
        }
    }

    fn problem(&mut self, at: usize, path: &str, message: String, help: Option<String>) {
        self.found.problems.push(RoundsProblem {
            at,
            path: path.to_owned(),
            message,
            help,
        });
    }
}

/// The name of a stage or of a Repeat.
fn name_of(node: &Node) -> Option<&str> {
    match &node.field("name")?.value.kind {
        Kind::Text(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// The stages of a Repeat.
fn stages_of(node: &Node) -> &[Node] {
    match node.field("stages").map(|field| &field.value.kind) {
        Some(Kind::Items(items)) => items,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;
    use super::*;

    /// The stages as they will run, each on a line without spaces.
    fn expanded(stages: &str) -> Vec<String> {
        let text: Vec<char> = format!("(stages: [{stages}])").chars().collect();
        let root = scan(&text).unwrap();
        let Kind::Items(items) = &root.field("stages").unwrap().value.kind else {
            panic!("a list")
        };
        let expanded = expand(&text, items);
        assert_eq!(expanded.problems, []);
        let shown = |stage: &ExpandedStage<'_>| {
            let mut out = String::new();
            for at in stage.node.span.clone() {
                for (_, text) in stage
                    .edits
                    .insertions
                    .iter()
                    .filter(|(place, _)| *place == at)
                {
                    out.push_str(text);
                }
                if !stage.edits.blanks.iter().any(|blank| blank.contains(&at)) {
                    out.push(text[at]);
                }
            }
            out.replace(' ', "")
        };
        expanded.stages.iter().map(shown).collect()
    }

    fn problems(stages: &str) -> Vec<String> {
        let text: Vec<char> = format!("(stages: [{stages}])").chars().collect();
        let root = scan(&text).unwrap();
        let Kind::Items(items) = &root.field("stages").unwrap().value.kind else {
            panic!("a list")
        };
        let shown = |problem: RoundsProblem| format!("{}: {}", problem.path, problem.message);
        let problems = expand(&text, items).problems;
        problems.into_iter().map(shown).collect()
    }

    #[test]
    fn rounds_name_this_round_and_the_last() {
        let found = expanded(
            r#"Sft(name: "sft"), Repeat(name: "rounds", rounds: 2, start: {"ppo": Stage("sft")}, stages: [
                Sample(name: "s", init: Last("ppo"), limit: Each([10, 20])),
                RewardModel(name: "rm", init: Stage("sft"), data: (source: Rounds("s")), eval: HeldOut("s")),
                Ppo(name: "ppo", init: Last("ppo"), reward: Learned(stage: "rm"), old: Learned(stage: Last("ppo"))),
            ]), Compare(policies: [Stage("ppo"), Stage("ppo-1"), Last("ppo")])"#,
        );
        assert_eq!(
            found,
            [
                r#"Sft(name:"sft")"#,
                r#"Sample(name:"s-1",init:Stage("sft"),limit:10)"#,
                r#"RewardModel(name:"rm-1",init:Stage("sft"),data:(source:Stages(["s-1"])),eval:HeldOut("s-1"))"#,
                r#"Ppo(name:"ppo-1",init:Stage("sft"),reward:Learned(stage:"rm-1"),old:Learned(stage:"sft"))"#,
                r#"Sample(name:"s-2",init:Stage("ppo-1"),limit:20)"#,
                r#"RewardModel(name:"rm-2",init:Stage("sft"),data:(source:Stages(["s-1","s-2"])),eval:HeldOut("s-2"))"#,
                r#"Ppo(name:"ppo-2",init:Stage("ppo-1"),reward:Learned(stage:"rm-2"),old:Learned(stage:"ppo-1"))"#,
                r#"Compare(policies:[Stage("ppo-2"),Stage("ppo-1"),Stage("ppo-2")])"#,
            ]
        );
    }

    #[test]
    fn rounds_hold_rounds() {
        let found = expanded(
            r#"Repeat(name: "grow", rounds: 2, start: {"sft": Base}, stages: [
                Sample(name: "s", init: Last("sft")),
                Repeat(name: "improve", rounds: 2, stages: [
                    Sft(name: "sft", init: Last("sft"), data: (source: Stage("s"), take: Above(Each([0.5, 0.7])))),
                ]),
                Compare(name: "c", policies: [Stage("sft")]),
            ])"#,
        );
        assert_eq!(
            found,
            [
                r#"Sample(name:"s-1",init:Base)"#,
                r#"Sft(name:"sft-1-1",init:Base,data:(source:Stage("s-1"),take:Above(0.5)))"#,
                r#"Sft(name:"sft-1-2",init:Stage("sft-1-1"),data:(source:Stage("s-1"),take:Above(0.7)))"#,
                r#"Compare(name:"c-1",policies:[Stage("sft-1-2")])"#,
                r#"Sample(name:"s-2",init:Stage("sft-1-2"))"#,
                r#"Sft(name:"sft-2-1",init:Stage("sft-1-2"),data:(source:Stage("s-2"),take:Above(0.5)))"#,
                r#"Sft(name:"sft-2-2",init:Stage("sft-2-1"),data:(source:Stage("s-2"),take:Above(0.7)))"#,
                r#"Compare(name:"c-2",policies:[Stage("sft-2-2")])"#,
            ]
        );
    }

    #[test]
    fn what_starts_first_is_among_the_rows_of_all_rounds() {
        let found = expanded(
            r#"Sample(name: "first"), Repeat(name: "r", rounds: 2, start: {"s": Stage("first")}, stages: [
                RewardModel(name: "rm", data: (source: Rounds("s"))), Sample(name: "s"),
            ])"#,
        );
        assert_eq!(
            found[1],
            r#"RewardModel(name:"rm-1",data:(source:Stages(["first"])))"#
        );
        assert_eq!(
            found[3],
            r#"RewardModel(name:"rm-2",data:(source:Stages(["first","s-1"])))"#
        );
    }

    #[test]
    fn rounds_beyond_all_stages_are_not_counted_through() {
        assert_eq!(
            problems(r#"Repeat(name: "r", rounds: 1000000000000000, stages: [Sft(name: "a")])"#),
            ["stages.r.rounds: these are more than 10000 stages"]
        );
    }

    #[test]
    fn mistakes_are_named_once() {
        assert_eq!(
            problems(
                r#"Repeat(name: "r", rounds: 3, stages: [Ppo(name: "ppo", init: Last("ppo"))])"#
            ),
            ["stages.ppo-1.init: there is no `ppo` of a round before the first one of `r`"]
        );
        assert_eq!(
            problems(
                r#"Repeat(name: "r", rounds: 3, stages: [Sft(name: "a", optim: (lr: Each([1, 2])))])"#
            ),
            ["stages.a-1.optim.lr: `Each([..])` has 2 values, and the Repeat `r` has 3 rounds"]
        );
        assert_eq!(
            problems(r#"Repeat(name: "r", rounds: 0, stage: [])"#),
            [
                "stages.r.stage: unknown key `stage`; known keys: `name`, `rounds`, `start`, `stages`",
                "stages.r: required key `stages` of the Repeat is missing",
                "stages.r.rounds: expected a whole number of at least 1, found `0`",
            ]
        );
        assert_eq!(
            problems(r#"Sft(name: "a", init: Last("b"), lr: Each([1]))"#),
            [
                "stages.a.init: no `Repeat` has a stage `b`",
                "stages.a.lr: `Each(..)` is the value of a round, and this stage is in no `Repeat`"
            ]
        );
        assert_eq!(
            problems(
                r#"Repeat(name: "r", rounds: 2, start: {"b": Base}, stages: [Sft(name: "a")])"#
            ),
            ["stages.r.start: no `Last(\"b\")` or `Rounds(\"b\")` needs it"]
        );
    }
}
