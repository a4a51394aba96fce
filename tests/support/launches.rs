//! What a step costs a device beside arithmetic: kernels launched, waits for its numbers, memory taken. A process of its own
//! counts them, with the runtime's log of launches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use cubecl::Runtime;

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::host::{DeferredReads, indices, num_reads};
use tempering::loss::cross_entropy;
use tempering::model::{CausalLm, LanguageModel, ModelConfig, attach_adapters};
use tempering::ops::ModelBackend;
use tempering::optim::{GradientSum, OptimConfig, Optimiser};
use tempering::params::{ParamKind, Parameters};
use tempering::peft::LoraConfig;
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use super::families::{folder, load};

/// Set in the process that counts.
const CHILD: &str = "TEMPERING_TEST_COUNTS";
const LOG: &str = "launches.log";

/// Runs the named test of this binary again, in a folder whose configuration has every launch logged.
pub(crate) fn in_counting_process(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[profiling]\nlogger = {{ level = \"minimal\", file = \"{LOG}\" }}\n");
    std::fs::write(folder.path().join("cubecl.toml"), config).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Launches so far, once the log has nothing new.
fn launches<B: Backend>(device: &B::Device) -> Vec<String> {
    B::sync(device).unwrap();
    let read = || std::fs::read_to_string(Path::new(LOG)).unwrap_or_default();
    let (mut log, begin) = (read(), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = read();
        if now == log {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "an endless log");
        log = now;
    }
    log.lines().map(str::to_owned).collect()
}

/// Bytes of the device's pools.
fn reserved<R: Runtime>(device: &R::Device) -> u64 {
    let client = R::client(device);
    client.memory_usage().unwrap().bytes_reserved
}

/// What one run of `step` costs: launches by name, and reads.
fn cost<B: Backend>(device: &B::Device, mut step: impl FnMut()) -> (Vec<String>, u64) {
    let (before, reads) = (launches::<B>(device).len(), num_reads());
    step();
    let reads = num_reads() - reads;
    (launches::<B>(device).split_off(before), reads)
}

/// How often each name is in the list.
fn by_name(launches: &[String]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for launch in launches {
        *counts.entry(launch).or_default() += 1;
    }
    let lines = counts
        .iter()
        .map(|(name, count)| format!("{count:4} {name}\n"));
    lines.collect()
}

/// A step of supervised fine-tuning with adapters on all linear layers, two micro-batches, with at most `most` launches.
pub(crate) fn training_step<B: ModelBackend, R: Runtime<Device = B::Device>>(
    device: B::Device,
    most: usize,
) {
    let mut model: LanguageModel<B> = load(&folder("llama_tied"), &device);
    let config = ModelConfig::load(folder("llama_tied")).unwrap();
    let lora = LoraConfig {
        target_modules: vec!["all-linear".into()],
        ..LoraConfig::default()
    };
    attach_adapters(&mut model, &config, &lora, Seed::new(3)).unwrap();
    let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
    model.train_only(&|kind| kind == ParamKind::Adapter);
    let mut optim = Optimiser::<B>::new(OptimConfig::default());
    let rows: [&[&[u32]]; 2] = [&[&[1, 2, 3, 4, 5], &[6, 7, 8]], &[&[9, 10, 11, 12]]];
    let mut step = || {
        let (mut sum, mut losses) = (GradientSum::<B>::default(), DeferredReads::default());
        for rows in rows {
            let batch = TokenBatch::<Autodiff<B>>::from_rows(rows, &device);
            let (mut at, mut targets) = (Vec::new(), Vec::new());
            for (row, range) in rows.iter().zip(batch.segments.iter()) {
                at.extend(range.start..range.end - 1);
                targets.extend_from_slice(&row[1..]);
            }
            let hidden = model.states_at(&batch, Some(indices(&at, &device)), None, None);
            let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
            let loss = cross_entropy(logprobs);
            losses.push(loss.clone().inner());
            sum.add::<Autodiff<B>>(&mut model, &mut loss.backward());
        }
        assert_eq!(losses.read().count(), 2);
        assert!(optim.update(&mut model, sum, 9.0, 1e-3).is_finite());
    };
    let _lock = tempering::guard::lock_gradients();
    step();
    step();
    let pools = reserved::<R>(&device);
    let (launched, reads) = cost::<B>(&device, &mut step);
    println!(
        "training step: {} launches, {reads} reads\n{}",
        launched.len(),
        by_name(&launched)
    );
    assert_eq!(reads, 2, "one for the losses, one for the norm");
    // Most of them products; 28 for the second micro-batch of 28 adapter matrices, 7 for the norm and the update of all.
    assert!(launched.len() <= most, "{}", launched.len());
    assert_eq!(
        reserved::<R>(&device),
        pools,
        "a step takes no more memory than the one before"
    );
}

/// Generating tokens for two prompts, each with at most `most` launches.
pub(crate) fn generated_tokens<B: ModelBackend>(device: B::Device, most: usize) {
    let model: LanguageModel<B> = load(&folder("llama_tied"), &device);
    let generate_tokens = |count: usize| {
        let options = GenerateOptions {
            sampling: SamplingConfig::default(),
            max_new_tokens: count,
            repetition_penalty: 1.0,
            stop_ids: Vec::new(),
            truncate: None,
            batch_size: 2,
        };
        let prompts: [&[u32]; 2] = [&[1, 2, 3], &[4, 5, 6]];
        let seed = Seed::new(5);
        generate(&model, &prompts, &options, seed, &device, &mut |_, _| {})
    };
    generate_tokens(2);
    let (short, few) = cost::<B>(&device, || drop(generate_tokens(2)));
    let (long, more) = cost::<B>(&device, || drop(generate_tokens(6)));
    let by_token = (long.len() - short.len()) / 4;
    println!(
        "a token of each row: {by_token} launches\n{}",
        by_name(&long[short.len()..])
    );
    assert_eq!(more - few, 4, "one read for each token");
    assert!(by_token <= most, "{by_token}");
}
