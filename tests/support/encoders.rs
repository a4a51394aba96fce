//! Classifiers against transformers' numbers (`tests/reference/encoders.py`), generic over the backend.

use serde_json::Value;

use tempering::data::{CutSide, EncodedText, EncoderTokenizer};
use tempering::model::{ClassifierSource, EncoderClassifier, Fetch, Finder};
use tempering::ops::{ModelBackend, Numerics};

use super::parity::{Comparison, backend_name};
use super::reference::{Case, cases, distance, numbers};

/// The texts of a reference, or its pairs of texts.
fn encoded(tokenizer: &EncoderTokenizer, texts: &Value) -> Vec<EncodedText> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let encode = |value: &Value| match value {
        Value::Array(pair) => tokenizer.encode(&text(&pair[0]), Some(&text(&pair[1]))),
        one => tokenizer.encode(&text(one), None),
    };
    let texts = texts.as_array().unwrap().iter();
    texts.map(|value| encode(value).unwrap()).collect()
}

fn ids(texts: &[EncodedText]) -> Vec<Vec<u32>> {
    texts.iter().map(|text| text.ids.clone()).collect()
}

/// Ids of texts and of pairs, cut at either side.
fn check_ids(case: &Case, tokenizer: &EncoderTokenizer) {
    let expected = |key: &str| -> Vec<Vec<u32>> {
        serde_json::from_value(case.reference[key].clone()).unwrap()
    };
    let texts = encoded(tokenizer, &case.reference["texts"]);
    assert_eq!(ids(&texts), expected("ids"), "{}", case.name);
    let cut: Vec<bool> = texts.iter().map(|text| text.is_cut).collect();
    assert_eq!(
        cut,
        [false, false, false, true, false, true],
        "{}",
        case.name
    );
    let pairs = encoded(tokenizer, &case.reference["pairs"]);
    assert_eq!(ids(&pairs), expected("pair_ids"), "{}", case.name);
    let from_left = tokenizer.clone().cutting(CutSide::First).unwrap();
    let texts = encoded(&from_left, &case.reference["texts"]);
    assert_eq!(ids(&texts), expected("ids_left"), "{}", case.name);
}

/// Logits of texts packed together, and of each alone.
fn logits<B: ModelBackend>(
    model: &EncoderClassifier<B>,
    texts: &[EncodedText],
    device: &B::Device,
) -> [Vec<f32>; 2] {
    // In passes of at most one token each text is by itself.
    [4096, 1].map(|tokens| model.logits(texts, tokens, device, &mut |_, _| {}).concat())
}

/// Token ids and logits of all classifiers.
pub(crate) fn classifiers<B: ModelBackend>(device: B::Device) {
    let cases = cases("encoders");
    assert_eq!(cases.len(), 4);
    for case in cases {
        let path = case.path.to_str().unwrap();
        let source = ClassifierSource::find(&Finder::new(Fetch::All), path).unwrap();
        let tokenizer = source.tokenizer().unwrap();
        check_ids(&case, &tokenizer);
        let model = source.load::<B>(Numerics::default(), &device).unwrap();
        for (key, expected) in [("texts", "logits"), ("pairs", "pair_logits")] {
            let texts = encoded(&tokenizer, &case.reference[key]);
            let expected = numbers(&case.reference[expected]);
            let got = logits(&model, &texts, &device);
            let difference = got
                .iter()
                .map(|got| distance(got, &expected))
                .fold(0.0, f64::max);
            Comparison {
                reference: "transformers 5.23",
                subject: &format!("{} classifier", case.name),
                what: if key == "texts" {
                    "logits of texts"
                } else {
                    "logits of pairs"
                },
                backend: backend_name::<B>(),
                difference,
                tolerance: 1e-5,
                relative: false,
            }
            .check();
        }
    }
}
