//! Calls a target in a folder of this process's own, which is emptied before each input.

use std::cell::RefCell;

use tempfile::TempDir;

#[path = "targets.rs"]
mod targets;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

pub(crate) fn call(name: &str, input: &[u8]) {
    let (_, target) = (targets::TARGETS.iter())
        .find(|(known, _)| *known == name)
        .expect("a target");
    FOLDER.with_borrow_mut(|folder| {
        // The last input's files go with their folder.
        drop(folder.take());
        let folder = folder.insert(TempDir::new().expect("a temporary folder"));
        target(input, folder.path());
    });
}
