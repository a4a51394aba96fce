//! Shows the trained tokens of a row on a terminal.

use crate::data::Tokenizer;

const DIM: &str = "\u{1b}[2m";
const GREEN: &str = "\u{1b}[32m";
const RESET: &str = "\u{1b}[0m";

/// A row's tokens, separated by `|`, and a line of counts, which also says whether the row begins with BOS if the tokenizer has
/// one.
///
/// Trained tokens are green and others dim; without `color`, trained ones are in `«..»`. Spaces are shown as `·`, tabs as `→`,
/// line breaks as `↵` (and break the line); a token that is not valid UTF-8 is shown by its entry in the vocabulary.
///
/// # Panics
/// If `trained` is not as long as `ids`.
pub fn render(
    ids: &[u32],
    trained: &[bool],
    prompt_len: usize,
    tokenizer: &Tokenizer,
    color: bool,
) -> String {
    assert_eq!(ids.len(), trained.len(), "one mark a token");
    let mut out = String::new();
    let mut previous = None;
    for (&id, &is_trained) in ids.iter().zip(trained) {
        if previous == Some(is_trained) {
            out.push('|');
        } else {
            if let Some(was_trained) = previous {
                out.push_str(close(was_trained, color));
            }
            out.push_str(open(is_trained, color));
        }
        previous = Some(is_trained);
        out.push_str(&token_text(id, tokenizer));
    }
    if let Some(was_trained) = previous {
        out.push_str(close(was_trained, color));
    }
    let num_trained = trained.iter().filter(|&&t| t).count();
    let eos = match trained.iter().rposition(|&t| t) {
        Some(last) if tokenizer.stop_ids().contains(&ids[last]) => "ends with EOS",
        _ => "no EOS",
    };
    if !out.ends_with('\n') && !out.is_empty() {
        out.push('\n');
    }
    let bos = match tokenizer.bos_id() {
        None => "",
        Some(bos) if ids.first() == Some(&bos) => ", begins with BOS",
        Some(_) => ", no BOS",
    };
    out.push_str(&format!(
        "{} tokens, {prompt_len} of prompt, {num_trained} trained on, {eos}{bos}\n",
        ids.len()
    ));
    out
}

fn open(trained: bool, color: bool) -> &'static str {
    match (color, trained) {
        (true, true) => GREEN,
        (true, false) => DIM,
        (false, true) => "«",
        (false, false) => "",
    }
}

fn close(trained: bool, color: bool) -> &'static str {
    match (color, trained) {
        (true, _) => RESET,
        (false, true) => "»",
        (false, false) => "",
    }
}

/// A token with its white space made visible.
fn token_text(id: u32, tokenizer: &Tokenizer) -> String {
    let text = tokenizer.decode(&[id], false).unwrap_or_default();
    if text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER) {
        let entry = tokenizer.token_str(id);
        return entry.unwrap_or_else(|| format!("[{id}: not in the vocabulary]"));
    }
    let mut out = String::new();
    for c in text.chars() {
        match c {
            ' ' => out.push('·'),
            '\t' => out.push('→'),
            '\r' => out.push('␍'),
            '\n' => out.push_str("↵\n"),
            // Other control characters: an escape sequence in the data must not reach the terminal.
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing::{self, EOS, HI, NN};

    #[test]
    fn trained_tokens_stand_in_brackets() {
        let tok = testing::tokenizer(false, None);
        let (ids, trained) = (
            [97, 32, NN, HI, 27, EOS],
            [false, false, false, true, true, true],
        );
        assert_eq!(
            render(&ids, &trained, 3, &tok, false),
            "a|·|↵\n↵\n«hi|\\u{1b}|</s>»\n6 tokens, 3 of prompt, 3 trained on, ends with EOS, no BOS\n"
        );
    }

    #[test]
    fn colours_tell_the_masked_from_the_trained() {
        let tok = testing::tokenizer(false, None);
        assert_eq!(
            render(&[97, HI, 9999], &[false, true, false], 1, &tok, true),
            "\u{1b}[2ma\u{1b}[0m\u{1b}[32mhi\u{1b}[0m\u{1b}[2m[9999: not in the vocabulary]\u{1b}[0m\n3 tokens, 1 of prompt, 1 trained on, no EOS, no BOS\n"
        );
    }

    #[test]
    fn halves_of_a_character_and_empty_rows_show() {
        let tok = testing::tokenizer(false, None);
        assert_eq!(
            render(&[0xc3, 0xa9], &[false, true], 1, &tok, false),
            "Ã«©»\n2 tokens, 1 of prompt, 1 trained on, no EOS, no BOS\n"
        );
        assert_eq!(
            render(&[], &[], 0, &tok, false),
            "0 tokens, 0 of prompt, 0 trained on, no EOS, no BOS\n"
        );
        assert_eq!(
            render(&[testing::BOS, EOS], &[false, true], 1, &tok, false),
            "<s>«</s>»\n2 tokens, 1 of prompt, 1 trained on, ends with EOS, begins with BOS\n"
        );
    }
}
