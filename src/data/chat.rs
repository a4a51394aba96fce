//! Chat templates: conversations rendered to text as transformers' `apply_chat_template` does.
//!
//! # Source
//! transformers 5.23, `utils/chat_template_utils.py` and `tokenization_utils_base.py`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use minijinja::{Environment, UndefinedBehavior};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::jinja;
use crate::error::{Error, Result};

/// Private-use characters around the text of `{% generation %}` blocks.
const OPEN: char = '\u{f5e0}';
const CLOSE: char = '\u{f5e1}';

/// Appended to the message to continue; cut off together with everything after it (transformers' own tag).
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Keys of a message's reasoning in data sets; templates read the first one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Most bytes to render for finding the assistant's turns of one conversation: for each the conversation before it.
const MAX_RENDERED: usize = 1 << 28;
/// Cost of a message beside its text.
const MESSAGE: usize = 256;

/// Which of the assistant's turns are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AssistantTurns {
    /// All.
    #[default]
    All,
    /// Only the last one, with earlier ones as context: for templates that drop earlier reasoning.
    Last,
}

/// Inputs of a template beside the messages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatOptions {
    /// Tools, a list of JSON schemas.
    pub tools: Option<Value>,
    /// Open the assistant's turn at the end.
    pub add_generation_prompt: bool,
    /// Leave the last message open, for the model to continue.
    pub continue_final_message: bool,
    /// Further variables (`enable_thinking`, `date_string`, `documents`). They override special tokens of the same name.
    pub variables: Map<String, Value>,
}

impl ChatOptions {
    /// The same with `add_generation_prompt` set.
    pub fn with_generation_prompt(&self, add_generation_prompt: bool) -> Self {
        Self {
            add_generation_prompt,
            ..self.clone()
        }
    }
}

/// A rendered conversation and the spans that the assistant wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssistantSpans {
    /// The whole text.
    pub text: String,
    /// Byte ranges of `text`, ascending.
    pub spans: Vec<Range<usize>>,
    /// Whether the template marks the spans (`{% generation %}`). Otherwise a span reaches to the end of the rendered turn, white
    /// space after the end-of-turn token included.
    pub marked: bool,
    /// By index of a span: the conversation before it rendered with the generation prompt, where that is no prefix of `text`. The
    /// span then starts where the two texts diverge.
    pub prompts: BTreeMap<usize, String>,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: Arc<str>,
    specials: BTreeMap<String, String>,
    path: PathBuf,
    /// The same template with [`OPEN`] and [`CLOSE`] around its `{% generation %}` blocks, if it has any.
    marked: Option<Arc<Environment<'static>>>,
    /// Another template for conversations with tools, if there is one.
    for_tools: Option<Box<Self>>,
}

impl ChatTemplate {
    /// Compiles `source`. `specials`: special tokens (`bos_token`, `eos_token`, ..) by name; `path`: the file for error messages.
    ///
    /// # Errors
    /// If the template does not parse.
    pub fn new(source: &str, specials: BTreeMap<String, String>, path: &Path) -> Result<Self> {
        Self::compile(source, specials, path, None)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether both are compiled from the same text.
    pub fn same_source(&self, other: &Self) -> bool {
        let tools = |template: &Self| template.for_tools.as_ref().map(|t| t.source.clone());
        self.source == other.source && tools(self) == tools(other)
    }

    /// Whether it reads tools.
    pub fn reads_tools(&self) -> bool {
        self.for_tools.is_some() || self.source.contains("tools")
    }

    /// Whether what it renders may depend on the time.
    pub(crate) fn reads_clock(&self) -> bool {
        let for_tools = self.for_tools.as_deref();
        self.source.contains("strftime_now") || for_tools.is_some_and(Self::reads_clock)
    }

    /// The same template at a fixed time: `strftime_now` returns `now`, in seconds since 1970 (UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn at(&self, now: i64) -> Result<Self> {
        let mut template =
            Self::compile(&self.source, self.specials.clone(), &self.path, Some(now))?;
        if let Some(for_tools) = &self.for_tools {
            template.for_tools = Some(Box::new(for_tools.at(now)?));
        }
        Ok(template)
    }

    /// Renders conversations with tools by `source` instead (a tokenizer's `tool_use` template); `path`: its file for error messages.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_tool_template(mut self, source: &str, path: &Path) -> Result<Self> {
        let for_tools = Self::new(source, self.specials.clone(), path)?;
        self.for_tools = Some(Box::new(for_tools));
        Ok(self)
    }

    fn template_for(&self, options: &ChatOptions) -> &Self {
        match &self.for_tools {
            Some(for_tools) if options.tools.is_some() => for_tools,
            _ => self,
        }
    }

    fn compile(
        source: &str,
        specials: BTreeMap<String, String>,
        path: &Path,
        now: Option<i64>,
    ) -> Result<Self> {
        // Jinja2 reads every line ending as a line feed.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let compile = |source: Cow<'_, str>| -> Result<Arc<Environment<'static>>> {
            let mut env = jinja::environment(UndefinedBehavior::Lenient, now);
            env.set_trim_blocks(true);
            env.set_lstrip_blocks(true);
            jinja::compile(&mut env, &source)
                .map_err(|e| Error::format(path, jinja::explain(&e)))?;
            Ok(Arc::new(env))
        };
        let marks = GENERATION.is_match(&source);
        Ok(Self {
            env: compile(replace_generation(&source, false))?,
            marked: marks
                .then(|| compile(replace_generation(&source, true)))
                .transpose()?,
            source: source.into(),
            specials,
            path: path.to_path_buf(),
            for_tools: None,
        })
    }

    /// Text of a conversation.
    ///
    /// As in transformers, keys of a message with value `null` are dropped, and reasoning is passed under all of its names.
    ///
    /// # Errors
    /// If the template fails or refuses the conversation (`raise_exception`); if a message is not an object; and where
    /// the last message cannot be continued.
    pub fn render(&self, messages: &[Value], options: &ChatOptions) -> Result<String> {
        self.template_for(options).render_own(messages, options)
    }

    fn render_own(&self, messages: &[Value], options: &ChatOptions) -> Result<String> {
        let mut messages = self.prepare(messages)?;
        if !options.continue_final_message {
            return self.render_in(&self.env, messages, options);
        }
        let last_words = self.tag_last(&mut messages, options)?;
        let text = self.render_in(&self.env, messages, options)?;
        self.cut_at_tag(text, &last_words)
    }

    /// Text of a conversation, and the spans that the assistant wrote.
    ///
    /// Spans are the template's `{% generation %}` blocks, if it has any. Otherwise growing prefixes of the conversation are
    /// rendered: a turn starts where the text with the generation prompt ends, or where it diverges from the whole text.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and if the rendered prefixes of a conversation are no prefixes of its text, so that the turns
    /// cannot be found.
    pub fn assistant_spans(
        &self,
        messages: &[Value],
        options: &ChatOptions,
        turns: AssistantTurns,
    ) -> Result<AssistantSpans> {
        self.template_for(options)
            .own_spans(messages, options, turns)
    }

    fn own_spans(
        &self,
        messages: &[Value],
        options: &ChatOptions,
        turns: AssistantTurns,
    ) -> Result<AssistantSpans> {
        let prepared = self.prepare(messages)?;
        let closed = options.with_generation_prompt(false);
        let text = self.render_in(&self.env, prepared.clone(), &closed)?;
        let mut speaking = (0..messages.len())
            .filter(|&i| messages[i].get("role").and_then(Value::as_str) == Some("assistant"))
            .collect::<Vec<usize>>();
        if turns == AssistantTurns::Last {
            speaking.drain(..speaking.len().saturating_sub(1));
        }
        if let Some(env) = &self.marked {
            let marks = |messages: &[Value]| -> Result<Vec<Range<usize>>> {
                self.marked_spans(&self.render_in(env, messages.to_vec(), &closed)?)
            };
            let mut spans = marks(&prepared)?;
            if turns == AssistantTurns::Last && speaking.first().is_some_and(|&last| last > 0) {
                let before = marks(&prepared[..speaking[0]])?;
                spans.drain(..before.len().min(spans.len()));
            }
            return Ok(AssistantSpans {
                text,
                spans,
                marked: true,
                prompts: BTreeMap::new(),
            });
        }
        let opened = options.with_generation_prompt(true);
        let refuse = |i: usize, what: &str, help: &str| {
            let message = format!(
                "cannot tell what the assistant wrote in message {}: {what}. {help} mark the assistant's turns in the \
                 template with {{% generation %}}, or give prompt and completion columns",
                i + 1
            );
            Err(Error::format(&self.path, message))
        };
        if let Some(&last) = speaking.last()
            && speaking
                .len()
                .saturating_mul(text.len() + MESSAGE * messages.len())
                > MAX_RENDERED
        {
            let what = format!(
                "it is one of {} in a conversation of {} bytes",
                speaking.len(),
                text.len()
            );
            return refuse(last, &what, "To find all of them would take too long:");
        }
        let (mut spans, mut prompts) = (Vec::new(), BTreeMap::new());
        for (index, &i) in speaking.iter().enumerate() {
            let before = self.render_in(&self.env, prepared[..i].to_vec(), &opened)?;
            let after = self.render_in(&self.env, prepared[..=i].to_vec(), &closed)?;
            if !text.starts_with(&after) {
                let help = match turns {
                    AssistantTurns::All if index + 1 < speaking.len() => {
                        "Train on the last turn only (`assistant_turns: Last`),"
                    }
                    _ => "Leave out the messages after it,",
                };
                let what = "the template renders it differently once other messages follow";
                return refuse(i, what, help);
            }
            if after.starts_with(&before) {
                spans.push(before.len()..after.len());
                continue;
            }
            // The opening of a response (`<think>`) may be missing from a finished turn; the text before it may not.
            let history = self.render_in(&self.env, prepared[..i].to_vec(), &closed)?;
            if !after.starts_with(&history) {
                let what = "the template renders the messages before it differently without it";
                return refuse(i, what, "To train on it,");
            }
            let pairs = before.chars().zip(after.chars());
            let shared = pairs.take_while(|(a, b)| a == b);
            let start = shared.map(|(c, _)| c.len_utf8()).sum();
            spans.push(start..after.len());
            prompts.insert(index, before);
        }
        Ok(AssistantSpans {
            text,
            spans,
            marked: false,
            prompts,
        })
    }

    /// Messages as transformers passes them to a template.
    fn prepare(&self, messages: &[Value]) -> Result<Vec<Value>> {
        let prepare = |(i, message): (usize, &Value)| {
            let Value::Object(message) = message else {
                let message = format!("message {}: expected an object, found {message}", i + 1);
                return Err(Error::format(&self.path, message));
            };
            let kept = message.iter().filter(|(_, value)| !value.is_null());
            let kept: Map<String, Value> = kept.map(|(k, v)| (k.clone(), v.clone())).collect();
            let reasoning = REASONING.iter().find_map(|name| kept.get(*name)).cloned();
            Ok(Value::Object(match reasoning {
                None => kept,
                Some(reasoning) => {
                    let mut aliased = Map::new();
                    aliased.insert("thinking".into(), reasoning.clone());
                    aliased.extend(kept);
                    aliased.insert("reasoning_content".into(), reasoning);
                    aliased
                }
            }))
        };
        messages.iter().enumerate().map(prepare).collect()
    }

    /// Puts the tag after the text of the last message; returns that text.
    fn tag_last(&self, messages: &mut [Value], options: &ChatOptions) -> Result<String> {
        let refuse = |message: &str| {
            let message = format!("cannot continue the last message: {message}");
            Err(Error::format(&self.path, message))
        };
        if options.add_generation_prompt {
            return refuse("a new turn is asked for as well (add_generation_prompt)");
        }
        if !self.source.contains("content") {
            return refuse("the template does not read `content`");
        }
        let content = messages.last_mut().and_then(|last| last.get_mut("content"));
        let text = match content {
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => {
                let texts = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
                match texts {
                    Some(Value::String(text)) => text,
                    _ => return refuse("no part of it is text"),
                }
            }
            _ => return refuse("it has no `content`"),
        };
        let words = text.clone();
        text.push_str(CONTINUE);
        Ok(words)
    }

    fn cut_at_tag(&self, mut text: String, last_words: &str) -> Result<String> {
        let at = text
            .rfind(CONTINUE.trim_end())
            .filter(|_| text.contains(last_words.trim()));
        let Some(at) = at else {
            return Err(Error::format(
                &self.path,
                "cannot continue the last message: the template leaves out parts of it",
            ));
        };
        let kept_as_it_is = text[at..].starts_with(CONTINUE);
        text.truncate(at);
        if !kept_as_it_is {
            // The template trims messages, and with them the space before the tag.
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    fn render_in(
        &self,
        env: &Environment<'static>,
        messages: Vec<Value>,
        options: &ChatOptions,
    ) -> Result<String> {
        let mut context = Map::new();
        for (name, text) in &self.specials {
            context.insert(name.clone(), Value::String(text.clone()));
        }
        context.insert("documents".into(), Value::Null);
        context.extend(options.variables.clone());
        context.insert("messages".into(), Value::Array(messages));
        context.insert("tools".into(), options.tools.clone().unwrap_or(Value::Null));
        context.insert(
            "add_generation_prompt".into(),
            options.add_generation_prompt.into(),
        );
        jinja::render(env, jinja::from_json(&Value::Object(context)))
            .map_err(|e| Error::format(&self.path, jinja::explain(&e)))
    }

    /// Ranges between the marks, as positions in the text without marks.
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

/// Rewrites transformers' `{% generation %}` blocks in plain jinja: as scopes (variables set inside are not visible after),
/// optionally with marks printed inside.
fn replace_generation(source: &str, mark: bool) -> Cow<'_, str> {
    GENERATION.replace_all(source, |tag: &regex::Captures<'_>| {
        let (left, right, end) = (&tag[1], &tag[3], tag.get(2).is_some());
        match (mark, end) {
            (false, false) => format!("{{%{left} with _marked = true {right}%}}"),
            (false, true) => format!("{{%{left} endwith {right}%}}"),
            // The outer tags keep the whitespace control of the original; the marks are printed between them.
            (true, false) => {
                format!("{{%{left} with _marked = true %}}{{{{ '{OPEN}' }}}}{{% set _mark = 0 {right}%}}")
            }
            (true, true) => {
                format!("{{%{left} set _mark = 0 %}}{{{{ '{CLOSE}' }}}}{{% endwith {right}%}}")
            }
        }
    })
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

    fn opened() -> ChatOptions {
        ChatOptions::default().with_generation_prompt(true)
    }

    fn spans(
        chat: &ChatTemplate,
        messages: &[Value],
        turns: AssistantTurns,
    ) -> (String, Vec<Range<usize>>) {
        let found = chat
            .assistant_spans(messages, &ChatOptions::default(), turns)
            .unwrap();
        (found.text, found.spans)
    }

    fn talk(turns: &[(&str, &str)]) -> Vec<Value> {
        turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect()
    }

    #[test]
    fn conversations_whose_turns_take_too_long_to_find_are_refused() {
        let chat = template("{% for m in messages %}{{ m.content }}{% endfor %}");
        let messages = vec![json!({"role": "assistant", "content": "x"}); 20_000];
        let found = chat.assistant_spans(&messages, &ChatOptions::default(), AssistantTurns::All);
        let message = found.unwrap_err().to_string();
        let said = "in message 20000: it is one of 20000 in a conversation of 20000 bytes";
        assert!(message.contains(said), "{message}");
    }

    #[test]
    fn a_conversation_renders_with_and_without_the_generation_prompt() {
        let chat = template(CHATML);
        let messages = talk(&[("system", "s"), ("user", "u <b>")]);
        let text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu <b><|im_end|>\n";
        assert_eq!(
            chat.render(&messages, &ChatOptions::default()).unwrap(),
            text
        );
        assert_eq!(
            chat.render(&messages, &opened()).unwrap(),
            format!("{text}<|im_start|>assistant\n")
        );
    }

    #[test]
    fn specials_and_tools_are_there_and_blocks_are_trimmed() {
        let chat = template(
            "{{ bos_token }}\n  {% if tools %}\n{{ tools | tojson }}\n  {% endif %}\nend\n",
        );
        assert_eq!(
            chat.render(&[], &ChatOptions::default()).unwrap(),
            "<s>\nend"
        );
        let tools = json!([{"name": "f"}]);
        assert_eq!(
            chat.render(
                &[],
                &ChatOptions {
                    tools: Some(tools),
                    ..ChatOptions::default()
                }
            )
            .unwrap(),
            "<s>\n[{\"name\": \"f\"}]\nend"
        );
    }

    #[test]
    fn a_template_may_refuse() {
        let error = template("{{ raise_exception('only users') }}")
            .render(&[], &ChatOptions::default())
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
        let (text, spans) = spans(&template(CHATML), &messages, AssistantTurns::All);
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
        let (text, spans) = spans(&template(source), &messages, AssistantTurns::All);
        assert_eq!(
            text,
            template(&plain)
                .render(&messages, &ChatOptions::default())
                .unwrap()
        );
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
            .assistant_spans(&messages, &ChatOptions::default(), AssistantTurns::All)
            .unwrap_err();
        assert!(error.to_string().contains("message 2"), "{error}");
        assert!(error.to_string().contains("{% generation %}"), "{error}");
    }

    #[test]
    fn a_finished_turn_may_lack_what_opens_it_for_a_response() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}";
        let messages = talk(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        for (turns, expected) in [
            (AssistantTurns::All, vec!["b;", "d;"]),
            (AssistantTurns::Last, vec!["d;"]),
        ] {
            let found = template(source)
                .assistant_spans(&messages, &ChatOptions::default(), turns)
                .unwrap();
            let parts: Vec<&str> = found
                .spans
                .iter()
                .map(|span| &found.text[span.clone()])
                .collect();
            assert_eq!(parts, expected);
            let last = &found.prompts[&(expected.len() - 1)];
            assert_eq!(last, "[user]a;[assistant]b;[user]c;[assistant]<think>");
        }
    }

    #[test]
    fn the_advice_leads_somewhere() {
        let source = "{% for m in messages %}[{% if loop.last %}{{ m.content }}{% else %}..{% endif %}]{% endfor %}";
        let refused = |turns: &[(&str, &str)], which| {
            let error =
                template(source).assistant_spans(&talk(turns), &ChatOptions::default(), which);
            error.unwrap_err().to_string()
        };
        let two = [
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ];
        assert!(refused(&two, AssistantTurns::All).contains("`assistant_turns: Last`"));
        let last = refused(&two, AssistantTurns::Last);
        assert!(
            !last.contains("assistant_turns") && last.contains("prompt and completion columns"),
            "{last}"
        );
        let more = refused(&two[..3], AssistantTurns::Last);
        assert!(more.contains("Leave out the messages after it"), "{more}");
    }

    #[test]
    fn the_last_turn_alone_can_be_asked_for() {
        // Earlier turns are shortened, as templates do that drop earlier reasoning.
        let forgetful = "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else '..' }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let messages = talk(&[
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let (text, last) = spans(&template(forgetful), &messages, AssistantTurns::Last);
        assert_eq!(text, "<user>a;<assistant>..;<user>c;<assistant>d;");
        assert_eq!(last.len(), 1);
        assert_eq!(&text[last[0].clone()], "d;");
        // A template with marks: those of the last message, however many it has.
        let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}+{% generation %};{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        let (text, last) = spans(&template(marked), &messages, AssistantTurns::Last);
        let parts: Vec<&str> = last.into_iter().map(|span| &text[span]).collect();
        assert_eq!((text.as_str(), parts), ("ab+;cd+;", vec!["d", ";"]));
        let (_, none) = spans(&template(CHATML), &messages[..1], AssistantTurns::Last);
        assert!(none.is_empty());
    }

    #[test]
    fn the_last_message_can_be_left_open() {
        let options = ChatOptions {
            continue_final_message: true,
            ..ChatOptions::default()
        };
        let messages = talk(&[("user", "a"), ("assistant", "b \n")]);
        let text = template(CHATML).render(&messages, &options).unwrap();
        assert_eq!(
            text,
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb \n"
        );
        let trimming = template("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}");
        assert_eq!(trimming.render(&messages, &options).unwrap(), "[a][b");
        for (messages, expected) in [
            (vec![], "no `content`"),
            (
                talk(&[("user", "a"), ("user", "b"), ("user", "c")]),
                "leaves out",
            ),
        ] {
            let first = template("{{ messages[0].content }}{{ messages[1].content }}");
            let error = first.render(&messages, &options).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let both = options.with_generation_prompt(true);
        assert!(template(CHATML).render(&messages, &both).is_err());
    }

    #[test]
    fn empty_keys_are_dropped_and_reasoning_has_every_name() {
        let chat = template("{{ messages | tojson }}");
        let messages = [json!({"role": "assistant", "content": null, "reasoning": "r"})];
        assert_eq!(
            chat.render(&messages, &ChatOptions::default()).unwrap(),
            r#"[{"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"}]"#
        );
        let error = chat.render(&[json!("hi")], &ChatOptions::default());
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("message 1: expected an object")
        );
    }

    #[test]
    fn variables_and_the_time_can_be_given() {
        let chat = template("{{ strftime_now('%Y') }}{{ bos_token }}{{ flag is true }}");
        let mut options = ChatOptions::default();
        options.variables.insert("flag".into(), true.into());
        options.variables.insert("bos_token".into(), "-".into());
        let chat = chat.at(951_782_400).unwrap();
        assert_eq!(chat.render(&[], &options).unwrap(), "2000-True");
    }
}
