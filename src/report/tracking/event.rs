//! TensorBoard's `Event` messages, written by hand: the few fields that scalars and texts need.
//!
//! # Source
//! tensorboard/compat/proto: event.proto, summary.proto, tensor.proto, tensor_shape.proto. Wire format of Protocol Buffers, version 3.

/// A message while it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7F) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number of variable length; a zero is the default and left out.
    fn number(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// An event at `wall_time`, seconds since 1970.
fn event(wall_time: f64, step: usize) -> Message {
    Message::default()
        .double(1, wall_time)
        .number(2, step as u64)
}

/// The first event of a file: its format.
pub(super) fn version(wall_time: f64) -> Vec<u8> {
    event(wall_time, 0).bytes(3, b"brain.Event:2").0
}

/// The start of a session at `step`: readers forget what earlier files have of this and later steps.
pub(super) fn session_start(wall_time: f64, step: usize) -> Vec<u8> {
    const START: u64 = 1;
    let log = Message::default().number(1, START);
    event(wall_time, step).message(7, log).0
}

/// Numbers by tag.
pub(super) fn scalars(wall_time: f64, step: usize, values: &[(String, f64)]) -> Vec<u8> {
    let value = |summary: Message, (tag, value): &(String, f64)| {
        let value = Message::default()
            .bytes(1, tag.as_bytes())
            .float(2, *value as f32);
        summary.message(1, value)
    };
    let summary = values.iter().fold(Message::default(), value);
    event(wall_time, step).message(5, summary).0
}

/// A text in Markdown by its tag.
pub(super) fn text(wall_time: f64, step: usize, tag: &str, markdown: &str) -> Vec<u8> {
    const STRING: u64 = 7;
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, plugin);
    let shape = Message::default().message(2, Message::default().number(1, 1));
    let tensor = Message::default()
        .number(1, STRING)
        .message(2, shape)
        .bytes(8, markdown.as_bytes());
    let value = Message::default()
        .bytes(1, tag.as_bytes())
        .message(8, tensor)
        .message(9, metadata);
    let summary = Message::default().message(1, value);
    event(wall_time, step).message(5, summary).0
}

#[cfg(test)]
pub(super) mod testing {
    /// A field of a message: its number, and its bytes; of numbers little-endian ones.
    pub(in crate::report::tracking) fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        let varint = |bytes: &mut &[u8]| {
            let mut value = 0u64;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7F) << shift;
                if byte < 0x80 {
                    return value;
                }
            }
            unreachable!()
        };
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => varint(&mut bytes).to_le_bytes().to_vec(),
                kind => {
                    let length = match kind {
                        1 => 8,
                        5 => 4,
                        _ => varint(&mut bytes) as usize,
                    };
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    value.to_vec()
                }
            };
            found.push((key >> 3, value));
        }
        found
    }

    /// Step, tag and value of each scalar, and step, tag and text of each text.
    #[derive(Debug, Default, PartialEq)]
    pub(in crate::report::tracking) struct Events {
        pub(in crate::report::tracking) scalars: Vec<(u64, String, f32)>,
        pub(in crate::report::tracking) texts: Vec<(u64, String, String)>,
        pub(in crate::report::tracking) starts: usize,
    }

    /// What a small reader of our own finds in the records of a file.
    pub(in crate::report::tracking) fn read(records: &[&[u8]]) -> Events {
        let mut events = Events::default();
        let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        for record in records {
            let of = fields(record);
            let get = |fields: &[(u64, Vec<u8>)], field: u64| {
                let found = fields.iter().find(|(number, _)| *number == field);
                found.map(|(_, value)| value.clone())
            };
            let step = get(&of, 2).map_or(0, |step| u64::from_le_bytes(step.try_into().unwrap()));
            events.starts += usize::from(get(&of, 7).is_some());
            let Some(summary) = get(&of, 5) else { continue };
            for (_, value) in fields(&summary) {
                let value = fields(&value);
                let tag = string(&get(&value, 1).unwrap());
                match (get(&value, 2), get(&value, 8)) {
                    (Some(number), _) => {
                        let number = f32::from_le_bytes(number.try_into().unwrap());
                        events.scalars.push((step, tag, number));
                    }
                    (None, Some(tensor)) => {
                        let text = get(&fields(&tensor), 8).unwrap();
                        events.texts.push((step, tag, string(&text)));
                    }
                    (None, None) => {}
                }
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python: `Event(wall_time=2.0, step=300, summary=Summary(value=[Summary.Value(tag="a", simple_value=0.5)])).SerializeToString()`.
    #[test]
    fn a_scalar_has_the_bytes_of_protobuf() {
        let bytes = scalars(2.0, 300, &[("a".into(), 0.5)]);
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0xAC, 0x02, 0x2A, 0x0A, 0x0A, 0x08, 0x0A, 0x01,
            b'a', 0x15, 0, 0, 0, 0x3F,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn texts_and_starts_are_read_back() {
        let records = [version(1.0), session_start(1.0, 4), text(1.0, 3, "t", "é|")];
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let found = testing::read(&records);
        assert_eq!(found.texts, [(3, "t".to_owned(), "é|".to_owned())]);
        assert_eq!((found.starts, found.scalars.len()), (1, 0));
        assert_eq!(
            testing::fields(records[0])[1],
            (3, b"brain.Event:2".to_vec())
        );
    }
}
