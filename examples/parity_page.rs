//! Writes `docs/parity.md` from what the tests noted: what was compared with which reference, and the largest difference
//! seen on each backend.
//!
//!     cargo test                                        # notes go to target/tmp/parity
//!     cargo test --features vulkan --test gpu           # adds the column of a GPU, or of software Vulkan
//!     cargo run --release --example parity_page         # reads them, writes docs/parity.md

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

/// One note of a test (`tests/support/parity.rs`).
#[derive(Debug, Deserialize)]
struct Note {
    reference: String,
    subject: String,
    what: String,
    backend: String,
    difference: f64,
    tolerance: f64,
    relative: bool,
}

/// Columns, in this order.
const BACKENDS: [&str; 3] = ["ndarray", "flex", "wgpu"];

const TOP: &str = "# Parity

Written by `cargo run --release --example parity_page` from what the tests noted (`tests/support/parity.rs`); the tests fail
where a difference is larger than allowed. References are made by `tests/reference/regenerate.sh`; its README names the models
and the versions. A difference is the largest absolute one over all numbers of the line, or, where `relative` says so, the
largest as a part of the reference's size. `wgpu` is whatever Vulkan driver the machine has; in the project's own gate it is
Mesa's software driver.
";

/// The part below the tables.
const BOTTOM: &str = "docs/parity-mutations.md";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let notes = std::env::args().nth(1).map_or_else(
        || root.join("target/tmp/parity"),
        |path| Path::new(&path).to_path_buf(),
    );
    let mut tables: BTreeMap<String, BTreeMap<(String, String), Vec<Note>>> = BTreeMap::new();
    for entry in std::fs::read_dir(&notes).map_err(|e| format!("{}: {e}", notes.display()))? {
        let path = entry?.path();
        let note: Note = serde_json::from_str(&std::fs::read_to_string(&path)?)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let key = (note.subject.clone(), note.what.clone());
        let table = tables.entry(note.reference.clone()).or_default();
        table.entry(key).or_default().push(note);
    }
    let seen: BTreeSet<&str> = tables
        .values()
        .flat_map(BTreeMap::values)
        .flatten()
        .map(|note| note.backend.as_str())
        .collect();
    let backends: Vec<&str> = BACKENDS.into_iter().filter(|b| seen.contains(b)).collect();
    let mut page = TOP.to_owned();
    for (reference, lines) in &tables {
        page += &format!("\n## {reference}\n| subject | numbers | allowed |");
        backends.iter().for_each(|b| page += &format!(" {b} |"));
        page += "\n|---|---|---:|";
        backends.iter().for_each(|_| page += "---:|");
        page += "\n";
        for ((subject, what), notes) in lines {
            let first = &notes[0];
            let kind = if first.relative { " relative" } else { "" };
            page += &format!("| {subject} | {what} | {:.0e}{kind} |", first.tolerance);
            for backend in &backends {
                let largest = notes
                    .iter()
                    .filter(|note| note.backend == *backend)
                    .map(|note| note.difference)
                    .reduce(f64::max);
                page += &largest.map_or(" |".into(), |x| format!(" {x:.1e} |"));
            }
            page += "\n";
        }
    }
    if let Ok(text) = std::fs::read_to_string(root.join(BOTTOM)) {
        page += &format!("\n{text}");
    }
    let target = root.join("docs/parity.md");
    std::fs::write(&target, page)?;
    eprintln!("{}", target.display());
    Ok(())
}
