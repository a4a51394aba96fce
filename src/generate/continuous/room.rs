//! How large the cache of a scheduler is, and who has which slot.

/// What a scheduler may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Most responses.
    pub rows: usize,
    /// Most tokens in the cache, slots times their length, unless one response alone needs more.
    pub tokens: usize,
}

/// Lengths of slots are multiples of this.
const STEP: usize = 256;

/// The shape of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    pub(super) slots: usize,
    /// Tokens of a slot.
    pub(super) capacity: usize,
}

impl Room {
    /// The cache for `rows` rows of which the longest may reach `longest` tokens, given the `current` one; `None` if they have to wait.
    pub(super) fn shape_for(self, current: Shape, rows: usize, longest: usize) -> Option<Shape> {
        let needed = Shape {
            slots: rows,
            capacity: longest.next_multiple_of(STEP),
        };
        if rows > self.rows || (rows > 1 && needed.slots * needed.capacity > self.tokens) {
            return None;
        }
        if needed.slots <= current.slots && needed.capacity <= current.capacity {
            return Some(current);
        }
        // What is there stays, as long as it fits; slots are doubled, so that they are seldom copied.
        let capacity = needed.capacity.max(current.capacity);
        let capacity = match needed.slots * capacity <= self.tokens {
            true => capacity,
            false => needed.capacity,
        };
        let most = (self.tokens / capacity).min(self.rows).max(needed.slots);
        Some(Shape {
            slots: needed
                .slots
                .max(current.slots)
                .next_power_of_two()
                .min(most),
            capacity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        rows: 8,
        tokens: 4096,
    };

    fn shape(slots: usize, capacity: usize) -> Option<Shape> {
        Some(Shape { slots, capacity })
    }

    #[test]
    fn a_cache_grows_with_what_is_asked_and_is_bounded() {
        let none = Shape::default();
        assert_eq!(ROOM.shape_for(none, 1, 100), shape(1, 256));
        // Doubled, and kept while it is large enough.
        let three = ROOM.shape_for(none, 3, 257).unwrap();
        assert_eq!(Some(three), shape(4, 512));
        assert_eq!(ROOM.shape_for(three, 4, 300), shape(4, 512));
        assert_eq!(ROOM.shape_for(three, 5, 300), shape(8, 512));
        // Eight of 512 fill it.
        assert_eq!(ROOM.shape_for(three, 9, 10), None);
        assert_eq!(ROOM.shape_for(three, 8, 513), None);
        // One alone may have more.
        assert_eq!(ROOM.shape_for(none, 1, 10_000), shape(1, 10_240));
        assert_eq!(ROOM.shape_for(none, 2, 10_000), None);
    }

    #[test]
    fn long_slots_make_way_for_many_rows() {
        let long = Shape {
            slots: 1,
            capacity: 4096,
        };
        assert_eq!(ROOM.shape_for(long, 1, 10), Some(long));
        assert_eq!(ROOM.shape_for(long, 4, 700), shape(4, 768));
    }
}
