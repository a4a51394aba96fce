//! Parses rows by TRL's row types: text or messages, prompt with completion, preference, prompt.

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

use crate::data::complaints::{
    advice_on_messages, columns_of, message_problem, missing, template_error,
};
use crate::data::jinja;
use crate::data::rows::{Row, json_kind};
use crate::data::{ChatOptions, RowFormat, Tokenizer};
use crate::error::{Error, Result};

/// Start of an assistant's turn in dialogues in the style of hh-rlhf.
const HANDOVER: &str = "\n\nAssistant:";

/// One side of a row: plain text, or the messages of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// Plain text.
    Text(String),
    /// `{"role": .., "content": ..}` objects.
    Messages(Vec<Value>),
}

/// A row with a completion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CompletionRow {
    /// Plain texts.
    Text { prompt: String, completion: String },
    /// Lists of messages.
    Messages {
        prompt: Vec<Value>,
        completion: Vec<Value>,
    },
    /// One conversation, whose assistant turns are trained on.
    Conversation(Vec<Value>),
}

/// A pair of responses to one prompt; all three are of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PreferenceRow {
    pub(crate) prompt: Content,
    pub(crate) chosen: Content,
    pub(crate) rejected: Content,
}

/// A [`RowFormat`] with its templates compiled.
pub(crate) struct RowParser<'a> {
    format: &'a RowFormat,
    /// Column name and its template.
    templates: Vec<(&'static str, Environment<'static>)>,
}

impl<'a> RowParser<'a> {
    /// Compiles the templates.
    ///
    /// # Errors
    /// If one does not parse.
    pub(crate) fn new(format: &'a RowFormat) -> Result<Self> {
        let mut templates = Vec::new();
        for (name, source) in format.templates() {
            let Some(source) = source else { continue };
            // A missing column is an error, not an empty text.
            let mut env = jinja::environment(UndefinedBehavior::Strict, None);
            env.set_keep_trailing_newline(true);
            jinja::compile(&mut env, source)
                .map_err(|e| Error::Usage(format!("format.{name}: {}", jinja::explain(&e))))?;
            templates.push((name, env));
        }
        Ok(Self { format, templates })
    }

    /// The format.
    pub(crate) fn format(&self) -> &RowFormat {
        self.format
    }

    /// Each template: its key below the data set, its name, and the columns that it names.
    pub(crate) fn templates(&self) -> Vec<(&'static str, &'static str, Vec<String>)> {
        let key = |name| match name {
            "text" => ".format.text",
            "prompt" => ".format.prompt",
            "completion" => ".format.completion",
            "chosen" => ".format.chosen",
            "chosen_probability" => ".format.chosen_probability",
            "rating" => ".format.rating",
            _ => ".format.rejected",
        };
        (self.templates.iter())
            .map(|(name, env)| (key(*name), *name, columns_of(env)))
            .collect()
    }

    /// The row with a column for each template.
    ///
    /// # Errors
    /// If a template cannot be rendered.
    pub(crate) fn rendered(&self, mut row: Row) -> Result<Row> {
        let mut columns = Vec::new();
        for (name, _) in &self.templates {
            if let Some(Content::Text(text)) = self.content(&row, name)? {
                columns.push(((*name).to_owned(), Value::String(text)));
            }
        }
        row.columns.extend(columns);
        Ok(row)
    }

    /// Text or conversation of a language-modelling row.
    pub(crate) fn text(&self, row: &Row) -> Result<Content> {
        if let Some(content) = self.content(row, "text")? {
            return Ok(content);
        }
        match self.content(row, "messages")? {
            Some(content) => Ok(self.with_system(content)),
            None => Err(missing(row, &["text", "messages"], "`text` or `messages`")),
        }
    }

    /// Prompt and completion, or a conversation.
    pub(crate) fn completion(&self, row: &Row) -> Result<CompletionRow> {
        let Some(completion) = self.content(row, "completion")? else {
            let names = ["prompt", "completion", "messages"];
            return match self.content(row, "messages")? {
                Some(content) => Ok(CompletionRow::Conversation(
                    self.put_system(into_messages(content, "user")),
                )),
                None if row.columns.contains_key("text") => Err(missing(
                    row,
                    &names,
                    "`prompt` and `completion`, or `messages` (a row with `text` alone has no completion: use a Pretrain stage)",
                )),
                None => Err(missing(
                    row,
                    &names,
                    "`prompt` and `completion`, or `messages`",
                )),
            };
        };
        let prompt = self
            .content(row, "prompt")?
            .ok_or_else(|| missing(row, &["prompt"], "`prompt` beside `completion`"))?;
        Ok(match (prompt, completion) {
            (Content::Text(prompt), Content::Text(completion)) if !self.format.chat => {
                CompletionRow::Text { prompt, completion }
            }
            (prompt, completion) => CompletionRow::Messages {
                prompt: self.put_system(into_messages(prompt, "user")),
                completion: into_messages(completion, "assistant"),
            },
        })
    }

    /// Prompt and the two responses. Without a column `prompt`, the prompt is the common beginning of both.
    pub(crate) fn preference(&self, row: &Row) -> Result<PreferenceRow> {
        let expected = "`chosen` and `rejected`";
        let names = ["chosen", "rejected"];
        let chosen = self
            .content(row, "chosen")?
            .ok_or_else(|| missing(row, &names, expected))?;
        let rejected = self
            .content(row, "rejected")?
            .ok_or_else(|| missing(row, &names, expected))?;
        let prompt = self.content(row, "prompt")?;
        let parts = match (prompt, chosen, rejected) {
            // UltraFeedback has the prompt's text beside whole conversations; a conversation that starts with a user's turn
            // includes the prompt.
            (
                None | Some(Content::Text(_)),
                Content::Messages(chosen),
                Content::Messages(rejected),
            ) if starts_with_prompt(&chosen) && starts_with_prompt(&rejected) => {
                split_messages(row, chosen, rejected)?
            }
            (None, Content::Text(chosen), Content::Text(rejected)) => {
                let at = shared_prompt_len(&chosen, &rejected);
                PreferenceRow {
                    prompt: Content::Text(chosen[..at].to_owned()),
                    chosen: Content::Text(chosen[at..].to_owned()),
                    rejected: Content::Text(rejected[at..].to_owned()),
                }
            }
            (Some(prompt), chosen, rejected) => PreferenceRow {
                prompt,
                chosen,
                rejected,
            },
            (None, _, _) => {
                return Err(row.error(
                    "expected a column `prompt`, or its text or messages at the start of both `chosen` and `rejected`",
                ));
            }
        };
        let plain = [&parts.prompt, &parts.chosen, &parts.rejected]
            .iter()
            .all(|part| matches!(part, Content::Text(_)));
        if plain && !self.format.chat {
            return Ok(parts);
        }
        let prompt = into_messages(parts.prompt, "user");
        Ok(PreferenceRow {
            prompt: Content::Messages(self.put_system(prompt)),
            chosen: Content::Messages(into_messages(parts.chosen, "assistant")),
            rejected: Content::Messages(into_messages(parts.rejected, "assistant")),
        })
    }

    /// The prompt of a row; of a conversation, all messages before the assistant's last turns.
    pub(crate) fn prompt(&self, row: &Row) -> Result<Content> {
        if let Some(content) = self.content(row, "prompt")? {
            return Ok(match content {
                Content::Text(text) if !self.format.chat => Content::Text(text),
                content => Content::Messages(self.put_system(into_messages(content, "user"))),
            });
        }
        match self.content(row, "messages")? {
            Some(Content::Messages(mut messages)) => {
                while messages.last().is_some_and(|m| role(m) == "assistant") {
                    messages.pop();
                }
                if messages.is_empty() {
                    return Err(row.error("`messages` has assistant turns only"));
                }
                Ok(Content::Messages(self.put_system(messages)))
            }
            _ => {
                let names = ["prompt", "messages"];
                Err(missing(row, &names, "`prompt` or `messages`"))
            }
        }
    }

    /// A number, by its template if the format has one; `None` if the row has none.
    ///
    /// # Errors
    /// If the column is no number, or the template gives none that is finite.
    pub(crate) fn number(&self, row: &Row, name: &'static str) -> Result<Option<f64>> {
        if self.templates.iter().any(|(column, _)| *column == name) {
            let Some(Content::Text(text)) = self.content(row, name)? else {
                return Ok(None);
            };
            let text = text.trim();
            let number = text.parse().ok().filter(|number: &f64| number.is_finite());
            return number.map(Some).ok_or_else(|| {
                row.error(format!(
                    "`format.{name}`: expected a finite number, found `{}`",
                    text.escape_debug()
                ))
            });
        }
        match row.columns.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(other) => Err(row.error(format!(
                "column `{name}`: expected a number, found {}",
                json_kind(other)
            ))),
        }
    }

    /// A column, by its template if the format has one.
    fn content(&self, row: &Row, name: &'static str) -> Result<Option<Content>> {
        if let Some((_, env)) = self.templates.iter().find(|(column, _)| *column == name) {
            let text = jinja::render(env, jinja::from_json(&Value::Object(row.columns.clone())))
                .map_err(|e| template_error(row, name, env, &e))?;
            return Ok(Some(Content::Text(text)));
        }
        match row.columns.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if name != "messages" => {
                Ok(Some(Content::Text(text.clone())))
            }
            Some(Value::Array(messages)) => {
                if messages.is_empty() {
                    return Err(
                        row.error(format!("column `{name}`: the list of messages is empty"))
                    );
                }
                for (i, message) in messages.iter().enumerate() {
                    if let Some(problem) = message_problem(message) {
                        return Err(row.error(format!(
                            "column `{name}`: expected messages with `role` and `content`, found {problem} at position {}{}",
                            i + 1,
                            advice_on_messages(message)
                        )));
                    }
                }
                Ok(Some(Content::Messages(messages.clone())))
            }
            Some(other) => {
                let expected = match name {
                    "messages" => "a list of messages",
                    _ => "a string or a list of messages",
                };
                let advice = match other {
                    Value::String(text) if text.trim_start().starts_with('[') => {
                        " (it holds a list as text: store the list itself)".to_owned()
                    }
                    Value::Object(inner) => match inner.keys().next() {
                        Some(key) if name != "messages" => {
                            format!(
                                "; name one of its texts in `format: ({name}: \"{{{{ {name}.{key} }}}}\")`"
                            )
                        }
                        _ => String::new(),
                    },
                    _ => String::new(),
                };
                Err(row.error(format!(
                    "column `{name}`: expected {expected}, found {}{advice}",
                    json_kind(other)
                )))
            }
        }
    }

    fn with_system(&self, content: Content) -> Content {
        match content {
            Content::Messages(messages) => Content::Messages(self.put_system(messages)),
            text => text,
        }
    }

    /// Prepends the format's system message, unless the conversation has one.
    fn put_system(&self, mut messages: Vec<Value>) -> Vec<Value> {
        if let Some(system) = &self.format.system
            && messages.first().is_none_or(|first| role(first) != "system")
        {
            messages.insert(0, json!({"role": "system", "content": system}));
        }
        messages
    }
}

/// Inputs for rendering a row's conversation: the columns `tools` (a list, or JSON in a string) and `chat_template_kwargs`, which
/// overrides the format's.
///
/// # Errors
/// If a column has another type.
pub(crate) fn chat_options(row: &Row, format: &RowFormat) -> Result<ChatOptions> {
    let mut variables: Map<String, Value> =
        format.chat_template_kwargs.clone().into_iter().collect();
    match row.columns.get("chat_template_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(own)) => variables.extend(own.clone()),
        Some(other) => {
            return Err(row.error(format!(
                "column `chat_template_kwargs`: expected an object, found {}",
                json_kind(other)
            )));
        }
    }
    let tools = match row.columns.get("tools") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(serde_json::from_str(text).map_err(|e| {
            row.error(format!(
                "column `tools`: expected a list, or one as JSON: {e}"
            ))
        })?),
        Some(tools) => Some(tools.clone()),
    };
    Ok(ChatOptions {
        tools,
        variables,
        ..ChatOptions::default()
    })
}

/// Renders a prompt to text; a conversation gets the generation prompt.
pub(crate) fn prompt_text(
    row: &Row,
    prompt: &Content,
    tokenizer: &Tokenizer,
    format: &RowFormat,
) -> Result<String> {
    match prompt {
        Content::Text(text) => Ok(text.clone()),
        Content::Messages(messages) => {
            let options = chat_options(row, format)?.with_generation_prompt(true);
            tokenizer.chat()?.render(messages, &options)
        }
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or("")
}

fn starts_with_prompt(messages: &[Value]) -> bool {
    messages
        .first()
        .is_some_and(|first| role(first) != "assistant")
}

fn into_messages(content: Content, role: &str) -> Vec<Value> {
    match content {
        Content::Text(text) => vec![json!({"role": role, "content": text})],
        Content::Messages(messages) => messages,
    }
}

/// Splits two conversations after their common first messages.
fn split_messages(row: &Row, chosen: Vec<Value>, rejected: Vec<Value>) -> Result<PreferenceRow> {
    let mut shared = chosen
        .iter()
        .zip(&rejected)
        .take_while(|(a, b)| a == b)
        .count();
    // Even if one conversation is a prefix of the other, its last message is the response.
    shared = shared.min(chosen.len() - 1).min(rejected.len() - 1);
    if shared == 0 {
        return Err(row.error(
            "`chosen` and `rejected` have no first message in common: expected the same prompt in both, or a column `prompt`",
        ));
    }
    Ok(PreferenceRow {
        prompt: Content::Messages(chosen[..shared].to_vec()),
        chosen: Content::Messages(chosen[shared..].to_vec()),
        rejected: Content::Messages(rejected[shared..].to_vec()),
    })
}

/// Length in bytes of the common prompt of two texts.
///
/// Dialogues are split after the last common `"\n\nAssistant:"`, other texts after the last common word: a word that differs only
/// at its end belongs to the responses, as does the space before it.
pub(crate) fn shared_prompt_len(chosen: &str, rejected: &str) -> usize {
    let shared: usize = chosen
        .chars()
        .zip(rejected.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    let prefix = &chosen[..shared];
    if let Some(at) = prefix.rfind(HANDOVER) {
        return at + HANDOVER.len();
    }
    let ends_word = |rest: &str| rest.chars().next().is_none_or(char::is_whitespace);
    if ends_word(&chosen[shared..]) && ends_word(&rejected[shared..]) {
        return shared;
    }
    match prefix.char_indices().rfind(|(_, c)| c.is_whitespace()) {
        Some((at, ' ')) => at,
        Some((at, c)) => at + c.len_utf8(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Value) -> Row {
        let Value::Object(columns) = value else {
            panic!("a row is an object")
        };
        Row {
            columns,
            path: "rows.jsonl".into(),
            line: 3,
        }
    }

    fn text(text: &str) -> Content {
        Content::Text(text.into())
    }

    #[test]
    fn templates_see_the_columns_and_keep_every_character() {
        let format = RowFormat {
            prompt: Some("{{ prompt[:4] }}\n\nTL;DR:\n".into()),
            ..RowFormat::default()
        };
        let reader = RowParser::new(&format).unwrap();
        let prompt = reader
            .prompt(&row(json!({"prompt": "d\u{e9}j\u{e0} <vu>"})))
            .unwrap();
        assert_eq!(prompt, text("d\u{e9}j\u{e0}\n\nTL;DR:\n"));
        let error = reader.prompt(&row(json!({"post": "x"}))).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("rows.jsonl:3: format.prompt names `prompt`, which the row lacks; it has the columns `post`"),
            "{error}"
        );
        let format = RowFormat {
            text: Some("{{ text".into()),
            ..RowFormat::default()
        };
        let error = RowParser::new(&format).err().unwrap().to_string();
        assert!(error.starts_with("format.text: syntax error"), "{error}");
    }

    #[test]
    fn strings_become_messages_under_chat() {
        let format = RowFormat {
            chat: true,
            system: Some("be brief".into()),
            ..RowFormat::default()
        };
        let got = RowParser::new(&format)
            .unwrap()
            .completion(&row(json!({"prompt": "p", "completion": "c"})))
            .unwrap();
        let expected = CompletionRow::Messages {
            prompt: vec![
                json!({"role": "system", "content": "be brief"}),
                json!({"role": "user", "content": "p"}),
            ],
            completion: vec![json!({"role": "assistant", "content": "c"})],
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn implicit_prompts_are_what_both_texts_begin_with() {
        let split = |chosen: &str, rejected: &str| {
            let at = shared_prompt_len(chosen, rejected);
            (
                chosen[..at].to_owned(),
                chosen[at..].to_owned(),
                rejected[at..].to_owned(),
            )
        };
        let parts = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            split("The sky is blue.", "The sky is black."),
            parts("The sky is", " blue.", " black.")
        );
        assert_eq!(
            split("The sky is blue", "The sky is"),
            parts("The sky is", " blue", "")
        );
        assert_eq!(split("Q: x\nyes", "Q: x\nno"), parts("Q: x\n", "yes", "no"));
        assert_eq!(split("yes", "no"), parts("", "yes", "no"));
        // The first words of the two answers are the same: they still belong to the answers.
        let prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:";
        assert_eq!(
            split(
                &format!("{prompt} I am sure"),
                &format!("{prompt} I am not")
            ),
            parts(prompt, " I am sure", " I am not")
        );
        // The dialogues part before the last turn of one of them.
        assert_eq!(
            split(
                "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "\n\nHuman: a\n\nAssistant: e"
            ),
            parts(
                "\n\nHuman: a\n\nAssistant:",
                " b\n\nHuman: c\n\nAssistant: d",
                " e"
            )
        );
    }

    #[test]
    fn implicit_prompts_are_the_messages_in_common() {
        let user = json!({"role": "user", "content": "p"});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        let format = RowFormat::default();
        let reader = RowParser::new(&format).unwrap();
        let got = reader
            .preference(&row(
                json!({"prompt": "p", "chosen": [user, says("c")], "rejected": [user, says("r")]}),
            ))
            .unwrap();
        assert_eq!(got.prompt, Content::Messages(vec![user.clone()]));
        assert_eq!(got.chosen, Content::Messages(vec![says("c")]));
        // An explicit prompt beside responses that are messages.
        let got = reader
            .preference(&row(
                json!({"prompt": [user], "chosen": [says("c")], "rejected": [says("r")]}),
            ))
            .unwrap();
        assert_eq!(got.prompt, Content::Messages(vec![user.clone()]));
        assert_eq!(got.rejected, Content::Messages(vec![says("r")]));
        let error = reader.preference(&row(
            json!({"chosen": [user, says("c")], "rejected": [says("p"), says("r")]}),
        ));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("expected a column `prompt`")
        );
    }

    #[test]
    fn the_prompt_of_a_conversation_is_all_before_the_answer() {
        let messages =
            json!([{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]);
        let format = RowFormat::default();
        let reader = RowParser::new(&format).unwrap();
        let got = reader.prompt(&row(json!({"messages": messages}))).unwrap();
        assert_eq!(
            got,
            Content::Messages(vec![json!({"role": "user", "content": "p"})])
        );
    }

    #[test]
    fn wrong_columns_are_named() {
        let format = RowFormat::default();
        let reader = RowParser::new(&format).unwrap();
        let say = |value| reader.completion(&row(value)).unwrap_err().to_string();
        assert_eq!(
            say(json!({"prompt": "p", "label": 1})),
            "rows.jsonl:3: expected `prompt` and `completion`, or `messages`; the row has the columns `prompt`, `label`"
        );
        assert_eq!(
            say(json!({"prompt": 5, "completion": "c"})),
            "rows.jsonl:3: column `prompt`: expected a string or a list of messages, found a number"
        );
        assert_eq!(
            say(json!({"messages": [{"from": "human"}]})),
            "rows.jsonl:3: column `messages`: expected messages with `role` and `content`, found an object without a role at position 1"
        );
        assert_eq!(
            say(json!({"prompt": "p", "completion": null})),
            "rows.jsonl:3: column `completion` is null; expected `prompt` and `completion`, or `messages`"
        );
        assert_eq!(
            say(json!({"prompt": {"text": "p"}, "completion": "c"})),
            "rows.jsonl:3: column `prompt`: expected a string or a list of messages, found an object; name one of its texts in `format: (prompt: \"{{ prompt.text }}\")`"
        );
        let messages = |message: Value| {
            let text = say(json!({"messages": [{"role": "user", "content": "p"}, message]}));
            text.split_once("found ").unwrap().1.to_owned()
        };
        for (message, expected) in [
            (
                json!({"role": 1, "content": "c"}),
                "a `role` that is a number at position 2",
            ),
            (
                json!({"role": "assistant"}),
                "an object without content at position 2",
            ),
            (
                json!({"role": "user", "content": null}),
                "a `content` that is null at position 2",
            ),
            (
                json!({"role": "assistant", "content": 5}),
                "a `content` that is a number at position 2",
            ),
            (json!("hello"), "a string without a role at position 2"),
            (
                json!({"from": "gpt", "value": "c"}),
                "an object without a role at position 2; it looks like ShareGPT's: name its keys `role` (user, assistant) and `content`",
            ),
        ] {
            assert_eq!(messages(message), expected);
        }
        let calls = json!({"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]});
        let sound =
            row(json!({"messages": [{"role": "user", "content": [{"type": "text"}]}, calls]}));
        assert!(reader.completion(&sound).is_ok());
        let odd = say(json!({"id": 1, "body": "b"}));
        let advice = "the row has the columns `id`, `body`; name its columns in templates, as in `format: (prompt: \"{{ body }}\")`. Layouts that are recognised: ShareGPT's (`conversations` (`from`, `value`)), ";
        assert!(odd.contains(advice), "{odd}");
        for (columns, expected) in [
            (
                json!({"messages": "[{\"role\": \"user\"}]"}),
                "column `messages`: expected a list of messages, found a string (it holds a list as text: store the list itself)",
            ),
            (
                json!({"messages": []}),
                "column `messages`: the list of messages is empty",
            ),
            (
                json!({"question": "q", "answer": "a"}),
                "expected `prompt` and `completion`, or `messages`; the row has the columns `question`, `answer`; other columns are named by `format: (prompt: \"{{ question }}\", completion: \"{{ answer }}\")`",
            ),
            (
                json!({"promt": "p", "Completion": "c"}),
                "expected `prompt` and `completion`, or `messages`; the row has the columns `promt`, `Completion`; did you mean `prompt` by `promt` and `completion` by `Completion`?",
            ),
        ] {
            assert_eq!(say(columns), format!("rows.jsonl:3: {expected}"));
        }
    }

    #[test]
    fn tools_and_variables_come_from_the_row_and_the_format() {
        let mut format = RowFormat::default();
        for (name, value) in [
            ("enable_thinking", json!(false)),
            ("date_string", json!("1 May")),
        ] {
            format.chat_template_kwargs.insert(name.into(), value);
        }
        let own = row(
            json!({"tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"enable_thinking": true}}),
        );
        let options = chat_options(&own, &format).unwrap();
        assert_eq!(options.tools, Some(json!([{"name": "f"}])));
        assert_eq!(
            Value::Object(options.variables),
            json!({"date_string": "1 May", "enable_thinking": true})
        );
        let bare = chat_options(&row(json!({"tools": null})), &RowFormat::default()).unwrap();
        assert_eq!(bare, ChatOptions::default());
        for (bad, expected) in [
            (json!({"tools": "f"}), "column `tools`"),
            (json!({"chat_template_kwargs": [1]}), "found an array"),
        ] {
            let error = chat_options(&row(bad), &format).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
