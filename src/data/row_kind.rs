//! Kinds of rows, by what stages need of them.

/// Kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// `text` or `messages`.
    Text,
    /// `prompt` and `completion`, or `messages`.
    Completion,
    /// `Text` or `Completion`, trained on as a whole.
    TextOrCompletion,
    /// `chosen` and `rejected`, with or without `prompt`; or rows of a `Rank` stage.
    Preference,
    /// Several responses to a prompt, whatever is known of them: rows of scored responses, or preferences.
    Responses,
    /// `prompt`, `completion` and `label`, or `messages` and `label`; or `chosen` and `rejected`, each a labelled response.
    Labelled,
    /// `prompt` or `messages`.
    Prompt,
    /// Several responses to a prompt with a score each, as stages write them.
    Scored,
    /// `prompt`, `completion` and `rating`; or rows of a stage with scored responses.
    Rated,
}

impl RowKind {
    /// Whether rows of kind `given` can be used as this kind.
    pub fn takes(self, given: Self) -> bool {
        let of_scored = !matches!(self, Self::Text | Self::Prompt | Self::Scored);
        self == given
            || (given == Self::Scored && of_scored)
            || (given == Self::Completion && self == Self::TextOrCompletion)
            || (given == Self::Preference && matches!(self, Self::Responses | Self::Labelled))
    }

    /// The columns that it needs, for messages.
    pub fn columns(self) -> &'static str {
        match self {
            Self::Text => "`text` or `messages`",
            Self::Completion => "`prompt` and `completion`, or `messages`",
            Self::TextOrCompletion => "`text`, `prompt` and `completion`, or `messages`",
            Self::Preference => "`chosen` and `rejected`",
            Self::Responses => "`responses` to a prompt, or `chosen` and `rejected`",
            Self::Labelled => "`prompt`, `completion` and `label`, or `chosen` and `rejected`",
            Self::Prompt => "`prompt` or `messages`",
            Self::Scored => "`prompt_ids`, `response_ids` and `scores`",
            Self::Rated => "`prompt`, `completion` and `rating`",
        }
    }

    /// Whether the format's template of this name is used.
    pub(super) fn uses(self, template: &str) -> bool {
        match self {
            Self::Text => template == "text",
            Self::Completion => matches!(template, "prompt" | "completion"),
            Self::TextOrCompletion => matches!(template, "text" | "prompt" | "completion"),
            Self::Preference | Self::Responses => matches!(
                template,
                "prompt" | "chosen" | "rejected" | "chosen_probability"
            ),
            Self::Rated => matches!(template, "prompt" | "completion" | "rating"),
            Self::Labelled => template != "text",
            Self::Prompt => template == "prompt",
            Self::Scored => false,
        }
    }
}
