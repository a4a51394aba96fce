//! The text of a response, token by token.

use std::sync::Arc;

use crate::data::Tokenizer;
use crate::error::Result;

/// The text of a response so far, up to a stop string.
///
/// Each piece is what its token adds to the text of the tokens before. Only the tokens since the last whole character, and those before
/// it that began with one, are decoded: time for a token does not grow with the response.
#[derive(Debug)]
pub(crate) struct GrowingText {
    tokenizer: Tokenizer,
    stops: Arc<[String]>,
    ids: Vec<u32>,
    /// First token that is decoded, for what joins words.
    from: usize,
    /// Tokens whose text was taken.
    read: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl GrowingText {
    /// The text of a response without tokens; it ends before the first of `stops`.
    pub(crate) fn new(tokenizer: Tokenizer, stops: Arc<[String]>) -> Self {
        Self {
            tokenizer,
            stops,
            ids: Vec::new(),
            from: 0,
            read: 0,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes a token. Returns what is certain of the text beyond what was returned before.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub(crate) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let fresh = self.fresh(false)?;
        Ok(self.take(&fresh))
    }

    /// The rest of the text: no more tokens follow.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub(crate) fn finish(&mut self) -> Result<String> {
        let fresh = self.fresh(true)?;
        let mut rest = self.take(&fresh);
        if !self.stopped {
            rest.push_str(&std::mem::take(&mut self.held));
        }
        Ok(rest)
    }

    /// Whether a stop string has ended it.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Text of tokens that was not taken yet; `last`: also of an incomplete character.
    fn fresh(&mut self, last: bool) -> Result<String> {
        if self.read == self.ids.len() {
            return Ok(String::new());
        }
        let before = self
            .tokenizer
            .decode(&self.ids[self.from..self.read], true)?;
        let whole = self.tokenizer.decode(&self.ids[self.from..], true)?;
        if whole.len() <= before.len() || (whole.ends_with('\u{fffd}') && !last) {
            return Ok(String::new());
        }
        self.from = self.read;
        self.read = self.ids.len();
        let begin = whole.floor_char_boundary(before.len());
        Ok(whole[begin..].to_owned())
    }

    /// Adds to the text. Returns what no stop string begins in.
    fn take(&mut self, fresh: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(fresh);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop));
        if let Some(at) = found.min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |at: &usize| {
            let tail = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let mut places = self.held.char_indices().map(|(at, _)| at);
        let certain = places.find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

/// A token as text, in the place after `before`: `token_id:N` for a part of a character, which is no text.
///
/// # Errors
/// Those of [`Tokenizer::decode`].
pub(crate) fn token_text(tokenizer: &Tokenizer, before: Option<u32>, id: u32) -> Result<String> {
    let alone = tokenizer.decode(&[id], false)?;
    let text = match before {
        // Some decoders leave out the space that a text begins with.
        Some(before) => {
            let both = tokenizer.decode(&[before, id], false)?;
            let first = tokenizer.decode(&[before], false)?;
            both.strip_prefix(&first).map_or(alone, str::to_owned)
        }
        None => alone,
    };
    Ok(match text.contains('\u{fffd}') {
        true => format!("token_id:{id}"),
        false => text,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
    }

    fn pieces(text: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(text, false).unwrap();
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut growing = GrowingText::new(tokenizer, stops.into());
        let mut pieces: Vec<String> = ids.iter().map(|&id| growing.push(id).unwrap()).collect();
        pieces.push(growing.finish().unwrap());
        (pieces, growing.stopped())
    }

    #[test]
    fn pieces_are_the_whole_text() {
        let text = "One day a caf\u{e9} \u{1f600}\u{1f600} opened.\n\n \u{4f60}\u{597d} end";
        let (found, stopped) = pieces(text, &[]);
        assert_eq!((found.concat().as_str(), stopped), (text, false));
        // Bytes of a character wait for its last one.
        assert!(found.iter().all(|piece| !piece.contains('\u{fffd}')));
        assert!(found.iter().filter(|piece| !piece.is_empty()).count() > 5);
    }

    #[test]
    fn an_incomplete_character_comes_last() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("\u{1f600}", false).unwrap();
        assert!(ids.len() > 1);
        let mut growing = GrowingText::new(tokenizer, Arc::from([]));
        assert_eq!(growing.push(ids[0]).unwrap(), "");
        assert_eq!(growing.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn text_ends_before_a_stop_string_and_its_beginning_is_held() {
        let (found, stopped) = pieces("One day. The end. More", &[" end", "nothing"]);
        assert_eq!((found.concat().as_str(), stopped), ("One day. The", true));
        // What looked like a beginning and was none is there in the end.
        let (found, stopped) = pieces("a b c", &["c d"]);
        assert_eq!((found.concat().as_str(), stopped), ("a b c", false));
        assert_eq!(pieces("xy", &["xy"]).0.concat(), "");
    }

    #[test]
    fn tokens_have_a_text_or_a_number() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(" the \u{1f600}", false).unwrap();
        let texts: Vec<String> = (0..ids.len())
            .map(|i| token_text(&tokenizer, i.checked_sub(1).map(|i| ids[i]), ids[i]).unwrap())
            .collect();
        assert_eq!(texts[0], " the");
        let last = ids.last().unwrap();
        assert_eq!(texts.last().unwrap(), &format!("token_id:{last}"));
    }
}
