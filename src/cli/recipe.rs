//! `temper recipe`.

use super::args::{ComputeArgs, RecipeArgs};
use crate::error::{Error, Result};

/// Runs the stages of a recipe.
///
/// # Errors
/// Always.
pub fn run(_: &RecipeArgs, _: &ComputeArgs) -> Result<()> {
    Err(Error::Usage(
        "`temper recipe` is not in this binary yet".into(),
    ))
}
