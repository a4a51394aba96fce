//! Responses to other prompts, which the KL divergence is estimated with.

use crate::data::Labelled;

/// Each item's prompt with the response of the item before it in the batch; the first one's with that of the last. The responses are
/// the batch's own, so that the estimate is of the same responses as the losses. Rows are cut at `max_length` tokens.
///
/// # Source
/// TRL 1.16's `KTOTrainer._prepare_dataset`, which takes no account of prompts that follow each other and are the same.
pub(super) fn mismatched(items: &[&Labelled], max_length: usize) -> Vec<Labelled> {
    let count = items.len();
    (0..count)
        .map(|i| {
            let (item, other) = (items[i], items[(i + count - 1) % count]);
            let (prompt, response) = (&item.ids[..item.prompt_len], &other.ids[other.prompt_len..]);
            let mut ids = [prompt, response].concat();
            ids.truncate(max_length);
            Labelled {
                ids,
                prompt_len: item.prompt_len,
                label: item.label,
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
}
