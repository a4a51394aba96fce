//! Verifiable rewards: a response is right or wrong by a rule, 1 or 0.

mod groups;
mod number;
mod program;
mod schema;

pub(super) use groups::Groups;
pub(super) use number::Number;
pub(super) use program::Program;
pub(super) use schema::{Schema, SchemaReward};

use super::{Completion, columns, text_or_number};
use crate::error::{Error, Result};

/// A row's column as text.
///
/// # Errors
/// `Error::Reward` if the row does not have it, or it is neither text nor a number.
fn column(completion: &Completion, name: &str, source: &str) -> Result<String> {
    let value = completion.row.get(name).and_then(text_or_number);
    value.ok_or_else(|| Error::Reward {
        name: source.to_owned(),
        message: format!(
            "reads the column {name:?} as text or a number; this row has {}",
            columns(&completion.row)
        ),
    })
}
