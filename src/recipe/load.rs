//! Loads and validates a recipe file.

use std::path::{Path, PathBuf};

use crate::error::{Error, Problem, Result};
use crate::outside;
use crate::recipe::places::Places;
use crate::recipe::validate::validate_except;
use crate::recipe::{Recipe, named, read, set};

/// A recipe with the positions of its keys, for error messages of later checks (data files, weights).
#[derive(Debug, Clone)]
pub struct LoadedRecipe {
    /// The recipe, with `--set` applied.
    pub recipe: Recipe,
    /// Positions of its keys.
    pub places: Places,
    /// The recipe file.
    pub path: PathBuf,
}

/// Reads a recipe, applies `--set` arguments (`path=value`) and validates it as far as possible without reading other files.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Invalid`] with every problem found, in the order of the file.
pub fn load_with_places(path: &Path, sets: &[String]) -> Result<LoadedRecipe> {
    let bytes = outside::read(path, outside::RECIPE)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid]
            .iter()
            .filter(|&&b| b == b'\n')
            .count()
            + 1;
        Error::Invalid {
            path: path.to_path_buf(),
            problems: vec![
                Problem::new(
                    format!("{}:{line}", path.display()),
                    format!("byte {valid} of the file is not UTF-8"),
                )
                .with_help("save the recipe as UTF-8"),
            ],
        }
    })?;
    load_text(path, &text, sets)
}

/// As [`load_with_places`] for the text of a file that need not be there.
///
/// # Errors
/// [`Error::Invalid`] with every problem found, in the order of the text.
pub fn load_text(path: &Path, text: &str, sets: &[String]) -> Result<LoadedRecipe> {
    let read::ParsedRecipe {
        recipe,
        mut places,
        mut problems,
        broken,
    } = read::read(path, text);
    if let Some(mut recipe) = recipe {
        let mut wrong_sets = set::apply(&mut recipe, &mut places, sets);
        problems.extend(named::resolve(&mut recipe, &places));
        problems.extend(validate_except(&recipe, &places, &broken));
        problems.sort_by_key(|problem| places.order(problem));
        places.without_copies(&mut problems);
        problems.append(&mut wrong_sets);
        if problems.is_empty() {
            return Ok(LoadedRecipe {
                recipe,
                places,
                path: path.to_path_buf(),
            });
        }
    }
    problems.sort_by_key(|problem| places.order(problem));
    places.without_copies(&mut problems);
    Err(Error::Invalid {
        path: path.to_path_buf(),
        problems,
    })
}

/// [`load_with_places`], returning the recipe only.
///
/// # Errors
/// As [`load_with_places`].
pub fn load(path: &Path, sets: &[String]) -> Result<Recipe> {
    load_with_places(path, sets).map(|loaded| loaded.recipe)
}
