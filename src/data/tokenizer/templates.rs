//! Finds a tokenizer's chat templates and selects among them.
//!
//! # Source
//! transformers 5.23: `PreTrainedTokenizerBase._from_pretrained` and `get_chat_template`; for `chat_template.json`
//! `ProcessorMixin`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::files::{Files, TOKENIZER_CONFIG};
use crate::data::chat::ChatTemplate;
use crate::error::{Error, Result};

/// Template files beside `tokenizer_config.json`.
pub(super) const FILES: [&str; 2] = ["chat_template.jinja", "chat_template.json"];
/// Folder of further templates, files `<name>.jinja`.
pub const FOLDER: &str = "additional_chat_templates";

/// The default template.
const DEFAULT: &str = "default";
/// The template for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// A template and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) source: String,
    path: PathBuf,
}

/// Whether a file is a template file.
pub(super) fn is_template(name: &str) -> bool {
    FILES.contains(&name) || name.starts_with(FOLDER)
}

/// File name for a named template.
pub(super) fn file_name(template: &str) -> String {
    match template {
        DEFAULT => FILES[0].to_owned(),
        name => format!("{FOLDER}/{name}.jinja"),
    }
}

/// All templates by name: those of `chat_template.jinja` and of the folder beside it; or else that of `tokenizer_config.json` (one,
/// or a list of named ones); or else that of `chat_template.json`.
///
/// # Errors
/// If a file has another form.
pub(super) fn find(files: &Files) -> Result<BTreeMap<String, Template>> {
    let mut found = BTreeMap::new();
    let template = |source: &str, file: &str| Template {
        source: source.to_owned(),
        path: files.path(file),
    };
    if let Some(source) = files.text(FILES[0])? {
        found.insert(DEFAULT.to_owned(), template(&source, FILES[0]));
    }
    for file in files.names().filter(|name| name.starts_with(FOLDER)) {
        if let (Some(name), Some(source)) = (
            file[FOLDER.len()..]
                .trim_start_matches('/')
                .strip_suffix(".jinja"),
            files.text(file)?,
        ) {
            found.insert(name.to_owned(), template(&source, file));
        }
    }
    for file in [TOKENIZER_CONFIG, FILES[1]] {
        if found.is_empty() {
            let value = files.object(file)?.shift_remove("chat_template");
            let named = named(&value.unwrap_or_default()).ok_or_else(|| {
                Error::format(
                    files.path(file),
                    "`chat_template`: expected a template, or a list of templates each with `name` and `template`",
                )
            })?;
            let named = named.into_iter();
            found.extend(named.map(|(name, source)| (name, template(&source, file))));
        }
    }
    Ok(found)
}

/// The templates of a configuration's `chat_template`; `None` if it is something else.
fn named(value: &Value) -> Option<Vec<(String, String)>> {
    let pair = |name: &str, source: &Value| Some((name.to_owned(), source.as_str()?.to_owned()));
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(source) => Some(vec![(DEFAULT.to_owned(), source.clone())]),
        Value::Object(named) => named
            .iter()
            .map(|(name, source)| pair(name, source))
            .collect(),
        Value::Array(named) => named
            .iter()
            .map(|entry| pair(entry.get("name")?.as_str()?, entry.get("template")?))
            .collect(),
        _ => None,
    }
}

/// Compiles the templates: `tool_use` for conversations with tools, `default` for all others. As in transformers, a missing
/// `default` is an error only when it is needed.
///
/// # Errors
/// If a template is missing or does not parse.
pub(super) fn compile(
    files: &Files,
    specials: BTreeMap<String, String>,
) -> Result<Option<ChatTemplate>> {
    let found = find(files)?;
    let Some(first) = found.values().next() else {
        return Ok(None);
    };
    let chat = match found.get(DEFAULT) {
        Some(template) => ChatTemplate::new(&template.source, specials, &template.path)?,
        None => {
            let names: Vec<String> = found.keys().map(|name| format!("`{name}`")).collect();
            let message = format!(
                "of several chat templates none is named `default`; there are {}",
                names.join(", ")
            );
            let source = format!("{{{{ raise_exception({}) }}}}", Value::from(message));
            ChatTemplate::new(&source, specials, &first.path)?
        }
    };
    match found.get(TOOL_USE) {
        Some(template) => chat.with_tool_template(&template.source, &template.path),
        None => Ok(chat),
    }
    .map(Some)
}
