//! `report_to`: TensorBoard's event files and an MLflow server, through an interruption, and without the server.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::recipe::{self, RunOptions};
use tempering::report::{EvalReport, Reporter, RolloutReport, StageInfo, StepReport, read_metrics};

use super::resume::run_until;
use crate::support::endpoint::{LoopbackEndpoint, nobody};
use crate::support::pipeline;

fn track(report_to: &str) -> String {
    format!(
        r#"(name: "track", model: "tiny", seed: 5, {report_to} stages: [
        Sft(name: "sft", data: (source: Posts(rows: 32, seed: 2)), peft: Lora(rank: 2), batch_size: 8, max_length: 96,
            cadence: (save_steps: 1)),
    ])"#
    )
}

/// An MLflow server that refuses its first `failing` requests.
fn mlflow(failing: usize) -> LoopbackEndpoint {
    LoopbackEndpoint::serve_paths(move |path, _, before| match path {
        _ if before < failing => (503, json!({"message": "starting"})),
        path if path.contains("get-by-name") => {
            assert!(path.ends_with("experiment_name=track"), "{path}");
            (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST"}))
        }
        path if path.ends_with("experiments/create") => (200, json!({"experiment_id": "7"})),
        path if path.ends_with("runs/create") => (200, json!({"run": {"info": {"run_id": "r1"}}})),
        _ => (200, json!({})),
    })
}

/// The requests to a path of the server.
fn requests(server: &LoopbackEndpoint, path: &str) -> Vec<Value> {
    let seen = server.seen().into_iter();
    let of = seen.filter(|request| request.path.ends_with(path));
    of.map(|request| request.body).collect()
}

/// How often an event file has a tag, as protobuf writes it: its field, its length, its text.
fn count(bytes: &[u8], tag: &str) -> usize {
    let mut pattern = vec![0x0A, tag.len() as u8];
    pattern.extend(tag.as_bytes());
    bytes
        .windows(pattern.len())
        .filter(|found| *found == pattern)
        .count()
}

fn event_files(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.to_string_lossy().contains("tfevents"));
    files.map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn trackers_have_every_step_once_through_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    // One is refused: a stage that ends tries twice.
    let server = mlflow(1);
    let to = format!("report_to: [TensorBoard, Mlflow(\"{}\")],", server.url);
    let (tracked, plain) = (folder.path().join("tracked"), folder.path().join("plain"));
    assert!(run_until(
        &track(&to),
        folder.path(),
        &tracked,
        Some(("sft", 2))
    ));
    run_until(&track(&to), folder.path(), &tracked, None);
    run_until(&track(""), folder.path(), &plain, None);
    // Trackers change nothing of the results.
    let log = |run: &Path| fs::read(run.join("sft/metrics.jsonl")).unwrap();
    assert_eq!(log(&tracked), log(&plain));
    assert!(event_files(&plain.join("sft")).is_empty());
    let files = event_files(&tracked.join("sft"));
    assert_eq!(files.len(), 1);
    assert_eq!(
        (
            count(&files[0], "loss"),
            count(&files[0], "timing/elapsed_s")
        ),
        (4, 4)
    );
    assert_eq!(count(&files[0], "recipe"), 1);
    // One run of MLflow, ended twice, with the numbers of the log.
    let made = requests(&server, "runs/create");
    assert_eq!((made.len(), &made[0]["run_name"]), (1, &json!("track/sft")));
    let ended: Vec<Value> = (requests(&server, "runs/update").iter())
        .map(|update| update["status"].clone())
        .collect();
    assert_eq!(ended, ["KILLED", "FINISHED"]);
    let sent: Vec<Value> = (requests(&server, "runs/log-batch").into_iter())
        .flat_map(|batch| batch["metrics"].as_array().unwrap().clone())
        .collect();
    let of = |key: &str| -> Vec<(u64, f64)> {
        let of = sent.iter().filter(|metric| metric["key"] == key);
        of.map(|m| (m["step"].as_u64().unwrap(), m["value"].as_f64().unwrap()))
            .collect()
    };
    let logged: Vec<(u64, f64)> = (read_metrics(tracked.join("sft/metrics.jsonl"))
        .unwrap()
        .iter())
    .filter_map(|row| Some((row.step as u64, row.get("loss")?)))
    .collect();
    assert_eq!(of("loss"), logged);
    assert_eq!(of("timing/elapsed_s").len(), 4);
}

/// Keeps messages.
struct Messages(Vec<String>);

impl Reporter for Messages {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, _: &StepReport<'_>) {}
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn stage_end(&mut self, _: &str) {}
}

#[test]
fn a_server_that_is_down_is_said_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = format!("report_to: [Mlflow(\"{}\")],", nobody());
    let options = RunOptions {
        output: Some(folder.path().join("run")),
        ..RunOptions::default()
    };
    let mut messages = Messages(Vec::new());
    let device = Default::default();
    pipeline::run_recipe::<Flex>(&track(&to), folder.path(), device, &options, &mut messages)
        .unwrap();
    let said = messages
        .0
        .iter()
        .find(|text| text.contains("mlflow"))
        .unwrap();
    assert!(
        said.starts_with("warning: sft: mlflow: ") && said.contains("metrics were not sent"),
        "{said}"
    );
    assert!(folder.path().join("run/sft/adapter").is_dir());
}

#[test]
fn what_is_no_address_or_is_listed_twice_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.ron");
    for (to, part) in [
        ("[Mlflow(\"localhost:5000\")]", "http:// or https://"),
        ("[TensorBoard, TensorBoard]", "is listed twice"),
        ("[Wandb]", "TensorBoard"),
    ] {
        fs::write(&file, track(&format!("report_to: {to},"))).unwrap();
        let loaded = recipe::load_with_places(&file, &[]);
        let checked = loaded.and_then(|loaded| recipe::check(loaded, &RunOptions::default()));
        let found = checked
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(
            found.contains("report_to") && found.contains(part),
            "{to}: {found}"
        );
    }
}
