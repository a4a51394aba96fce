//! Writes safetensors files for transformers.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::atomic::write_atomic_with;
use crate::error::{Error, Result};
use crate::snapshot::Snapshot;

/// Number format of written tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StoreAs {
    /// IEEE single.
    #[default]
    F32,
    /// IEEE half, rounded to nearest.
    F16,
    /// The upper half of a single, rounded to nearest.
    Bf16,
}

impl StoreAs {
    /// The format's name in a `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Refuses the numbers of a tensor if the format cannot hold them.
    ///
    /// # Errors
    /// `Error::Usage` with the first one.
    pub fn check_range(self, name: &str, values: &[f32]) -> Result<()> {
        let too_large = |x: &&f32| self == Self::F16 && x.abs() > f16::MAX.to_f32();
        match values.iter().find(too_large) {
            None => Ok(()),
            Some(x) => Err(Error::Usage(format!(
                "{name} holds {x}, and the largest f16 is {}; use --dtype bf16",
                f16::MAX
            ))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        }
    }
}

/// Writes f32 tensors to one safetensors file, atomically, with the metadata `{"format": "pt"}`.
///
/// # Errors
/// `Error::Io`; the file at `path` is unchanged then.
///
/// # Panics
/// If a tensor's values do not fill its shape.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
) -> Result<()> {
    let mut snapshot = Snapshot::default();
    for (name, shape, values) in tensors {
        snapshot.insert(name, shape.clone(), move || values.into());
    }
    write_snapshot(path, &snapshot)
}

/// As [`write_safetensors`], reading one tensor at a time; bytes are stored as `U8`.
///
/// # Errors
/// As [`write_safetensors`].
///
/// # Panics
/// As [`write_safetensors`].
pub fn write_snapshot(path: impl AsRef<Path>, snapshot: &Snapshot<'_>) -> Result<()> {
    let tensors = snapshot.tensors();
    let specs = tensors.iter().map(|tensor| Spec {
        name: &tensor.name,
        shape: &tensor.shape,
        number: match tensor.bytes {
            true => Number::Byte,
            false => Number::Float(StoreAs::F32),
        },
    });
    let specs: Vec<Spec<'_>> = specs.collect();
    write(path.as_ref(), &specs, |i| Ok(tensors[i].read()))
}

/// As [`write_safetensors`], with one call of `values` per tensor, so that there is no second copy of the model.
///
/// # Errors
/// `Error::Io`, or the error of `values`; the file at `path` is unchanged then.
///
/// # Panics
/// If a tensor's values do not fill its shape.
pub fn write_safetensors_with<'a>(
    path: impl AsRef<Path>,
    store_as: StoreAs,
    specs: &[(&str, &[usize])],
    values: impl FnMut(usize) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    let specs = specs.iter().map(|&(name, shape)| Spec {
        name,
        shape,
        number: Number::Float(store_as),
    });
    write(path.as_ref(), &specs.collect::<Vec<_>>(), values)
}

/// A tensor to be written.
struct Spec<'a> {
    name: &'a str,
    shape: &'a [usize],
    number: Number,
}

/// How a number is written.
#[derive(Clone, Copy)]
enum Number {
    Float(StoreAs),
    /// A whole one from 0 to 255.
    Byte,
}

impl Number {
    fn name(self) -> &'static str {
        match self {
            Self::Float(store_as) => store_as.name(),
            Self::Byte => "U8",
        }
    }

    fn num_bytes(self) -> usize {
        match self {
            Self::Float(store_as) => store_as.num_bytes(),
            Self::Byte => 1,
        }
    }

    fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::Float(store_as) => store_as.encode(values, out),
            Self::Byte => out.extend(values.iter().map(|&x| x as u8)),
        }
    }
}

fn write<'a>(
    path: &Path,
    specs: &[Spec<'_>],
    mut values: impl FnMut(usize) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    let header = header(specs);
    write_atomic_with(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io("write", path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        let mut buffer = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let values = values(i)?;
            assert_eq!(
                values.len(),
                spec.shape.iter().product::<usize>(),
                "{}: values must fill the shape",
                spec.name
            );
            for piece in values.chunks(1 << 16) {
                buffer.clear();
                spec.number.encode(piece, &mut buffer);
                put(&buffer)?;
            }
        }
        Ok(())
    })
}

/// The JSON header, padded with spaces so that the data is aligned to 8 bytes.
fn header(specs: &[Spec<'_>]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut begin = 0;
    for spec in specs {
        let shape = spec.shape;
        let end = begin + spec.number.num_bytes() * shape.iter().product::<usize>();
        header.insert(
            spec.name.to_owned(),
            json!({"dtype": spec.number.name(), "shape": shape, "data_offsets": [begin, end]}),
        );
        begin = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::{SafetensorsFiles, WeightSource};

    #[test]
    fn the_reference_library_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = [
            (
                "b".to_owned(),
                vec![2, 3],
                vec![1.0, -2.5, 3.0, 0.0, f32::MIN_POSITIVE, 1e30],
            ),
            ("a".to_owned(), vec![], vec![7.0]),
            ("none".to_owned(), vec![0, 4], vec![]),
        ];
        write_safetensors(&path, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let b = read.tensor("b").unwrap();
        assert_eq!(b.shape(), [2, 3]);
        assert_eq!(b.data()[4..8], (-2.5f32).to_le_bytes());
        assert_eq!(read.tensor("a").unwrap().data(), 7f32.to_le_bytes());
        let (start, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(start % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }

    #[test]
    fn an_error_of_the_values_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let outcome = write_safetensors_with(
            &path,
            StoreAs::F32,
            &[("a", &[1]), ("b", &[1])],
            |i| match i {
                0 => Ok(Cow::Owned(vec![1.0])),
                _ => Err(Error::Usage("stop".into())),
            },
        );
        assert!(matches!(outcome, Err(Error::Usage(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn halves_are_rounded_to_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // 1 + 2^-8 + 2^-20 lies above the middle of two bf16 (1 and 1 + 2^-7) and next to an f16.
        let x = 1.003_907_2_f32;
        for (store_as, expected) in [
            (StoreAs::F16, 1.0 + 1.0 / 256.0),
            (StoreAs::Bf16, 1.0 + 1.0 / 128.0),
        ] {
            write_safetensors_with(&path, store_as, &[("a", &[1])], |_| Ok(Cow::Owned(vec![x])))
                .unwrap();
            let read = SafetensorsFiles::open(&path).unwrap().read("a").unwrap();
            assert_eq!(read, [expected]);
        }
    }
}
