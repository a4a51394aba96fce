//! What this project's servers of tests read of a request.

use std::io::Read;
use std::net::TcpStream;

/// The head of a request.
pub(crate) struct Head(String);

impl Head {
    /// Reads up to the empty line; `None` if the client closes before it.
    pub(crate) fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        Some(Self(String::from_utf8(head).unwrap()))
    }

    /// Method and path.
    pub(crate) fn request(&self) -> (&str, &str) {
        let mut words = self.0.split(' ');
        (words.next().unwrap(), words.next().unwrap())
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}
