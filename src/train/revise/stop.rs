//! Ends a text at strings.

use crate::data::Tokenizer;
use crate::generate::Watch;

/// Ends a response once its text holds one of some strings.
pub(super) struct StopAt<'a> {
    tokenizer: &'a Tokenizer,
    stops: Vec<String>,
    /// Tokens at the end that may hold a stop string: a token is a byte at least.
    tail: usize,
    progress: &'a mut dyn FnMut(usize, u64),
}

impl<'a> StopAt<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        stops: &[String],
        progress: &'a mut dyn FnMut(usize, u64),
    ) -> Self {
        Self {
            tokenizer,
            tail: stops.iter().map(String::len).max().unwrap_or(0),
            stops: stops.to_vec(),
            progress,
        }
    }
}

/// `text` up to the first of `stops`.
pub(super) fn cut<'t>(text: &'t str, stops: &[String]) -> &'t str {
    let at = stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min();
    &text[..at.unwrap_or(text.len())]
}

impl Watch for StopAt<'_> {
    fn token(&mut self, _: usize, ids: &[u32]) -> bool {
        if self.tail == 0 {
            return false;
        }
        let tail = &ids[ids.len().saturating_sub(self.tail)..];
        // What cannot be decoded is reported when the whole text is.
        let text = self.tokenizer.decode(tail, true).unwrap_or_default();
        self.stops.iter().any(|stop| text.contains(stop.as_str()))
    }

    fn progress(&mut self, finished: usize, tokens: u64) {
        (self.progress)(finished, tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_first_stop() {
        let stops = ["\n\nB:".to_owned(), "\n\nA:".to_owned()];
        assert_eq!(cut("x\n\nA: y\n\nB: z", &stops), "x");
        assert_eq!(cut("x\n\ny", &stops), "x\n\ny");
        assert_eq!(cut("x", &[]), "x");
    }
}
