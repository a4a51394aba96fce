//! The framing of event files: length, its checksum, the record, its checksum.
//!
//! # Source
//! TensorFlow's TFRecord: `uint64 length, uint32 masked_crc32c(length), byte data[length], uint32 masked_crc32c(data)`, little-endian.

/// The polynomial of CRC-32C (Castagnoli), reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The checksum of each byte.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = match crc & 1 {
                1 => (crc >> 1) ^ POLYNOMIAL,
                _ => crc >> 1,
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// CRC-32C of some bytes.
///
/// # Source
/// RFC 3720, appendix B.4.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize];
    !bytes.iter().fold(!0, step)
}

/// The checksum as it is stored: rotated, so that a checksum of data with checksums does not repeat itself.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// Appends a record with its frame.
pub(super) fn append(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
}

/// The records of a file up to the first that is cut short or damaged.
#[cfg(test)]
pub(super) fn read(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while bytes.len() >= 12 {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        if number(&bytes[8..12]) != masked(&bytes[..8]) || bytes.len() < 16 + length {
            break;
        }
        let data = &bytes[12..12 + length];
        if number(&bytes[12 + length..16 + length]) != masked(data) {
            break;
        }
        records.push(data);
        bytes = &bytes[16 + length..];
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and rising; and the usual check value.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46DD_794E);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn records_are_read_back_up_to_a_torn_one() {
        let mut file = Vec::new();
        append(&mut file, b"one");
        append(&mut file, b"");
        append(&mut file, b"three");
        assert_eq!(read(&file), [&b"one"[..], b"", b"three"]);
        assert_eq!(read(&file[..file.len() - 1]).len(), 2);
        let last = file.len() - 6;
        file[last] ^= 1;
        assert_eq!(read(&file).len(), 2);
    }
}
