//! Tensor files of adapters, under the names that models have for their tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::weights::{self, Dtype, WeightSource};
use crate::error::{Error, Problem, Result};
use crate::peft::AdapterSpec;
use crate::peft::bottleneck_files;
use crate::peft::files::{ADAPTER_WEIGHTS, weights_file};

/// File name of the tensors of a method.
pub(super) fn file_name(spec: &AdapterSpec) -> &'static str {
    match spec.has_own_files() {
        true => bottleneck_files::WEIGHTS,
        false => ADAPTER_WEIGHTS,
    }
}

/// Opens the tensors of an adapter's folder.
///
/// # Errors
/// As [`weights_file`] and [`weights::open`].
pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Box<dyn WeightSource>> {
    let file = weights_file(folder)?;
    let source = weights::open(&file)?;
    if file.file_name() != Some(bottleneck_files::WEIGHTS.as_ref()) {
        return Ok(source);
    }
    let linear = config.linear_modules();
    let own = |name: String| {
        let key = bottleneck_files::own_key(&name, &linear);
        (key.unwrap_or_else(|| name.clone()), name)
    };
    Ok(Box::new(Renamed {
        names: source.names().into_iter().map(own).collect(),
        source,
    }))
}

/// Refuses a file that holds what is not finite. Reads every tensor.
///
/// # Errors
/// `Error::Invalid` listing every such tensor, each with how many of its numbers are not finite; `Error::Io`.
pub(super) fn check_finite(source: &dyn WeightSource) -> Result<()> {
    let mut problems = Vec::new();
    for name in source.names() {
        let values = source.read(&name)?;
        let count = values.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            let message = format!("{count} of {} numbers are NaN or infinite", values.len());
            problems.push(Problem::new(name, message).with_help(
                "the file is damaged, or its training went wrong: take an earlier checkpoint or train it again",
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid {
            path: source.path().to_path_buf(),
            problems,
        }),
    }
}

/// A file whose tensors have other names.
struct Renamed {
    source: Box<dyn WeightSource>,
    /// The file's name of each tensor.
    names: BTreeMap<String, String>,
}

impl Renamed {
    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

impl WeightSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(self.stored(name))
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.source.dtype(self.stored(name))
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.source.read(self.stored(name))
    }

    fn path(&self) -> &Path {
        self.source.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.source.files()
    }
}
