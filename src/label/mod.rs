//! Judgements of people: tasks, who judges them, and what came of it.
//!
//! A [`Store`] is a SQLite file with tasks ([`NewTask`], responses to a prompt), annotators and judgements ([`Answer`]). It hands a task
//! to one annotator at a time, and every judgement is on disk before the next task is shown. A [`Form`] says what is asked.
//! `server` shows the tasks in a browser; [`export()`] turns the judgements into rows that stages train on; [`Report`] says how far
//! annotators agree.
//!
//! # Source
//! Stiennon et al. 2020, arXiv:2009.01325, appendix C; Bai et al. 2022, arXiv:2204.05862, section 2; Ouyang et al. 2022,
//! arXiv:2203.02155, table 3 and figure 12; Touvron et al. 2023, arXiv:2307.09288, section 3.2.1.

mod agreement;
mod answer;
mod comparison;
mod exports;
mod form;
mod report;
mod server;
mod store;
mod task;

pub use agreement::{Scale, cohens_kappa, krippendorffs_alpha};
pub use answer::Answer;
pub use comparison::{Comparison, comparisons};
pub(crate) use exports::rating_rows;
pub use exports::{Exported, export, preference_rows};
pub use form::{Field, Form, RateForm};
pub use report::Report;
pub(crate) use server::{Site, open_browser};
pub(crate) use store::check_names;
pub use store::{Annotator, Entry, HeldTask, Next, Progress, Store, StoredTask, Terms};
pub use task::{NewTask, Task, Turn, Unused, tasks_of};
