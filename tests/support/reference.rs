//! Files under `tests/reference`, and how their numbers are compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value;

use tempering::model::{CausalLm, LanguageModel, ModelConfig, weights};
use tempering::ops::ModelBackend;
use tempering::params::HostTensor;
use tempering::tokens::TokenBatch;

/// A file or folder of the references.
pub(crate) fn folder(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

/// The JSON in a file.
pub(crate) fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// One folder with a `ref.json`.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// The folder's name.
    pub(crate) name: String,
    /// The folder.
    pub(crate) path: PathBuf,
    /// Its `ref.json`.
    pub(crate) reference: Value,
}

impl Case {
    /// The case in a folder.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            reference: read(&path.join("ref.json")),
            path,
        }
    }

    /// The rows of token ids that the reference was computed on.
    pub(crate) fn rows(&self) -> Vec<Vec<u32>> {
        serde_json::from_value(self.reference["rows"].clone()).unwrap()
    }

    /// The numbers under a key.
    pub(crate) fn numbers(&self, key: &str) -> Vec<f64> {
        numbers(&self.reference[key])
    }
}

/// The cases in a folder, by name.
pub(crate) fn cases(name: &str) -> Vec<Case> {
    let entries = std::fs::read_dir(folder(name)).unwrap();
    let mut cases: Vec<Case> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("ref.json").is_file())
        .map(Case::at)
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

/// The cases in a folder whose numbers are of a kind: log-probabilities or scores.
pub(crate) fn cases_of(name: &str, task: &str) -> Vec<Case> {
    let mut cases = cases(name);
    cases.retain(|case| case.reference["task"] == task);
    assert!(cases.len() > 1, "{name}: {task}");
    cases
}

/// A model without adapters.
pub(crate) fn load<B: ModelBackend>(
    base: &Path,
    device: &B::Device,
) -> (ModelConfig, LanguageModel<B>) {
    let config = ModelConfig::load(base).unwrap();
    let source = weights::open(base).unwrap();
    let model = LanguageModel::load(&config, source.as_ref(), device).unwrap();
    (config, model)
}

/// The tensors of a file, by name.
pub(crate) fn tensors(file: &Path) -> Vec<HostTensor> {
    let source = weights::open(file).unwrap();
    let mut names = source.names();
    names.sort();
    let tensor = |name: String| {
        let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
        (name, shape, values)
    };
    names.into_iter().map(tensor).collect()
}

/// Numbers in lists of lists, one after the other.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// The same numbers in double precision.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Largest difference; infinite where the lengths differ or a number is none.
pub(crate) fn distance(got: &[f32], expected: &[f64]) -> f64 {
    if got.len() != expected.len() || got.iter().any(|x| x.is_nan()) {
        return f64::INFINITY;
    }
    let pairs = got.iter().zip(expected);
    pairs
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max)
}

/// Largest difference as a share of the largest expected number.
pub(crate) fn relative_distance(got: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(1e-6f64, |most, x| most.max(x.abs()));
    distance(got, expected) / largest
}

/// The numbers of a tensor.
pub(crate) fn values<B: ModelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

/// Places in a batch as a tensor.
pub(crate) fn indices<B: ModelBackend>(
    places: impl IntoIterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

/// Places before which a token stands, and these tokens.
pub(crate) fn predicted<B: ModelBackend>(
    batch: &TokenBatch<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> (Tensor<B, 1, Int>, Arc<Vec<u32>>) {
    let (mut places, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        places.extend(range.start..range.end - 1);
        targets.extend(&row[1..]);
    }
    (indices(places, device), Arc::new(targets))
}

/// Log-probability of every token but a row's first, of rows in one batch.
pub(crate) fn logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<f32> {
    let batch = TokenBatch::from_rows(rows, device);
    let (places, targets) = predicted(&batch, rows, device);
    let hidden = model.hidden_states(&batch, None, None);
    assert_eq!(hidden.dims()[0], batch.segments.num_tokens());
    let (logprobs, _) = model.logprobs(hidden.select(0, places), &targets, 1.0);
    values(logprobs)
}
