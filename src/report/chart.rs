//! Charts as inline SVG: lines over steps, histograms, bars with errors.
//!
//! Colours are those of [`INK`] and [`COLORS`]; the page's style replaces them in a dark theme.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::axis::Axis;
use super::histogram::Histogram;
use super::page::escape;

/// The colour of text and axes.
pub(super) const INK: RGBColor = BLACK;
/// The colours of lines and bars.
pub(super) const COLORS: [RGBColor; 4] = [
    RGBColor(0x1F, 0x6F, 0xB4),
    RGBColor(0xD6, 0x60, 0x19),
    RGBColor(0x2C, 0x91, 0x50),
    RGBColor(0x82, 0x52, 0xAA),
];

pub(super) const SIZE: (u32, u32) = (440, 230);
/// Most points of a line; longer series are averaged bucket by bucket.
const MAX_POINTS: usize = 400;
/// Height of a bar with the space below it, and of the axis.
const BAR_HEIGHT: u32 = 38;
const AXIS_HEIGHT: u32 = 24;
const MARGIN: u32 = 8;
/// What [`rows_frame`] takes beside its rows, in pixels.
pub(super) const ROWS_FRAME_HEIGHT: u32 = AXIS_HEIGHT + 2 * MARGIN;
/// Share of a bar's row that it fills.
const BAR_SHARE: f64 = 0.55;

/// One line of a chart.
pub(super) struct Line<'a> {
    /// Its name in the legend.
    pub(super) label: &'a str,
    /// `(step, value)`, steps rising, values finite.
    pub(super) points: Vec<(usize, f64)>,
}

/// One bar of a chart.
pub(super) struct Bar<'a> {
    /// Its name.
    pub(super) label: &'a str,
    /// Its length.
    pub(super) value: f64,
    /// Its standard error.
    pub(super) error: f64,
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type DrawingError = DrawingAreaErrorKind<std::io::Error>;
type Drawn = Result<(), DrawingError>;

/// An SVG element with all lines over the steps, and upright lines at the steps of `marks`; `Err` holds the plotting crate's message.
/// `percent`: the values are fractions.
pub(super) fn line_chart(
    lines: &[Line<'_>],
    marks: &[usize],
    percent: bool,
) -> Result<String, String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let first = points().map(|p| p.0).min().unwrap_or(0);
    let last = points().map(|p| p.0).max().unwrap_or(0);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return Err("a chart needs at least one finite value".into());
    }
    let whole = points().all(|p| p.1.fract() == 0.0);
    let x = Axis::of_steps(first, last);
    let y = Axis::of_values(low, high, percent, whole);
    let height = plotters::coord::ranged1d::Ranged::range(&y);
    let heights = [height.start, height.end];
    svg(SIZE, |root| {
        let mut chart = frame(root, x, y, true)?;
        for &step in marks {
            let upright = heights.map(|height| (step as f64, height));
            chart.draw_series(LineSeries::new(upright, COLORS[1].mix(0.5)))?;
        }
        for (i, line) in lines.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let points = thin(&line.points, MAX_POINTS);
            if let [point] = points[..] {
                chart.draw_series([Circle::new(point, 3, color.filled())])?;
            } else if points.len() > 20 {
                // The raw line in a pale colour, its moving average on top.
                chart.draw_series(LineSeries::new(points.iter().copied(), color.mix(0.3)))?;
                let smooth = moving_average(&points, points.len() / 20);
                chart.draw_series(LineSeries::new(smooth, color.stroke_width(2)))?;
            } else {
                chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
            }
        }
        Ok(())
    })
}

/// An SVG element with the shares of all series of a histogram: the first one filled, the others as outlines.
pub(super) fn histogram_chart(histogram: &Histogram) -> Result<String, String> {
    let shares: Vec<Vec<f64>> = (histogram.series.iter())
        .map(|series| series.shares())
        .collect();
    let high = shares.iter().flatten().copied().fold(0.0, f64::max);
    let y = Axis::of_values(0.0, high.max(0.01), true, false);
    let x = Axis::of_values(histogram.low, histogram.high, false, false);
    svg(SIZE, |root| {
        let mut chart = frame(root, x, y, false)?;
        for (i, shares) in shares.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            if i == 0 {
                let bar = |(bin, &share): (usize, &f64)| {
                    let corners = [(histogram.edge(bin), 0.0), (histogram.edge(bin + 1), share)];
                    Rectangle::new(corners, color.mix(0.35).filled())
                };
                chart.draw_series(shares.iter().enumerate().map(bar))?;
            }
            let mut outline = vec![(histogram.low, 0.0)];
            for (bin, &share) in shares.iter().enumerate() {
                outline.push((histogram.edge(bin), share));
                outline.push((histogram.edge(bin + 1), share));
            }
            outline.push((histogram.high, 0.0));
            chart.draw_series(LineSeries::new(outline, color.stroke_width(2)))?;
        }
        Ok(())
    })
}

/// An SVG element with a bar from zero for each value, its name above it, and whiskers of one standard error.
pub(super) fn bar_chart(bars: &[Bar<'_>]) -> Result<String, String> {
    let ends = || {
        bars.iter()
            .flat_map(|bar| [bar.value - bar.error, bar.value + bar.error])
    };
    let low = ends().fold(f64::INFINITY, f64::min);
    let high = ends().fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return Err("a chart needs at least one finite value".into());
    }
    let x = Axis::of_bars(low, high);
    let (rows, low_edge) = (bars.len() as f64, x.low);
    let height = bars.len() as u32 * BAR_HEIGHT + ROWS_FRAME_HEIGHT;
    svg((SIZE.0, height), |root| {
        let mut chart = rows_frame(root, x, rows)?;
        let font = ("sans-serif", 12).into_font().color(&INK);
        for (i, bar) in bars.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let name = (low_edge, i as f64 + 0.04);
            chart.draw_series([Text::new(bar.label.to_owned(), name, font.clone())])?;
            let top = i as f64 + (1.0 - BAR_SHARE);
            let (middle, bottom) = (i as f64 + 1.0 - BAR_SHARE / 2.0, i as f64 + 1.0);
            chart.draw_series([Rectangle::new(
                [(0.0, top), (bar.value, bottom)],
                color.mix(0.55).filled(),
            )])?;
            let whisker = [
                (bar.value - bar.error, middle),
                (bar.value + bar.error, middle),
            ];
            chart.draw_series(LineSeries::new(whisker, INK.stroke_width(2)))?;
            for end in [bar.value - bar.error, bar.value + bar.error] {
                let cap = [(end, middle - 0.12), (end, middle + 0.12)];
                chart.draw_series(LineSeries::new(cap, INK.stroke_width(2)))?;
            }
        }
        Ok(())
    })
}

/// An SVG element with points of `(predicted, share, count)` between 0.5 and 1, their size by their count, and the line of equal values.
pub(super) fn reliability_chart(points: &[(f64, f64, usize)]) -> Result<String, String> {
    if points.is_empty() {
        return Err("a chart needs at least one point".into());
    }
    let most = points.iter().map(|point| point.2).max().unwrap_or(1);
    let low = points.iter().map(|point| point.1).fold(0.5, f64::min);
    let x = Axis::of_values(0.5, 1.0, true, false);
    let y = Axis::of_values(low, 1.0, true, false);
    svg(SIZE, |root| {
        let mut chart = frame(root, x, y, true)?;
        chart.draw_series(LineSeries::new([(0.5, 0.5), (1.0, 1.0)], INK.mix(0.4)))?;
        let color = COLORS[0];
        let curve = points
            .iter()
            .map(|&(predicted, share, _)| (predicted, share));
        chart.draw_series(LineSeries::new(curve, color.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|&(predicted, share, count)| {
            // The area is proportional to the count.
            let radius = 2.0 + 6.0 * (count as f64 / most as f64).sqrt();
            Circle::new((predicted, share), radius as i32, color.mix(0.55).filled())
        }))?;
        Ok(())
    })
}

/// Two axes with lines at their ticks; those of the horizontal one only if `vertical_lines`.
pub(super) fn frame<'a, 'b>(
    root: &'a Area<'b>,
    x: Axis,
    y: Axis,
    vertical_lines: bool,
) -> Result<ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>, DrawingError> {
    let mut chart = ChartBuilder::on(root)
        .margin(MARGIN)
        .x_label_area_size(AXIS_HEIGHT)
        .y_label_area_size(58)
        .build_cartesian_2d(x, y)?;
    let mut mesh = chart.configure_mesh();
    if !vertical_lines {
        mesh.disable_x_mesh();
    }
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.4))
        .draw()?;
    Ok(chart)
}

/// A horizontal axis with lines at its ticks above rows of height 1, the first one on top.
pub(super) fn rows_frame<'a, 'b>(
    root: &'a Area<'b>,
    x: Axis,
    rows: f64,
) -> Result<ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, RangedCoordf64>>, DrawingError> {
    let mut chart = ChartBuilder::on(root)
        .margin(MARGIN)
        .x_label_area_size(AXIS_HEIGHT)
        .build_cartesian_2d(x, rows..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.4))
        .draw()?;
    Ok(chart)
}

/// Draws on an SVG of this size, which a screen reader takes for one picture; [`named`] says of what.
pub(super) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&root).map_err(|e| e.to_string())?;
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text.replacen("<svg ", "<svg role=\"img\" ", 1))
}

/// The picture with a name for screen readers.
pub(super) fn named(picture: &str, name: &str) -> String {
    let name = format!("role=\"img\" aria-label=\"{}\"", escape(name));
    picture.replacen("role=\"img\"", &name, 1)
}

/// At most `max` points: means of consecutive buckets of equal size.
fn thin(points: &[(usize, f64)], max: usize) -> Vec<(f64, f64)> {
    let bucket = points.len().div_ceil(max).max(1);
    points
        .chunks(bucket)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let step = chunk.iter().map(|p| p.0 as f64).sum::<f64>() / n;
            (step, chunk.iter().map(|p| p.1).sum::<f64>() / n)
        })
        .collect()
}

/// Mean over a window of `radius` points on either side, shorter at the ends.
fn moving_average(points: &[(f64, f64)], radius: usize) -> Vec<(f64, f64)> {
    (0..points.len())
        .map(|i| {
            let window = &points[i.saturating_sub(radius)..(i + radius + 1).min(points.len())];
            let mean = window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64;
            (points[i].0, mean)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::Histogram;

    #[test]
    fn long_series_are_averaged_into_buckets() {
        let points: Vec<(usize, f64)> = (1..=6).map(|s| (s, s as f64 * 10.0)).collect();
        assert_eq!(thin(&points, 3), [(1.5, 15.0), (3.5, 35.0), (5.5, 55.0)]);
        assert_eq!(thin(&points, 10).len(), 6);
    }

    #[test]
    fn the_average_is_centred_and_shorter_at_the_ends() {
        let points = [(1.0, 0.0), (2.0, 3.0), (3.0, 6.0)];
        assert_eq!(
            moving_average(&points, 1),
            [(1.0, 1.5), (2.0, 3.0), (3.0, 4.5)]
        );
    }

    #[test]
    fn a_chart_is_one_svg_element_with_a_line_per_series() {
        let line = |label, scale: f64| Line {
            label,
            points: (1..=5).map(|s| (s, scale / s as f64)).collect(),
        };
        let svg = line_chart(&[line("a", 1.0), line("b", 2.0)], &[], false).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("#1F6FB4").count(), 1, "{svg}");
        assert_eq!(svg.matches("#D66019").count(), 1);
        assert!(!svg.contains("http://") || svg.matches("http://").count() == 1); // the namespace only
    }

    #[test]
    fn flat_single_and_empty_series_do_not_panic() {
        for points in [vec![(3, 0.0)], vec![(1, 2.0), (2, 2.0)]] {
            assert!(line_chart(&[Line { label: "x", points }], &[], false).is_ok());
        }
        let points = Vec::new();
        assert!(line_chart(&[Line { label: "x", points }], &[], false).is_err());
    }

    #[test]
    fn a_histogram_has_a_bar_per_bin_and_an_outline_per_series() {
        let all = [0.0, 0.1, 0.9, 1.0];
        let histogram = Histogram::of(&[("all", &all), ("best", &all[2..])]).unwrap();
        let svg = histogram_chart(&histogram).unwrap();
        assert!(svg.matches("<rect").count() >= 2, "{svg}");
        assert!(svg.matches("<polyline").count() >= 2, "{svg}");
    }

    #[test]
    fn a_reliability_curve_has_a_point_per_bin() {
        let svg = reliability_chart(&[(0.55, 0.45, 100), (0.8, 0.9, 25)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(svg.contains("r=\"8\"") && svg.contains("r=\"5\""), "{svg}");
        assert!(reliability_chart(&[]).is_err());
    }

    #[test]
    fn bars_have_whiskers_with_two_caps() {
        let bar = |label, value| Bar {
            label,
            value,
            error: 0.1,
        };
        let svg = bar_chart(&[bar("sft", 0.5), bar("ppo", -1.0)]).unwrap();
        assert_eq!(svg.matches("<rect").count(), 2, "{svg}");
        assert!(bar_chart(&[]).is_err());
    }
}
