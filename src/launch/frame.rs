//! Messages on a byte stream: four bytes of length, little endian, then the bytes.

use std::io::{self, Read, Write};

use super::MAX_CONTRIBUTION;

/// Writes one message, of at most [`MAX_CONTRIBUTION`] bytes, to a stream.
///
/// # Errors
/// Those of the stream.
pub fn write_message(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let mut message = (bytes.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(bytes);
    stream.write_all(&message)
}

/// Reads the next message from a stream.
///
/// # Errors
/// Those of the stream, and [`io::ErrorKind::InvalidData`] for a message longer than
/// [`MAX_CONTRIBUTION`].
pub fn read_message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_CONTRIBUTION {
        let what = format!("a message of {len} bytes; at most {MAX_CONTRIBUTION} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let mut stream = Vec::new();
        write_message(&mut stream, b"mine").unwrap();
        write_message(&mut stream, b"").unwrap();
        let mut rest = &stream[..];
        assert_eq!(read_message(&mut rest).unwrap(), b"mine");
        assert_eq!(read_message(&mut rest).unwrap(), b"");
        assert_eq!(read_message(&mut rest).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        let error = read_message(&mut &[0xff; 8][..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
