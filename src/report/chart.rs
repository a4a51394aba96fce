//! Line charts as inline SVG.

use plotters::prelude::*;

use super::progress::format_value;

const SIZE: (u32, u32) = (440, 230);
const COLORS: [RGBColor; 4] = [
    RGBColor(31, 111, 180),
    RGBColor(214, 96, 25),
    RGBColor(44, 145, 80),
    RGBColor(130, 82, 170),
];

/// Most points of a line; longer series are averaged bucket by bucket.
const MAX_POINTS: usize = 400;

/// One line of a chart.
pub(crate) struct Line<'a> {
    /// Its name in the legend.
    pub(crate) label: &'a str,
    /// `(step, value)`, steps rising, values finite.
    pub(crate) points: Vec<(usize, f64)>,
}

/// The colour of line `index` as CSS.
pub(crate) fn css_color(index: usize) -> String {
    let RGBColor(r, g, b) = COLORS[index % COLORS.len()];
    format!("rgb({r},{g},{b})")
}

/// An SVG element with all lines over the steps; `Err` holds the plotting crate's message.
pub(crate) fn line_chart(lines: &[Line<'_>]) -> Result<String, String> {
    let steps = || lines.iter().flat_map(|l| l.points.iter().map(|p| p.0));
    let values = || lines.iter().flat_map(|l| l.points.iter().map(|p| p.1));
    let (x0, x1) = (steps().min().unwrap_or(0), steps().max().unwrap_or(1));
    let y0 = values().fold(f64::INFINITY, f64::min);
    let y1 = values().fold(f64::NEG_INFINITY, f64::max);
    if !y0.is_finite() || !y1.is_finite() {
        return Err("a chart needs at least one finite value".into());
    }
    // Margins above and below, also around a flat line.
    let air = if y1 > y0 {
        (y1 - y0) * 0.05
    } else {
        y0.abs().max(1e-9) * 0.5
    };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(
            &root,
            lines,
            (x0 as f64, x1.max(x0 + 1) as f64),
            (y0 - air, y1 + air),
        )
        .map_err(|e| e.to_string())?;
    }
    Ok(svg)
}

fn draw<'a>(
    root: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    lines: &[Line<'_>],
    x: (f64, f64),
    y: (f64, f64),
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let mut chart = ChartBuilder::on(root)
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(58)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.4))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format_value(*y))
        .draw()?;
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
    root.present()
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
        let svg = line_chart(&[line("a", 1.0), line("b", 2.0)]).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("#1F6FB4").count(), 1, "{svg}");
        assert_eq!(svg.matches("#D66019").count(), 1);
        assert!(!svg.contains("http://") || svg.matches("http://").count() == 1); // the namespace only
    }

    #[test]
    fn flat_single_and_empty_series_do_not_panic() {
        for points in [vec![(3, 0.0)], vec![(1, 2.0), (2, 2.0)]] {
            assert!(line_chart(&[Line { label: "x", points }]).is_ok());
        }
        assert!(
            line_chart(&[Line {
                label: "x",
                points: vec![]
            }])
            .is_err()
        );
    }
}
