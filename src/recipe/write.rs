//! Writes a recipe with all defaults.

use ron::Options;
use ron::extensions::Extensions;
use ron::ser::PrettyConfig;

use crate::peft::Peft;
use crate::recipe::Recipe;
use crate::sizes;

/// The RON dialect of recipes: `Some` and newtype wrappers are implicit.
pub(super) fn dialect() -> Options {
    Options::default().with_default_extension(
        Extensions::IMPLICIT_SOME
            | Extensions::UNWRAP_NEWTYPES
            | Extensions::UNWRAP_VARIANT_NEWTYPES,
    )
}

/// What a recipe's `peft` says, by itself.
///
/// # Errors
/// With what was expected and what was found.
pub fn read_peft(text: &str) -> Result<Peft, String> {
    dialect()
        .from_str::<Peft>(text)
        .map_err(|error| error.code.to_string())
        .and_then(|peft| match sizes::problems(&peft).first() {
            Some(absurd) => Err(absurd.to_string()),
            None => Ok(peft),
        })
}

/// The recipe in RON with all defaults; parsing it gives an equal recipe.
pub fn to_ron(recipe: &Recipe) -> String {
    let pretty = PrettyConfig::new().new_line("\n").indentor("    ");
    // Invariant: recipes hold plain numbers, strings, lists and maps with string keys, all of which RON can write.
    let mut text = dialect()
        .to_string_pretty(recipe, pretty)
        .expect("a recipe is representable in RON");
    text.push('\n');
    text
}
