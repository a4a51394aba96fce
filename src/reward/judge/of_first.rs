//! A judge that rank 0 alone asks, such as a server: its answers are paid for once.

use super::{Judge, LabelAnswer, Question, Usage};
use crate::collective;
use crate::error::{Error, Result};
use crate::rng::Seed;

/// The judge of rank 0, whose answers all ranks have.
pub struct OfFirst {
    /// `None` on the other ranks.
    judge: Option<Box<dyn Judge>>,
    reads_messages_only: bool,
    usage: Usage,
}

impl OfFirst {
    /// The judge that `make` makes on rank 0.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(make: impl FnOnce() -> Result<Box<dyn Judge>>) -> Result<Self> {
        let judge = collective::on_first(make)?;
        let messages_only = judge
            .as_ref()
            .is_some_and(|judge| judge.reads_messages_only());
        Ok(Self {
            reads_messages_only: collective::agree(messages_only),
            usage: judge
                .as_ref()
                .map(|judge| judge.usage())
                .unwrap_or_default(),
            judge,
        })
    }

    /// What `ask` has the judge say, for all ranks.
    fn asked<T: serde::Serialize + serde::de::DeserializeOwned>(
        &mut self,
        ask: impl FnOnce(&mut dyn Judge) -> Result<T>,
    ) -> Result<T> {
        let said = match &mut self.judge {
            Some(judge) => {
                let said = ask(judge.as_mut());
                let Usage {
                    asked,
                    cached,
                    prompt_tokens,
                    completion_tokens,
                } = judge.usage();
                let usage = [asked, cached, prompt_tokens, completion_tokens];
                Some(said.map(|said| (said, usage)))
            }
            None => None,
        };
        let ranks = collective::ranks();
        let text = match &said {
            Some(Ok(said)) => serde_json::to_string(&Ok::<_, String>(said)),
            Some(Err(error)) => serde_json::to_string(&Err::<(T, [u64; 4]), _>(error.to_string())),
            None => Ok(String::new()),
        };
        // Invariant: texts and whole numbers are representable in JSON.
        let bytes = ranks.broadcast(text.expect("plain values").into_bytes());
        if let Some(Err(error)) = said {
            return Err(error);
        }
        let heard: Result<(T, [u64; 4]), String> =
            serde_json::from_slice(&bytes).expect("written by the same program");
        let (said, [asked, cached, prompt_tokens, completion_tokens]) =
            heard.map_err(|message| Error::Backend(format!("rank 0: {message}")))?;
        self.usage = Usage {
            asked,
            cached,
            prompt_tokens,
            completion_tokens,
        };
        Ok(said)
    }
}

/// An answer with the bits of its numbers: JSON has no infinity.
type Bits = (Option<Vec<u64>>, String, bool);

impl Judge for OfFirst {
    fn reads_messages_only(&self) -> bool {
        self.reads_messages_only
    }

    fn answer(&mut self, questions: &[Question], labels: &[String]) -> Result<Vec<LabelAnswer>> {
        let answers = self.asked(|judge| {
            let answers = judge.answer(questions, labels)?.into_iter();
            let bits = |logprobs: Vec<f64>| logprobs.into_iter().map(f64::to_bits).collect();
            Ok(answers
                .map(|of| (of.logprobs.map(bits), of.text, of.without_probabilities))
                .collect::<Vec<Bits>>())
        })?;
        let whole = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
        let answer = |(logprobs, text, without_probabilities): Bits| LabelAnswer {
            logprobs: logprobs.map(whole),
            text,
            without_probabilities,
        };
        Ok(answers.into_iter().map(answer).collect())
    }

    fn write(
        &mut self,
        questions: &[Question],
        max_tokens: usize,
        seed: Seed,
    ) -> Result<Vec<String>> {
        self.asked(|judge| judge.write(questions, max_tokens, seed))
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn report(&self) -> Option<String> {
        self.judge.as_ref()?.report()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Threads;

    struct Fixed(u64);

    impl Judge for Fixed {
        fn answer(&mut self, questions: &[Question], _: &[String]) -> Result<Vec<LabelAnswer>> {
            self.0 += questions.len() as u64;
            let answer = LabelAnswer {
                logprobs: Some(vec![-0.1, f64::NEG_INFINITY]),
                text: "A".into(),
                without_probabilities: false,
            };
            Ok(vec![answer; questions.len()])
        }

        fn write(&mut self, _: &[Question], _: usize, _: Seed) -> Result<Vec<String>> {
            Err(Error::Usage("no texts".into()))
        }

        fn usage(&self) -> Usage {
            Usage {
                asked: self.0,
                ..Usage::default()
            }
        }
    }

    #[test]
    fn one_rank_asks_and_all_have_the_answers() {
        let found = Threads::run(2, |rank| {
            let make = || {
                assert_eq!(rank, 0, "one judge");
                Ok(Box::new(Fixed(0)) as Box<dyn Judge>)
            };
            let mut judge = OfFirst::new(make).unwrap();
            let questions = vec![Question::Text("?".into()); 3];
            let answers = judge.answer(&questions, &[]).unwrap();
            let failed = judge.write(&questions, 1, Seed::new(1)).unwrap_err();
            (answers, judge.usage().asked, failed.to_string())
        });
        for (answers, asked, failed) in &found {
            assert_eq!(answers[2].logprobs, Some(vec![-0.1, f64::NEG_INFINITY]));
            assert_eq!((answers.len(), *asked), (3, 3));
            assert!(failed.contains("no texts"), "{failed}");
        }
    }
}
