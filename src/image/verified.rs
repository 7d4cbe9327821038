//! A stream that must have a given digest and size.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};

use super::digest::named;

/// Passes `inner` on; its end is an error unless digest and size are the expected ones.
pub struct Verified<'a, R> {
    inner: R,
    hash: Option<Context>,
    digest: &'a str,
    size: Option<u64>,
    read: u64,
}

impl<'a, R: Read> Verified<'a, R> {
    /// A stream of unknown `size` is not limited.
    pub fn new(inner: R, digest: &'a str, size: Option<u64>) -> Self {
        Self { inner, hash: Some(Context::new(&SHA256)), digest, size, read: 0 }
    }
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(out)?;
        self.read += read as u64;
        if let Some(size) = self.size
            && (self.read > size || (read == 0 && self.read < size))
        {
            return Err(refused(format!(
                "unexpected size: {} bytes of {size} promised ({})",
                self.read, self.digest
            )));
        }
        if read > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&out[..read]);
            }
        } else if let Some(hash) = self.hash.take() {
            let found = named(hash.finish().as_ref());
            if found != self.digest {
                return Err(refused(format!("unexpected digest: {found}, expected {}", self.digest)));
            }
        }
        Ok(read)
    }
}

fn refused(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::sha256;

    #[test]
    fn a_stream_that_lies_is_refused_at_its_end() {
        let right = sha256(b"abc");
        for (bytes, digest, size, want) in [
            (b"abc".as_slice(), right.as_str(), Some(3), None),
            (b"abc", right.as_str(), None, None),
            (b"abd", right.as_str(), Some(3), Some("unexpected digest")),
            (b"abc", right.as_str(), Some(4), Some("unexpected size: 3 bytes of 4")),
            (b"abc", right.as_str(), Some(2), Some("unexpected size: 3 bytes of 2")),
        ] {
            let result = Verified::new(bytes, digest, size).read_to_end(&mut Vec::new());
            match want {
                None => assert_eq!(result.unwrap(), 3),
                Some(want) => assert!(result.unwrap_err().to_string().contains(want), "{size:?}"),
            }
        }
    }
}
