//! The page of ratings: a chart of points with intervals, the tables, and the matrix of wins.

use std::path::Path;

use plotters::prelude::*;

use super::axis::Axis;
use super::chart::{COLORS, INK, ROWS_FRAME_HEIGHT, named, rows_frame, svg};
use super::page::{self, escape};
use super::ratings::PolicyRatings;
use crate::atomic::write_output;
use crate::error::{Error, Result};

const ROW_HEIGHT: u32 = 34;
const WIDTH: u32 = 640;

/// Writes the page of ratings, a section for each source of judgements.
///
/// # Errors
/// `Error::Io`.
pub fn write_rating_page(path: &Path, ratings: &[PolicyRatings]) -> Result<()> {
    let html = rating_page(ratings)
        .map_err(|e| Error::format(path, format!("cannot plot a chart: {e}")))?;
    write_output(path, html.as_bytes())
}

fn rating_page(ratings: &[PolicyRatings]) -> std::result::Result<String, String> {
    let mut body = String::from("<h1>Ratings</h1>\n");
    for of_source in ratings {
        let (title, rest) = (of_source.source.as_str(), of_source.heading());
        let rest = rest.trim_start_matches(title).trim_start_matches(": ");
        body.push_str(&format!(
            "<section><h2>{}</h2>\n<p>{}</p>\n",
            escape(title),
            escape(rest)
        ));
        for warning in &of_source.warnings {
            body.push_str(&format!("<p class=\"warning\">{}</p>\n", escape(warning)));
        }
        body.push_str(&format!(
            "<figure><figcaption>Bradley-Terry rating with its interval; 400 points are odds of ten to one</figcaption>{}</figure>\n",
            named(&chart(of_source)?, "Ratings with their intervals")
        ));
        body.push_str(&page::table(&of_source.table()));
        body.push_str("<h3>Wins of the row against the column, a tie being half a win</h3>\n");
        body.push_str(&page::table(&of_source.win_table()));
        body.push_str("</section>\n");
    }
    Ok(page::frame("Ratings · tempering", &body))
}

/// A row for each policy, the best on top: its point and a line over its interval.
fn chart(ratings: &PolicyRatings) -> std::result::Result<String, String> {
    let policies = &ratings.policies;
    let ends = policies
        .iter()
        .flat_map(|policy| [policy.rating.interval.low, policy.rating.interval.high]);
    let ends: Vec<f64> = ends
        .chain(policies.iter().map(|policy| policy.rating.points))
        .collect();
    let low = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return Err("a chart needs finite ratings".into());
    }
    let x = Axis::of_values(low, high, false, false);
    let left = x.low;
    let rows = policies.len() as f64;
    let size = (
        WIDTH,
        policies.len() as u32 * ROW_HEIGHT + ROWS_FRAME_HEIGHT,
    );
    svg(size, |root| {
        let mut chart = rows_frame(root, x, rows)?;
        let font = ("sans-serif", 12).into_font().color(&INK);
        for (i, policy) in policies.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let middle = i as f64 + 0.7;
            let label = format!("{} {:.0}", policy.name, policy.rating.points);
            let at = (left, i as f64 + 0.08);
            chart.draw_series([Text::new(label, at, font.clone())])?;
            let interval = policy.rating.interval;
            let line = [(interval.low, middle), (interval.high, middle)];
            chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
            let point = (policy.rating.points, middle);
            chart.draw_series([Circle::new(point, 5, color.filled())])?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::contest::Rating;
    use crate::report::page::testing::assert_sound;
    use crate::report::ratings::RatedPolicy;
    use crate::stats::Interval;

    #[test]
    fn every_policy_has_a_point_and_names_are_escaped() {
        let rated = |name: &str, points: f64| RatedPolicy {
            name: name.into(),
            rating: Rating {
                points,
                interval: Interval {
                    low: points - 40.0,
                    high: points + 40.0,
                },
            },
            comparisons: 4.0,
            win_rate: 0.5,
            ..RatedPolicy::default()
        };
        let ratings = PolicyRatings {
            source: "gold".into(),
            policies: vec![rated("<b>ppo", 1100.0), rated("sft", 1000.0)],
            anchor: "sft".into(),
            wins: vec![vec![0.0, 3.0], vec![1.0, 0.0]],
            warnings: vec!["few".into()],
            ..PolicyRatings::default()
        };
        let html = rating_page(&[ratings]).unwrap();
        assert_sound(&html);
        assert_eq!(html.matches("<circle").count(), 2, "{html}");
        assert!(
            html.contains("&lt;b&gt;ppo") && html.contains("75 % of 4"),
            "{html}"
        );
        assert!(html.contains("<p class=\"warning\">few</p>"));
        let bad = PolicyRatings {
            policies: vec![rated("a", f64::NAN)],
            ..PolicyRatings::default()
        };
        assert!(chart(&bad).is_err());
    }
}
