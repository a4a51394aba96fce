//! "Did you mean": the known name closest to a mistyped one.

use strsim::osa_distance;

/// The known name closest to `found`, if it is close enough.
pub(crate) fn nearest<'a>(
    found: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let length = found.chars().count();
    let allowed = (length / 3).max(1);
    let found = found.to_lowercase();
    known
        .into_iter()
        // A distance takes the product of both lengths; it is not less than their difference.
        .filter(|name| name.chars().count().abs_diff(length) <= allowed)
        .map(|name| (osa_distance(&found, &name.to_lowercase()), name))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// `` did you mean `x`? ``, if a known name is close.
pub(crate) fn did_you_mean<'a>(
    found: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(found, known).map(|name| format!("did you mean `{name}`?"))
}

/// `` `a`, `b`, `c` ``.
pub(crate) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["kl_coef", "vf_coef", "gamma"];
        assert_eq!(nearest("kl_coeff", known), Some("kl_coef"));
        // Two neighbours swapped are one edit.
        assert_eq!(nearest("gmama", known), Some("gamma"));
        assert_eq!(nearest("Gamma", known), Some("gamma"));
        assert_eq!(nearest("temperature", known), None);
    }
}
