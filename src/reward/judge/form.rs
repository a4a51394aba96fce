//! The question which of two responses is better.

use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Question;
use crate::data::jinja;
use crate::error::{Error, Result};

/// The default question, before the line that asks for the answer.
const TEMPLATE: &str = "Consider this conversation and two responses to it.\n\n{{ prompt }}\n\n{{ principle }}\n\n\
    {{ labels[0] }} {{ first }}\n\n{{ labels[1] }} {{ second }}\n";
/// What is asked if there are no principles.
pub(super) const PLAIN_PRINCIPLE: &str = "Which of the two responses is better?";
/// The last line of a question in plain text.
const ENDING: &str = "The better response is:";
/// The line that a chain of thought continues.
const THINK: &str = "Let's think step by step:";

/// Bytes of a label: it is read with every question.
const LONGEST_LABEL: usize = 256;

/// A chain of thought before the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reasoning {
    /// Most tokens of it.
    pub max_tokens: usize,
    /// Bounds of the probabilities after it; `None` leaves them as they are.
    #[serde(default = "around_half")]
    pub clamp: Option<(f64, f64)>,
}

fn around_half() -> Option<(f64, f64)> {
    Some((0.4, 0.6))
}

/// A pair with its answer, shown before every question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairExample {
    /// The conversation.
    pub prompt: String,
    /// The response shown first.
    pub first: String,
    /// The response shown second.
    pub second: String,
    /// The label of the better one.
    pub answer: String,
    /// The principle that is asked by.
    #[serde(default)]
    pub principle: Option<String>,
    /// A chain of thought.
    #[serde(default)]
    pub reasoning: Option<String>,
}

/// How pairs are asked about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairSettings {
    /// The beginning of every question.
    pub instructions: Option<String>,
    /// A jinja template over `prompt`, `principle`, `first`, `second` and `labels`.
    pub template: Option<String>,
    /// The labels of the response shown first and second.
    pub labels: [String; 2],
    /// Messages instead of plain text.
    pub chat: bool,
    /// Whether a chain of thought comes before the answer.
    pub reasoning: bool,
    /// Pairs with their answers.
    pub examples: Vec<PairExample>,
}

/// The labels of the response shown first and second, unless a recipe says otherwise.
pub(crate) fn default_labels() -> (String, String) {
    ("1".into(), "2".into())
}

/// Makes questions about pairs.
pub struct PairForm {
    settings: PairSettings,
    env: Environment<'static>,
}

/// An environment with the one template `text`.
pub(super) fn environment(text: &str) -> Result<Environment<'static>> {
    jinja::strict(text).map_err(|error| Error::Usage(format!("template: {error:#}")))
}

/// What a template must show and does not.
pub(super) fn unread(env: &Environment<'static>, names: &[&str]) -> Option<String> {
    let read = (env.get_template(jinja::TEMPLATE).ok()?).undeclared_variables(false);
    let missing = names.iter().find(|name| !read.contains(**name))?;
    Some(format!(
        "template: does not show `{missing}`, which is judged: expected {{{{ {missing} }}}} in it"
    ))
}

/// The rendered template.
pub(super) fn render(env: &Environment<'static>, values: minijinja::Value) -> Result<String> {
    jinja::render(env, values).map_err(|error| Error::Usage(format!("template: {error:#}")))
}

impl PairForm {
    /// A form of these settings.
    ///
    /// # Errors
    /// `Error::Usage` for a template that does not parse or names something unknown, for labels that are equal or one the beginning of
    /// the other, and for examples with another answer.
    pub fn new(settings: PairSettings) -> Result<Self> {
        let [a, b] = &settings.labels;
        // Answers are compared without the white space around them.
        let [own_a, own_b] = [a.trim(), b.trim()];
        if own_a.is_empty()
            || own_b.is_empty()
            || own_a.starts_with(own_b)
            || own_b.starts_with(own_a)
        {
            return Err(Error::Usage(format!(
                "labels: expected two texts of which neither begins the other, such as \"1\" and \"2\", found {a:?} and {b:?}"
            )));
        }
        if let Some(label) = settings
            .labels
            .iter()
            .find(|label| label.len() > LONGEST_LABEL)
        {
            return Err(Error::Usage(format!(
                "labels: expected at most {LONGEST_LABEL} bytes, found {}",
                label.len()
            )));
        }
        for (index, example) in settings.examples.iter().enumerate() {
            if !settings.labels.contains(&example.answer) {
                return Err(Error::Usage(format!(
                    "examples: the answer of example {} is {:?}; expected {a:?} or {b:?}",
                    index + 1,
                    example.answer
                )));
            }
        }
        let env = environment(settings.template.as_deref().unwrap_or(TEMPLATE))?;
        if let Some(message) = unread(&env, &["first", "second"]) {
            return Err(Error::Usage(message));
        }
        let form = Self { settings, env };
        form.asked("p", "a", "b", "c")?;
        Ok(form)
    }

    /// The labels.
    pub fn labels(&self) -> &[String] {
        &self.settings.labels
    }

    /// The question up to a chain of thought.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn thought(&self, prompt: &str, principle: &str, pair: [&str; 2]) -> Result<Question> {
        let asked = self.asked(prompt, principle, pair[0], pair[1])?;
        match self.settings.chat {
            true => {
                let mut messages = self.example_messages()?;
                messages.push(user(&format!("{}{asked}\n{THINK}", self.start(&messages))));
                Ok(Question::Messages(messages))
            }
            false => Ok(Question::Text(format!(
                "{}{asked}\n{THINK}",
                self.example_text()?
            ))),
        }
    }

    /// The question, after `reasoning` if there is a chain of thought.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn question(
        &self,
        prompt: &str,
        principle: &str,
        pair: [&str; 2],
        reasoning: Option<&str>,
    ) -> Result<Question> {
        let asked = self.asked(prompt, principle, pair[0], pair[1])?;
        if self.settings.chat {
            let mut messages = self.example_messages()?;
            let start = self.start(&messages);
            self.push_question(&mut messages, &format!("{start}{asked}"), reasoning);
            return Ok(Question::Messages(messages));
        }
        let before = self.example_text()?;
        let thought = reasoning.map_or(String::new(), thought);
        Ok(Question::Text(format!(
            "{before}{asked}\n{thought}{ENDING}"
        )))
    }

    fn asked(&self, prompt: &str, principle: &str, first: &str, second: &str) -> Result<String> {
        let values = context! {
            prompt => prompt.trim(), principle => principle, first => first.trim(), second => second.trim(),
            labels => self.settings.labels,
        };
        render(&self.env, values).map(|text| text.trim_end().to_owned())
    }

    fn of_example(&self, example: &PairExample) -> Result<String> {
        let principle = example.principle.as_deref().unwrap_or(PLAIN_PRINCIPLE);
        self.asked(&example.prompt, principle, &example.first, &example.second)
    }

    /// Instructions and examples in plain text.
    fn example_text(&self) -> Result<String> {
        let mut text = self.start(&[]);
        for example in &self.settings.examples {
            let reasoning = example
                .reasoning
                .as_deref()
                .filter(|_| self.settings.reasoning);
            let thought = reasoning.map_or(String::new(), thought);
            let asked = self.of_example(example)?;
            text += &format!("{asked}\n{thought}{ENDING} {}\n\n", example.answer);
        }
        Ok(text)
    }

    fn example_messages(&self) -> Result<Vec<Value>> {
        let mut messages = Vec::new();
        for example in &self.settings.examples {
            let asked = format!("{}{}", self.start(&messages), self.of_example(example)?);
            let reasoning = example
                .reasoning
                .as_deref()
                .filter(|_| self.settings.reasoning);
            self.push_question(&mut messages, &asked, reasoning);
            messages.push(assistant(&example.answer));
        }
        Ok(messages)
    }

    /// The instructions, which begin the first message or text.
    fn start(&self, messages: &[Value]) -> String {
        match (&self.settings.instructions, messages.is_empty()) {
            (Some(instructions), true) => format!("{}\n\n", instructions.trim()),
            _ => String::new(),
        }
    }

    fn push_question(&self, messages: &mut Vec<Value>, asked: &str, reasoning: Option<&str>) {
        let [a, b] = &self.settings.labels;
        let ending = format!("Which response is better? Answer with {a} or {b} alone.");
        match reasoning {
            Some(reasoning) => {
                messages.push(user(&format!("{asked}\n{THINK}")));
                messages.push(assistant(reasoning.trim()));
                messages.push(user(&ending));
            }
            None => messages.push(user(&format!("{asked}\n\n{ending}"))),
        }
    }
}

/// A chain of thought in plain text, with its line.
fn thought(reasoning: &str) -> String {
    format!("{THINK} {}\n", reasoning.trim())
}

pub(super) fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(chat: bool) -> PairSettings {
        PairSettings {
            template: Some("{{ prompt }}|{{ principle }}|{{ labels[0] }} {{ first }}|{{ labels[1] }} {{ second }}".into()),
            labels: ["1".into(), "2".into()],
            chat,
            ..PairSettings::default()
        }
    }

    fn example() -> PairExample {
        PairExample {
            prompt: "P".into(),
            first: "X".into(),
            second: "Y".into(),
            answer: "2".into(),
            principle: None,
            reasoning: Some("Y is true.".into()),
        }
    }

    #[test]
    fn plain_questions_end_where_the_label_begins() {
        let form = PairForm::new(PairSettings {
            instructions: Some("Judge.".into()),
            examples: vec![example()],
            ..settings(false)
        })
        .unwrap();
        assert_eq!(
            form.question("p", "Which is kinder?", ["a", " b\n"], None).unwrap(),
            Question::Text(
                "Judge.\n\nP|Which of the two responses is better?|1 X|2 Y\nThe better response is: 2\n\n\
                 p|Which is kinder?|1 a|2 b\nThe better response is:"
                    .into()
            )
        );
    }

    #[test]
    fn a_chain_of_thought_comes_between() {
        let form = PairForm::new(PairSettings {
            reasoning: true,
            examples: vec![example()],
            ..settings(false)
        })
        .unwrap();
        let shown = "P|Which of the two responses is better?|1 X|2 Y\nLet's think step by step: Y is true.\nThe better response is: 2\n\n";
        assert_eq!(
            form.thought("p", "q", ["a", "b"]).unwrap(),
            Question::Text(format!("{shown}p|q|1 a|2 b\nLet's think step by step:"))
        );
        assert_eq!(
            form.question("p", "q", ["a", "b"], Some(" a lies. "))
                .unwrap(),
            Question::Text(format!(
                "{shown}p|q|1 a|2 b\nLet's think step by step: a lies.\nThe better response is:"
            ))
        );
    }

    #[test]
    fn messages_alternate() {
        let form = PairForm::new(PairSettings {
            instructions: Some("Judge.".into()),
            examples: vec![example()],
            ..settings(true)
        })
        .unwrap();
        let Question::Messages(messages) = form.question("p", "q", ["a", "b"], None).unwrap()
        else {
            panic!("not messages")
        };
        let roles: Vec<&str> = messages
            .iter()
            .map(|m| m["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(messages[1]["content"], "2");
        assert_eq!(
            messages[2]["content"],
            "p|q|1 a|2 b\n\nWhich response is better? Answer with 1 or 2 alone."
        );
        assert!(
            messages[0]["content"]
                .as_str()
                .unwrap()
                .starts_with("Judge.\n\nP|")
        );
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let refused = |settings| PairForm::new(settings).err().unwrap().to_string();
        let labels = |a: &str, b: &str| PairSettings {
            labels: [a.into(), b.into()],
            ..settings(false)
        };
        assert!(refused(labels("1", "1")).contains("neither begins the other"));
        assert!(refused(labels("1", "10")).contains("\"1\" and \"10\""));
        assert!(refused(labels("A", " A")).contains("found \"A\" and \" A\""));
        assert!(PairForm::new(labels(" A", " B")).is_ok());
        let odd = PairSettings {
            template: Some("{{ promt }}".into()),
            ..settings(false)
        };
        assert!(refused(odd).starts_with("template: "));
        let shows = |template: &str| PairSettings {
            template: Some(template.into()),
            ..settings(false)
        };
        assert!(refused(shows("")).starts_with("template: does not show `first`"));
        assert!(refused(shows("{{ first }}")).starts_with("template: does not show `second`"));
        assert!(refused(shows("{{ first }} {{ second }} {{ promt }}")).starts_with("template: "));
        let read = "{% set b = second | trim %}{% if first %}{{ first }}{% endif %}{{ b }}";
        assert!(PairForm::new(shows(read)).is_ok());
        let long = "x".repeat(257);
        assert_eq!(
            refused(labels(&long, "2")),
            "labels: expected at most 256 bytes, found 257"
        );
        let other = PairSettings {
            examples: vec![PairExample {
                answer: "A".into(),
                ..example()
            }],
            ..settings(false)
        };
        assert_eq!(
            refused(other),
            "examples: the answer of example 1 is \"A\"; expected \"1\" or \"2\""
        );
    }
}
