//! Chat templates: a conversation as the text that a model was taught to read, as transformers' `apply_chat_template`
//! renders it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use minijinja::{Environment, UndefinedBehavior};
use regex::Regex;
use serde_json::{Map, Value};

use crate::data::jinja::{self, TEMPLATE};
use crate::error::{Error, Result};

/// Private-use characters around what a template marks with `{% generation %}`.
const OPEN: char = '\u{f5e0}';
const CLOSE: char = '\u{f5e1}';

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    specials: BTreeMap<String, String>,
    path: PathBuf,
    /// The same template with [`OPEN`] and [`CLOSE`] around what it marks as generated, if it marks anything.
    marked: Option<Arc<Environment<'static>>>,
}

impl ChatTemplate {
    /// Compiles `source`. `specials` holds `bos_token`, `eos_token` and their like, by name; `path` is what errors name.
    ///
    /// # Errors
    /// If the template does not parse.
    pub fn new(source: &str, specials: BTreeMap<String, String>, path: &Path) -> Result<Self> {
        let compile = |source: String| -> Result<Arc<Environment<'static>>> {
            let mut env = jinja::environment(UndefinedBehavior::Lenient);
            env.set_trim_blocks(true);
            env.set_lstrip_blocks(true);
            env.add_template_owned(TEMPLATE, source)
                .map_err(|e| Error::format(path, jinja::explain(&e)))?;
            Ok(Arc::new(env))
        };
        let marks = GENERATION.is_match(source);
        Ok(Self {
            env: compile(replace_generation(source, false))?,
            marked: marks
                .then(|| compile(replace_generation(source, true)))
                .transpose()?,
            specials,
            path: path.to_path_buf(),
        })
    }

    /// Text of a conversation; `add_generation_prompt` ends it with the opening of an assistant's turn.
    ///
    /// # Errors
    /// If the template fails or refuses the conversation (`raise_exception`).
    pub fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// The same with the tool descriptions of a row's `tools` column.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_tools(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_in(&self.env, messages, tools, add_generation_prompt)
    }

    /// Text of a conversation and the byte ranges in it that the assistant wrote, each with its end-of-turn token.
    ///
    /// A template that marks them with `{% generation %}` is taken at its word. Any other is rendered on growing
    /// prefixes of the conversation: a turn starts where the text with the generation prompt ends.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and if rendering a prefix of the conversation does not give a prefix of the text:
    /// then the turns cannot be found.
    pub fn assistant_spans(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let text = self.render_with_tools(messages, tools, false)?;
        if let Some(env) = &self.marked {
            let marked = self.render_in(env, messages, tools, false)?;
            return Ok((text, self.marked_spans(&marked)?));
        }
        let mut spans = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message.get("role").and_then(Value::as_str) != Some("assistant") {
                continue;
            }
            let before = self.render_with_tools(&messages[..i], tools, true)?;
            let after = self.render_with_tools(&messages[..=i], tools, false)?;
            if !after.starts_with(&before) || !text.starts_with(&after) {
                return Err(Error::format(
                    &self.path,
                    format!(
                        "cannot tell what the assistant wrote in message {}: the template renders the conversation up to there \
                         differently from the whole one. Mark the assistant's turns in the template with {{% generation %}}, \
                         or give prompt and completion columns",
                        i + 1
                    ),
                ));
            }
            spans.push(before.len()..after.len());
        }
        Ok((text, spans))
    }

    fn render_in(
        &self,
        env: &Environment<'static>,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let mut context = Map::new();
        for (name, text) in &self.specials {
            context.insert(name.clone(), Value::String(text.clone()));
        }
        context.insert("messages".into(), Value::Array(messages.to_vec()));
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        env.get_template(TEMPLATE)
            .and_then(|template| template.render(context))
            .map_err(|e| Error::format(&self.path, jinja::explain(&e)))
    }

    /// Ranges between the marks, in the text without them.
    fn marked_spans(&self, marked: &str) -> Result<Vec<Range<usize>>> {
        let mut spans = Vec::new();
        let (mut len, mut open) = (0, None);
        for c in marked.chars() {
            match (c, open) {
                (OPEN, None) => open = Some(len),
                (CLOSE, Some(start)) => {
                    spans.push(start..len);
                    open = None;
                }
                (OPEN | CLOSE, _) => {
                    return Err(Error::format(
                        &self.path,
                        "{% generation %} blocks are nested or not closed",
                    ));
                }
                _ => len += c.len_utf8(),
            }
        }
        Ok(spans)
    }
}

/// A `{% generation %}` or `{% endgeneration %}` tag with its whitespace control.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is a literal")
});

/// Writes transformers' `{% generation %}` blocks in plain jinja: blocks that are always entered, optionally with the
/// marks printed inside.
fn replace_generation(source: &str, mark: bool) -> String {
    GENERATION
        .replace_all(source, |tag: &regex::Captures<'_>| {
            let (left, right, end) = (&tag[1], &tag[3], tag.get(2).is_some());
            match (mark, end) {
                (false, false) => format!("{{%{left} if true {right}%}}"),
                (false, true) => format!("{{%{left} endif {right}%}}"),
                // The outer tags keep the whitespace control of the original; what is printed stands between them.
                (true, false) => {
                    format!("{{%{left} if true %}}{{{{ '{OPEN}' }}}}{{% set _mark = 0 {right}%}}")
                }
                (true, true) => {
                    format!("{{%{left} set _mark = 0 %}}{{{{ '{CLOSE}' }}}}{{% endif {right}%}}")
                }
            }
        })
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing::CHATML;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        let specials = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, specials, Path::new("toy.jinja")).unwrap()
    }

    fn talk(turns: &[(&str, &str)]) -> Vec<Value> {
        turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect()
    }

    #[test]
    fn a_conversation_renders_with_and_without_the_generation_prompt() {
        let chat = template(CHATML);
        let messages = talk(&[("system", "s"), ("user", "u <b>")]);
        let text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu <b><|im_end|>\n";
        assert_eq!(chat.render(&messages, false).unwrap(), text);
        assert_eq!(
            chat.render(&messages, true).unwrap(),
            format!("{text}<|im_start|>assistant\n")
        );
    }

    #[test]
    fn specials_and_tools_are_there_and_blocks_are_trimmed() {
        let chat = template(
            "{{ bos_token }}\n  {% if tools %}\n{{ tools | tojson }}\n  {% endif %}\nend\n",
        );
        assert_eq!(chat.render(&[], false).unwrap(), "<s>\nend");
        let tools = json!([{"name": "f"}]);
        assert_eq!(
            chat.render_with_tools(&[], Some(&tools), false).unwrap(),
            "<s>\n[{\"name\": \"f\"}]\nend"
        );
    }

    #[test]
    fn a_template_may_refuse() {
        let error = template("{{ raise_exception('only users') }}")
            .render(&[], false)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("toy.jinja: ") && error.contains("only users"),
            "{error}"
        );
        let error = ChatTemplate::new("{% if %}", BTreeMap::new(), Path::new("toy.jinja"));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("toy.jinja: syntax error")
        );
    }

    #[test]
    fn spans_are_the_assistant_turns_with_their_end() {
        let messages = talk(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let (text, spans) = template(CHATML).assistant_spans(&messages, None).unwrap();
        let parts: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(parts, ["b<|im_end|>\n", "d<|im_end|>\n"]);
    }

    #[test]
    fn generation_tags_mark_the_spans_and_leave_the_text_alone() {
        let source = "{%- for m in messages %}\n{%- if m.role == 'assistant' %}\n  {%- generation %}\n{{ m.content }}</s>\n  {%- endgeneration %}\n{% else %}\n{{ '<' + m.content + '>' }}\n{%- endif %}\n{%- endfor %}";
        let plain = source
            .replace("{%- generation %}", "{%- if 1 %}")
            .replace("{%- endgeneration %}", "{%- endif %}");
        let messages = talk(&[
            ("user", "\u{e9}"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let (text, spans) = template(source).assistant_spans(&messages, None).unwrap();
        assert_eq!(text, template(&plain).render(&messages, false).unwrap());
        let parts: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(parts, ["b</s>", "d</s>"]);
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        let source = "{% for m in messages %}[{% if loop.last %}{{ m.content }}{% else %}..{% endif %}]{% endfor %}";
        let messages = talk(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let error = template(source)
            .assistant_spans(&messages, None)
            .unwrap_err();
        assert!(error.to_string().contains("message 2"), "{error}");
        assert!(error.to_string().contains("{% generation %}"), "{error}");
    }
}
