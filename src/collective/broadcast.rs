//! Work of rank 0, and decisions that all ranks must take alike.

use super::ranks;
use crate::error::{Error, Result};

/// Does `work` on rank 0 alone; all ranks return when it is done, the others without a result.
///
/// # Errors
/// That of `work`; on the other ranks its message.
pub fn on_first<T>(work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let ranks = ranks();
    if ranks.is_alone() {
        return work().map(Some);
    }
    if ranks.is_first() {
        let outcome = work();
        let message = match &outcome {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        ranks.broadcast(message.into_bytes());
        return outcome.map(Some);
    }
    let message = ranks.broadcast(Vec::new());
    match message.is_empty() {
        true => Ok(None),
        false => Err(Error::Backend(format!(
            "rank 0: {}",
            String::from_utf8_lossy(&message)
        ))),
    }
}

/// Does `work` on rank 0 and then on the others: what it leaves in a cache is made once.
///
/// # Errors
/// Those of `work`.
pub fn in_turn<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ranks = ranks();
    if ranks.is_alone() {
        return work();
    }
    if ranks.is_first() {
        let outcome = work();
        ranks.barrier();
        return outcome;
    }
    ranks.barrier();
    work()
}

/// What rank 0 says: for what only it can know, such as which files there are while it writes them.
pub fn agree(value: bool) -> bool {
    let ranks = ranks();
    ranks.is_alone() && value
        || !ranks.is_alone() && ranks.broadcast(vec![u8::from(value)]).as_slice() == [1]
}

/// Whether any rank says so: a signal may reach one of them only.
pub fn any(value: bool) -> bool {
    let ranks = ranks();
    match ranks.is_alone() {
        true => value,
        false => (ranks.gather(&[u8::from(value)]).iter()).any(|of_rank| of_rank.as_slice() == [1]),
    }
}
