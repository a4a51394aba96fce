//! The layout rules of the package, read off its sources: which module may import which, how long a file may be, and
//! where a backend may be named.
//!
//! The scanner reads text, not syntax: comments, string literals and `#[cfg(test)]` modules are blanked out first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Modules from the bottom up. A module imports only from lower levels and from itself.
///
/// `backend` is on the level of `recipe`: it names concrete backends, so that only the command line may import it.
const LEVELS: &[&[&str]] = &[
    &[
        "error", "rng", "tokens", "start", "suggest", "host", "device", "snapshot", "read_at",
        "terminal",
    ],
    &["ops", "atomic", "guard", "settings", "sizes", "outside"],
    &["params", "rl", "hub", "stats", "collective"],
    &["loss", "data", "peft", "optim", "report"],
    &["model", "web"],
    &["checkpoint", "generate", "label"],
    &["reward", "serve"],
    &["train"],
    &["recipe", "backend"],
    &["cli"],
    &["main"],
];

/// Imports allowed against [`LEVELS`]: importing file, imported module, reason.
///
/// Empty: configurations are defined beside the code that they configure and composed in `train` and `recipe`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Longest file without its tests, in lines.
const MAX_LINES: usize = 500;

/// Cargo features that name a backend.
const BACKEND_FEATURES: &[&str] = &["flex", "ndarray", "wgpu", "vulkan", "metal", "cuda"];

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// A source file.
struct Source {
    /// Path below `src`, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module it belongs to; `None` for `lib.rs`, which declares them all.
    fn module(&self) -> Option<&str> {
        let first = self.path.split('/').next()?;
        let module = first.strip_suffix(".rs").unwrap_or(first);
        (module != "lib").then_some(module)
    }

    /// Whether `super::` outside an inner module means the crate root.
    fn is_top_of_its_module(&self) -> bool {
        match self.path.split_once('/') {
            None => true,
            Some((_, rest)) => rest == "mod.rs",
        }
    }

    fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name == "tests.rs" || name == "test_support.rs" || self.path.contains("/tests/")
    }
}

/// All `.rs` files below `src`, sorted by path.
fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    (found.into_iter())
        .map(|path| {
            let below = path.strip_prefix(&root).unwrap();
            Source {
                path: below.to_string_lossy().replace('\\', "/"),
                text: std::fs::read_to_string(&path).unwrap(),
            }
        })
        .collect()
}

/// `text` without `#[cfg(test)]` items, as rustfmt lays them out: the attribute at the start of a line, the item up to a
/// closing brace at the start of a line, or one line that ends with `;`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        for line in lines.by_ref() {
            let one_line = !line.starts_with(' ') && (line.ends_with(';') || line.ends_with("{}"));
            if line.starts_with('}') || one_line {
                break;
            }
        }
    }
    kept
}

/// `text` without comments, and without the content of string literals unless `keep_strings`.
fn code(text: &str, keep_strings: bool) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(&['/', '/']) {
            i += rest.iter().take_while(|&&c| c != '\n').count();
        } else if rest.starts_with(&['/', '*']) {
            let end = rest.windows(2).position(|pair| pair == ['*', '/']);
            i += end.map_or(rest.len(), |end| end + 2);
        } else if let Some(hashes) = raw_string(rest, out.chars().last()) {
            let close: Vec<char> = std::iter::once('"')
                .chain(std::iter::repeat_n('#', hashes))
                .collect();
            let start = hashes + 2;
            let end = (rest[start..].windows(close.len())).position(|window| window == close);
            let len = end.map_or(rest.len(), |end| start + end + close.len());
            out.push_str("\"\"");
            i += len;
        } else if rest[0] == '"' {
            let mut end = 1;
            while end < rest.len() && rest[end] != '"' {
                end += if rest[end] == '\\' { 2 } else { 1 };
            }
            let end = end.min(rest.len() - 1);
            if keep_strings {
                out.extend(&rest[..=end]);
            } else {
                out.push_str("\"\"");
            }
            i += end + 1;
        } else if rest.starts_with(&['\'', '"', '\'']) || rest.starts_with(&['\'', '\\', '"']) {
            // A quote as a character does not open a string.
            i += 3;
        } else {
            out.push(rest[0]);
            i += 1;
        }
    }
    out
}

/// The number of `#` of a raw string that starts here.
fn raw_string(rest: &[char], before: Option<char>) -> Option<usize> {
    if rest[0] != 'r' || before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_') {
        return None;
    }
    let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
    (rest.get(1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Whether `code[..at]` ends inside a longer name, so that what follows is not a path of its own.
fn inside_a_name(code: &str, at: usize) -> bool {
    (code[..at].chars().next_back())
        .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$')
}

/// First components of every path below `prefix` (`crate::`), groups included: `crate::{a::b, c}` gives a and c.
fn imported(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        // `$crate::` in a macro is a path of this crate too.
        if inside_a_name(code, at) && !code[..at].ends_with('$') {
            continue;
        }
        let rest = code[at + prefix.len()..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0usize;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.insert(first_name(&item));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                if depth == 0 {
                    item.push(c);
                }
            }
            found.insert(first_name(&item));
        } else {
            found.insert(first_name(rest));
        }
    }
    found.remove("");
    found
}

fn first_name(path: &str) -> String {
    (path.trim_start().chars())
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Everything wrong with the imports of `source`.
fn import_problems(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else {
        return Vec::new();
    };
    let Some(own) = level(module) else {
        return vec![format!(
            "src/{}: module `{module}` has no place in LEVELS of tests/architecture.rs",
            source.path
        )];
    };
    if source.is_test_file() {
        return Vec::new();
    }
    let code = code(&without_tests(&source.text), false);
    let mut problems = Vec::new();
    if code.contains("super::super::") {
        problems.push(format!(
            "src/{}: `super::super::` hides the module; write `crate::`",
            source.path
        ));
    }
    let mut names = imported(&code, "crate::");
    names.extend(imported(&code, "tempering::"));
    if source.is_top_of_its_module() {
        let outside = imported(&code, "super::").into_iter();
        names.extend(outside.filter(|name| level(name).is_some()));
    }
    for name in names {
        let excepted = EXCEPTIONS
            .iter()
            .any(|(file, to, _)| *file == source.path && *to == name);
        if name == module || excepted {
            continue;
        }
        match level(&name) {
            None => problems.push(format!(
                "src/{}: `crate::{name}` is no module of LEVELS",
                source.path
            )),
            Some(other) if other >= own => problems.push(format!(
                "src/{}: `{module}` must not import `{name}`, which is not below it",
                source.path
            )),
            Some(_) => {}
        }
    }
    problems
}

/// Conditional compilation on a backend outside the files that may name one.
fn backend_problems(source: &Source) -> Vec<String> {
    if source.path == "backend.rs" || source.path.starts_with("ops/") {
        return Vec::new();
    }
    let code: String = code(&source.text, true).split_whitespace().collect();
    (BACKEND_FEATURES.iter())
        .filter(|name| code.contains("cfg") && code.contains(&format!("feature=\"{name}\"")))
        .map(|name| {
            format!(
                "src/{}: conditional compilation on backend `{name}`; only src/backend.rs and src/ops may",
                source.path
            )
        })
        .collect()
}

/// A stage named by its kind outside `train`: other modules use `Stage` and `StageSpec`.
fn stage_problems(source: &Source) -> Vec<String> {
    if source.path.starts_with("train/") || source.is_test_file() {
        return Vec::new();
    }
    let code: String = code(&without_tests(&source.text), false)
        .split_whitespace()
        .collect();
    (tempering::train::Stage::KINDS.iter())
        .filter(|(kind, _)| code.contains(&format!("Stage::{kind}(")))
        .map(|(kind, _)| {
            format!(
                "src/{}: names the stage `{kind}`; ask `Stage` or add to `StageSpec`",
                source.path
            )
        })
        .collect()
}

fn length_problems(source: &Source) -> Vec<String> {
    let lines = without_tests(&source.text).lines().count();
    if source.is_test_file() || lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!(
        "src/{}: {lines} lines without tests; above {MAX_LINES} it is two files",
        source.path
    )]
}

/// Ways of branching on a kind of adapter: what is matched names the method.
fn method_problems(source: &Source) -> Vec<String> {
    if source.path.starts_with("peft/") || source.path.starts_with("ops/") || source.is_test_file()
    {
        return Vec::new();
    }
    let code = code(&without_tests(&source.text), false);
    let methods = ["Peft::", "AdapterSpec::", "Adapter::"].map(|of| code.match_indices(of));
    let mut problems = Vec::new();
    for (at, of) in methods.into_iter().flatten() {
        let rest = &code[at + of.len()..];
        let name = first_name(rest);
        let variant = name.chars().next().is_some_and(char::is_uppercase);
        // `Full` is no method.
        if variant && name != "Full" && !code[..at].ends_with(|c: char| c.is_alphanumeric()) {
            problems.push(format!(
                "src/{}: `{of}{name}` outside src/peft and the fused operation; ask `Peft` or `AdapterSpec` instead",
                source.path
            ));
        }
    }
    problems
}

/// Files that may read the time of day, and what for: a step of the clock must change nothing else.
const TIME_OF_DAY: [(&str, &str); 8] = [
    ("checkpoint/run_dir.rs", "when a run was started"),
    ("label/server.rs", "when an answer was given"),
    ("report/tracking/events.rs", "TensorBoard's wall time"),
    ("report/tracking/mlflow.rs", "MLflow's time stamps"),
    ("report/tracking/mod.rs", "names of TensorBoard's files"),
    ("serve/app.rs", "the field `created` of answers"),
    ("data/jinja/mod.rs", "templates that ask for the date"),
    (
        "data/tokenizer/compare.rs",
        "a day, for templates that ask for the date",
    ),
];

/// Durations are measured by a clock that only goes forward (`Instant`).
fn clock_problems(source: &Source) -> Vec<String> {
    let allowed = (TIME_OF_DAY.iter()).any(|(file, _)| *file == source.path);
    let reads = code(&without_tests(&source.text), false).contains("SystemTime::now");
    (reads && !allowed && !source.is_test_file())
        .then(|| {
            format!(
                "src/{}: reads the time of day; durations are measured by `Instant`",
                source.path
            )
        })
        .into_iter()
        .collect()
}

fn assert_none(rule: fn(&Source) -> Vec<String>) {
    let sources = sources();
    assert!(!sources.is_empty(), "no sources found");
    let problems: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn imports_point_downwards() {
    assert_none(import_problems);
}

#[test]
fn adapter_methods_are_matched_in_one_place() {
    assert_none(method_problems);
}

#[test]
fn durations_do_not_depend_on_the_time_of_day() {
    assert_none(clock_problems);
    let reads = source("report/memory.rs", "fn f() { SystemTime::now(); }\n");
    assert_eq!(clock_problems(&reads).len(), 1);
    let found = |(file, _): &(&str, &str)| {
        let text = std::fs::read_to_string(format!("src/{file}")).unwrap();
        text.contains("SystemTime::now")
    };
    assert!(TIME_OF_DAY.iter().all(found), "an exception is not used");
}

#[test]
fn files_are_short() {
    assert_none(length_problems);
}

#[test]
fn stages_are_matched_in_train_alone() {
    assert_none(stage_problems);
}

#[test]
fn backends_are_named_in_one_place() {
    assert_none(backend_problems);
}

#[test]
fn each_exception_is_used_and_has_a_reason() {
    let sources = sources();
    for (file, to, reason) in EXCEPTIONS {
        let used = sources.iter().any(|source| {
            source.path == *file && imported(&code(&source.text, false), "crate::").contains(*to)
        });
        assert!(used && !reason.is_empty(), "src/{file}: crate::{to}");
    }
}

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.into(),
    }
}

#[test]
fn the_scanner_finds_forbidden_imports() {
    let found = |path, text| import_problems(&source(path, text)).len();
    // Upwards, sideways, in groups, inline, by the crate's name, through `super`.
    assert_eq!(found("loss/ppo.rs", "use crate::model::CausalLm;\n"), 1);
    assert_eq!(found("loss/ppo.rs", "use crate::optim::AdamW;\n"), 1);
    assert_eq!(
        found(
            "rl/kl.rs",
            "use crate::{\n    error::{A, B},\n    train, cli::X,\n};\n"
        ),
        2
    );
    assert_eq!(found("data/x.rs", "fn f() { crate::recipe::run() }\n"), 1);
    assert_eq!(found("train/sft.rs", "use tempering::backend::Cuda;\n"), 1);
    assert_eq!(found("rl/mod.rs", "use super::model::X;\n"), 1);
    assert_eq!(found("rl/kl.rs", "use super::super::model::X;\n"), 1);
    assert_eq!(found("helpers/mod.rs", ""), 1);
}

#[test]
fn the_scanner_lets_pass_what_is_allowed() {
    let found = |path, text| import_problems(&source(path, text));
    let allowed = [
        ("loss/ppo.rs", "use crate::{ops::X, tokens::Segments};\n"),
        ("loss/ppo.rs", "use crate::loss::policy_loss;\n"),
        ("rl/kl.rs", "use super::{KlControl, rewards};\n"),
        ("rl/mod.rs", "//! See [`crate::loss`].\n// crate::train\n"),
        (
            "rl/kl.rs",
            "const S: &str = \"crate::train\";\nconst Q: char = '\"';\n",
        ),
        ("rl/kl.rs", "const S: &str = r#\"say \"crate::train\"\"#;\n"),
        ("lib.rs", "pub use crate::cli::run;\n"),
        (
            "rl/kl.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::train::X;\n}\n",
        ),
        ("main.rs", "use tempering::cli;\n"),
    ];
    for (path, text) in allowed {
        assert_eq!(found(path, text), Vec::<String>::new(), "{text}");
    }
    // What follows a test module counts again.
    let text = "#[cfg(test)]\nmod tests {\n}\nuse crate::train::X;\n";
    assert_eq!(found("rl/kl.rs", text).len(), 1);
}

#[test]
fn the_scanner_finds_branches_on_adapter_methods() {
    let found = |path, text| method_problems(&source(path, text)).len();
    for text in [
        "fn f() { if let Peft::Lora(lora) = peft {} }\n",
        "fn f() { match spec { AdapterSpec::Lora(_) => 1, _ => 2 } }\n",
        "fn f() { matches!(adapter, Some(Adapter::Lora(_))) }\n",
        "fn f() { matches!(peft, crate::peft::Peft::Ia3(_)) }\n",
    ] {
        assert_eq!(found("train/policy.rs", text), 1, "{text}");
        assert_eq!(found("peft/projection.rs", text), 0, "{text}");
    }
    for text in [
        "fn f() { peft == Peft::Full }\n",
        "// Peft::Lora\nconst S: &str = \"Peft::Lora\";\n",
        "fn f() { let x = AdapterSpec::from(&lora); Adapter::fresh() }\n",
        "fn f() -> LoadedAdapter { LoadedAdapter::New }\n",
    ] {
        assert_eq!(found("train/policy.rs", text), 0, "{text}");
    }
}

#[test]
fn the_scanner_finds_backend_features_stages_and_long_files() {
    let cfg = "#[cfg( feature = \"cuda\" )]\nfn f() {}\n";
    assert_eq!(backend_problems(&source("train/sft.rs", cfg)).len(), 1);
    assert_eq!(backend_problems(&source("ops/cube.rs", cfg)).len(), 0);
    assert_eq!(backend_problems(&source("backend.rs", cfg)).len(), 0);
    let inline = "fn f() { if cfg!(any(feature = \"wgpu\", unix)) {} }\n";
    assert_eq!(backend_problems(&source("cli/run.rs", inline)).len(), 1);
    let comment = "// cfg(feature = \"cuda\") is for backend.rs\n";
    assert_eq!(backend_problems(&source("cli/run.rs", comment)).len(), 0);

    let matched = "fn f(s: &Stage) { if let Stage::Ppo(c) = s {} }\n";
    assert_eq!(stage_problems(&source("cli/run.rs", matched)).len(), 1);
    assert_eq!(stage_problems(&source("train/x.rs", matched)).len(), 0);
    let init = "fn f(i: &Init) { if let Init::Stage(c) = i {} }\n";
    assert_eq!(stage_problems(&source("cli/run.rs", init)).len(), 0);

    let body = "fn f() {}\n".repeat(500);
    assert_eq!(length_problems(&source("rl/kl.rs", &body)).len(), 0);
    let tested = format!(
        "{body}#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    // x\n".repeat(99)
    );
    assert_eq!(length_problems(&source("rl/kl.rs", &tested)).len(), 0);
    let long = format!("{body}fn g() {{}}\n");
    assert_eq!(length_problems(&source("rl/kl.rs", &long)).len(), 1);
}
