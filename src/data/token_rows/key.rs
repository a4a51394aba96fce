//! The key of encoded rows: a hash of all that they depend on.
//!
//! Files count by their contents. A path, a size and a time would be found faster, but they stay the same where a file is replaced by
//! `cp -p`, `rsync`, an archive or within a clock's tick, and training on rows of another file would go unnoticed. Hashing takes less
//! time than parsing; files of the hub's cache are named by their hash.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::data::encode::RowEncoding;
use crate::data::tokenizer::today;
use crate::data::{DataConfig, Tokenizer};
use crate::error::{Error, Result};
use crate::outside;
use crate::read_at::read_exact_at;

/// Bytes of a file that are hashed at once, on one core.
const CHUNK: u64 = 4 << 20;

/// The key of the rows of `config`, which reads `files`.
///
/// # Errors
/// `Error::Io`.
pub(super) fn of<E: RowEncoding>(
    config: &DataConfig,
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    encoding: &E,
) -> Result<String> {
    let how = json!({
        "encoding": E::NAME,
        "settings": encoding,
        "day": templates_read_clock(config).then(today),
        "tokenizer": tokenizer.fingerprint(),
    });
    files_key(files, config, &how)
}

/// A hash of the contents of `files`, of the settings by which they are read, of this program, and of `how` they are used.
///
/// # Errors
/// `Error::Io`.
pub(in crate::data) fn files_key(
    files: &[PathBuf],
    config: &DataConfig,
    how: &impl Serialize,
) -> Result<String> {
    let contents = files.iter().map(|path| contents(path));
    let parts = json!({
        "program": program(),
        "data": config,
        "files": contents.collect::<Result<Vec<_>>>()?,
        "how": how,
    });
    Ok(format!("{:x}", Sha256::digest(parts.to_string())))
}

/// Whether texts that are made from rows may depend on the time.
fn templates_read_clock(config: &DataConfig) -> bool {
    json!(config).to_string().contains("strftime_now")
}

/// This program: encoders change from build to build.
fn program() -> String {
    let built = std::env::current_exe().and_then(std::fs::metadata);
    let built = built.map(|file| {
        let time = file.modified().ok();
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (file.len(), time.unwrap_or_default().as_nanos())
    });
    format!("{} {:?}", env!("CARGO_PKG_VERSION"), built.ok())
}

/// A hash of a file's contents.
fn contents(path: &Path) -> Result<String> {
    if let Some(name) = blob(path) {
        return Ok(name);
    }
    let file = outside::open(path)?;
    let io = |error| Error::io("read", path)(error);
    let len = file.metadata().map_err(io)?.len();
    let hash = |start: u64| -> io::Result<[u8; 32]> {
        let mut bytes = vec![0; CHUNK.min(len - start) as usize];
        read_exact_at(&file, start, &mut bytes)?;
        Ok(Sha256::digest(&bytes).into())
    };
    let hashes = (0..len.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| hash(chunk * CHUNK));
    let hashes: Vec<[u8; 32]> = hashes.collect::<io::Result<_>>().map_err(io)?;
    Ok(format!("{:x}", Sha256::digest(hashes.concat())))
}

/// The hash that a file of the hub's cache is named by.
fn blob(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let is_blob = target.parent()?.file_name()? == "blobs";
    let name = target.file_name()?.to_str()?;
    // Git's hash of a small file, and SHA-256; a folder of this name may be anybody's.
    let is_hash = [40, 64].contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
    (is_blob && is_hash).then(|| name.to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_hashes_stand_for_contents() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let linked = |name: &str| {
            std::fs::write(blobs.join(name), "x").unwrap();
            let link = folder.path().join(format!("to-{name}"));
            std::os::unix::fs::symlink(blobs.join(name), &link).unwrap();
            contents(&link).unwrap()
        };
        let hash = "c0ffee".repeat(7)[..40].to_owned();
        assert_eq!(linked(&hash), hash);
        let own = linked("train.jsonl");
        assert_eq!(own.len(), 64);
        std::fs::write(blobs.join("train.jsonl"), "y").unwrap();
        assert_ne!(
            contents(&folder.path().join("to-train.jsonl")).unwrap(),
            own
        );
    }
}
