//! Parses memory sizes.

/// Units in bytes; longer names first, since shorter ones are suffixes of them.
const UNITS: [(&str, f64); 13] = [
    ("KIB", 1024.0),
    ("MIB", 1_048_576.0),
    ("GIB", 1_073_741_824.0),
    ("TIB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("K", 1024.0),
    ("M", 1_048_576.0),
    ("G", 1_073_741_824.0),
    ("T", 1_099_511_627_776.0),
    ("B", 1.0),
];

/// Parses `24GiB`, `24G` (the same), `24.5 GB` (powers of 1000), or a plain number of bytes.
///
/// # Errors
/// A message for clap.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_uppercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, bytes)| Some((upper.strip_suffix(name)?, *bytes)))
        .unwrap_or((&upper, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * unit) as u64),
        _ => Err("expected a size such as 24GiB, 24000MB or a number of bytes".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, expected) in [
            ("24GiB", 25_769_803_776),
            ("24g", 25_769_803_776),
            ("1.5 GB", 1_500_000_000),
            ("512MiB", 536_870_912),
            ("4096", 4096),
            ("10B", 10),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "0", "24 apples", "inf"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
