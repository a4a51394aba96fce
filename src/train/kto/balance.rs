//! The numbers of desirable and undesirable responses, and the weights that fit them.

/// Why these numbers of desirable and undesirable responses cannot be trained on.
pub(super) fn problem([desirable, undesirable]: [usize; 2]) -> Option<String> {
    let (count, label) = match (desirable, undesirable) {
        (count, 0) => (count, "true"),
        (0, count) => (count, "false"),
        _ => return None,
    };
    Some(format!(
        "all {count} labels are {label}: expected desirable (true) and undesirable (false) responses; with one kind alone use `Sft` or add \
         the other"
    ))
}

/// Advice if the weights of desirable and undesirable responses do not make up for unequal numbers.
///
/// # Source
/// Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8: the desirable weight times their number is to be 1 to 4/3 of the undesirable weight
/// times theirs. Rounded and taken as TRL 1.16's `KTOTrainer` does.
pub(super) fn advice(
    [desirable, undesirable]: [usize; 2],
    [desirable_weight, undesirable_weight]: [f64; 2],
) -> Option<String> {
    if desirable == undesirable || desirable == 0 || undesirable == 0 {
        return None;
    }
    let round = |x: f64| (x * 100.0).round() / 100.0;
    let (n, m) = (desirable as f64, undesirable as f64);
    let of_desirable = [1.0, 1.33].map(|factor| round(m * undesirable_weight / n * factor));
    let of_undesirable = [1.33, 1.0].map(|factor| round(n * desirable_weight / m / factor));
    let within = |weight: f64, [low, high]: [f64; 2]| (low..=high).contains(&weight);
    if within(desirable_weight, of_desirable) || within(undesirable_weight, of_undesirable) {
        return None;
    }
    let [low, high] = of_desirable;
    let [other_low, other_high] = of_undesirable;
    Some(format!(
        "the data have {desirable} desirable and {undesirable} undesirable responses: the paper recommends a `desirable_weight` from {low} \
         to {high}, or else an `undesirable_weight` from {other_low} to {other_high}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_make_up_for_unequal_numbers() {
        assert_eq!(advice([50, 50], [1.0, 1.0]), None);
        let text = advice([90, 30], [1.0, 1.0]).unwrap();
        // 30 / 90 = .33 to .44; 3 / 1.33 = 2.26 to 3.
        assert!(text.contains("from 0.33 to 0.44"), "{text}");
        assert!(text.contains("from 2.26 to 3"), "{text}");
        assert_eq!(advice([90, 30], [0.4, 1.0]), None);
        assert_eq!(advice([90, 30], [1.0, 2.5]), None);
        assert!(advice([90, 30], [0.4, 2.5]).is_some());
    }

    #[test]
    fn labels_of_one_kind_are_a_problem() {
        assert_eq!(problem([3, 2]), None);
        assert!(
            problem([3, 0])
                .unwrap()
                .starts_with("all 3 labels are true")
        );
        assert!(
            problem([0, 2])
                .unwrap()
                .starts_with("all 2 labels are false")
        );
    }
}
