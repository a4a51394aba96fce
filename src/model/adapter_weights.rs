//! Tensor files of adapters, under the names that models have for their tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::weights::{self, Dtype, WeightSource};
use crate::error::Result;
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
