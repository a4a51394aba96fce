//! Inputs from seeds: what is usual in a file, slightly wrong. An input is a function of the seeds, the dictionary and a random stream.

use tempering::rng::Seed;

/// Largest input that mutation makes.
const LARGEST: usize = 1 << 16;

/// Numbers at which sizes and counts go wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    127,
    255,
    65_535,
    1_000_000_000,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 53) + 1,
    1 << 62,
    1 << 63,
    u64::MAX,
];

/// The same for text.
const LITERALS: [&str; 20] = [
    "0",
    "-1",
    "-0.0",
    "1e308",
    "1e-320",
    "1e999",
    "NaN",
    "inf",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "4294967296",
    "1000000000",
    "0.1",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "\"\\u0000\\ud800\"",
];

/// First bytes of files of other kinds.
const MAGIC: [&[u8]; 10] = [
    b"GGUF\x03\0\0\0",
    b"PAR1",
    b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x28\xb5\x2f\xfd",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"PK\x03\x04",
    b"\x7fELF",
    b"<!DOCTYPE html>",
];

/// A position in a stream of random numbers.
struct Draws {
    seed: Seed,
    next: u64,
}

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.seed.below(self.next, n.max(1))
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }

    /// A range of an input of `len` bytes, mostly short.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let longest = [4, 32, 256, len][self.below(4)];
        start..(start + self.below(longest + 1)).min(len)
    }
}

/// A mutant of one of the seeds.
pub(crate) fn mutant(seed: Seed, seeds: &[Vec<u8>], dictionary: &[Vec<u8>]) -> Vec<u8> {
    let mut draws = Draws { seed, next: 0 };
    let mut input = draws.of(seeds).clone();
    for _ in 0..[1, 1, 2, 3, 5, 8][draws.below(6)] {
        step(&mut input, seeds, dictionary, &mut draws);
        input.truncate(LARGEST);
    }
    input
}

fn step(input: &mut Vec<u8>, seeds: &[Vec<u8>], dictionary: &[Vec<u8>], draws: &mut Draws) {
    let at = draws.below(input.len());
    match draws.below(16) {
        // Bits and bytes.
        0 | 1 => {
            let bit = 1 << draws.below(8);
            let value = *draws.of(b"\0\x01\x7f\x80\xff\n\r\t \"\\{}[](),:.-0e");
            let flips = draws.below(2) == 0;
            if let Some(byte) = input.get_mut(at) {
                *byte = if flips { *byte ^ bit } else { value };
            }
        }
        // Ranges.
        2 => drop(input.drain(draws.range(input.len()))),
        3 => input.truncate(at),
        4 => {
            let part = input[draws.range(input.len())].to_vec();
            insert(input, at, &part);
        }
        5 => {
            let range = draws.range(input.len().min(64));
            let times = [2, 10, 100, 1000, 20_000][draws.below(5)];
            let part = input[range].repeat(times);
            insert(input, at, &part);
        }
        6 => {
            let other = draws.of(seeds);
            let part = other[draws.range(other.len())].to_vec();
            insert(input, at, &part);
        }
        7 => {
            let other = draws.of(seeds);
            let from = draws.below(other.len());
            input.truncate(at);
            input.extend(&other[from.min(other.len())..]);
        }
        // Words of the format.
        8 | 9 if !dictionary.is_empty() => {
            let word = draws.of(dictionary).clone();
            match draws.below(2) {
                0 => insert(input, at, &word),
                _ => overwrite(input, at, &word),
            }
        }
        // Sizes in binary, and in text.
        10 => {
            let base = *draws.of(&NUMBERS);
            let number = base.wrapping_add(draws.below(5) as u64).wrapping_sub(2);
            let bytes = number.to_le_bytes();
            overwrite(input, at, &bytes[..[1, 2, 4, 8][draws.below(4)]]);
        }
        11 => {
            let number = (input.len() as u64 + draws.below(17) as u64).wrapping_sub(8);
            overwrite(input, at, &number.to_le_bytes()[..[4, 8][draws.below(2)]]);
        }
        12 => replace_run(input, at, draws, |byte| {
            byte.is_ascii_digit() || b"+-.eE".contains(byte)
        }),
        13 => replace_run(input, at, draws, |byte| !b"\",:{}[]()\n".contains(byte)),
        // Depth.
        14 => {
            let (open, close) =
                *draws.of(&[("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("{{", "}}")]);
            let times = [10, 130, 1000, 10_000][draws.below(4)];
            let mut part = open.repeat(times);
            if draws.below(2) == 0 {
                part.push_str(&close.repeat(times));
            }
            insert(input, at, part.as_bytes());
        }
        _ => {
            let magic = *draws.of(&MAGIC);
            overwrite(input, 0, magic);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    let at = at.min(input.len());
    drop(input.splice(at..at, part.iter().copied()));
}

fn overwrite(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    let end = (at + part.len()).min(input.len());
    drop(input.splice(at.min(end)..end, part.iter().copied()));
}

/// Writes a literal over the run of bytes that `belongs` holds for, the first at or after `at`.
fn replace_run(input: &mut Vec<u8>, at: usize, draws: &mut Draws, belongs: impl Fn(&u8) -> bool) {
    let Some(start) = input[at.min(input.len())..].iter().position(&belongs) else {
        return;
    };
    let start = at + start;
    let len = input[start..]
        .iter()
        .take_while(|byte| belongs(byte))
        .count();
    let literal = draws.of(&LITERALS).as_bytes();
    drop(input.splice(start..start + len, literal.iter().copied()));
}

/// The words of a dictionary in libFuzzer's form: `"word"` a line, with `\xNN`, `\"` and `\\`.
pub(crate) fn words(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().map(str::trim);
    let quoted = lines.filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| unescape(word.as_bytes())).collect()
}

fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let [byte, after @ ..] = rest {
        let (value, left) = match (byte, after) {
            (b'\\', [b'x', high, low, left @ ..]) => {
                let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
                (digit(*high) << 4 | digit(*low), left)
            }
            (b'\\', [escaped, left @ ..]) => (*escaped, left),
            _ => (*byte, after),
        };
        bytes.push(value);
        rest = left;
    }
    bytes
}

#[test]
fn mutants_are_a_function_of_their_seed() {
    let seeds = [b"{\"rank\": 8}".to_vec(), Vec::new()];
    let dictionary = words("# words\n\"a\\x00\\\\\"\n\nb\n");
    assert_eq!(dictionary, [b"a\0\\"]);
    let many = |stream| -> Vec<Vec<u8>> {
        let seed = |i| Seed::new(stream).fork_index(i);
        (0..3000)
            .map(|i| mutant(seed(i), &seeds, &dictionary))
            .collect()
    };
    let (first, again, other) = (many(1), many(1), many(2));
    assert!(first == again && first != other);
    assert!(first.iter().all(|input| input.len() <= LARGEST));
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert!(distinct.len() > 1000, "{}", distinct.len());
    let has = |part: &[u8]| {
        first
            .iter()
            .any(|input| input.windows(part.len()).any(|w| w == part))
    };
    assert!(has(b"\"rank\": 18446744073709551615") && has(b"[[[[[[[["));
}
