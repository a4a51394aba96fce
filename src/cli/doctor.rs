//! `temper doctor`.
use super::args::ComputeArgs;
use crate::error::Result;
pub(super) fn run(_: &ComputeArgs) -> Result<()> {
    Ok(())
}
