//! Which numbers an adapter was trained on: those of its base's files, or rounded ones.

use super::offset::read_base_precision;
use super::source::ModelSource;
use super::weights::{Dtype, WeightSource, resolve};
use crate::error::{Error, Result};
use crate::ops::{BlockFormat, Precision};

impl ModelSource {
    /// How the base of the outermost adapter was kept while that was trained; f32 if there is none, or it does not say.
    ///
    /// # Errors
    /// As [`read_base_precision`].
    pub fn trained_on(&self) -> Result<Precision> {
        let adapter = self.adapters.last();
        adapter.map_or(Ok(Precision::F32), |folder| read_base_precision(folder))
    }

    /// Bytes of the base's weights in memory with [`Precision::Stored`]: matrices in blocks and in bfloat16 as the file has them, others
    /// in f32.
    ///
    /// # Errors
    /// Those of opening the weights.
    pub fn stored_bytes(&self) -> Result<u64> {
        let weights = self.open_weights()?;
        let specs = self.config.tensors().into_iter();
        let bytes = specs.filter(|spec| spec.tied_to.is_none()).map(|spec| {
            let entries = spec.shape.iter().product::<usize>() as f64;
            let matrix = spec.shape.len() == 2;
            let dtype = resolve(weights.as_ref(), &spec.name).and_then(|name| weights.dtype(&name));
            let each = match dtype.filter(|_| matrix) {
                Some(Dtype::Bf16) => Precision::Bf16.bytes(),
                dtype => dtype
                    .and_then(|d| d.blocks())
                    .map_or(4.0, BlockFormat::bytes),
            };
            (entries * each) as u64
        });
        Ok(bytes.sum())
    }

    /// Refuses a base in other numbers than the outermost adapter was trained on.
    ///
    /// # Errors
    /// `Error::Format` with both precisions; as [`ModelSource::trained_on`], and those of opening the weights.
    pub fn check_precision(&self, precision: Precision) -> Result<()> {
        let trained = self.trained_on()?;
        let Some(folder) = self.adapters.last().filter(|_| trained != precision) else {
            return Ok(());
        };
        let weights = self.open_weights()?;
        let [trained_as, asked] = [trained, precision].map(|p| effect(p, weights.as_ref()));
        match trained_as == asked {
            true => Ok(()),
            false => Err(Error::format(
                folder,
                format!(
                    "the adapter was trained on a base in {}, and this base would be in {}; expected base_precision {}, or an adapter trained on {}",
                    trained.name(),
                    precision.name(),
                    trained.name(),
                    precision.name()
                ),
            )),
        }
    }
}

/// The precision, or f32 if it changes none of the numbers that a file holds.
fn effect(precision: Precision, weights: &dyn WeightSource) -> Precision {
    let all = |dtype: Dtype| {
        let names = weights.names();
        let matrices = names.iter().filter(|name| {
            let shape = weights.shape(name);
            shape.is_some_and(|shape| shape.len() == 2)
        });
        let mut dtypes = matrices.filter_map(|name| weights.dtype(name)).peekable();
        dtypes.peek().is_some() && dtypes.all(|found| found == dtype)
    };
    match precision {
        Precision::Stored => Precision::F32,
        Precision::Bf16 if all(Dtype::Bf16) => Precision::F32,
        other => other,
    }
}
