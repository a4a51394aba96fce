//! What is Phi-3's own in a GGUF file: its window, and that its markers take the white space after them, which no key says. llama.cpp
//! tells such models by their name.

use super::layout::Architecture;
use crate::model::GatedDecoderConfig;
use crate::ops::Mask;

/// Tokens that llama.cpp looks up where a model's name is Phi-3's; it refuses a file without one of them, such as Phi-4-mini's, which
/// is of the same architecture.
const LOOKED_UP: [&str; 4] = ["<unk>", "<s>", "<|endoftext|>", "</s>"];
/// What llama.cpp takes for the name of a Phi-3.
const NAMES: [&str; 2] = ["phi-3", "phi3"];

/// Whether the markers of a model take the white space after them; `has`: whether its vocabulary has a token.
pub(super) fn markers_strip(architecture: Architecture, has: impl Fn(&str) -> bool) -> bool {
    architecture == Architecture::Phi3 && LOOKED_UP.iter().all(|token| has(token))
}

/// Whether a marker is one of those that do not, nevertheless.
pub(super) fn keeps_space(marker: &str) -> bool {
    LOOKED_UP[..3].contains(&marker)
}

/// `name` so that llama.cpp takes the model for a Phi-3 if its markers strip, and for none otherwise.
pub(super) fn name(name: &str, markers_strip: bool) -> String {
    let lower = name.to_lowercase();
    let known = NAMES.iter().any(|known| lower.contains(known));
    match (markers_strip, known) {
        (true, false) => format!("{name} (phi-3)"),
        (false, true) => (NAMES.iter()).fold(lower, |name, known| name.replace(known, "phi")),
        _ => name.to_owned(),
    }
}

/// The window in tokens; 0 without one, which llama.cpp's converter writes, too: without the key some versions take Phi-3-mini's.
pub(super) fn window(config: &GatedDecoderConfig) -> usize {
    config.masks.iter().fold(0, |window, mask| match mask {
        Mask::Window(width) => *width,
        Mask::Causal | Mask::Full => window,
    })
}

/// What llama.cpp makes of a window that is narrower than the context: it reads the key, warns and attends to everything.
pub(super) fn window_warning(window: usize) -> String {
    format!(
        "the model attends within a window of {window} tokens, which llama.cpp does not apply to phi3: longer texts get other results there"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_vocabularies_that_llama_cpp_can_read_are_named_phi_3() {
        let phi3 = |token: &str| LOOKED_UP.contains(&token);
        let phi4 = |token: &str| token == "<|endoftext|>";
        assert!(markers_strip(Architecture::Phi3, phi3));
        assert!(!markers_strip(Architecture::Phi3, phi4));
        assert!(!markers_strip(Architecture::Llama, phi3));
        assert_eq!(name("mine", true), "mine (phi-3)");
        assert_eq!(name("Phi-3-mini", true), "Phi-3-mini");
        assert_eq!(name("my-phi3-Tune", false), "my-phi-tune");
        assert_eq!(name("mine", false), "mine");
    }
}
