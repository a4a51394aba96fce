//! Recipes: reading, changing, checking and planning them.

mod checks;
mod known;
mod lengths;
mod load;
mod memory;
mod places;
mod plan;
mod read;
mod references;
mod resume;
mod run;
mod scan;
mod set;
mod stage;
mod survey;
mod uses;
mod validate;
mod write;

pub use load::{Loaded, load, load_with_places};
pub use memory::{ModelShape, Work, estimate};
pub use places::Places;
pub use plan::{StagePlan, check_fits, memory_line, table};
pub use run::{Checked, RunOptions, check, run};
pub use stage::{Recipe, Stage};
pub use validate::validate;
pub use write::to_ron;
