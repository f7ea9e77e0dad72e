//! Lines of JSON with a bound, as every socket of credd speaks them.

use std::io::{self, BufRead, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the next line, at most `max` bytes of it; `None` at the end of the stream.
///
/// # Errors
/// The stream's; `InvalidData` for a line that is longer, `UnexpectedEof` for one that ends without a newline.
pub fn read(reader: &mut impl BufRead, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(max as u64 + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() >= max => Err(bad(format!("a line is longer than {max} bytes"))),
        Some(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends within a line")),
    }
}

/// Reads the next line as a message.
///
/// # Errors
/// As [`read`], and `InvalidData` for what is no `T`. The text is not shown: it may be a secret, or hostile.
pub fn receive<T: DeserializeOwned>(reader: &mut impl BufRead, max: usize) -> io::Result<Option<T>> {
    let Some(line) = read(reader, max)? else { return Ok(None) };
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|e| bad(format!("not a message: {:?} error at column {}", e.classify(), e.column())))
}

/// Writes a message and its newline in one go.
///
/// # Errors
/// The stream's; `InvalidData` for a message that the other side would refuse to read.
pub fn send(mut writer: impl Write, message: &impl Serialize, max: usize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    if line.len() >= max {
        return Err(bad(format!("a message is longer than {max} bytes")));
    }
    line.push(b'\n');
    writer.write_all(&line)
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_bounded_and_whole() {
        let mut reader = &b"1\n22\n333\n4"[..];
        assert_eq!(read(&mut reader, 3).unwrap().unwrap(), b"1");
        assert_eq!(receive::<u8>(&mut reader, 3).unwrap(), Some(22));
        assert!(read(&mut reader, 2).unwrap_err().to_string().contains("longer than 2"));
        assert!(read(&mut &b"4"[..], 3).unwrap_err().to_string().contains("within a line"));
        assert!(read(&mut &b""[..], 3).unwrap().is_none());
        assert!(receive::<u8>(&mut &b"secret\n"[..], 9).unwrap_err().to_string().find("secret").is_none());
    }

    proptest! {
        #[test]
        fn what_is_sent_is_received(text in ".{0,40}", max in 0usize..200) {
            let mut wire = Vec::new();
            if send(&mut wire, &text, max).is_ok() {
                prop_assert_eq!(receive::<String>(&mut &wire[..], max).unwrap(), Some(text));
            }
        }
    }
}
