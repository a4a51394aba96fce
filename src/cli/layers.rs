//! `temper inspect --model`: the layers of a model.

use super::output::print;
use crate::error::{Error, Problem, Result, count};
use crate::model::{
    ClassifierSource, Fetch, Finder, ModelLayer, ModelSource, encoder_layers, layers,
    trained_tensors, with_token_ids,
};
use crate::peft::Peft;
use crate::report::{grouped, table};
use crate::suggest::quoted;

/// Prints the tree of a model's layers; with `peft` also what would be trained of them.
///
/// # Errors
/// For a model that is not found, and settings that cannot be.
pub(super) fn run(model: &str, peft: Option<&Peft>) -> Result<()> {
    if let Some(peft) = peft {
        let problems = peft.problems();
        if !problems.is_empty() {
            return Err(refused(&problems));
        }
    }
    let finder = Finder::new(Fetch::Check);
    if let Some(ClassifierSource { config, .. }) = finder.classifier(model)? {
        if peft.is_some() {
            return Err(Error::Usage(format!(
                "--peft: {model} is an encoder ({}), and encoders are not trained",
                config.family()
            )));
        }
        let labels = config.labels().names().iter().map(String::as_str);
        return print(&format!(
            "{}{}, an encoder; at most {} tokens; labels {}\n",
            tree(&encoder_layers(&config), false),
            config.class(),
            config.max_positions(),
            quoted(labels)
        ));
    }
    let source = finder.find(model)?;
    let trained = match peft {
        Some(peft) => trained_tensors(&source.config, false, &with_ids(peft, &source)?)?,
        None => Vec::new(),
    };
    print(&tree(
        &layers(&source.config, false, &trained),
        peft.is_some(),
    ))
}

fn refused(problems: &[Problem]) -> Error {
    let line = |Problem { place, message, .. }: &Problem| match place.as_str() {
        "" => message.clone(),
        key => format!("{key}: {message}"),
    };
    let lines: Vec<String> = problems.iter().map(line).collect();
    Error::Usage(format!("--peft: {}", lines.join("; ")))
}

/// `peft` with ids in place of tokens' texts, which takes the model's tokenizer.
fn with_ids(peft: &Peft, source: &ModelSource) -> Result<Peft> {
    let names_tokens = (peft.adapter()).is_some_and(|spec| spec.token_rows().is_some());
    if !names_tokens {
        return Ok(peft.clone());
    }
    with_token_ids(peft, &source.tokenizer()?).map_err(|problems| refused(&problems))
}

/// A line of the tree below a module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Components of the path below the module.
    path: Vec<String>,
    shapes: String,
    params: usize,
    trained: usize,
}

/// Layers as a tree; numbered blocks that are alike are one.
fn tree(layers: &[ModelLayer], with_trained: bool) -> String {
    let mut rows = Vec::new();
    let lines: Vec<Line> = layers.iter().map(line).collect();
    branch(&lines, 0, with_trained, &mut rows);
    let total: usize = lines.iter().map(|line| line.params).sum();
    let trained: usize = lines.iter().map(|line| line.trained).sum();
    let mut text = match with_trained {
        true => table(&["layer", "shapes", "parameters", "trained"], &rows),
        false => table(&["layer", "shapes", "parameters"], &rows),
    };
    text.push_str(&format!("\n{} parameters", grouped(total as u64)));
    if with_trained {
        let share = 100.0 * trained as f64 / total.max(1) as f64;
        text.push_str(&format!(
            ", {} trained ({share:.3} %)",
            grouped(trained as u64)
        ));
    }
    text.push('\n');
    text
}

fn line(layer: &ModelLayer) -> Line {
    let shape = |(name, shape): &(String, Vec<usize>)| {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("{name} {}", sizes.join(" x "))
    };
    let mut shapes = match &layer.tied_to {
        Some(other) => format!("is {other}"),
        None => layer
            .tensors
            .iter()
            .map(shape)
            .collect::<Vec<_>>()
            .join(", "),
    };
    if layer.token_rows > 0 {
        shapes.push_str(&format!(", trained in {}", count(layer.token_rows, "row")));
    }
    Line {
        path: layer.path.split('.').map(str::to_owned).collect(),
        shapes,
        params: layer.num_params(),
        trained: layer.trained_params + layer.adapter_params,
    }
}

/// Adds the rows of `lines`, which share what stands before their paths.
fn branch(lines: &[Line], depth: usize, with_trained: bool, rows: &mut Vec<Vec<String>>) {
    let mut at = 0;
    while at < lines.len() {
        let name = &lines[at].path[0];
        let (below, end) = children(lines, at);
        let block = name.parse::<usize>().is_ok();
        let (mut alike, mut next) = (1, end);
        while block && next < lines.len() {
            let (other, other_end) = children(lines, next);
            if other != below {
                break;
            }
            (alike, next) = (alike + 1, other_end);
        }
        let title = match alike {
            1 => name.clone(),
            _ => format!("{name} to {} ({alike} alike)", lines[next - 1].path[0]),
        };
        let sum = |of: fn(&Line) -> usize| lines[at..end].iter().map(of).sum::<usize>();
        let own = lines[at].path.len() == 1;
        let shapes = if own {
            lines[at].shapes.clone()
        } else {
            String::new()
        };
        let number = |n: usize| match (alike, n) {
            (_, 0) => String::new(),
            (1, n) => grouped(n as u64),
            (_, n) => format!("{alike} x {}", grouped(n as u64)),
        };
        let mut row = vec![
            format!("{}{title}", "· ".repeat(depth)),
            shapes,
            number(sum(|line| line.params)),
        ];
        if with_trained {
            row.push(number(sum(|line| line.trained)));
        }
        rows.push(row);
        branch(&below, depth + 1, with_trained, rows);
        at = next;
    }
}

/// The lines below the first component of `lines[at]`, without it, and where they end.
fn children(lines: &[Line], at: usize) -> (Vec<Line>, usize) {
    let name = &lines[at].path[0];
    let len = lines[at..]
        .iter()
        .take_while(|line| line.path[0] == *name)
        .count();
    let below = (lines[at..at + len].iter())
        .filter(|line| line.path.len() > 1)
        .map(|line| Line {
            path: line.path[1..].to_vec(),
            ..line.clone()
        });
    (below.collect(), at + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    #[test]
    fn blocks_that_are_alike_are_one() {
        let config = ModelConfig::load("models/tiny/config.json").unwrap();
        let text = tree(&layers(&config, false, &[]), false);
        assert!(text.contains("| · · 0 to 3 (4 alike) "), "{text}");
        assert!(text.contains("is model.embed_tokens"), "{text}");
        assert_eq!(text.matches("q_proj").count(), 1, "{text}");
        let last = Peft::Only(vec!["layers.-1".into(), "norm".into()]);
        let trained = trained_tensors(&config, false, &last).unwrap();
        let text = tree(&layers(&config, false, &trained), true);
        assert!(text.contains("| · · 0 to 2 (3 alike) "), "{text}");
        assert_eq!(text.matches("q_proj").count(), 2, "{text}");
    }
}
