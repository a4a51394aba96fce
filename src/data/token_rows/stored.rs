//! Encoded rows as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::data::{Comparisons, Example, Labelled, Prompt};

/// A row as token ids, in memory or in a file.
pub trait TokenRow: Clone + Send {
    /// Tokens that pass through a model.
    fn num_tokens(&self) -> usize;

    /// Pairs of a chosen and a rejected response.
    fn num_pairs(&self) -> usize {
        0
    }

    /// Appends the row's bytes.
    fn write(&self, out: &mut Vec<u8>);

    /// Takes the row off the front of `bytes`; `None` if it is not there.
    fn read(bytes: &mut &[u8]) -> Option<Self>;
}

impl TokenRow for Example {
    fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Ids, then the lengths of runs of equal `trained`, the first one of tokens that are not trained on.
    fn write(&self, out: &mut Vec<u8>) {
        write_numbers(out, &self.ids);
        let mut runs = Vec::new();
        let (mut run, mut is_trained) = (0, false);
        for &trained in &self.trained {
            if trained != is_trained {
                runs.push(run);
                (run, is_trained) = (0, trained);
            }
            run += 1;
        }
        runs.push(run);
        write_numbers(out, &runs);
        write_len(out, self.prompt_len);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let ids = read_numbers(bytes)?;
        let mut trained = Vec::with_capacity(ids.len());
        for (i, run) in read_numbers(bytes)?.into_iter().enumerate() {
            trained.resize(trained.len() + run as usize, i % 2 == 1);
        }
        Some(Self {
            ids,
            trained,
            prompt_len: read_len(bytes)?,
        })
    }
}

impl TokenRow for Comparisons {
    fn num_tokens(&self) -> usize {
        self.packed_len()
    }

    fn num_pairs(&self) -> usize {
        self.pairs.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_len(out, self.responses.len());
        for response in &self.responses {
            write_numbers(out, response);
        }
        write_len(out, self.prompt_len);
        write_len(out, self.pairs.len());
        for &(chosen, rejected, margin) in &self.pairs {
            write_len(out, chosen);
            write_len(out, rejected);
            out.extend(margin.to_le_bytes());
        }
        write_json(out, &(&self.labels, &self.judgements));
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let responses = (0..read_len(bytes)?).map(|_| read_numbers(bytes));
        let responses = responses.collect::<Option<_>>()?;
        let prompt_len = read_len(bytes)?;
        let pairs = (0..read_len(bytes)?).map(|_| {
            let (chosen, rejected) = (read_len(bytes)?, read_len(bytes)?);
            Some((chosen, rejected, f32::from_le_bytes(read_array(bytes)?)))
        });
        let pairs = pairs.collect::<Option<_>>()?;
        let (labels, judgements) = read_json(bytes)?;
        Some(Self {
            responses,
            prompt_len,
            pairs,
            labels,
            judgements,
        })
    }
}

impl TokenRow for Labelled {
    fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_numbers(out, &self.ids);
        write_len(out, self.prompt_len);
        write_len(out, usize::from(self.label));
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            ids: read_numbers(bytes)?,
            prompt_len: read_len(bytes)?,
            label: read_len(bytes)? != 0,
        })
    }
}

impl TokenRow for Prompt {
    fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_numbers(out, &self.ids);
        write_json(out, &(&self.text, self.conversation.as_deref(), &self.row));
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let ids = read_numbers(bytes)?;
        let (text, conversation, row) = read_json::<(_, Option<_>, _)>(bytes)?;
        Some(Self {
            ids,
            text,
            conversation: conversation.map(std::sync::Arc::new),
            row,
        })
    }
}

/// Lengths and positions of rows are below 2^32, as token ids are.
fn write_len(out: &mut Vec<u8>, len: usize) {
    out.extend((len as u32).to_le_bytes());
}

fn read_len(bytes: &mut &[u8]) -> Option<usize> {
    read_array(bytes).map(|bytes| u32::from_le_bytes(bytes) as usize)
}

fn write_numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    write_len(out, numbers.len());
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn read_numbers(bytes: &mut &[u8]) -> Option<Vec<u32>> {
    let len = read_len(bytes)?;
    let (own, rest) = bytes.split_at_checked(len.checked_mul(4)?)?;
    *bytes = rest;
    let (numbers, _) = own.as_chunks();
    Some(
        numbers
            .iter()
            .map(|&bytes| u32::from_le_bytes(bytes))
            .collect(),
    )
}

fn read_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (own, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*own)
}

fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    write_len(out, 0);
    serde_json::to_writer(&mut *out, value)
        .expect("JSON values and texts are JSON, and memory takes them");
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

fn read_json<T: DeserializeOwned>(bytes: &mut &[u8]) -> Option<T> {
    let len = read_len(bytes)?;
    let (own, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    serde_json::from_slice(own).ok()
}
