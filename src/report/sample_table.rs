//! Samples side by side, as HTML.

use std::collections::BTreeMap;

use super::page::escape;
use super::progress::format_value;
use super::samples::Sample;

/// Most prompts shown.
const MAX_PROMPTS: usize = 12;
/// Most columns of steps shown; policies are all shown.
const MAX_COLUMNS: usize = 4;

/// A table with one row per prompt, one column per policy (with one policy: per step, or per response to the same prompt); empty
/// without samples.
pub(super) fn sample_table(samples: &[Sample]) -> String {
    let titles = titles(samples);
    let mut columns: Vec<&String> = Vec::new();
    let mut prompts: Vec<&Sample> = Vec::new();
    for (sample, title) in samples.iter().zip(&titles) {
        if !columns.contains(&title) {
            columns.push(title);
        }
        if prompts.len() < MAX_PROMPTS && prompts.iter().all(|p| p.prompt != sample.prompt) {
            prompts.push(sample);
        }
    }
    if prompts.is_empty() {
        return String::new();
    }
    let of_policies = samples.iter().any(|sample| sample.policy.is_some());
    if columns.len() > MAX_COLUMNS && !of_policies {
        // The first step and the last ones: before training and its outcome.
        columns.drain(1..columns.len() - (MAX_COLUMNS - 1));
    }
    let has_reference = prompts.iter().any(|p| p.reference.is_some());

    let mut html = String::from(
        "<div class=\"scroll\" tabindex=\"0\"><table class=\"samples\">\n<tr><th>prompt</th>",
    );
    for column in &columns {
        html.push_str(&format!("<th>{}</th>", escape(column)));
    }
    html.push_str(if has_reference {
        "<th>reference</th></tr>\n"
    } else {
        "</tr>\n"
    });
    for prompt in prompts {
        html.push_str(&format!("<tr><td>{}</td>", escape(prompt.prompt.trim())));
        for column in &columns {
            let mut titled = samples.iter().zip(&titles);
            let found = titled.find(|(s, title)| s.prompt == prompt.prompt && title == column);
            let found = found
                .map(|(sample, _)| response(sample))
                .unwrap_or_default();
            html.push_str(&format!("<td>{found}</td>"));
        }
        if has_reference {
            let reference = prompt.reference.as_deref().unwrap_or_default();
            html.push_str(&format!("<td>{}</td>", escape(reference)));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    html
}

/// The column of each sample.
fn titles(samples: &[Sample]) -> Vec<String> {
    let mut seen: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    let mut places = Vec::new();
    for sample in samples {
        let place = seen.entry((&sample.prompt, sample.step)).or_default();
        *place += 1;
        places.push(*place);
    }
    let first_step = samples.first().map(|sample| sample.step);
    let one_step = samples.iter().all(|sample| Some(sample.step) == first_step);
    let several = one_step && places.iter().any(|&place| place > 1);
    (samples.iter().zip(places))
        .map(|(sample, place)| match &sample.policy {
            Some(policy) => policy.clone(),
            None if several => format!("response {place}"),
            None => format!("step {}", sample.step),
        })
        .collect()
}

fn response(sample: &Sample) -> String {
    let mut notes: Vec<String> = sample
        .scores
        .iter()
        .map(|(name, score)| format!("{} {}", escape(name), format_value(*score)))
        .collect();
    if sample.ended == Some(false) {
        notes.push("no EOS".into());
    }
    if notes.is_empty() {
        return escape(sample.response.trim());
    }
    format!(
        "{}<br><small>{}</small>",
        escape(sample.response.trim()),
        notes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_to_one_prompt_have_columns_of_their_own() {
        let sample = |response: &str| Sample {
            prompt: "p".into(),
            response: response.into(),
            ..Sample::default()
        };
        let html = sample_table(&[sample("a"), sample("b")]);
        assert!(
            html.contains("<th>response 1</th><th>response 2</th></tr>"),
            "{html}"
        );
        assert!(html.contains("<td>p</td><td>a</td><td>b</td>"), "{html}");
        assert_eq!(sample_table(&[]), "");
    }

    #[test]
    fn all_policies_have_a_column() {
        let names = ["base", "sft", "dpo", "ppo", "best"];
        let samples = names.map(|name| Sample {
            policy: Some(name.into()),
            prompt: "p".into(),
            ..Sample::default()
        });
        let html = sample_table(&samples);
        for name in names {
            assert!(html.contains(&format!("<th>{name}</th>")), "{html}");
        }
    }
}
