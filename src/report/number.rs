//! Whole numbers and times as people read them.

/// `1,000,000`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `45 s`, `12 min`, `3 h 20 min`: two units at most, none below a twentieth of the whole.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0, s) => format!("{s} s"),
        (0, m @ 1..=9, s) if s > 0 => format!("{m} min {s} s"),
        (0, m, s) if m + s / 30 < 60 => format!("{} min", m + s / 30),
        (0, ..) => "1 h".into(),
        (h @ 1..=19, m, _) if m > 0 => format!("{h} h {m} min"),
        (h, m, _) => format!("{} h", h + m / 30),
    }
}

#[cfg(test)]
mod tests {
    use super::{duration, grouped};

    #[test]
    fn times_have_two_units_at_most() {
        assert_eq!(
            [
                0.04, 9.96, 59.4, 60.0, 95.0, 725.0, 3585.0, 3600.0, 12_000.0, 90_000.0
            ]
            .map(duration),
            [
                "0.0 s",
                "10 s",
                "59 s",
                "1 min",
                "1 min 35 s",
                "12 min",
                "1 h",
                "1 h",
                "3 h 20 min",
                "25 h"
            ]
        );
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            [0, 999, 1000, 1_000_000].map(grouped),
            ["0", "999", "1,000", "1,000,000"]
        );
    }
}
