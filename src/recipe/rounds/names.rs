//! What `Stage`, `Last`, `Rounds` and `Each` stand for in a round.

use super::{Edits, Expander, Instance, Round, each, variant};
use crate::error::count;
use crate::recipe::scan::{Kind, Node};
use crate::suggest::{did_you_mean, quoted};

impl<'a> Expander<'a> {
    /// Resolves the references of rounds in a value; `key` is the key that it is the value of.
    pub(super) fn edit(
        &mut self,
        node: &'a Node,
        key: Option<&str>,
        path: &str,
        here: &[Round<'a>],
        edits: &mut Edits,
    ) {
        let named = match &node.kind {
            Kind::Items(items) => match items.as_slice() {
                [
                    Node {
                        kind: Kind::Text(name),
                        ..
                    },
                ] => Some((name.as_str(), &items[0])),
                _ => None,
            },
            _ => None,
        };
        let variant = variant(self.text, node);
        match (variant.as_str(), named) {
            ("Each", _) => return self.each(node, key, path, here, edits),
            ("Last", Some((name, _))) => {
                let as_text = key == Some("stage");
                if let Some(last) = self.last(node, name, as_text, path, here) {
                    edits.blanks.push(node.span.clone());
                    edits.insertions.push((node.span.start, last));
                }
                return;
            }
            ("Rounds" | "HeldOutRounds", Some((name, _))) => {
                if let Some(all) = self.all(node, name, path, here) {
                    let source = match variant == "Rounds" {
                        true => "Stages",
                        false => "HeldOutStages",
                    };
                    edits.blanks.push(node.span.clone());
                    edits
                        .insertions
                        .push((node.span.start, format!("{source}({all:?})")));
                }
                return;
            }
            ("Stage" | "HeldOut", Some((name, text))) => {
                self.rename(text, name, here, edits);
                return;
            }
            _ => {}
        }
        match &node.kind {
            Kind::Text(name) if key == Some("stage") => self.rename(node, name, here, edits),
            Kind::Fields(fields) => {
                for field in fields {
                    let path = format!("{path}.{}", field.key);
                    self.edit(&field.value, Some(&field.key), &path, here, edits);
                }
            }
            Kind::Items(items) => {
                let of_stages = matches!(variant.as_str(), "Stages" | "HeldOutStages");
                for item in items {
                    match &item.kind {
                        Kind::Items(names) if of_stages => {
                            for name in names {
                                if let Kind::Text(text) = &name.kind {
                                    self.rename(name, text, here, edits);
                                }
                            }
                        }
                        _ => self.edit(item, None, path, here, edits),
                    }
                }
            }
            Kind::Text(_) | Kind::Leaf => {}
        }
    }

    /// Chooses the round's value.
    fn each(
        &mut self,
        node: &'a Node,
        key: Option<&str>,
        path: &str,
        here: &[Round<'a>],
        edits: &mut Edits,
    ) {
        let values = each(self.text, node).unwrap_or_default();
        let Some(round) = here.last() else {
            let message = "`Each(..)` is the value of a round, and this stage is in no `Repeat`";
            return self.problem(node.span.start, path, message.into(), None);
        };
        let value = values.get(round.round - 1);
        let Some(value) = value.filter(|_| values.len() == round.rounds) else {
            let message = format!(
                "`Each([..])` has {}, and the Repeat `{}` has {}",
                count(values.len(), "value"),
                round.name,
                count(round.rounds, "round")
            );
            return self.problem(node.span.start, path, message, None);
        };
        edits.blanks.push(node.span.start..value.span.start);
        edits.blanks.push(value.span.end..node.span.end);
        self.edit(value, key, path, here, edits);
    }

    /// What `Last(name)` stands for: a stage's name in quotes if `as_text`, otherwise a value.
    fn last(
        &mut self,
        node: &Node,
        name: &str,
        as_text: bool,
        path: &str,
        here: &[Round<'a>],
    ) -> Option<String> {
        let at = node.span.start;
        let Some(common) = self.common(name, here) else {
            self.unknown(at, name, path);
            return None;
        };
        let of = &here[..common];
        let is_now = |instance: &Instance| {
            let same = |(round, (id, number)): (&Round<'_>, &(usize, usize))| {
                round.id == *id && round.round == *number
            };
            common > 0 && of.iter().zip(&instance.rounds).all(same)
        };
        let mut instances = self.instances.iter().rev();
        let earlier = instances.find(|instance| instance.base == name && !is_now(instance));
        if let Some(instance) = earlier {
            let stage = &instance.name;
            return Some(match as_text {
                true => format!("{stage:?}"),
                false => format!("Stage({stage:?})"),
            });
        }
        if here.is_empty() {
            // Its Repeat has a mistake, which has been said, and no stages.
            return Some(match as_text {
                true => format!("{name:?}"),
                false => format!("Stage({name:?})"),
            });
        }
        let Some((depth, value)) = self.start(name, here) else {
            let repeat = here.last().map_or("", |round| &round.name);
            let message =
                format!("there is no `{name}` of a round before the first one of `{repeat}`");
            let help = format!(
                "say what it is before the first round: `start: {{\"{name}\": Stage(\"..\")}}` beside `rounds`"
            );
            self.problem(at, path, message, Some(help));
            return None;
        };
        // What a Repeat starts with is of the rounds around it.
        let around: Vec<Round<'a>> = here[..depth].to_vec();
        if as_text {
            let of_stage = match &value.kind {
                Kind::Text(_) => Some(value),
                Kind::Items(items) if variant(self.text, value) == "Stage" => items.first(),
                _ => None,
            };
            let Some(of_stage) = of_stage else {
                let message = format!("`start` of `{name}` is no stage, and one is named here");
                self.problem(at, path, message, None);
                return None;
            };
            return Some(self.rendered(of_stage, Some("stage"), path, &around));
        }
        Some(self.rendered(value, None, path, &around))
    }

    /// The stages whose rows `Rounds(name)` has.
    fn all(
        &mut self,
        node: &Node,
        name: &str,
        path: &str,
        here: &[Round<'a>],
    ) -> Option<Vec<String>> {
        let at = node.span.start;
        if self.common(name, here).is_none() {
            self.unknown(at, name, path);
            return None;
        }
        let mut all = Vec::new();
        if let Some((depth, value)) = self.start(name, here)
            && let Kind::Items(items) = &value.kind
            && let [
                Node {
                    kind: Kind::Text(_),
                    ..
                },
            ] = items.as_slice()
            && variant(self.text, value) == "Stage"
        {
            let around: Vec<Round<'a>> = here[..depth].to_vec();
            let quoted = self.rendered(&items[0], Some("stage"), path, &around);
            all.push(quoted.trim_matches('"').to_owned());
        }
        let instances = self
            .instances
            .iter()
            .filter(|instance| instance.base == name);
        all.extend(instances.map(|instance| instance.name.clone()));
        if all.is_empty() && here.is_empty() {
            // As for `Last`.
            return Some(vec![name.to_owned()]);
        }
        if all.is_empty() {
            let message = format!("no `{name}` has run before this stage of the first round");
            let help = format!("put `{name}` before this stage, or give it a `start`");
            self.problem(at, path, message, Some(help));
            return None;
        }
        Some(all)
    }

    /// Adds the round's number to the name of a stage.
    fn rename(&mut self, node: &Node, name: &str, here: &[Round<'a>], edits: &mut Edits) {
        let Some(common) = self.common(name, here) else {
            return;
        };
        let now: Vec<(usize, usize)> = (here[..common].iter())
            .map(|round| (round.id, round.round))
            .collect();
        let mut instances = self.instances.iter().rev();
        let found =
            instances.find(|instance| instance.base == name && instance.rounds.starts_with(&now));
        let rounds: Vec<usize> = match found {
            Some(instance) => instance.rounds.iter().map(|(_, round)| *round).collect(),
            // It comes later, which is reported where references are checked.
            None => {
                let repeats = self.declared.iter().find(|stage| stage.name == name);
                let deeper = repeats
                    .iter()
                    .flat_map(|stage| stage.repeats.iter().skip(common));
                let now = now.iter().map(|(_, round)| *round);
                now.chain(deeper.map(|(_, rounds)| *rounds)).collect()
            }
        };
        let suffix: String = rounds.iter().map(|round| format!("-{round}")).collect();
        edits
            .insertions
            .push((closing_quote(self.text, node), suffix));
    }

    /// How many Repeats a stage shares with the stages `here`; `None` if no Repeat has a stage of this name.
    fn common(&self, name: &str, here: &[Round<'_>]) -> Option<usize> {
        let declared = self.declared.iter().find(|stage| stage.name == name)?;
        let shared =
            (declared.repeats.iter().zip(here)).take_while(|((id, _), round)| *id == round.id);
        Some(shared.count())
    }

    /// What the innermost Repeat that says so starts `name` with, and how many Repeats are around that one.
    fn start(&mut self, name: &str, here: &[Round<'a>]) -> Option<(usize, &'a Node)> {
        for (depth, round) in here.iter().enumerate().rev() {
            if let Some(field) = round.start.iter().find(|field| field.key == name) {
                self.used.insert((round.id, name.to_owned()));
                return Some((depth, &field.value));
            }
        }
        None
    }

    /// The text of a value with its references resolved.
    fn rendered(
        &mut self,
        node: &'a Node,
        key: Option<&str>,
        path: &str,
        here: &[Round<'a>],
    ) -> String {
        let mut edits = Edits::default();
        self.edit(node, key, path, here, &mut edits);
        edits.insertions.sort_by_key(|(at, _)| *at);
        let mut rendered = String::new();
        for at in node.span.clone() {
            let inserted = edits.insertions.iter().filter(|(place, _)| *place == at);
            inserted.for_each(|(_, text)| rendered.push_str(text));
            if !edits.blanks.iter().any(|blank| blank.contains(&at)) {
                rendered.push(self.text[at]);
            }
        }
        rendered
    }

    fn unknown(&mut self, at: usize, name: &str, path: &str) {
        let names: Vec<&str> = self.declared.iter().map(|stage| &*stage.name).collect();
        let message = format!("no `Repeat` has a stage `{name}`");
        let help = match names.as_slice() {
            [] => Some("`Last(..)` and `Rounds(..)` are of stages in a `Repeat`".to_owned()),
            names => did_you_mean(name, names.iter().copied())
                .or_else(|| Some(format!("there are {}", quoted(names.iter().copied())))),
        };
        self.problem(at, path, message, help);
    }
}

/// The index of the quotation mark that ends a string.
pub(super) fn closing_quote(text: &[char], node: &Node) -> usize {
    let quote = text[node.span.clone()].iter().rposition(|&c| c == '"');
    node.span.start + quote.unwrap_or(0)
}
