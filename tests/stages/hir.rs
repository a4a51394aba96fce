//! Hindsight instruction relabelling on the embedded model.

use std::fs;

use super::resume::run_until;
use crate::support::pipeline;

/// Fine-tuning on synopses, and rounds of relabelling by length: short responses fit the instruction.
const RECIPE: &str = r#"(
    name: "hir", model: "tiny", seed: 5,
    stages: [
        Hir(name: "hir", init: Base, data: (source: Posts(rows: 40, seed: 4)), eval_data: (source: Posts(rows: 8, seed: 5)),
            reward: Length(target: 4), threshold: -0.6, iterations: 3, prompts_per_iteration: 8, num_responses: 2, epochs: 2,
            batch_size: 8, response_length: 8, max_prompt_length: 96, micro_batch_tokens: 256, peft: Lora(rank: 4),
            optim: (lr: 1e-3), cadence: (save_steps: 1)),
    ],
)
"#;

#[test]
fn rounds_train_and_resume_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert!(!run_until(RECIPE, folder.path(), &whole, None));
    assert!(run_until(RECIPE, folder.path(), &parts, Some(("hir", 1))));
    assert!(run_until(RECIPE, folder.path(), &parts, Some(("hir", 2))));
    assert!(!run_until(RECIPE, folder.path(), &parts, None));
    for file in [
        "metrics.jsonl",
        "samples.jsonl",
        "adapter/adapter_model.safetensors",
    ] {
        let [a, b] = [&whole, &parts].map(|run| fs::read(run.join("hir").join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    let values = |name| pipeline::values(&whole, "hir", name);
    let correct = values("hir/correct");
    assert_eq!(correct.len(), 3);
    assert!(
        correct.iter().any(|share| (0.01..0.99).contains(share)),
        "both instructions: {correct:?}"
    );
    // At first both instructions say as much about a response: about ln 2.
    let contrast = values("loss/contrastive");
    assert!((contrast[0] - 2f64.ln()).abs() < 0.2, "{contrast:?}");
    let loss = values("loss");
    assert!(loss.iter().all(|x| x.is_finite() && *x > 0.0), "{loss:?}");
    assert!(
        values("hir/entropy")
            .iter()
            .all(|&x| x > 0.0 && x < 768f64.ln())
    );
    assert_eq!(values("eval/scores").len(), 2);
}

#[test]
fn rests_of_responses_are_relabelled_too() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["whole", "parts"].map(|name| folder.path().join(name));
    let text = RECIPE.replace("num_responses: 2,", "num_responses: 2, sub_outputs: 2,");
    assert!(!run_until(&text, folder.path(), &runs[0], None));
    assert!(run_until(&text, folder.path(), &runs[1], Some(("hir", 1))));
    assert!(!run_until(&text, folder.path(), &runs[1], None));
    let [a, b] = [&runs[0], &runs[1]].map(|run| fs::read(run.join("hir/metrics.jsonl")).unwrap());
    assert!(a == b);
    let values = |name| pipeline::values(&runs[0], "hir", name);
    let (whole, parts) = (values("hir/correct"), values("hir/correct_parts"));
    assert_eq!(parts.len(), 3);
    // The rest of a response has fewer words than the response: it is nearer to the target of four, or below it.
    assert!(
        parts.iter().zip(&whole).any(|(part, whole)| part != whole),
        "{whole:?} {parts:?}"
    );
    let text = RECIPE.replace("num_responses: 2,", "num_responses: 2, sub_outputs: 8,");
    let file = folder.path().join("r.ron");
    fs::write(&file, text).unwrap();
    let error = tempering::recipe::load(&file, &[]).unwrap_err().to_string();
    assert!(
        error.contains("stages.hir.sub_outputs: must be below response_length: places within a response, found 8"),
        "{error}"
    );
}

#[test]
fn micro_batches_do_not_change_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    let larger = RECIPE.replace("micro_batch_tokens: 256", "micro_batch_tokens: 4096");
    let short = |text: &str| text.replace("iterations: 3", "iterations: 1");
    assert!(!run_until(&short(RECIPE), folder.path(), &one, None));
    assert!(!run_until(&short(&larger), folder.path(), &other, None));
    for name in [
        "loss",
        "loss/supervised",
        "loss/contrastive",
        "hir/entropy",
        "grad_norm",
    ] {
        let [a, b] = [&one, &other].map(|run| pipeline::values(run, "hir", name)[0]);
        assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{name}: {a} {b}");
    }
}
