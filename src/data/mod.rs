//! Data.

pub mod posts;
mod source;
pub use source::{DataSource, RowFormat};
