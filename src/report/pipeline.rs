//! The pipeline as a picture: a box for each stage, and what flows between them.

use std::fmt::Write as _;

use super::page::escape;

/// A box of the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PipelineBox {
    /// The stage's name.
    pub(super) title: String,
    /// Its kind.
    pub(super) kind: String,
    /// One line on it.
    pub(super) note: String,
    /// `done`, `running`, `stopped` or `waiting`; a class of the page's style.
    pub(super) state: &'static str,
}

/// What one box hands to a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrow {
    /// Index of the box it leaves.
    pub(super) from: usize,
    /// Index of the box it enters.
    pub(super) to: usize,
    /// "policy", "rows", "reward model".
    pub(super) what: &'static str,
}

const WIDTH: f64 = 530.0;
const BOX_WIDTH: f64 = 270.0;
const BOX_HEIGHT: f64 = 54.0;
const GAP: f64 = 34.0;
const LEFT: f64 = 4.0;
/// How far an arrow that passes boxes bends out for each box that it passes, and at most.
const BEND: f64 = 42.0;
const MAX_BEND: f64 = 210.0;
/// Characters that fit into a line of a box.
const NOTE_CHARS: usize = 39;

/// The picture as an SVG element: boxes from top to bottom, arrows to the next box straight, others to the right of the boxes.
pub(super) fn picture(boxes: &[PipelineBox], arrows: &[Arrow]) -> String {
    let top = |index: usize| LEFT + index as f64 * (BOX_HEIGHT + GAP);
    let height = top(boxes.len()) - GAP + 2.0 * LEFT;
    let mut svg = format!(
        "<svg class=\"pipeline\" role=\"img\" aria-label=\"The stages and what flows between them\" viewBox=\"0 0 {WIDTH} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    let mut labels = String::new();
    for (place, (from, to, what)) in joined(arrows).into_iter().enumerate() {
        let arrow = drawn(place, top(from), top(to), to - from);
        // A String takes any text.
        let _ = writeln!(
            svg,
            "<path class=\"flow\" d=\"{}\" marker-end=\"url(#tip)\"/>",
            arrow.path
        );
        let _ = writeln!(
            labels,
            "<text class=\"soft label\" x=\"{}\" y=\"{}\">{}</text>",
            arrow.x,
            arrow.y,
            escape(&what)
        );
    }
    // Above all arrows, so that none crosses a label.
    svg.push_str(&labels);
    for (index, item) in boxes.iter().enumerate() {
        let y = top(index);
        let note: String = match item.note.chars().count() > NOTE_CHARS {
            true => item
                .note
                .chars()
                .take(NOTE_CHARS - 1)
                .chain(['…'])
                .collect(),
            false => item.note.clone(),
        };
        // A String takes any text.
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\"/>\
             <circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"5\"/>\
             <text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\
             <text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text class=\"soft\" x=\"{}\" y=\"{}\">{}</text>",
            item.state,
            LEFT + 15.0,
            y + 18.0,
            LEFT + 28.0,
            y + 23.0,
            escape(&item.title),
            LEFT + BOX_WIDTH - 10.0,
            y + 22.0,
            escape(&item.kind),
            LEFT + 12.0,
            y + 43.0,
            escape(&note),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The arrows with all that flows between the same two boxes on one of them, in the order of their length.
fn joined(arrows: &[Arrow]) -> Vec<(usize, usize, String)> {
    let mut found: Vec<(usize, usize, Vec<&str>)> = Vec::new();
    for arrow in arrows.iter().filter(|arrow| arrow.from < arrow.to) {
        match (found.iter_mut()).find(|(from, to, _)| (*from, *to) == (arrow.from, arrow.to)) {
            Some((_, _, what)) if what.contains(&arrow.what) => {}
            Some((_, _, what)) => what.push(arrow.what),
            None => found.push((arrow.from, arrow.to, vec![arrow.what])),
        }
    }
    found.sort_by_key(|(from, to, _)| (to - from, *from));
    (found.into_iter())
        .map(|(from, to, what)| (from, to, what.join(", ")))
        .collect()
}

/// The path of an arrow, and where its label begins.
struct DrawnArrow {
    path: String,
    x: f64,
    y: f64,
}

/// The arrow between the boxes whose tops are at `from` and `to`, `span` boxes further. `place`: its number in the picture.
fn drawn(place: usize, from: f64, to: f64, span: usize) -> DrawnArrow {
    let right = LEFT + BOX_WIDTH;
    if span == 1 {
        let (x, start, end) = (LEFT + 40.0, from + BOX_HEIGHT, to - 1.0);
        return DrawnArrow {
            path: format!("M{x} {start}L{x} {end}"),
            x: x + 10.0,
            y: (start + end) / 2.0 + 4.0,
        };
    }
    let (start, end) = (from + BOX_HEIGHT * 0.65, to + BOX_HEIGHT * 0.35);
    let bend = (BEND * span as f64).min(MAX_BEND);
    let out = right + bend;
    // The middle of the curve; neighbours of equal length are moved apart.
    let shift = (place % 2) as f64 * 12.0 - 6.0;
    DrawnArrow {
        path: format!(
            "M{right} {start}C{out} {start} {out} {end} {} {end}",
            right + 1.0
        ),
        x: right + bend * 0.75 + 6.0,
        y: (start + end) / 2.0 + 4.0 + shift,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(title: &str, note: &str) -> PipelineBox {
        PipelineBox {
            title: title.into(),
            kind: "Sft".into(),
            note: note.into(),
            state: "done",
        }
    }

    #[test]
    fn what_flows_between_two_boxes_is_on_one_arrow() {
        let arrow = |from, to, what| Arrow { from, to, what };
        let arrows = [
            arrow(0, 2, "policy"),
            arrow(1, 2, "rows"),
            arrow(1, 2, "held-out rows"),
            arrow(1, 2, "rows"),
        ];
        assert_eq!(
            joined(&arrows),
            [
                (1, 2, "rows, held-out rows".into()),
                (0, 2, "policy".into())
            ]
        );
        let svg = picture(
            &[item("a", ""), item("b", ""), item("<c>", &"x".repeat(60))],
            &arrows,
        );
        assert_eq!(svg.matches("class=\"flow\"").count(), 2);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("&lt;c&gt;") && svg.contains('…'));
    }
}
