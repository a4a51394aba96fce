//! Text and data, on the host: rows of files, tokenizers, chat templates, and which tokens are trained on.
//!
//! The flow: [`read_rows`] reads JSON objects, a [`RowFormat`] says which text they hold, [`encode_completions`] and
//! its siblings turn it into token ids with what is trained on, and [`Batches`] says which rows a step takes.
//! [`check_source`] finds what is wrong with a data set before anything is loaded, [`inspect`] shows an encoded row.

mod chat;
mod check;
mod checked;
mod complaints;
mod csv;
mod encode;
mod file;
pub mod inspect;
mod jinja;
mod json;
mod loader;
mod parquet;
pub mod posts;
mod records;
mod rows;
mod source;
mod tokenizer;

pub use chat::{AssistantSpans, AssistantTurns, ChatOptions, ChatTemplate};
pub use check::{DataCheck, RowKind, check_source, is_plain_text};
pub use checked::CheckedData;
pub use encode::{
    Comparisons, Conversation, EncodeReport, Encoded, Example, Prompt, TurnEnd, encode_comparisons,
    encode_completions, encode_judged, encode_prompts, encode_text,
};
pub use file::lfs_pointer;
pub use loader::{Batches, micro_batches};
pub use rows::{DataContext, Row, read_rows};
pub use source::{DataConfig, DataSource, RowFormat, StageRows, Take, TruncationMode};
pub use tokenizer::{CHAT_TEMPLATES, Tokenizer, check_ids};
