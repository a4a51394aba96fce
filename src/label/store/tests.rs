use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::json;

use super::lease::LEASE_MS;
use super::*;
use crate::label::answer::Answer;
use crate::label::task::Task;

fn terms(overlap: f64) -> Terms {
    Terms {
        form: Form::Pairwise {
            grades: 4,
            ties: true,
        },
        seed: 7,
        overlap,
    }
}

fn tasks(count: usize) -> Vec<NewTask> {
    let task = |i: usize| NewTask {
        task: Task {
            prompt: json!(format!("prompt {i}")),
            responses: vec![format!("a{i}"), format!("b{i}")],
            ..Task::default()
        },
        gold: None,
    };
    (0..count).map(task).collect()
}

fn project(folder: &Path, count: usize, overlap: f64) -> Store {
    let store = Store::begin(&folder.join("labels.db"), &terms(overlap)).unwrap();
    assert_eq!(store.add(&tasks(count)).unwrap(), count);
    store
}

fn annotator(store: &Store, name: &str) -> Annotator {
    store.annotator(name, 0).unwrap().0
}

#[track_caller]
fn task(next: Next) -> HeldTask {
    match next {
        Next::Task(held) => *held,
        other => panic!("expected a task, found {other:?}"),
    }
}

#[test]
fn tasks_are_handed_to_one_annotator_until_the_lease_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = project(folder.path(), 2, 0.0);
    let (ann, bob) = (annotator(&store, "ann"), annotator(&store, "bob"));
    let first = task(store.next(&ann, 0).unwrap());
    // The same after a reload, with the same order and number.
    assert_eq!(task(store.next(&ann, 1).unwrap()), first);
    let second = task(store.next(&bob, 2).unwrap());
    assert_ne!(first.id, second.id);
    assert_eq!(
        store
            .judge(&bob, second.nonce, Answer::Grade(1), 1.0, 3)
            .unwrap(),
        Ok(())
    );
    // What is left is ann's.
    assert_eq!(store.next(&bob, LEASE_MS).unwrap(), Next::Wait);
    assert!(store.renew(&ann, first.nonce, 1000).unwrap());
    assert_eq!(store.next(&bob, LEASE_MS + 999).unwrap(), Next::Wait);
    let taken = task(store.next(&bob, LEASE_MS + 1001).unwrap());
    assert_eq!(taken.id, first.id);
    // Ann's answer comes late, and is not lost.
    assert_eq!(
        store
            .judge(&ann, first.nonce, Answer::Grade(2), 1.0, LEASE_MS + 2000)
            .unwrap(),
        Ok(())
    );
    assert_eq!(
        store
            .judge(&bob, taken.nonce, Answer::Grade(1), 1.0, LEASE_MS + 3000)
            .unwrap(),
        Ok(())
    );
    assert_eq!(store.entries().unwrap().len(), 3);
    assert_eq!(store.next(&ann, LEASE_MS + 4000).unwrap(), Next::Done);
    assert_eq!(store.left(&[ann, bob]).unwrap(), 0);
}

#[test]
fn an_answer_is_stored_once_in_the_tasks_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = project(folder.path(), 8, 0.0);
    let ann = annotator(&store, "ann");
    let mut orders = BTreeSet::new();
    for _ in 0..8 {
        let held = task(store.next(&ann, 0).unwrap());
        orders.insert(held.shown.clone());
        for _ in 0..2 {
            // The one shown first is significantly better.
            assert_eq!(
                store
                    .judge(&ann, held.nonce, Answer::Grade(4), 2.5, 4000)
                    .unwrap(),
                Ok(())
            );
        }
    }
    // Both orders occur: the seed is such.
    assert_eq!(orders.len(), 2);
    let entries = store.entries().unwrap();
    assert_eq!(entries.len(), 8);
    for entry in entries {
        let grade = if entry.shown == [0, 1] { 4 } else { -4 };
        assert_eq!(
            (entry.answer, entry.seconds),
            (Some(Answer::Grade(grade)), 2.5)
        );
    }
    let bob = annotator(&store, "bob");
    let refused = store
        .judge(&bob, 1, Answer::Grade(1), 0.0, 0)
        .unwrap()
        .unwrap_err();
    assert!(refused.contains("no longer yours"), "{refused}");
}

#[test]
fn undo_withdraws_and_skip_passes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = project(folder.path(), 1, 0.0);
    let (ann, bob) = (annotator(&store, "ann"), annotator(&store, "bob"));
    let held = task(store.next(&ann, 0).unwrap());
    assert!(!store.undo(&ann, 0).unwrap());
    assert_eq!(
        store
            .judge(&ann, held.nonce, Answer::Grade(9), 0.0, 0)
            .unwrap()
            .unwrap_err(),
        "expected a grade from -4 to 4, found 9"
    );
    assert_eq!(
        store
            .judge(&ann, held.nonce, Answer::Grade(-3), 0.0, 0)
            .unwrap(),
        Ok(())
    );
    assert_eq!(store.next(&ann, 0).unwrap(), Next::Done);
    assert!(store.undo(&ann, 5).unwrap());
    assert_eq!(
        (store.judged().unwrap(), store.next(&bob, 6).unwrap()),
        ((0, 1), Next::Wait)
    );
    let again = task(store.next(&ann, 6).unwrap());
    assert_eq!(
        (again.id, &again.shown, again.draft),
        (held.id, &held.shown, Some(Answer::Grade(-3)))
    );
    assert_ne!(again.nonce, held.nonce);
    assert_eq!(
        store
            .skip(&ann, again.nonce, " ", 0.0, 7)
            .unwrap()
            .unwrap_err(),
        "say why the task is skipped"
    );
    assert_eq!(
        store
            .skip(&ann, again.nonce, "not understood", 0.0, 7)
            .unwrap(),
        Ok(())
    );
    assert_eq!(store.next(&ann, 8).unwrap(), Next::Done);
    assert_eq!(task(store.next(&bob, 8).unwrap()).id, held.id);
    let progress = store.progress(&ann).unwrap();
    assert_eq!(
        (
            progress.mine,
            progress.skipped,
            progress.judged,
            progress.tasks
        ),
        (0, 1, 0, 1)
    );
}

#[test]
fn the_shared_pool_is_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::begin(&folder.path().join("labels.db"), &terms(0.2)).unwrap();
    let mut all = tasks(20);
    all[3].gold = Some(vec![1, 2]);
    assert_eq!(store.add(&all).unwrap(), 20);
    // The same rows again, on another day.
    assert_eq!(store.add(&all).unwrap(), 0);
    let names = ["ann", "bob", "cem"].map(|name| annotator(&store, name));
    let mut seen: BTreeMap<i64, usize> = BTreeMap::new();
    for at in 0..60 {
        let who = &names[at % 3];
        if let Next::Task(held) = store.next(who, 0).unwrap() {
            *seen.entry(held.id).or_default() += 1;
            assert_eq!(
                store
                    .judge(who, held.nonce, Answer::Grade(1), 0.0, 0)
                    .unwrap(),
                Ok(())
            );
        }
    }
    let times: Vec<usize> = seen.values().copied().collect();
    // A fifth of 19, and the question with a known answer.
    assert_eq!(times.iter().filter(|&&n| n == 3).count(), 5);
    assert_eq!(
        (times.len(), times.iter().filter(|&&n| n == 1).count()),
        (20, 15)
    );
}

#[test]
fn other_terms_and_other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(project(folder.path(), 1, 0.0));
    let path = folder.path().join("labels.db");
    let begin = |terms| Store::begin(&path, &terms).unwrap_err().to_string();
    assert!(begin(terms(0.5)).contains("overlap 0, and now overlap is 0.5"));
    let other = Terms {
        form: Form::InstructGpt,
        ..terms(0.0)
    };
    assert!(begin(other).contains("and now form is InstructGpt"));
    let other = Terms {
        seed: 8,
        ..terms(0.0)
    };
    assert!(begin(other).contains("seed 7, and now seed is 8"));
    assert!(Store::begin(&path, &terms(0.0)).is_ok());
    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "no database, but a text that is longer than a header of one hundred bytes; ".repeat(3),
    )
    .unwrap();
    let error = Store::open(&text).unwrap_err().to_string();
    assert!(error.contains("not a file of judgements"), "{error}");
    drop(
        Connection::open(folder.path().join("empty.db"))
            .unwrap()
            .execute_batch("CREATE TABLE x (y)"),
    );
    // Nothing of a foreign file is changed.
    assert!(!folder.path().join("empty.db-wal").exists());
    let error = Store::open(&folder.path().join("empty.db"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("another program"), "{error}");
}

#[test]
fn tokens_are_kept_as_hashes_and_are_of_one_annotator() {
    let folder = tempfile::tempdir().unwrap();
    let store = project(folder.path(), 1, 0.0);
    let (ann, token) = store.annotator("ann", 0).unwrap();
    let (same, other) = store.annotator("ann", 1).unwrap();
    assert_eq!(ann, same);
    let of = |secret: &str| store.by_token(secret).unwrap();
    assert_eq!(
        (of(token.reveal()), of(other.reveal())),
        (Some(ann.clone()), Some(ann))
    );
    assert_eq!((of("x"), of(token.hash().as_str())), (None, None));
    let bytes = std::fs::read(folder.path().join("labels.db-wal")).unwrap();
    assert!(
        !bytes
            .windows(32)
            .any(|window| window == token.reveal().as_bytes())
    );
    // The next round's store takes the same addresses, of those whom it knows.
    let next = Store::begin(&folder.path().join("next.db"), &terms(0.0)).unwrap();
    next.annotator("ann", 2).unwrap();
    assert_eq!(next.adopt_tokens(&store).unwrap(), 2);
    assert!(next.by_token(token.reveal()).unwrap().is_some());
    assert_eq!(store.revoke_tokens().unwrap(), 2);
    assert_eq!(of(token.reveal()), None);
}

/// Eight annotators on four connections at once, as of four servers: no task is in two hands, none is lost.
#[test]
fn no_task_is_judged_twice_under_concurrency() {
    let folder = tempfile::tempdir().unwrap();
    drop(project(folder.path(), 60, 0.0));
    let path = folder.path().join("labels.db");
    let stores: Vec<Arc<Store>> = (0..4)
        .map(|_| Arc::new(Store::open(&path).unwrap()))
        .collect();
    std::thread::scope(|scope| {
        for who in 0..8 {
            let store = stores[who % 4].clone();
            scope.spawn(move || {
                let me = store.annotator(&format!("annotator {who}"), 0).unwrap().0;
                while let Next::Task(held) = store.next(&me, 0).unwrap() {
                    assert_eq!(
                        store
                            .judge(&me, held.nonce, Answer::Grade(1), 0.0, 0)
                            .unwrap(),
                        Ok(())
                    );
                }
            });
        }
    });
    let judged: Vec<i64> = stores[0]
        .entries()
        .unwrap()
        .iter()
        .map(|entry| entry.task)
        .collect();
    assert_eq!(
        (judged.len(), judged.iter().collect::<BTreeSet<_>>().len()),
        (60, 60)
    );
}

/// The name of the variable that makes the next test the process that is killed.
const VICTIM: &str = "TEMPERING_TEST_VICTIM";

/// A process judges and says so after each judgement; it is killed in the middle. All that it has said is there.
#[test]
fn what_was_acknowledged_survives_kill_9() {
    if let Ok(path) = std::env::var(VICTIM) {
        let store = Store::open(Path::new(&path)).unwrap();
        let me = annotator(&store, "victim");
        while let Next::Task(held) = store.next(&me, 0).unwrap() {
            store
                .judge(&me, held.nonce, Answer::Grade(1), 0.0, 0)
                .unwrap()
                .unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "judged {}", held.id).unwrap();
            out.flush().unwrap();
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    drop(project(folder.path(), 3000, 0.0));
    let path = folder.path().join("labels.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["what_was_acknowledged_survives_kill_9", "--nocapture"])
        .env(VICTIM, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said: BTreeSet<i64> = BTreeSet::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The harness prints, too.
    let number = |line: &str| {
        line.split("judged ")
            .nth(1)
            .and_then(|id| id.trim().parse::<i64>().ok())
    };
    while said.len() < 25 {
        said.extend(number(&lines.next().unwrap().unwrap()));
    }
    // SIGKILL.
    child.kill().unwrap();
    said.extend(
        lines
            .map_while(std::result::Result::ok)
            .filter_map(|line| number(&line)),
    );
    child.wait().unwrap();
    let store = Store::open(&path).unwrap();
    let stored: BTreeSet<i64> = store
        .entries()
        .unwrap()
        .iter()
        .map(|entry| entry.task)
        .collect();
    assert!(said.is_subset(&stored), "{said:?} {stored:?}");
    assert!(stored.len() < 3000, "it was not killed in the middle");
    // And it goes on from there.
    let me = annotator(&store, "victim");
    assert!(!stored.contains(&task(store.next(&me, 0).unwrap()).id));
}
