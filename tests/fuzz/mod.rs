//! The fuzz targets over their seeds, their regressions and mutants of both, for some seconds each, without libFuzzer.
//!
//! Each target runs in a process of its own: one that aborts, hangs or takes too much memory is ended, and the input is kept with the
//! command that runs it again. `FUZZ_SECONDS` is the time for mutants (2 if unset), `FUZZ_STREAM` chooses other mutants (0 if unset),
//! `FUZZ_INPUT` is a file to run instead.

mod mutate;
#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempering::rng::Seed;

/// Time for one input: of the thread's own where the system says it, since other programs may be at work.
const LIMIT: Duration = Duration::from_secs(5);
/// The same by the clock, for one that waits: without the time in which the thread could have run and others did.
const LIMIT_OF_WAITING: Duration = Duration::from_secs(60);
/// Memory that an input may take beyond what the process had.
const MEMORY: u64 = 500 << 20;
/// What the process may claim in all, in KiB: more than an input may claim, and all that is mapped besides.
const ADDRESSES: u64 = 4 << 20;

/// Largest file that is mutated.
const LARGEST_SEED: usize = 16 << 10;

/// Stack of the thread that runs the inputs: that of the program's threads.
const STACK: usize = 8 << 20;

/// Where the process that runs the inputs writes the present one.
const PRESENT: &str = "FUZZ_PRESENT";

#[test]
fn fuzz_recipe() {
    fuzz("recipe");
}

#[test]
fn fuzz_rows() {
    fuzz("rows");
}

#[test]
fn fuzz_safetensors() {
    fuzz("safetensors");
}

#[test]
fn fuzz_gguf() {
    fuzz("gguf");
}

#[test]
fn fuzz_config() {
    fuzz("config");
}

#[test]
fn fuzz_tokenizer() {
    fuzz("tokenizer");
}

#[test]
fn fuzz_template() {
    fuzz("template");
}

#[test]
fn fuzz_run() {
    fuzz("run");
}

fn say(text: &str) {
    let line = format!("{text}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn fuzz(name: &str) {
    if let Some(present) = variable(PRESENT) {
        return inputs(name, present);
    }
    let folder = tempfile::tempdir().unwrap();
    let present = folder.path().join("present");
    let outcome = run_test(&format!("fuzz::fuzz_{name}"), &present);
    let outcome = outcome.and_then(|text| match text.contains("no findings") {
        true => {
            say(&text);
            Ok(())
        }
        false => Err(format!("it ended too early: {text}")),
    });
    if let Err(said) = outcome {
        let input = fs::read(&present).unwrap_or_default();
        let file = format!("{name}-{:016x}", hash(&input));
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
        fs::write(&kept, input).unwrap();
        panic!(
            "{said}\nThe input is {0}. To run it again:\n    FUZZ_INPUT={0} cargo test --test text -- --exact fuzz::fuzz_{name} --nocapture\n\
             When it is mended, the input belongs into fuzz/regressions/{name}/.",
            kept.display()
        );
    }
}

/// Runs a test of this program in a process of its own and returns its output; the error has its end and how it ended.
fn run_test(test: &str, present: &Path) -> Result<String, String> {
    let program = std::env::current_exe().unwrap();
    let mut command = match cfg!(target_os = "linux") {
        true => {
            let mut shell = Command::new("sh");
            let limited = format!("ulimit -v {ADDRESSES}; exec \"$0\" \"$@\"");
            shell.args(["-c", &limited]).arg(program);
            shell
        }
        false => Command::new(program),
    };
    let output = (command.args(["--exact", test, "--nocapture"]))
        .env(PRESENT, present)
        .env("MALLOC_ARENA_MAX", "2")
        .env("RUST_MIN_STACK", STACK.to_string())
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        return Ok(out);
    }
    let end: Vec<&str> = err.lines().rev().take(20).collect();
    let end: Vec<&str> = end.into_iter().rev().collect();
    Err(format!("{}: {}", output.status, end.join("\n")))
}

/// Runs all inputs of a target; ends the process at the first finding.
fn inputs(name: &str, present: PathBuf) {
    let (_, target) = (targets::TARGETS.iter().find(|(known, _)| *known == name)).unwrap();
    let watch = Watch::start();
    let mut count = 0u64;
    let mut run = |input: &[u8]| {
        fs::write(&present, input).unwrap();
        let folder = tempfile::tempdir().unwrap();
        watch.begin();
        target(input, folder.path());
        watch.end(name);
        count += 1;
    };
    if let Some(file) = variable::<PathBuf>("FUZZ_INPUT") {
        run(&fs::read(file).unwrap());
    } else {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let mut seeds = Vec::new();
        for kind in ["seeds", "regressions"] {
            seeds.extend(contents(&fuzz.join(kind).join(name)));
        }
        if name == "recipe" {
            seeds.extend(contents(&fuzz.with_file_name("recipes")));
            seeds.extend(contents(&fuzz.with_file_name("recipes/short")));
        }
        assert!(!seeds.is_empty(), "no seeds of {name}");
        seeds.iter().for_each(|seed| run(seed));
        // Mutants of large ones would take the time of many others.
        seeds.retain(|seed| seed.len() <= LARGEST_SEED);
        let dictionary = fs::read_to_string(fuzz.join("dictionaries").join(name));
        let dictionary = mutate::words(&dictionary.unwrap());
        let stream = Seed::new(variable("FUZZ_STREAM").unwrap_or(0)).fork(name);
        let seconds = Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(2));
        let begin = Instant::now();
        for i in 0.. {
            if begin.elapsed() > seconds {
                break;
            }
            run(&mutate::mutant(stream.fork_index(i), &seeds, &dictionary));
        }
    }
    let peak = tempering::report::peak_rss_bytes().unwrap_or(0) >> 20;
    say(&format!(
        "{name}: {count} inputs, no findings, {peak} MiB at most"
    ));
}

/// The files of a folder by name; none if there is no such folder.
fn contents(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.is_file());
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Ends the process when an input takes too long, and the test when it takes too much memory.
struct Watch {
    origin: Instant,
    memory: u64,
}

/// When the present input began: milliseconds since the watch, 0 between inputs.
static BEGIN: AtomicU64 = AtomicU64::new(0);

impl Watch {
    fn start() -> Self {
        let origin = Instant::now();
        let thread = fs::read_link("/proc/thread-self").ok();
        let statistics = thread.map(|thread| Path::new("/proc").join(thread).join("schedstat"));
        // The thread's time on a processor, and that in which it waited for one.
        let own = move || -> Option<[Duration; 2]> {
            let text = fs::read_to_string(statistics.as_ref()?).ok()?;
            let mut times = text.split_whitespace().map(str::parse::<u64>);
            let mut next = || Some(Duration::from_nanos(times.next()?.ok()?));
            Some([next()?, next()?])
        };
        std::thread::spawn(move || {
            let mut watched = (0, None);
            loop {
                std::thread::sleep(Duration::from_millis(100));
                let begin = BEGIN.load(Ordering::Acquire);
                if begin == 0 {
                    continue;
                }
                if watched.0 != begin {
                    watched = (begin, own());
                    continue;
                }
                let by_clock = origin.elapsed() - Duration::from_millis(begin);
                let (by_thread, waiting) = match (watched.1, own()) {
                    (Some([ran, held]), Some([runs, holds])) => (
                        runs.saturating_sub(ran),
                        by_clock.saturating_sub(holds.saturating_sub(held)),
                    ),
                    _ => (by_clock, by_clock),
                };
                if by_thread > LIMIT || waiting > LIMIT_OF_WAITING {
                    eprintln!("the input takes more than {by_thread:?}, by the clock {by_clock:?}");
                    std::process::abort();
                }
            }
        });
        let memory = tempering::report::peak_rss_bytes().unwrap_or(0);
        Self { origin, memory }
    }

    fn begin(&self) {
        let now = self.origin.elapsed().as_millis() as u64;
        BEGIN.store(now.max(1), Ordering::Release);
    }

    fn end(&self, name: &str) {
        BEGIN.store(0, Ordering::Release);
        let Some(peak) = tempering::report::peak_rss_bytes() else {
            return;
        };
        let more = peak.saturating_sub(self.memory) >> 20;
        assert!(
            peak <= self.memory + MEMORY,
            "{name}: the input took {more} MiB"
        );
    }
}
