//! Panels of the right side: where they lie, and when they are packed.

use std::sync::{RwLock, RwLockWriteGuard};

use super::pack::Block;

/// A panel of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel<'a> {
    /// The rows, `stride` words apart.
    pub(super) words: &'a [u32],
    pub(super) stride: usize,
    /// The rows of the low-rank product, one after another.
    pub(super) below: &'a [f32],
}

impl<'a> Panel<'a> {
    /// What [`Block::pack`] has written.
    pub(super) fn packed(block: &Block<'_>, words: &'a [u32]) -> Self {
        let (words, below) = words.split_at(block.words.len() * block.width);
        Self {
            words,
            stride: block.width,
            below: bytemuck::cast_slice(below),
        }
    }
}

/// Panels that are packed by the first task that needs them: it has them in its cache then, and no thread waits for the last
/// panel before the first sum.
pub(super) struct OncePacked<'a> {
    block: &'a Block<'a>,
    first: usize,
    panels: Vec<RwLock<Packed<'a>>>,
}

struct Packed<'a> {
    done: bool,
    words: &'a mut [u32],
}

impl<'a> OncePacked<'a> {
    /// Panels from `first` on, `words` being room for them.
    pub(super) fn new(block: &'a Block<'a>, first: usize, words: &'a mut [u32]) -> Self {
        let panels = words.chunks_exact_mut(block.panel_len());
        Self {
            block,
            first,
            panels: panels
                .map(|words| RwLock::new(Packed { done: false, words }))
                .collect(),
        }
    }

    /// Runs `body` on a packed panel.
    pub(super) fn with(&self, arch: pulp::Arch, panel: usize, body: impl FnOnce(Panel<'_>)) {
        const PANIC: &str = "a task that packed has panicked";
        let lock = &self.panels[panel - self.first];
        let packed = lock.read().expect(PANIC);
        if packed.done {
            return body(Panel::packed(self.block, packed.words));
        }
        drop(packed);
        let mut packed = lock.write().expect(PANIC);
        if !packed.done {
            self.block.pack(arch, panel, packed.words);
            packed.done = true;
        }
        let packed = RwLockWriteGuard::downgrade(packed);
        body(Panel::packed(self.block, packed.words));
    }
}
