//! What was said so far, and its file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::outside;

/// One message, as chat templates take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    role: String,
    content: String,
}

impl Message {
    fn of(role: &str, content: &str) -> Self {
        Self {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    /// What the user says.
    pub(super) fn user(text: &str) -> Self {
        Self::of("user", text)
    }

    /// What the model answers.
    pub(super) fn assistant(text: &str) -> Self {
        Self::of("assistant", text)
    }
}

/// Messages of one speaker and the user, by turns, and the system message before them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Conversation {
    system: Option<String>,
    messages: Vec<Message>,
}

impl Conversation {
    /// All messages but the system's.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Sets the system message; an empty text removes it.
    pub(super) fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    /// Adds a message.
    pub(super) fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Forgets all but the system message.
    pub(super) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Whether the last message is an answer.
    pub(super) fn has_answer(&self) -> bool {
        self.messages
            .last()
            .is_some_and(|last| last.role == "assistant")
    }

    /// Takes back the last answer. Returns whether there was one.
    pub(super) fn drop_answer(&mut self) -> bool {
        let had = self.has_answer();
        if had {
            self.messages.pop();
        }
        had
    }

    /// Takes back the last message if the user said it.
    pub(super) fn drop_question(&mut self) {
        if self.messages.last().is_some_and(|last| last.role == "user") {
            self.messages.pop();
        }
    }

    /// Takes back the last message of the user and its answer. Returns whether there was one.
    pub(super) fn undo(&mut self) -> bool {
        let before = self.messages.len();
        self.drop_answer();
        self.drop_question();
        self.messages.len() < before
    }

    /// The conversation up to its last question as a template takes it, without the first `dropped` exchanges.
    pub(super) fn asked(&self, dropped: usize) -> Vec<Value> {
        let answer = usize::from(self.has_answer());
        let messages = &self.messages[..self.messages.len() - answer];
        let starts = messages
            .iter()
            .enumerate()
            .filter(|(_, m)| m.role == "user");
        let first = starts.map(|(at, _)| at).nth(dropped).unwrap_or(0);
        let system = self.system.iter().map(|text| Message::of("system", text));
        let messages = system.chain(messages[first..].iter().cloned());
        messages.map(|message| json!(message)).collect()
    }

    /// Questions so far.
    pub(super) fn questions(&self) -> usize {
        self.messages.iter().filter(|m| m.role == "user").count()
    }

    fn row(&self, model: &str) -> Value {
        let system = self.system.iter().map(|text| Message::of("system", text));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        json!({"messages": messages, "model": model})
    }
}

/// Writes conversations as rows of training data, one for each speaker.
///
/// # Errors
/// `Error::Io`.
pub(super) fn save(path: &Path, conversations: &[(&str, &Conversation)]) -> Result<()> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let rows = conversations.iter();
    let text: String = rows
        .map(|(name, talk)| format!("{}\n", talk.row(name)))
        .collect();
    write_atomic(path, text.as_bytes())
}

/// Reads the conversations of `speakers` speakers; those that the file lacks continue the first one.
///
/// # Errors
/// `Error::Io`; `Error::Data` for a line that is not a conversation.
pub(super) fn load(path: &Path, speakers: usize) -> Result<Vec<Conversation>> {
    #[derive(Deserialize)]
    struct Row {
        messages: Vec<Message>,
    }
    let text = outside::read_text(path, outside::TABLES)?;
    let mut conversations = Vec::new();
    for (at, line) in text.lines().enumerate().take(speakers) {
        let row: Row = serde_json::from_str(line).map_err(|error| Error::Data {
            path: path.to_path_buf(),
            line: at + 1,
            message: format!(
                "expected a conversation, {{\"messages\": [{{\"role\": .., \"content\": ..}}]}}: {error}"
            ),
        })?;
        let mut messages = row.messages;
        let system = match messages.first().is_some_and(|first| first.role == "system") {
            true => Some(messages.remove(0).content),
            false => None,
        };
        conversations.push(Conversation { system, messages });
    }
    let first = conversations.first().cloned().unwrap_or_default();
    conversations.resize(speakers, first);
    Ok(conversations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Conversation {
        let mut talk = Conversation::default();
        talk.set_system("be brief");
        for (question, answer) in [("one", "1"), ("two", "2")] {
            talk.push(Message::user(question));
            talk.push(Message::assistant(answer));
        }
        talk
    }

    fn contents(messages: &[Value]) -> Vec<&str> {
        messages
            .iter()
            .map(|m| m["content"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn turns_are_taken_back_and_left_out() {
        let mut talk = talk();
        assert_eq!(contents(&talk.asked(0)), ["be brief", "one", "1", "two"]);
        assert_eq!(contents(&talk.asked(1)), ["be brief", "two"]);
        assert_eq!(talk.questions(), 2);
        assert!(talk.drop_answer() && !talk.drop_answer());
        assert!(talk.undo() && talk.has_answer());
        talk.push(Message::user("three"));
        assert_eq!(contents(&talk.asked(0)), ["be brief", "one", "1", "three"]);
        talk.set_system("");
        assert!(talk.undo() && talk.undo() && !talk.undo());
        assert_eq!(talk, Conversation::default());
    }

    #[test]
    fn files_are_rows_of_training_data() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("new/talk.jsonl");
        let (first, second) = (talk(), Conversation::default());
        save(&file, &[("a", &first), ("b", &second)]).unwrap();
        assert_eq!(load(&file, 2).unwrap(), [first.clone(), second]);
        // A speaker who was not there goes on from what the first one has heard.
        save(&file, &[("a", &first)]).unwrap();
        assert_eq!(load(&file, 2).unwrap(), [first.clone(), first]);
        fs::write(&file, "{\"messages\": [{\"role\": 1}]}\n").unwrap();
        let error = load(&file, 1).unwrap_err().to_string();
        assert!(
            error.contains("talk.jsonl:1: expected a conversation"),
            "{error}"
        );
    }
}
