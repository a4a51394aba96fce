//! Responses to other prompts, which the KL divergence is estimated with.

use crate::data::Labelled;

/// Each item's prompt with the response of the item before it in the batch; the first one's with that of the last. Items before it with
/// the same prompt are passed over: their responses are no stranger to it. Rows are cut at `max_length` tokens.
///
/// # Source
/// TRL 1.16's `KTOTrainer._prepare_dataset`, which rotates the responses of a batch by one whatever their prompts are.
pub(super) fn mismatched(items: &[&Labelled], max_length: usize) -> Vec<Labelled> {
    let prompt = |i: usize| &items[i].ids[..items[i].prompt_len];
    let count = items.len();
    (0..count)
        .map(|i| {
            let before = |step: &usize| (i + count - step) % count;
            let other = (1..count)
                .map(|step| before(&step))
                .find(|&j| prompt(j) != prompt(i))
                .unwrap_or_else(|| before(&1.min(count - 1)));
            let response = &items[other].ids[items[other].prompt_len..];
            let mut ids = [prompt(i), response].concat();
            ids.truncate(max_length);
            Labelled {
                ids,
                prompt_len: items[i].prompt_len,
                label: items[i].label,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(prompt: &[u32], response: &[u32]) -> Labelled {
        Labelled {
            ids: [prompt, response].concat(),
            prompt_len: prompt.len(),
            label: true,
        }
    }

    fn ids(items: &[Labelled], max_length: usize) -> Vec<Vec<u32>> {
        let items: Vec<&Labelled> = items.iter().collect();
        let others = mismatched(&items, max_length);
        others.into_iter().map(|item| item.ids).collect()
    }

    #[test]
    fn responses_are_rotated_by_one() {
        let items = [
            item(&[1, 1], &[10]),
            item(&[2], &[20, 21, 22]),
            item(&[3], &[30]),
        ];
        assert_eq!(
            ids(&items, 9),
            [vec![1, 1, 30], vec![2, 10], vec![3, 20, 21, 22]]
        );
        assert_eq!(ids(&items, 3)[2], [3, 20, 21]);
    }

    #[test]
    fn a_prompts_own_responses_are_passed_over() {
        let items = [item(&[1], &[10]), item(&[1], &[11]), item(&[2], &[20])];
        assert_eq!(ids(&items, 9), [[1, 20], [1, 20], [2, 11]]);
        // Of one prompt alone there are no others.
        let items = [item(&[1], &[10]), item(&[1], &[11])];
        assert_eq!(ids(&items, 9), [[1, 11], [1, 10]]);
        assert_eq!(ids(&items[..1], 9), [[1, 10]]);
    }
}
