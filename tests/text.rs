//! Tokenizers, chat templates and rows against transformers and TRL.

mod fuzz;
mod support;

use support::{text, tokens, trl_rows};

#[test]
fn tokenizers() {
    text::tokenizers();
}

#[test]
fn tokenizers_in_gguf() {
    text::tokenizers_in_gguf();
}

#[test]
fn tokenizer_files() {
    text::tokenizer_files();
}

#[test]
fn trl_rows() {
    trl_rows::trl_rows();
}

#[test]
fn prompts_begin_as_rows_do() {
    trl_rows::prompts_begin_as_rows_do();
}

#[test]
fn the_template_folder_is_shown_by_inspect() {
    tokens::the_template_folder_is_shown_by_inspect();
}

#[test]
fn a_prompt_that_opens_thinking_is_trained_on_from_where_it_parts() {
    tokens::a_prompt_that_opens_thinking_is_trained_on_from_where_it_parts();
}

#[test]
fn the_end_of_turns_is_named_and_written() {
    tokens::the_end_of_turns_is_named_and_written();
}

#[test]
fn ids_without_an_embedding_are_refused_before_training() {
    tokens::ids_without_an_embedding_are_refused_before_training();
}

#[test]
fn generation_stops_at_ids_of_the_model_configuration() {
    tokens::generation_stops_at_ids_of_the_model_configuration();
}

#[test]
fn templates() {
    text::templates();
}

#[test]
fn assistant_masks() {
    text::assistant_masks();
}

#[test]
fn prefixes_find_what_marks_say() {
    text::prefixes_find_what_marks_say();
}

/// Tokenizers of real models, whose files are not ours to ship: `TEMPERING_REAL_TOKENIZERS` names a folder of folders
/// that `tests/reference/tokenizer_ids.py --real` has been run on.
#[test]
fn real_tokenizers() {
    if let Some(folder) = text::given("TEMPERING_REAL_TOKENIZERS") {
        text::check_tokenizers(&folder);
    }
}

/// Templates of real models: `TEMPERING_REAL_TEMPLATES` names a folder of `*.jinja` that
/// `tests/reference/templates.py --real` has been run on.
#[test]
fn real_templates() {
    if let Some(folder) = text::given("TEMPERING_REAL_TEMPLATES") {
        text::check_real_templates(&folder);
    }
}
