//! The expected grade of a response, by a judge, as its score.

use minijinja::{Environment, Value, context};

use super::form::{environment, render, unread, user};
use super::labels::{expected_grade, label_probabilities};
use super::{GradedConfig, Judge, Question};
use crate::data::{SourceColumn, jinja, readable};
use crate::error::{Error, Problem, Result};
use crate::reward::{Completion, RewardSource, columns};

/// The default question.
const TEMPLATE: &str = "Conversation:\n{{ prompt }}\n\nResponse:\n{{ response }}\n\nHow good is the response, from 1 to {{ highest }}?";
/// The last line of a question in plain text.
const ENDING: &str = "The grade is:";
/// Responses after which too few answers are an error: one of two says little.
const ENOUGH: usize = 16;

/// A judge's expected grade `sum_i i P(i)` over the grades 1 to `highest`, scaled to -1 to 1.
///
/// # Source
/// Lee et al. 2023, arXiv:2309.00267, section 2.2.2: d-RLAIF.
pub struct Graded {
    name: String,
    judge: Box<dyn Judge>,
    config: GradedConfig,
    env: Environment<'static>,
    labels: Vec<String>,
    scored: usize,
    unanswered: usize,
    uncertain: usize,
}

/// Problems of the settings, by key.
pub(crate) fn problems(config: &GradedConfig) -> Vec<Problem> {
    let of_judge = config.judge.problems().into_iter();
    let mut problems: Vec<Problem> = of_judge.map(|problem| problem.below("judge")).collect();
    if !(2..=100).contains(&config.highest) {
        let message = format!("must be from 2 to 100, found {}", config.highest);
        problems.push(Problem::new("highest", message));
    }
    if !(0.0..=1.0).contains(&config.max_unanswered) {
        let message = format!("must be from 0 to 1, found {}", config.max_unanswered);
        problems.push(Problem::new("max_unanswered", message));
    }
    // Columns of rows are not known here: see `row_columns`.
    match config.template.as_deref().map(environment) {
        Some(Err(error)) => problems.push(Problem::new("template", error.to_string())),
        Some(Ok(env)) => {
            let message = unread(&env, &["response"]);
            problems.extend(message.map(|message| Problem::new("template", message)));
        }
        None => {}
    }
    problems
}

/// What the template reads of the rows.
pub(crate) fn row_columns(config: &GradedConfig) -> Option<SourceColumn> {
    let text = config.template.as_ref()?;
    // One that does not parse is reported with the settings.
    let columns = jinja::items_read(&environment(text).ok()?, "row");
    (!columns.is_empty()).then(|| SourceColumn::OfTemplate {
        text: text.clone(),
        columns,
    })
}

impl Graded {
    /// The source `name` of these settings by `judge`.
    ///
    /// # Errors
    /// `Error::Usage` for a template that does not parse.
    pub fn new(name: String, judge: Box<dyn Judge>, config: &GradedConfig) -> Result<Self> {
        Ok(Self {
            name,
            judge,
            env: environment(config.template.as_deref().unwrap_or(TEMPLATE))?,
            labels: (1..=config.highest)
                .map(|grade| grade.to_string())
                .collect(),
            config: config.clone(),
            scored: 0,
            unanswered: 0,
            uncertain: 0,
        })
    }

    fn question(&self, completion: &Completion) -> Result<Question> {
        // A conversation as its messages, without the tokens of the policy's chat template.
        let prompt = match &completion.conversation {
            Some(conversation) => readable(&conversation.messages.clone().into()),
            None => completion.prompt.clone(),
        };
        let values = context! {
            prompt => prompt.trim(),
            response => completion.response.trim(),
            highest => self.config.highest,
            row => Value::from_serialize(&completion.row),
        };
        let asked =
            render(&self.env, values).map_err(|error| self.no_question(completion, &error))?;
        let start = match &self.config.instructions {
            Some(instructions) => format!("{}\n\n", instructions.trim()),
            None => String::new(),
        };
        let asked = format!("{start}{}", asked.trim_end());
        Ok(match self.config.chat || self.judge.reads_messages_only() {
            true => {
                let highest = self.config.highest;
                let ending = format!("Answer with a whole number from 1 to {highest} alone.");
                Question::Messages(vec![user(&format!("{asked}\n\n{ending}"))])
            }
            false => Question::Text(format!("{asked}\n{ENDING}")),
        })
    }

    /// The error for a response that the template cannot show.
    fn no_question(&self, completion: &Completion, error: &Error) -> Error {
        let read = jinja::items_read(&self.env, "row");
        let missing = read.iter().find(|name| !completion.row.contains_key(*name));
        let reads = missing.map_or(String::new(), |name| {
            format!("; the template reads the column {name:?}")
        });
        let prompt: String = completion.prompt.trim().chars().take(60).collect();
        self.failed(format!(
            "{error}{reads}; the row with the prompt {prompt:?} has {}",
            columns(&completion.row)
        ))
    }

    fn failed(&self, message: String) -> Error {
        Error::Reward {
            name: self.name.clone(),
            message,
        }
    }
}

impl RewardSource for Graded {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let questions: Vec<Question> = (completions.iter())
            .map(|completion| self.question(completion))
            .collect::<Result<_>>()?;
        let answers = self.judge.answer(&questions, &self.labels)?;
        let mut scores = Vec::with_capacity(answers.len());
        let mut odd = None;
        for answer in answers {
            self.scored += 1;
            self.uncertain += usize::from(answer.without_probabilities);
            let probabilities = (answer.logprobs.as_ref()).and_then(|x| label_probabilities(x));
            scores.push(match probabilities {
                Some(probabilities) => expected_grade(&probabilities) as f32,
                None => {
                    self.unanswered += 1;
                    odd.get_or_insert(answer.text);
                    0.0
                }
            });
        }
        let share = self.unanswered as f64 / self.scored.max(1) as f64;
        if let Some(text) = odd
            && self.scored >= ENOUGH
            && share > self.config.max_unanswered
        {
            let text: String = text.chars().take(120).collect();
            return Err(self.failed(format!(
                "the judge gave no grade from 1 to {} to {} of {} responses, more than max_unanswered {}; it wrote {text:?}. Say in \
                 `instructions` or `template` how to answer, or raise `max_unanswered`",
                self.config.highest, self.unanswered, self.scored, self.config.max_unanswered
            )));
        }
        Ok(scores)
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.unanswered > 0 {
            warnings.push(format!(
                "{}: the judge gave no grade to {} of {} responses; their score is 0",
                self.name, self.unanswered, self.scored
            ));
        }
        if self.uncertain > 0 {
            warnings.push(format!(
                "{}: {} of {} grades came without valid probabilities: those are the grades that the judge wrote",
                self.name, self.uncertain, self.scored
            ));
        }
        warnings
    }

    fn notes(&self) -> Vec<String> {
        self.judge.report().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::judge::LabelAnswer;
    use crate::rng::Seed;

    /// Answers with a fixed distribution over the labels, or with none.
    struct Fixed(Option<Vec<f64>>);

    impl Judge for Fixed {
        fn answer(&mut self, questions: &[Question], _: &[String]) -> Result<Vec<LabelAnswer>> {
            let answer = LabelAnswer {
                logprobs: self.0.clone(),
                text: "I cannot say".into(),
                without_probabilities: false,
            };
            Ok(vec![answer; questions.len()])
        }
        fn write(&mut self, _: &[Question], _: usize, _: Seed) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
    }

    fn graded(answer: Option<Vec<f64>>) -> Graded {
        let config: GradedConfig = ron::from_str("(judge: Model(Base), highest: 3)").unwrap();
        Graded::new("graded(base)".into(), Box::new(Fixed(answer)), &config).unwrap()
    }

    #[test]
    fn the_expected_grade_is_the_score() {
        let logprobs = [0.1f64, 0.1, 0.2].map(f64::ln).to_vec();
        let mut source = graded(Some(logprobs));
        // Among themselves 1/4, 1/4, 1/2: 2.25 of 1 to 3, scaled 0.25.
        let scores = source.score(&[Completion::default()]).unwrap();
        assert!((scores[0] - 0.25).abs() < 1e-6, "{scores:?}");
        assert!(source.warnings().is_empty());
    }

    #[test]
    fn a_judge_without_grades_is_counted_and_then_an_error() {
        let mut source = graded(None);
        assert_eq!(source.score(&[Completion::default()]).unwrap(), [0.0]);
        assert!(source.warnings()[0].contains("no grade to 1 of 1 responses"));
        let message = source.score(&vec![Completion::default(); 15]).unwrap_err();
        let message = message.to_string();
        assert!(message.contains("16 of 16 responses"), "{message}");
        assert!(message.contains("I cannot say"), "{message}");
    }

    #[test]
    fn questions_name_what_the_template_does() {
        let mut source = graded(None);
        source.config.instructions = Some("Be strict.".into());
        let completion = Completion {
            prompt: "p".into(),
            response: " r".into(),
            ..Completion::default()
        };
        assert_eq!(
            source.question(&completion).unwrap(),
            Question::Text(
                "Be strict.\n\nConversation:\np\n\nResponse:\nr\n\nHow good is the response, from 1 to 3?\nThe grade is:".into()
            )
        );
    }

    #[test]
    fn a_missing_column_is_named_with_source_and_row() {
        let mut config: GradedConfig = ron::from_str("(judge: Model(Base))").unwrap();
        config.template = Some("{{ response }} {{ row.ideal }} {{ row.nosuch }}".into());
        let columns = vec!["ideal".to_owned(), "nosuch".to_owned()];
        assert_eq!(
            row_columns(&config),
            Some(SourceColumn::OfTemplate {
                text: config.template.clone().unwrap(),
                columns,
            })
        );
        let mut source =
            Graded::new("graded(base)".into(), Box::new(Fixed(None)), &config).unwrap();
        let row = serde_json::json!({"ideal": "a", "text": "b"});
        let completion = Completion {
            prompt: " Why? ".into(),
            row: row.as_object().unwrap().clone(),
            ..Completion::default()
        };
        let error = source.score(&[completion]).unwrap_err().to_string();
        for part in [
            "reward source graded(base): template: undefined value",
            "; the template reads the column \"nosuch\"; the row with the prompt \"Why?\" has \"ideal\", \"text\"",
        ] {
            assert!(error.contains(part), "{error}");
        }
        config.template = Some("{{ response }}".into());
        assert_eq!(row_columns(&config), None);
    }

    #[test]
    fn a_question_shows_the_response() {
        for (template, refused) in [
            ("", true),
            ("How good?", true),
            ("{{ prompt }}", true),
            ("{{ response }}", false),
            ("{{ row.question }} {{ response | trim }}", false),
        ] {
            let mut config =
                GradedConfig::by(super::super::JudgeModel::Model(crate::model::Init::Base));
            config.template = Some(template.into());
            let found = problems(&config);
            assert_eq!(!found.is_empty(), refused, "{template}: {found:?}");
        }
    }
}
