//! The items of an exchange: what each rank gave, as it travels in the body of an `Up` or `Down`
//! frame.

use crate::codec::ByteReader;

/// Bytes that an item takes in addition to its own.
pub const ITEM_HEADER: usize = 8;

/// Appends the item of one rank to the body of an `Up` or `Down` frame.
pub fn put_item(out: &mut Vec<u8>, rank: u32, item: &[u8]) {
    out.extend(rank.to_le_bytes());
    out.extend((item.len() as u32).to_le_bytes());
    out.extend(item);
}

/// The ranks and items of a body. If the body is malformed, the last element is None.
pub fn items(body: &[u8]) -> impl Iterator<Item = Option<(u32, &[u8])>> {
    let mut reader = ByteReader::new(body);
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let item = reader.u32().and_then(|rank| {
            let len = reader.u32()? as usize;
            Some((rank, reader.bytes(len)?))
        });
        if item.is_none() {
            reader = ByteReader::new(&[]);
        }
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn items_round_trip() {
        let mut body = Vec::new();
        put_item(&mut body, 3, b"abc");
        put_item(&mut body, 4, b"");
        let read: Vec<_> = items(&body).collect();
        assert_eq!(read, [Some((3, &b"abc"[..])), Some((4, &b""[..]))]);
        body.pop();
        assert_eq!(items(&body).last(), Some(None));
    }

    proptest! {
        #[test]
        fn reading_any_bytes_never_panics(body: Vec<u8>) {
            let _ = items(&body).count();
        }
    }
}
