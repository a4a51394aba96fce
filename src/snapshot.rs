//! Lazily read tensors for saving: each is read from the device when it is written, so that there is no second copy in memory.

use std::borrow::Cow;
use std::fmt::{self, Debug, Formatter};

type ReadTensor<'a> = Box<dyn Fn() -> Cow<'a, [f32]> + 'a>;

/// A tensor of a [`Snapshot`].
pub struct SnapshotTensor<'a> {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether its numbers are integers from 0 to 255, stored as bytes.
    pub bytes: bool,
    read: ReadTensor<'a>,
}

/// Named tensors with their values at the time of insertion: a tensor with a second owner is never written in place.
#[derive(Debug, Default)]
pub struct Snapshot<'a> {
    tensors: Vec<SnapshotTensor<'a>>,
}

impl SnapshotTensor<'_> {
    /// Its numbers, row-major.
    pub fn read(&self) -> Cow<'_, [f32]> {
        (self.read)()
    }
}

impl Debug for SnapshotTensor<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name, self.shape)
    }
}

impl<'a> Snapshot<'a> {
    /// Adds a tensor whose values `read` returns.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        shape: Vec<usize>,
        read: impl Fn() -> Cow<'a, [f32]> + 'a,
    ) {
        self.tensors.push(SnapshotTensor {
            name: name.into(),
            shape,
            bytes: false,
            read: Box::new(read),
        });
    }

    /// Adds a tensor of bytes, which `read` returns as numbers.
    pub fn insert_bytes(
        &mut self,
        name: impl Into<String>,
        shape: Vec<usize>,
        read: impl Fn() -> Cow<'a, [f32]> + 'a,
    ) {
        self.insert(name, shape, read);
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.bytes = true;
        }
    }

    /// Adds all tensors of `other`, with `prefix` before their names.
    pub fn extend(&mut self, prefix: &str, other: Snapshot<'a>) {
        let named = other.tensors.into_iter().map(|tensor| SnapshotTensor {
            name: format!("{prefix}{}", tensor.name),
            ..tensor
        });
        self.tensors.extend(named);
    }

    /// The tensors in the order of insertion.
    pub fn tensors(&self) -> &[SnapshotTensor<'a>] {
        &self.tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_tensor_is_read_when_its_turn_comes() {
        let reads = Cell::new(0);
        let mut inner = Snapshot::default();
        for value in [1.0, 2.0] {
            let reads = &reads;
            inner.insert(format!("w{value}"), vec![1], move || {
                reads.set(reads.get() + 1);
                vec![value].into()
            });
        }
        let mut snapshot = Snapshot::default();
        snapshot.extend("policy.", inner);
        assert_eq!(reads.get(), 0);
        let names: Vec<&str> = snapshot.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["policy.w1", "policy.w2"]);
        assert_eq!(*snapshot.tensors()[1].read(), [2.0]);
        assert_eq!(reads.get(), 1);
    }
}
