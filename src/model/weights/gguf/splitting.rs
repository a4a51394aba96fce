//! How byte-level vocabularies split text before merging, by llama.cpp's names.

use serde_json::{Value, json};

/// A way of splitting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Splitting {
    /// llama.cpp's names; the first is written.
    names: &'static [&'static str],
    /// Whether characters are composed first. llama.cpp does not do it, the models' own tokenizers do.
    composes: bool,
    /// The steps before bytes become characters.
    steps: &'static [Step],
    /// Whether GPT-2's pattern splits last.
    as_gpt2: bool,
    /// Whether a part that is a token is not merged from its characters.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

/// A step of splitting.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Each digit is a part.
    Digits,
    /// Matches of a regular expression are parts, and so is what lies between them.
    Matches(&'static str),
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const DEEPSEEK3: [Step; 3] = [
    Step::Matches(r"\p{N}{1,3}"),
    Step::Matches("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
    Step::Matches(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ),
];

const fn plain(names: &'static [&'static str], steps: &'static [Step]) -> Splitting {
    Splitting {
        names,
        composes: false,
        steps,
        as_gpt2: false,
        ignore_merges: false,
        adds_bos: false,
    }
}

/// All that are known to give llama.cpp's ids and those of the models' own tokenizers.
static ALL: [Splitting; 10] = [
    Splitting {
        as_gpt2: true,
        ..plain(&["gpt-2", "phi-2"], &[])
    },
    Splitting {
        as_gpt2: true,
        ..plain(
            &["smollm", "starcoder", "refact", "command-r", "codeshell"],
            &[Step::Digits],
        )
    },
    Splitting {
        composes: true,
        ..plain(&["qwen2"], &[Step::Matches(QWEN2)])
    },
    plain(&["deepseek-r1-qwen"], &[Step::Matches(QWEN2)]),
    Splitting {
        ignore_merges: true,
        adds_bos: true,
        ..plain(
            &["llama-bpe", "llama-v3", "llama3"],
            &[Step::Matches(LLAMA3)],
        )
    },
    plain(&["dbrx", "smaug-bpe"], &[Step::Matches(LLAMA3)]),
    plain(&["deepseek-v3"], &DEEPSEEK3),
    plain(&["gpt-4o"], &[Step::Matches(GPT4O)]),
    plain(&["bloom", "gpt3-finnish"], &[Step::Matches(BLOOM)]),
    Splitting {
        ignore_merges: true,
        adds_bos: true,
        ..plain(&["tekken"], &[Step::Matches(TEKKEN)])
    },
];

impl Splitting {
    /// The one that llama.cpp calls `name`.
    ///
    /// # Errors
    /// For another name, with all that are known.
    pub(super) fn of_name(name: &str) -> Result<&'static Self, String> {
        let found = ALL.iter().find(|splitting| splitting.names.contains(&name));
        found.ok_or_else(|| {
            let known: Vec<&str> = ALL
                .iter()
                .flat_map(|splitting| splitting.names)
                .copied()
                .collect();
            format!(
                "the tokenizer inside the file splits text as {name:?}; {} are read",
                known.join(", ")
            )
        })
    }

    /// The one of a `tokenizer.json`.
    ///
    /// # Errors
    /// If llama.cpp is not known to have it.
    pub(super) fn of_json(tokenizer: &Value) -> Result<&'static Self, String> {
        let composes = match &tokenizer["normalizer"] {
            Value::Null => Some(false),
            Value::Object(step) if step["type"] == "NFC" => Some(true),
            // DeepSeek's sequence of nothing.
            other => (other["normalizers"].as_array().is_some_and(Vec::is_empty)).then_some(false),
        };
        let ignores = tokenizer["model"]["ignore_merges"] == true;
        let found = ALL.iter().find(|splitting| {
            composes == Some(splitting.composes)
                && splitting.ignore_merges == ignores
                && splitting.splits_as(&tokenizer["pre_tokenizer"])
        });
        found.ok_or_else(|| {
            format!(
                "its tokenizer splits text as no tokenizer does that llama.cpp is known to have (normalizer {}, pre_tokenizer {}, \
                 ignore_merges {ignores}); written are those of GPT-2, SmolLM, Qwen2, Llama 3, DeepSeek V3, GPT-4o, BLOOM and Mistral's Tekken",
                tokenizer["normalizer"], tokenizer["pre_tokenizer"]
            )
        })
    }

    fn splits_as(&self, pre_tokenizer: &Value) -> bool {
        let steps = match pre_tokenizer["pretokenizers"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(pre_tokenizer),
        };
        let Some((bytes, steps)) = steps.split_last() else {
            return false;
        };
        bytes["type"] == "ByteLevel"
            && bytes["use_regex"].as_bool().unwrap_or(true) == self.as_gpt2
            && bytes["add_prefix_space"] == false
            && steps.len() == self.steps.len()
            && steps
                .iter()
                .zip(self.steps)
                .all(|(json, step)| step.is(json))
    }

    /// llama.cpp's name.
    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The normalizer of a `tokenizer.json`.
    pub(super) fn normalizer(&self) -> Value {
        match self.composes {
            true => json!({"type": "NFC"}),
            false => Value::Null,
        }
    }

    /// The pre-tokenizer of a `tokenizer.json`.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let mut steps: Vec<Value> = self.steps.iter().map(Step::json).collect();
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.as_gpt2}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Step {
    fn is(&self, json: &Value) -> bool {
        match self {
            Self::Digits => json["type"] == "Digits" && json["individual_digits"] == true,
            // Of a pattern that matches everything the matches alone are the same parts.
            Self::Matches(regex) => {
                json["type"] == "Split"
                    && json["pattern"]["Regex"] == *regex
                    && (json["behavior"] == "Isolated"
                        || json["behavior"] == "Removed" && json["invert"] == true)
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Digits => json!({"type": "Digits", "individual_digits": true}),
            Self::Matches(regex) => {
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_names_and_by_what_it_does() {
        for splitting in &ALL {
            let json = json!({
                "normalizer": splitting.normalizer(), "pre_tokenizer": splitting.pre_tokenizer(),
                "model": {"ignore_merges": splitting.ignore_merges},
            });
            assert_eq!(Splitting::of_json(&json), Ok(splitting));
            for name in splitting.names {
                assert_eq!(Splitting::of_name(name), Ok(splitting));
            }
        }
        let unknown = Splitting::of_name("grok-2").unwrap_err();
        assert!(
            unknown.contains("\"grok-2\"; gpt-2, phi-2, smollm"),
            "{unknown}"
        );
    }

    #[test]
    fn other_splits_are_refused() {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let sequence = |steps: &[Value]| json!({"type": "Sequence", "pretokenizers": steps});
        let name = |pre: &Value| {
            let json = json!({"normalizer": null, "pre_tokenizer": pre, "model": {}});
            Splitting::of_json(&json).map(Splitting::name)
        };
        // A step without a sequence around it, and one that drops what a pattern of everything leaves.
        assert_eq!(name(&bytes(true)), Ok("gpt-2"));
        let mut removed = split(GPT4O);
        (removed["behavior"], removed["invert"]) = (json!("Removed"), json!(true));
        assert_eq!(name(&sequence(&[removed, bytes(false)])), Ok("gpt-4o"));
        let digits = json!({"type": "Digits", "individual_digits": false});
        for other in [
            sequence(&[digits, bytes(true)]),
            sequence(&[split("a+"), bytes(false)]),
            sequence(&[split(QWEN2), split(QWEN2), bytes(false)]),
            bytes(false),
            json!({"type": "Metaspace"}),
            Value::Null,
        ] {
            assert!(name(&other).is_err(), "{other}");
        }
    }
}
