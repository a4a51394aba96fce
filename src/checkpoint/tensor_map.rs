//! Tensors of checkpoints: named host tensors in safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::model::weights::{SafetensorsFiles, WeightSource};

/// Shape and values (row-major) by name; bytes as numbers.
pub type TensorMap = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads all tensors of a safetensors file.
///
/// # Errors
/// `Error::Io`, and `Error::Format` for a truncated or corrupt file.
pub fn read_tensor_map(path: impl AsRef<Path>) -> Result<TensorMap> {
    let file = SafetensorsFiles::open(path)?;
    file.names()
        .into_iter()
        .map(|name| {
            let shape = file.shape(&name).unwrap_or_default();
            let is_bytes = file
                .dtype(&name)
                .is_some_and(|dtype| dtype.to_string() == "U8");
            let values = match is_bytes {
                true => file.read_bytes(&name)?.into_iter().map(f32::from).collect(),
                false => file.read(&name)?,
            };
            Ok((name, (shape, values)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::write_snapshot;
    use crate::snapshot::Snapshot;

    #[test]
    fn values_survive_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optim.safetensors");
        let tensors: TensorMap = [
            (
                "exp_avg.w".to_owned(),
                (vec![2, 2], vec![1e-38, -0.0, 3.0, f32::MAX]),
            ),
            ("step".to_owned(), (vec![], vec![12.0])),
        ]
        .into();
        let mut snapshot = Snapshot::default();
        for (name, (shape, values)) in &tensors {
            snapshot.insert(name, shape.clone(), move || values.into());
        }
        let codes = [0.0, 127.0, 255.0];
        snapshot.insert_bytes("codes", vec![3], move || codes.to_vec().into());
        write_snapshot(&path, &snapshot).unwrap();
        let mut read = read_tensor_map(&path).unwrap();
        assert_eq!(read.remove("codes").unwrap(), (vec![3], codes.to_vec()));
        assert_eq!(read, tensors);
        assert_eq!(read["exp_avg.w"].1[1].to_bits(), (-0.0f32).to_bits());
        std::fs::write(&path, b"short").unwrap();
        assert!(
            read_tensor_map(&path)
                .unwrap_err()
                .to_string()
                .contains("truncated")
        );
    }
}
