//! Axes of charts: where the ticks are and how they are written.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Ticks that an axis has about.
const TICKS: f64 = 6.0;

/// The range and the ticks of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
    percent: bool,
}

impl Axis {
    /// An axis for values between `low` and `high`, both finite, with air around them. A constant is on the only tick.
    ///
    /// `percent`: the values are fractions. `whole`: they are whole numbers.
    pub(super) fn of_values(low: f64, high: f64, percent: bool, whole: bool) -> Self {
        let size = low.abs().max(high.abs());
        if high - low <= 1e-9 * size {
            let ticks = vec![low];
            let (low, high) = match (percent, size > 0.0) {
                (true, _) => (low.min(0.0), high.max(1.0)),
                (false, true) => (low - size / 2.0, high + size / 2.0),
                (false, false) => (-1.0, 1.0),
            };
            return Self {
                low,
                high,
                ticks,
                percent,
            };
        }
        let air = (high - low) * 0.05;
        let (mut below, mut above) = (low - air, high + air);
        if percent {
            // No fraction is below 0 or above 1, so that no tick should be.
            below = below.max(low.min(0.0));
            above = above.min(high.max(1.0));
        }
        Self {
            ticks: ticks(below, above, whole),
            low: below,
            high: above,
            percent,
        }
    }

    /// An axis of steps from `first` to `last`: whole numbers, both ends used.
    pub(super) fn of_steps(first: usize, last: usize) -> Self {
        let (low, high) = (first as f64, last as f64);
        if first == last {
            return Self {
                low: low - 1.0,
                high: high + 1.0,
                ticks: vec![low],
                percent: false,
            };
        }
        Self {
            low,
            high,
            ticks: ticks(low, high, true),
            percent: false,
        }
    }

    /// An axis that begins or ends at zero, for bars.
    pub(super) fn of_bars(low: f64, high: f64) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let air = if high > low { (high - low) * 0.05 } else { 1.0 };
        let low = if low < 0.0 { low - air } else { low };
        let high = if high > 0.0 || low == 0.0 {
            high + air
        } else {
            high
        };
        Self {
            ticks: ticks(low, high, false),
            low,
            high,
            percent: false,
        }
    }

    /// How a tick is written: with as many decimals as tell it from its neighbours.
    pub(super) fn label(&self, value: f64) -> String {
        let value = if value == 0.0 { 0.0 } else { value };
        let step = match self.ticks[..] {
            [a, b, ..] => b - a,
            _ if value.fract() == 0.0 => 1.0,
            _ => value.abs() / 100.0,
        };
        let step = if step > 0.0 { step } else { 1.0 };
        if self.percent {
            return format!("{:.*} %", decimals(step * 100.0), value * 100.0);
        }
        let size = self.low.abs().max(self.high.abs());
        if !(1e-3..1e6).contains(&size) {
            return if value == 0.0 {
                "0".into()
            } else {
                short_exponent(value)
            };
        }
        format!("{value:.*}", decimals(step))
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// `2e-5`, `1.5e6`: at most two decimals.
fn short_exponent(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) if digits.contains('.') => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e{exponent}")
        }
        _ => text,
    }
}

/// Decimals that tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    // A step of 0.1 may be a little less.
    let digits = -(step.log10() + 1e-9).floor();
    if digits > 0.0 { digits as usize } else { 0 }
}

/// Multiples of 1, 2 or 5 times a power of ten within a range, about [`TICKS`] of them; of at least 1 if they must be whole.
fn ticks(low: f64, high: f64, whole: bool) -> Vec<f64> {
    let about = (high - low) / TICKS;
    let power = 10f64.powf(about.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= about * 0.999)
        .unwrap_or(10.0);
    let step = factor * power;
    let step = if whole { step.max(1.0) } else { step };
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    (0..=(last - first).max(0.0) as usize)
        .map(|i| (first + i as f64) * step)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = Axis::of_values(2.03, 3.97, false, false);
        assert_eq!(labels(&axis), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
        let axis = Axis::of_values(-0.013, 0.041, false, false);
        assert_eq!(
            labels(&axis),
            ["-0.01", "0.00", "0.01", "0.02", "0.03", "0.04"]
        );
        let axis = Axis::of_values(1e-5, 2e-4, false, false);
        assert_eq!(labels(&axis), ["5e-5", "1e-4", "1.5e-4", "2e-4"]);
    }

    #[test]
    fn fractions_are_percentages_between_nothing_and_all() {
        let axis = Axis::of_values(0.51, 1.0, true, false);
        assert_eq!(
            labels(&axis),
            ["50 %", "60 %", "70 %", "80 %", "90 %", "100 %"]
        );
        assert_eq!(axis.high, 1.0);
        let axis = Axis::of_values(0.0, 0.004, true, false);
        assert_eq!(labels(&axis), ["0.0 %", "0.1 %", "0.2 %", "0.3 %", "0.4 %"]);
    }

    #[test]
    fn steps_and_counts_are_whole() {
        assert_eq!(labels(&Axis::of_steps(1, 3)), ["1", "2", "3"]);
        assert_eq!(labels(&Axis::of_steps(0, 16)), ["0", "5", "10", "15"]);
        assert_eq!(labels(&Axis::of_steps(4, 4)), ["4"]);
        let lengths = Axis::of_values(11.0, 12.0, false, true);
        assert_eq!(labels(&lengths), ["11", "12"]);
    }

    #[test]
    fn a_constant_is_on_the_only_tick() {
        for (value, percent, text) in [
            (2e-4, false, "2e-4"),
            (0.25, false, "0.250"),
            (0.0, false, "0"),
            (0.0, true, "0 %"),
            (0.5, true, "50.0 %"),
            (1.0, true, "100 %"),
        ] {
            let axis = Axis::of_values(value, value, percent, false);
            assert_eq!((axis.ticks.len(), axis.ticks[0]), (1, value));
            assert!(axis.low < axis.high && axis.low <= value && value <= axis.high);
            assert_eq!(axis.label(value), text, "{axis:?}");
        }
    }

    #[test]
    fn bars_begin_at_zero() {
        let axis = Axis::of_bars(0.2, 0.8);
        assert_eq!((axis.low, labels(&axis)[0].as_str()), (0.0, "0.0"));
        let axis = Axis::of_bars(-3.0, -1.0);
        assert_eq!(axis.high, 0.0);
        assert!(Axis::of_bars(0.0, 0.0).high > 0.0);
    }
}
