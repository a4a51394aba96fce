//! Data on the host: rows of files, tokenizers, chat templates, and encoding with trained tokens.
//!
//! The flow: [`read_rows`] reads files of rows, whose layout is recognised by their columns; a [`RowFormat`] maps them to text;
//! [`encode_completions`] and the other `encode_` functions turn that into token ids with marks on trained tokens; [`Batches`]
//! selects the rows of a step. [`check_source`] checks a data set before anything is loaded; [`inspect`] shows an encoded row.

mod chat;
mod check;
mod checked;
mod compared;
mod complaints;
mod effects;
mod encode;
mod file;
pub mod inspect;
pub(crate) mod jinja;
mod kept_check;
mod last_number;
mod loader;
mod mixture;
mod pairs;
pub mod posts;
mod problems;
mod records;
mod repository;
mod row_kind;
mod rows;
mod shape;
mod slice;
mod source;
mod source_column;
mod split;
mod stream;
mod token_rows;
mod tokenizer;

pub use chat::{AssistantSpans, AssistantTurns, ChatOptions, ChatTemplate};
pub use check::{DataCheck, check_source, flag};
pub use checked::CheckedData;
pub use compared::{ComparedResponses, JUDGEMENT, read_compared};
pub use encode::{
    Comparisons, Conversation, EncodeReport, EncodedRows, Example, GOLD, Judgements, Labelled,
    Prompt, TurnEnd, encode_comparisons, encode_completions, encode_for_reward_model,
    encode_judged, encode_labelled, encode_prompts, encode_text,
};
pub(crate) use encode::{
    Labels, Preferences, Prompts, Ratings, RowEncoding, Texts, TextsOrCompletions, encode_all,
    num_top,
};
pub use file::lfs_pointer;
pub(crate) use file::text_bytes;
pub(crate) use last_number::last_number;
pub use loader::{Batches, micro_batches, own_micro_batches, step_parts, step_parts_with};
pub use pairs::{ResponseSet, read_response_sets};
pub(crate) use pairs::{readable, response_sets};
pub use row_kind::RowKind;
pub(crate) use rows::source_files;
pub use rows::{DataContext, Row, read_rows};
pub use shape::shape_names;
pub use slice::SplitSlice;
pub use source::{
    DataConfig, DataSource, Part, RowFormat, SampleBy, StageRows, Take, TruncationMode,
};
pub use source_column::SourceColumn;
pub(crate) use token_rows::{RowsCache, token_rows};
pub use token_rows::{TokenRow, TokenRows};
pub(crate) use tokenizer::is_tokenizer_file;
pub use tokenizer::{
    CHAT_TEMPLATES, CutSide, EncodedText, EncoderTokenizer, ResponseText, Tokenizer, check_ids,
};
