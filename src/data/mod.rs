//! Data.

mod source;
pub use source::{DataSource, RowFormat};
