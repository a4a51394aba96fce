//! A response as text while its tokens are sampled.

use super::Tokenizer;
use crate::error::Result;

/// The text of a response so far, up to a stop string.
///
/// The text is that of all tokens decoded at once: tokens that are a part of a character wait for the rest of it, and what may be the
/// beginning of a stop string is held back.
#[derive(Debug)]
pub struct ResponseText<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that were handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> ResponseText<'a> {
    /// The text of a response that no token has been sampled of; it ends before the first of `stops`.
    pub fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Self {
            tokenizer,
            stops,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Takes the whole response so far. Returns whether a stop string is in it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn set(&mut self, ids: &[u32]) -> Result<bool> {
        self.text = self.tokenizer.decode(ids, true)?;
        let found = self.stops.iter().filter_map(|stop| self.text.find(stop));
        if let Some(at) = found.min() {
            self.text.truncate(at);
            self.stopped = true;
        }
        Ok(self.stopped)
    }

    /// The text so far, without the stop string.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What can be shown and was not yet. `last`: no more tokens follow.
    pub fn fresh(&mut self, last: bool) -> &str {
        let end = match last || self.stopped {
            true => self.text.len(),
            false => self.settled(),
        };
        // Decoders that join words may take back a character that was shown; it stays.
        let begin = self.shown.min(end);
        let begin = self.text.floor_char_boundary(begin);
        self.shown = end.max(self.shown);
        &self.text[begin..end]
    }

    /// Bytes of the text that later tokens do not change: without an incomplete character, and without what a stop string begins with.
    fn settled(&self) -> usize {
        let whole = self.text.trim_end_matches('\u{fffd}');
        let begins = |at: &usize| {
            let tail = &whole[*at..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let places = whole.char_indices().map(|(at, _)| at);
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let near = places.filter(|at| whole.len() - at <= longest);
        near.into_iter().find(begins).unwrap_or(whole.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing::tokenizer;

    /// Feeds the tokens of `text` one by one; returns the pieces shown and whether a stop string ended it.
    fn shown(text: &str, stops: &[&str]) -> (Vec<String>, bool, String) {
        let tokenizer = tokenizer(false, None);
        let ids = tokenizer.encode(text, false).unwrap();
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut response = ResponseText::new(&tokenizer, &stops);
        let mut pieces = Vec::new();
        let mut stopped = false;
        for end in 1..=ids.len() {
            stopped = response.set(&ids[..end]).unwrap();
            pieces.push(response.fresh(false).to_owned());
            if stopped {
                break;
            }
        }
        pieces.push(response.fresh(true).to_owned());
        pieces.retain(|piece| !piece.is_empty());
        (pieces, stopped, response.text().to_owned())
    }

    #[test]
    fn pieces_are_the_text() {
        for text in [
            "the cat sat",
            "a\u{e9}\u{4e2d}\u{1f600} b",
            "  two  spaces\n",
        ] {
            let (pieces, stopped, whole) = shown(text, &[]);
            assert_eq!((pieces.concat().as_str(), whole.as_str()), (text, text));
            assert!(!stopped && pieces.len() > 1, "{pieces:?}");
            assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        }
    }

    #[test]
    fn a_stop_string_is_not_shown_not_even_its_beginning() {
        let (pieces, stopped, whole) = shown("one\n\ntwo\n\nUser: three", &["\n\nUser", "zebra"]);
        assert!(stopped);
        assert_eq!(whole, "one\n\ntwo");
        assert_eq!(pieces.concat(), "one\n\ntwo");
        // What only looked like its beginning is shown in the end.
        let (pieces, stopped, _) = shown("one\n\n", &["\n\nUser"]);
        assert!(!stopped);
        assert_eq!(pieces.concat(), "one\n\n");
        assert_eq!(pieces.last().map(String::as_str), Some("\n\n"));
    }
}
