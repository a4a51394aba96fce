//! Which of two policies' responses a judge prefers, in both orders.

use serde::{Deserialize, Serialize};

use super::form::{PLAIN_PRINCIPLE, default_labels};
use super::{Judge, JudgeModel, PairForm, PairSettings, Question, label_probabilities, preference};
use crate::error::{Error, Problem, Result};
use crate::report::Judged;

/// Pairs after which too few answers are an error: one of two says little.
const ENOUGH: usize = 16;

/// How a judge compares the responses of two policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairwiseConfig {
    /// Who judges.
    pub judge: JudgeModel,
    /// The beginning of every question.
    #[serde(default)]
    pub instructions: Option<String>,
    /// What is asked.
    #[serde(default)]
    pub principle: Option<String>,
    /// The question, a jinja template over `prompt`, `principle`, `first`, `second` and `labels`.
    #[serde(default)]
    pub template: Option<String>,
    /// The labels of the response shown first and second.
    #[serde(default = "default_labels")]
    pub labels: (String, String),
    /// Ask by the model's chat template.
    #[serde(default)]
    pub chat: bool,
    /// Preferences that differ from one half by this or less are a tie.
    #[serde(default)]
    pub tie_margin: f64,
    /// Largest fraction of pairs that the judge may leave unanswered; they are ties.
    #[serde(default = "tenth")]
    pub max_unanswered: f64,
}

fn tenth() -> f64 {
    0.1
}

impl PairwiseConfig {
    /// The defaults with this judge.
    pub fn by(judge: JudgeModel) -> Self {
        Self {
            judge,
            instructions: None,
            principle: None,
            template: None,
            labels: default_labels(),
            chat: false,
            tie_margin: 0.0,
            max_unanswered: tenth(),
        }
    }

    fn form(&self) -> Result<PairForm> {
        PairForm::new(PairSettings {
            instructions: self.instructions.clone(),
            template: self.template.clone(),
            labels: [self.labels.0.clone(), self.labels.1.clone()],
            chat: self.chat || self.judge.model().is_none(),
            ..PairSettings::default()
        })
    }

    /// Problems of the settings, by key.
    pub fn problems(&self) -> Vec<Problem> {
        let of_judge = self.judge.problems().into_iter();
        let mut problems: Vec<Problem> = of_judge.map(|problem| problem.below("judge")).collect();
        if !(0.0..0.5).contains(&self.tie_margin) {
            let message = format!(
                "must be at least 0 and below 0.5, a difference from one half, found {}",
                self.tie_margin
            );
            problems.push(Problem::new("tie_margin", message));
        }
        if !(0.0..=1.0).contains(&self.max_unanswered) {
            let message = format!("must be from 0 to 1, found {}", self.max_unanswered);
            problems.push(Problem::new("max_unanswered", message));
        }
        if let Err(error) = self.form() {
            let message = error.to_string();
            let key = match message.starts_with("labels") {
                true => "labels",
                false => "template",
            };
            problems.push(Problem::new(key, message));
        }
        problems
    }
}

/// Two responses to one prompt.
#[derive(Debug, Clone, Copy)]
pub struct JudgedPair<'a> {
    /// The prompt as the models saw it.
    pub prompt: &'a str,
    /// The response whose probability of being the better one is asked for.
    pub own: &'a str,
    /// The other response.
    pub other: &'a str,
}

/// Asks a judge about pairs, each in both orders.
///
/// # Source
/// Lee et al. 2023, arXiv:2309.00267, section 2.1.1; Zheng et al. 2023, arXiv:2306.05685, section 3.4 (position bias).
pub struct Pairwise {
    name: String,
    form: PairForm,
    principle: String,
    tie_margin: f64,
    max_unanswered: f64,
}

impl Pairwise {
    /// A comparison of these settings.
    ///
    /// # Errors
    /// As [`PairForm::new`].
    pub fn new(config: &PairwiseConfig) -> Result<Self> {
        let principle = config.principle.as_deref().unwrap_or(PLAIN_PRINCIPLE);
        Ok(Self {
            name: config.judge.name(),
            form: config.form()?,
            principle: principle.to_owned(),
            tie_margin: config.tie_margin,
            max_unanswered: config.max_unanswered,
        })
    }

    /// The judge's preferences. Equal texts are a tie without a question. `before_part` is called before each group of 16 questions with
    /// how many were answered; it ends the work with `None` by `false`.
    ///
    /// # Errors
    /// Those of the judge; `Error::Reward` if too few pairs are answered.
    pub fn preferences(
        &self,
        judge: &mut dyn Judge,
        pairs: &[JudgedPair<'_>],
        before_part: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Judged>> {
        let differ = |pair: &JudgedPair<'_>| pair.own.trim() != pair.other.trim();
        let asked: Vec<usize> = (0..pairs.len()).filter(|&i| differ(&pairs[i])).collect();
        let questions: Vec<Question> = (asked.iter())
            .flat_map(|&i| {
                let JudgedPair { prompt, own, other } = pairs[i];
                [[own, other], [other, own]].map(|shown| (i, prompt, shown))
            })
            .map(|(i, prompt, shown)| {
                let question = self.form.question(prompt, &self.principle, shown, None);
                question.map_err(|error| Error::Reward {
                    name: format!("judge({})", self.name),
                    message: format!("the pair of prompt {}: {error}", i + 1),
                })
            })
            .collect::<Result<_>>()?;
        let mut first = Vec::with_capacity(questions.len());
        let mut odd = String::new();
        for part in questions.chunks(16) {
            if !before_part(first.len(), questions.len()) {
                return Ok(None);
            }
            for answer in judge.answer(part, self.form.labels())? {
                let found = answer.logprobs.as_deref().and_then(label_probabilities);
                if found.is_none() && odd.is_empty() {
                    odd = answer.text;
                }
                first.push(found.map(|probabilities| probabilities[0]));
            }
        }
        let mut own = vec![Some(0.5); pairs.len()];
        for (&i, orders) in asked.iter().zip(first.chunks(2)) {
            own[i] = match orders {
                [Some(first), Some(second)] => Some(preference(*first, *second)),
                _ => None,
            };
        }
        let unanswered = own.iter().filter(|p| p.is_none()).count();
        if pairs.len() >= ENOUGH && unanswered as f64 > self.max_unanswered * pairs.len() as f64 {
            return Err(self.too_few(unanswered, pairs.len(), &odd));
        }
        let known: Vec<f64> = first.into_iter().flatten().collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        Ok(Some(Judged {
            by: self.name.clone(),
            tie_margin: self.tie_margin,
            preferences: own,
            first_shown: (!known.is_empty()).then_some(mean),
        }))
    }

    fn too_few(&self, unanswered: usize, total: usize, odd: &str) -> Error {
        let [a, b] = [0, 1].map(|i| &self.form.labels()[i]);
        let text: String = odd.chars().take(120).collect();
        Error::Reward {
            name: format!("judge({})", self.name),
            message: format!(
                "answered neither {a:?} nor {b:?} about {unanswered} of {total} pairs, more than max_unanswered {}; it wrote {text:?}. Say \
                 in `instructions` how to answer, or raise `max_unanswered`",
                self.max_unanswered
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::judge::LabelAnswer;
    use crate::rng::Seed;

    /// Likes the response shown first by `bias` nats, and each further character of a response by one.
    struct ByLength {
        bias: f64,
        asked: usize,
    }

    impl Judge for ByLength {
        fn answer(&mut self, questions: &[Question], _: &[String]) -> Result<Vec<LabelAnswer>> {
            self.asked += questions.len();
            let answer = |question: &Question| {
                let Question::Text(text) = question else {
                    panic!("{question:?}")
                };
                let line = |label: &str| {
                    let lines = text.lines().find_map(|line| line.strip_prefix(label));
                    lines.unwrap().len() as f64
                };
                LabelAnswer {
                    logprobs: (!text.contains("odd"))
                        .then(|| vec![self.bias + line("1 "), line("2 ")]),
                    text: "I cannot say".into(),
                    without_probabilities: false,
                }
            };
            Ok(questions.iter().map(answer).collect())
        }

        fn write(&mut self, _: &[Question], _: usize, _: Seed) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
    }

    fn pairs<'a>(texts: &[(&'a str, &'a str)]) -> Vec<JudgedPair<'a>> {
        (texts.iter())
            .map(|&(own, other)| JudgedPair {
                prompt: "p",
                own,
                other,
            })
            .collect()
    }

    fn pairwise(text: &str) -> Pairwise {
        Pairwise::new(&ron::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn both_orders_are_averaged_and_equal_texts_are_not_asked_about() {
        let mut judge = ByLength {
            bias: 0.5,
            asked: 0,
        };
        let found = pairwise("(judge: Model(Base))")
            .preferences(
                &mut judge,
                &pairs(&[("ab", "a"), ("same ", "same"), ("a", "ab")]),
                &mut |_, _| true,
            )
            .unwrap()
            .unwrap();
        // Shown first the longer one has sigmoid(1.5) = 0.817574, shown second 1 - sigmoid(-0.5) = 0.622459: mean 0.720017.
        let want = [0.720_017, 0.5, 0.279_983];
        for (found, want) in found.preferences.iter().zip(want) {
            assert!((found.unwrap() - want).abs() < 1e-6, "{found:?} {want}");
        }
        assert_eq!(judge.asked, 4);
        // Means of 0.817574 and sigmoid(-0.5) = 0.377541.
        assert!((found.first_shown.unwrap() - 0.597_557).abs() < 1e-6);
    }

    #[test]
    fn a_judge_without_an_answer_is_an_error_in_time() {
        let mut judge = ByLength {
            bias: 0.0,
            asked: 0,
        };
        let pairwise = pairwise("(judge: Model(Base), max_unanswered: 0.5)");
        let mut ask = |texts: &[(&str, &str)]| {
            pairwise.preferences(&mut judge, &pairs(texts), &mut |_, _| true)
        };
        let found = ask(&[("odd", "b"), ("a", "bc")]).unwrap().unwrap();
        assert_eq!(found.preferences[0], None);
        assert!(found.preferences[1].unwrap() < 0.5);
        let error = ask(&[("odd", "b"); 16]).unwrap_err().to_string();
        assert!(error.contains("16 of 16 pairs"), "{error}");
        assert!(error.contains("I cannot say"), "{error}");
        // Stopped before the second part of 16 questions.
        let stopped =
            pairwise.preferences(&mut judge, &pairs(&[("a", "b"); 12]), &mut |done, _| {
                done == 0
            });
        assert_eq!(stopped.unwrap(), None);
    }

    #[test]
    fn a_pair_that_the_template_cannot_show_is_named() {
        let template = "{{ first }}{{ second }}{% if first == 'long' %}{{ 1 // 0 }}{% endif %}";
        let pairwise = pairwise(&format!(
            "(judge: Model(Base), template: Some({template:?}))"
        ));
        let mut judge = ByLength {
            bias: 0.0,
            asked: 0,
        };
        let texts = pairs(&[("a", "a"), ("a", "long")]);
        let error = pairwise.preferences(&mut judge, &texts, &mut |_, _| true);
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with(
                "reward source judge(base): the pair of prompt 2: template: invalid operation"
            ),
            "{error}"
        );
        assert_eq!(judge.asked, 0);
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let config: PairwiseConfig = ron::from_str(
            "(judge: Model(Random(\"c.json\")), labels: (\"1\", \"10\"), tie_margin: 0.5, max_unanswered: 2.0)",
        )
        .unwrap();
        let found: Vec<String> = config
            .problems()
            .iter()
            .map(|p| format!("{}: {}", p.place, p.message))
            .collect();
        for (found, part) in found.iter().zip([
            "judge: random weights cannot judge",
            "tie_margin: must be at least 0 and below 0.5",
            "max_unanswered: must be from 0 to 1, found 2",
            "labels: labels: expected two texts of which neither begins the other",
        ]) {
            assert!(found.starts_with(part), "{found}");
        }
        assert_eq!(found.len(), 4);
    }
}
