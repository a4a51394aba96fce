//! Charts of one quantity against another: points with names and errors, or joined by lines.

use plotters::prelude::*;

use super::axis::Axis;
use super::chart::{COLORS, INK, SIZE, frame, svg};

/// A point of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Standard error of `y`; 0 draws none.
    pub(super) error: f64,
    /// Written beside it, unless it is empty.
    pub(super) name: String,
    /// Drawn larger.
    pub(super) marked: bool,
}

/// Points of one colour.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) points: Vec<Point>,
    /// Joined in their order.
    pub(super) joined: bool,
}

/// An SVG element with all series; `Err` holds the plotting crate's message. Points that are not finite are left out.
pub(super) fn point_chart(series: &[Series]) -> Result<String, String> {
    let finite = |point: &&Point| point.x.is_finite() && point.y.is_finite();
    let all = || series.iter().flat_map(|s| &s.points).filter(finite);
    let range = |values: &dyn Fn(&Point) -> [f64; 2]| {
        all()
            .flat_map(values)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            })
    };
    let ((left, right), (low, high)) = (
        range(&|point| [point.x, point.x]),
        range(&|point| [point.y - point.error, point.y + point.error]),
    );
    if !left.is_finite() || !low.is_finite() {
        return Err("a chart needs at least one finite point".into());
    }
    let x = Axis::of_values(left, right, false, false);
    let y = Axis::of_values(low, high, false, false);
    let middle = (x.low + x.high) / 2.0;
    svg(SIZE, |root| {
        let mut chart = frame(root, x, y, true)?;
        let font = ("sans-serif", 12).into_font().color(&INK);
        for (i, series) in series.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let points: Vec<&Point> = series.points.iter().filter(finite).collect();
            if series.joined {
                let line = points.iter().map(|point| (point.x, point.y));
                chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
            }
            for point in points {
                if point.error > 0.0 {
                    let whisker = [
                        (point.x, point.y - point.error),
                        (point.x, point.y + point.error),
                    ];
                    chart.draw_series(LineSeries::new(whisker, color.stroke_width(1)))?;
                }
                let size = if point.marked { 6 } else { 3 };
                chart.draw_series([Circle::new((point.x, point.y), size, color.filled())])?;
                if !point.name.is_empty() {
                    // Names of points at the right stand before them, so that they stay within the picture.
                    let offset = match point.x > middle {
                        true => (-7 * (point.name.chars().count() as i32 + 1), -14),
                        false => (7, -14),
                    };
                    let text = EmptyElement::at((point.x, point.y))
                        + Text::new(point.name.clone(), offset, font.clone());
                    chart.draw_series([text])?;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64, name: &str) -> Point {
        Point {
            x,
            y,
            error: 0.1,
            name: name.into(),
            marked: name == "best",
        }
    }

    #[test]
    fn points_have_names_and_lines_join_them() {
        let apart = Series {
            points: vec![point(0.0, 1.0, "sft"), point(4.0, 2.0, "best")],
            joined: false,
        };
        let joined = Series {
            points: vec![
                point(0.0, 1.0, ""),
                point(f64::NAN, 1.0, ""),
                point(2.0, 1.5, ""),
            ],
            joined: true,
        };
        let svg = point_chart(&[apart.clone(), joined]).unwrap();
        assert!(svg.contains("best") && svg.contains("sft"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
        // Whiskers of four points and one line.
        assert!(svg.matches("#D66019").count() >= 5, "{svg}");
        let none = Series {
            points: vec![point(f64::NAN, 1.0, "")],
            joined: false,
        };
        assert!(point_chart(&[none]).is_err());
        assert!(point_chart(&[]).is_err());
    }
}
