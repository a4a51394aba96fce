//! Pictures of a stage's results: score distributions, bars with errors, the table of a comparison.

use super::calibration::Calibration;
use super::chart::{Bar, bar_chart, histogram_chart};
use super::comparison::{ComparedPolicy, Comparison, Estimate};
use super::frontier;
use super::histogram::Histogram;
use super::page::{self, escape};
use super::panels::captioned;
use super::progress::format_value;
use super::record::StageRecord;
use crate::stats::WinRate;

/// The tables and pictures of a stage's results; empty if it has none.
pub(super) fn results(record: &StageRecord) -> Result<String, String> {
    let mut html = String::new();
    if let Some(table) = &record.table {
        html.push_str(&page::table(table));
    }
    if let Some(comparison) = &record.comparison {
        html.push_str(&comparison_table(comparison));
        for (heading, table) in comparison.further_tables() {
            html.push_str(&format!(
                "<p>{}</p>\n{}",
                escape(&capitalised(&heading)),
                page::table(&table)
            ));
        }
    }
    for note in record.calibration.iter().flat_map(Calibration::notes) {
        html.push_str(&format!("<p>{}</p>\n", escape(&note)));
    }
    let pictures = pictures(record)?;
    if !pictures.is_empty() {
        html.push_str(&format!("<div class=\"charts\">\n{pictures}</div>\n"));
    }
    Ok(html)
}

/// The pictures alone, without a frame.
pub(super) fn pictures(record: &StageRecord) -> Result<String, String> {
    let mut html = String::new();
    if let Some(comparison) = &record.comparison {
        for source in 0..comparison.sources.len() {
            html.push_str(&means(comparison, source)?);
        }
        html.push_str(&win_rates(comparison)?);
        html.push_str(&frontier::of_policies(comparison)?);
        for (source, distribution) in comparison.sources.iter().zip(&comparison.distributions) {
            let title = format!("Distribution of {source}");
            let about = "Share of the responses by score.";
            html.push_str(&distribution_figure(distribution.as_ref(), &title, about)?);
        }
    }
    if let Some(calibration) = &record.calibration {
        html.push_str(&calibration.pictures()?);
    }
    html.push_str(&distribution_figure(
        record.scores.as_ref(),
        "Scores of the responses",
        "Share of the responses by score. Comparisons teach the step from the worst to the best response to a prompt.",
    )?);
    Ok(html)
}

/// Whether the stage's pictures replace curves over steps, which would be policies or batches of prompts.
pub(super) fn replace_curves(record: &StageRecord) -> bool {
    record.comparison.is_some() || record.scores.is_some()
}

fn distribution_figure(
    histogram: Option<&Histogram>,
    title: &str,
    about: &str,
) -> Result<String, String> {
    let Some(histogram) = histogram else {
        return Ok(String::new());
    };
    let entry = |(i, series): (usize, &super::histogram::BinCounts)| {
        let mean = series.mean.map_or(String::new(), format_value);
        format!(
            "<span class=\"c{}\">{} {mean}</span> ",
            i % 4,
            escape(&series.label)
        )
    };
    let legend: String = histogram.series.iter().enumerate().map(entry).collect();
    Ok(captioned(
        title,
        &legend,
        about,
        &histogram_chart(histogram)?,
    ))
}

/// Bars of the policies' mean scores by one source.
fn means(comparison: &Comparison, source: usize) -> Result<String, String> {
    let bar = |policy: &'_ ComparedPolicy| {
        let score = policy.scores.get(source).copied().unwrap_or_default();
        (policy.name.clone(), score)
    };
    let bars: Vec<(String, Estimate)> = comparison.policies.iter().map(bar).collect();
    if bars.iter().any(|(_, score)| !score.mean.is_finite()) {
        return Ok(String::new());
    }
    let legend: String = (bars.iter().enumerate())
        .map(|(i, (name, score))| {
            format!(
                "<span class=\"c{}\">{} {:.3} ± {:.3}</span> ",
                i % 4,
                escape(name),
                score.mean,
                score.error
            )
        })
        .collect();
    let bars: Vec<Bar<'_>> = (bars.iter())
        .map(|(name, score)| Bar {
            label: name,
            value: score.mean,
            error: score.error,
        })
        .collect();
    let about =
        "Mean score of each policy's responses, from top to bottom, with its standard error.";
    Ok(captioned(
        &comparison.sources[source],
        &legend,
        about,
        &bar_chart(&bars)?,
    ))
}

/// `text` with a capital letter at its start.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// Bars of the win rates against the reference, a figure for each source; empty without a contest.
fn win_rates(comparison: &Comparison) -> Result<String, String> {
    let mut html = String::new();
    let Some(contest) = &comparison.contest else {
        return Ok(html);
    };
    let by_judge =
        (contest.judge.iter()).map(|judge| (format!("the judge {}", judge.by), &judge.win_rates));
    let by_source = (comparison.sources.iter().cloned())
        .zip(contest.sources.iter().map(|source| &source.win_rates));
    for (name, win_rates) in by_source.chain(by_judge) {
        let won: Vec<(&str, &WinRate)> = (comparison.policies.iter().zip(win_rates))
            .filter_map(|(policy, won)| Some((policy.name.as_str(), won.as_ref()?)))
            .collect();
        let legend: String = (won.iter().enumerate())
            .map(|(i, (policy, won))| {
                format!(
                    "<span class=\"c{}\">{} {:.1} %</span> ",
                    i % 4,
                    escape(policy),
                    100.0 * won.rate
                )
            })
            .collect();
        let bars: Vec<Bar<'_>> = (won.iter())
            .map(|(label, won)| Bar {
                label,
                value: won.rate,
                // The whiskers are half of the interval.
                error: (won.interval.high - won.interval.low) / 2.0,
            })
            .collect();
        html.push_str(&captioned(
            &format!("Win rate by {name}"),
            &legend,
            &format!(
                "Share of the prompts on which a policy's response beats that of {}, a tie being half a win, with 95 % intervals. 0.5 is a draw.",
                contest.reference
            ),
            &bar_chart(&bars)?,
        ));
    }
    Ok(html)
}

/// The closing table: mean scores with their errors, and below each the difference from the reference on the same prompts.
pub(super) fn comparison_table(comparison: &Comparison) -> String {
    let mut header = String::from("<th>policy</th>");
    for source in &comparison.sources {
        header.push_str(&format!("<th class=\"number\">{}</th>", escape(source)));
    }
    header.push_str(
        "<th class=\"number\">KL</th><th class=\"number\">tokens</th><th class=\"number\">EOS</th>",
    );
    let mut rows = String::new();
    for policy in &comparison.policies {
        rows.push_str(&format!("<tr><td>{}</td>", escape(&policy.name)));
        for (source, score) in policy.scores.iter().enumerate() {
            let gain = policy.gains.get(source).map(difference).unwrap_or_default();
            rows.push_str(&format!(
                "<td class=\"number\">{:.3} <small>± {:.3}</small>{gain}</td>",
                score.mean, score.error
            ));
        }
        for measure in policy.measures() {
            rows.push_str(&format!("<td class=\"number\">{measure}</td>"));
        }
        rows.push_str("</tr>\n");
    }
    let mut note = String::from("Means with their standard errors; KL in nats per response.");
    if comparison
        .policies
        .iter()
        .any(|policy| !policy.gains.is_empty())
    {
        note.push_str(&format!(
            " Second line: the difference from {} on the same prompts; coloured if it is more than two standard errors, grey if it may be chance.",
            comparison.reference
        ));
    }
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<tr>{header}</tr>\n{rows}</table></div>\n<p><small>{}</small></p>\n",
        escape(&note)
    )
}

fn difference(gain: &Estimate) -> String {
    let class = match (gain.is_clear(), gain.mean > 0.0) {
        (false, _) => "soft",
        (true, true) => "up",
        (true, false) => "down",
    };
    format!(
        "<br><span class=\"{class}\">{:+.3} ± {:.3}</span>",
        gain.mean, gain.error
    )
}
