//! Which keys of a format have an effect on the rows of a data set.

use serde_json::Value;

use super::check::{is_plain_text, is_scored};
use super::complaints::column_names;
use super::records::{CompletionRow, Content, RowParser};
use super::rows::Row;
use super::{AssistantTurns, RowFormat, RowKind};
use crate::error::{Problem, Result};
use crate::suggest::did_you_mean;

/// What some rows of a data set have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// A conversation, which the chat template renders.
    chat: bool,
    /// A conversation whose assistant's turns are trained on.
    turns: bool,
    /// Text in the column that `shorten` names.
    shortened: bool,
}

impl Effects {
    /// Those on one valid row.
    ///
    /// # Errors
    /// Those of the row.
    pub(super) fn on(parser: &RowParser<'_>, row: &Row, expects: RowKind) -> Result<Self> {
        let format = parser.format();
        let column = format.shorten.as_ref();
        let text = column.and_then(|column| row.columns.get(column));
        if is_scored(row) {
            return Ok(Self {
                shortened: true,
                ..Self::default()
            });
        }
        let (chat, turns) = match needs_chat(format) {
            true => conversation(parser, row, expects)?,
            false => (false, false),
        };
        Ok(Self {
            chat,
            turns,
            shortened: text.is_some_and(Value::is_string),
        })
    }

    /// Those on either.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            chat: self.chat || other.chat,
            turns: self.turns || other.turns,
            shortened: self.shortened || other.shortened,
        }
    }

    /// Warnings about keys for conversations without any, by key below the data set.
    pub(super) fn warnings(
        self,
        format: &RowFormat,
        expects: RowKind,
    ) -> Vec<(&'static str, Problem)> {
        let no_chat = "has no effect: no row is a conversation, which the chat template renders";
        let no_turns =
            "has no effect: no row is a conversation (`messages`) whose turns are trained on";
        let has_prompts = !matches!(expects, RowKind::Text);
        let keys = [
            (".format.system", format.system.is_some() && !self.chat),
            (
                ".format.chat_template_kwargs",
                !format.chat_template_kwargs.is_empty() && !self.chat,
            ),
        ];
        let of_chat = keys.into_iter().filter(|(_, idle)| *idle).map(|(key, _)| {
            let problem = Problem::new("", no_chat);
            let help = "`chat: true` renders text prompts as a user's message";
            match has_prompts {
                true => (key, problem.with_help(help)),
                false => (key, problem),
            }
        });
        let idle_turns = format.assistant_turns != AssistantTurns::All && !self.turns;
        let of_turns = idle_turns.then(|| (".format.assistant_turns", Problem::new("", no_turns)));
        of_chat.chain(of_turns).collect()
    }

    /// What is wrong with the column to shorten; `first` is a row of the data set.
    pub(super) fn problem(self, format: &RowFormat, first: &Row) -> Option<Problem> {
        let column = format.shorten.as_ref().filter(|_| !self.shortened)?;
        let message = format!(
            "names the column `{column}`, which is text in no row; the rows have {}",
            column_names(&first.columns)
        );
        let problem = Problem::new("", message);
        let near = did_you_mean(column, first.columns.keys().map(String::as_str));
        Some(match near {
            Some(near) => problem.with_help(near),
            None => problem,
        })
    }
}

/// Whether a key is given that applies to conversations alone.
fn needs_chat(format: &RowFormat) -> bool {
    format.system.is_some()
        || !format.chat_template_kwargs.is_empty()
        || format.assistant_turns != AssistantTurns::All
}

/// Whether a row is a conversation, and whether the assistant's turns in it are trained on.
fn conversation(parser: &RowParser<'_>, row: &Row, expects: RowKind) -> Result<(bool, bool)> {
    let is_chat = |content: &Content| matches!(content, Content::Messages(_));
    let text = || -> Result<(bool, bool)> { Ok((is_chat(&parser.text(row)?), false)) };
    let completion = || -> Result<(bool, bool)> {
        Ok(match parser.completion(row)? {
            CompletionRow::Text { .. } => (false, false),
            CompletionRow::Messages { .. } => (true, false),
            CompletionRow::Conversation(_) => (true, true),
        })
    };
    let preference =
        || -> Result<(bool, bool)> { Ok((is_chat(&parser.preference(row)?.prompt), false)) };
    match expects {
        RowKind::Text => text(),
        RowKind::TextOrCompletion if is_plain_text(row) => text(),
        RowKind::Completion | RowKind::TextOrCompletion | RowKind::Rated => completion(),
        RowKind::Preference | RowKind::Responses => preference(),
        RowKind::Labelled => completion().or_else(|_| preference()),
        RowKind::Prompt => Ok((is_chat(&parser.prompt(row)?), false)),
        RowKind::Scored => Ok((false, false)),
    }
}
