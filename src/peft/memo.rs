//! A value computed from parameters, kept until they may have changed.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps one value for each type. Clones share it; [`Memo::reset`] lets the others keep theirs, whose parameters stay as they are.
#[derive(Clone, Default)]
pub(super) struct Memo(Arc<Mutex<Vec<Box<dyn Any + Send>>>>);

impl Memo {
    /// The value of this type, computed if there is none.
    pub(super) fn get_or<T: Clone + Send + 'static>(&self, compute: &dyn Fn() -> T) -> T {
        // A panic elsewhere leaves whole values behind.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = values.iter().find_map(|value| value.downcast_ref::<T>()) {
            return found.clone();
        }
        let value = compute();
        values.push(Box::new(value.clone()));
        value
    }

    /// Forgets what was computed.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_computed_once_for_each_type_and_anew_after_a_reset() {
        let mut memo = Memo::default();
        assert_eq!(memo.get_or(&|| 1u32), 1);
        assert_eq!(memo.get_or(&|| 2u32), 1);
        assert_eq!(memo.get_or(&|| 2i64), 2);
        let clone = memo.clone();
        memo.reset();
        assert_eq!(memo.get_or(&|| 3u32), 3);
        assert_eq!(clone.get_or(&|| 4u32), 1);
    }
}
