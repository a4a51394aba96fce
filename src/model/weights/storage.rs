//! Stored number formats and their conversion to f32.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;

use crate::data::lfs_pointer;
use crate::error::{Error, Result};
use crate::ops::BlockFormat;

/// Stored number format of a tensor.
///
/// # Source
/// The Q formats are ggml's: blocks of 32 values that share a scale (and, for `Q4_1`, a minimum) in f16.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// `d * q`, q in -128..=127.
    Q8_0,
    /// `d * (q - 8)`, q in 0..=15.
    Q4_0,
    /// `d * q + m`, q in 0..=15.
    Q4_1,
    /// bitsandbytes' 4 bits, in blocks of 64 whose scales are tensors of their own; read with them alone.
    Nf4,
    /// An unsupported type.
    Other(String),
}

impl Dtype {
    /// The supported types, for messages.
    pub const SUPPORTED: &'static str =
        "F32, F16, BF16, in GGUF Q8_0, Q4_0, Q4_1, and bitsandbytes' nf4";

    /// Values and bytes per block; `None` for an unsupported type.
    pub fn block(&self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Q8_0 => Some((32, 34)),
            Self::Q4_0 => Some((32, 18)),
            Self::Q4_1 => Some((32, 20)),
            Self::Nf4 | Self::Other(_) => None,
        }
    }

    /// The format of a type whose matrices can stay in blocks.
    pub fn blocks(&self) -> Option<BlockFormat> {
        match self {
            Self::Q8_0 => Some(BlockFormat::Q8_0),
            Self::Q4_0 => Some(BlockFormat::Q4_0),
            Self::Q4_1 => Some(BlockFormat::Q4_1),
            Self::Nf4 => Some(BlockFormat::Nf4),
            Self::F32 | Self::F16 | Self::Bf16 | Self::Other(_) => None,
        }
    }

    /// Bytes of `len` values; `None` if the type is unsupported, `len` is not a multiple of the block, or the size overflows.
    pub fn num_bytes(&self, len: usize) -> Option<u64> {
        let (values, bytes) = self.block()?;
        if !len.is_multiple_of(values) {
            return None;
        }
        ((len / values) as u64).checked_mul(bytes as u64)
    }

    /// Converts whole blocks.
    ///
    /// # Panics
    /// If the lengths of `bytes` and `out` do not correspond, or the type is unsupported.
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.num_bytes(out.len()),
            Some(bytes.len() as u64),
            "bytes and values must correspond"
        );
        let half_at = |b: &[u8], i: usize| f16::from_le_bytes([b[i], b[i + 1]]).to_f32();
        match self {
            Self::F32 => {
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Self::F16 => {
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = half_at(b, 0);
                }
            }
            Self::Bf16 => {
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Q8_0 => {
                for (x, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(34)) {
                    let d = half_at(b, 0);
                    for (x, &q) in x.iter_mut().zip(&b[2..]) {
                        *x = f32::from(q.cast_signed()) * d;
                    }
                }
            }
            Self::Q4_0 => {
                for (x, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(18)) {
                    let d = half_at(b, 0);
                    nibbles(&b[2..], x, |q| d * (q - 8.0));
                }
            }
            Self::Q4_1 => {
                for (x, b) in out.chunks_exact_mut(32).zip(bytes.chunks_exact(20)) {
                    let (d, m) = (half_at(b, 0), half_at(b, 2));
                    // Rounded twice like the reference, which does not fuse product and sum.
                    nibbles(&b[4..], x, |q| d * q + m);
                }
            }
            Self::Nf4 | Self::Other(_) => unreachable!("num_bytes refused the type above"),
        }
    }
}

/// The low nibbles of 16 bytes are values 0..16 of a block, the high nibbles values 16..32.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = value(f32::from(byte & 0x0f));
        *high = value(f32::from(byte >> 4));
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Nf4 => "NF4",
            Self::Other(name) => name,
        })
    }
}

/// An open weight file for positioned reads from several threads.
#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Blob {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let blob = Self {
            file,
            path: path.to_path_buf(),
            len,
        };
        let mut head = vec![0; blob.len.min(64) as usize];
        blob.read_at(0, &mut head)?;
        match lfs_pointer(path, &head) {
            Some(error) => Err(error),
            None => Ok(blob),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads `out.len()` bytes at `offset`.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, out).map_err(Error::io("read", &self.path))
    }

    /// Whether the `len` bytes at `offset` equal those of `other` at `other_offset`.
    pub(crate) fn same_bytes(
        &self,
        offset: u64,
        other: &Self,
        other_offset: u64,
        len: u64,
    ) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        let mut buffers = [Vec::new(), Vec::new()];
        let mut done = 0;
        while done < len {
            let piece = PIECE.min(len - done);
            for (buffer, (blob, from)) in buffers
                .iter_mut()
                .zip([(self, offset), (other, other_offset)])
            {
                buffer.resize(piece as usize, 0);
                blob.read_at(from + done, buffer)?;
            }
            if buffers[0] != buffers[1] {
                return Ok(false);
            }
            done += piece;
        }
        Ok(true)
    }

    /// Reads `len` values of a tensor in parallel chunks.
    ///
    /// The caller has checked the type and that the bytes are inside the file.
    pub(crate) fn read_tensor(&self, dtype: &Dtype, offset: u64, len: usize) -> Result<Vec<f32>> {
        const PIECE: usize = 64 * 1024; // values; a multiple of every block size
        let (values, bytes) = dtype.block().ok_or_else(|| {
            Error::format(
                &self.path,
                format!(
                    "type {dtype} is not supported; supported are {}",
                    Dtype::SUPPORTED
                ),
            )
        })?;
        let mut out = vec![0.0f32; len];
        out.par_chunks_mut(PIECE).enumerate().try_for_each_init(
            Vec::new,
            |buffer, (i, piece)| {
                buffer.resize(piece.len() / values * bytes, 0);
                self.read_at(offset + (i * (PIECE / values) * bytes) as u64, buffer)?;
                dtype.decode(buffer, piece);
                Ok::<(), Error>(())
            },
        )?;
        Ok(out)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                offset += n as u64;
                out = &mut out[n..];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded<const N: usize>(dtype: &Dtype, bytes: &[u8]) -> [f32; N] {
        let mut out = [0.0; N];
        dtype.decode(bytes, &mut out);
        out
    }

    #[test]
    fn plain_types_are_exact() {
        assert_eq!(decoded::<1>(&Dtype::F32, &1.5f32.to_le_bytes()), [1.5]);
        // 0x3e00 is 1.5 in f16, 0xbfc0 is -1.5 in bf16.
        assert_eq!(decoded::<1>(&Dtype::F16, &[0x00, 0x3e]), [1.5]);
        assert_eq!(decoded::<1>(&Dtype::Bf16, &[0xc0, 0xbf]), [-1.5]);
    }

    #[test]
    fn blocks_are_ggmls() {
        // d = 0.5 (0x3800), m = -2 (0xc000); byte i holds low nibble i and high nibble 15 - i.
        let packed: Vec<u8> = (0..16u8).map(|i| i | ((15 - i) << 4)).collect();
        let q4_0 = [&[0x00, 0x38][..], &packed].concat();
        let x: [f32; 32] = decoded(&Dtype::Q4_0, &q4_0);
        assert_eq!((x[0], x[15], x[16], x[31]), (-4.0, 3.5, 3.5, -4.0));
        let q4_1 = [&[0x00, 0x38, 0x00, 0xc0][..], &packed].concat();
        let x: [f32; 32] = decoded(&Dtype::Q4_1, &q4_1);
        assert_eq!((x[0], x[15], x[16], x[31]), (-2.0, 5.5, 5.5, -2.0));
        let mut q8_0 = vec![0x00, 0x38];
        q8_0.extend((0..32u8).map(|i| i.wrapping_sub(16)));
        let x: [f32; 32] = decoded(&Dtype::Q8_0, &q8_0);
        assert_eq!((x[0], x[16], x[31]), (-8.0, 0.0, 7.5));
    }

    #[test]
    fn sizes_count_whole_blocks() {
        assert_eq!(Dtype::Q4_1.num_bytes(64), Some(40));
        assert_eq!(Dtype::Q4_1.num_bytes(33), None);
        assert_eq!(Dtype::Other("I64".into()).num_bytes(1), None);
    }
}
