//! Recipes: reading, `--set`, validation, planning and running.

mod begun;
mod config;
mod elsewhere;
mod failure;
mod known;
mod load;
mod named;
mod next;
mod places;
mod plan;
mod read;
mod references;
mod report;
mod resume;
mod rounds;
mod run;
mod scan;
mod set;
mod shorthand;
mod survey;
mod time;
mod validate;
mod write;

pub use config::Recipe;
pub use load::{LoadedRecipe, load, load_text, load_with_places};
pub use next::{shell_word, steps_after};
pub use places::Places;
pub use plan::{check_fits, download_line, memory_line, table};
pub use report::{find_run, run_report};
pub use run::{CheckedRecipe, RunOptions, check, run};
pub use time::estimate_times;
pub use validate::validate;
pub use write::{read_peft, to_ron};
