//! Weight files, read at any place from several threads.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::dtype::Dtype;
use crate::data::lfs_pointer;
use crate::error::{Error, Result};
use crate::outside;
use crate::read_at::read_exact_at;

/// An open weight file for positioned reads from several threads.
#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Blob {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = outside::open(path)?;
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
        let (values, bytes) = dtype
            .block()
            .ok_or_else(|| Error::format(&self.path, dtype.unsupported()))?;
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
