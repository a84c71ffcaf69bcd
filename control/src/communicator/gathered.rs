//! The items that an exchange has collected: those of the own subtree on the way up, those of all
//! ranks on the way down.

use crate::frame::MOST_ITEM;
use crate::items::{items, put_item};
use crate::tree_shape::{is_in_subtree, parent, subtree_size};

/// The items of the subtree of a rank, as they arrive.
#[derive(Debug)]
pub(super) struct GatheredItems {
    rank: u32,
    nranks: u32,
    /// The body of the frame for the parent, until it is taken.
    body: Option<Vec<u8>>,
}

impl GatheredItems {
    /// Starts with the item of this rank.
    pub(super) fn new(rank: u32, nranks: u32, own: &[u8]) -> Self {
        let mut body = Vec::new();
        put_item(&mut body, rank, own);
        Self { rank, nranks, body: Some(body) }
    }

    /// Adds the items of a child. None if they are not exactly those of its subtree.
    pub(super) fn add(&mut self, body: &[u8], child: u32) -> Option<()> {
        debug_assert_eq!(parent(child), Some(self.rank));
        let mut count = 0;
        for item in items(body) {
            let (rank, bytes) = item?;
            if rank >= self.nranks || bytes.len() > MOST_ITEM || !is_in_subtree(rank, child) {
                return None;
            }
            count += 1;
        }
        if count != subtree_size(child, self.nranks) {
            return None;
        }
        self.body.as_mut()?.extend(body);
        Some(())
    }

    /// Takes the items; they are empty if they were taken before.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.body.take().unwrap_or_default()
    }
}

/// The items of all ranks, in the order of the ranks. None if one is missing or comes twice.
pub(super) fn read_all(body: &[u8], nranks: u32) -> Option<Vec<Vec<u8>>> {
    let mut found: Vec<Option<&[u8]>> = vec![None; nranks as usize];
    for item in items(body) {
        let (rank, bytes) = item?;
        if bytes.len() > MOST_ITEM || found.get_mut(rank as usize)?.replace(bytes).is_some() {
            return None;
        }
    }
    found.into_iter().map(|bytes| bytes.map(<[u8]>::to_vec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_items_of_a_child_must_be_those_of_its_subtree() {
        let body = |ranks: &[u32]| {
            let mut body = Vec::new();
            for &rank in ranks {
                put_item(&mut body, rank, b"x");
            }
            body
        };
        let add = |ranks| GatheredItems::new(0, 7, b"").add(&body(ranks), 1);
        assert!(add(&[1, 4, 3]).is_some());
        assert!(add(&[1, 4]).is_none());
        assert!(add(&[1, 4, 2]).is_none());
        assert!(add(&[1, 4, 7]).is_none());
        assert!(read_all(&body(&[1, 0, 2]), 3).is_some());
        assert!(read_all(&body(&[1, 0]), 3).is_none());
        assert!(read_all(&body(&[1, 0, 1]), 3).is_none());
        assert!(read_all(&body(&[0, 1, 3]), 3).is_none());
    }
}
