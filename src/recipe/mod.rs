//! Recipes.

mod stage;
pub use stage::{Recipe, Stage};
