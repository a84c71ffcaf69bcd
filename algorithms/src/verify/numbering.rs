//! The numbers of messages over all tiles and calls, and the slots of links that they take.

use super::call::ExecutedCall;

/// Numbers the messages of each link over all tiles and calls, and the slots that they take. A link
/// has as many slots as credits, so a slot is free again when its message is released.
pub(super) struct MessageNumbering {
    /// By call and link the number of the first message.
    pub(super) first: Vec<Vec<u32>>,
    /// By link the number of the first slot, and how many slots there are.
    pub(super) slots: Vec<(u32, u32)>,
    /// The number of slots of all links.
    pub(super) total: usize,
}

impl MessageNumbering {
    pub(super) fn new(calls: &[ExecutedCall], credit: u32) -> Self {
        let links = calls.iter().map(|call| call.flat.links.len()).max().unwrap_or(0);
        let mut messages = vec![0; links];
        let mut first = Vec::with_capacity(calls.len());
        for call in calls {
            first.push(messages.clone());
            for (sum, link) in messages.iter_mut().zip(&call.flat.links) {
                *sum += link.sent * call.tiles;
            }
        }
        let mut total = 0;
        let slots = messages
            .iter()
            .map(|&messages| {
                let slots = (total, messages.min(credit));
                total += slots.1;
                slots
            })
            .collect();
        Self { first, slots, total: total as usize }
    }

    /// The number, over all tiles and calls, of message `ordinal` of a tile of call number
    /// `number`, which is `call`.
    pub(super) fn message(
        &self,
        number: usize,
        call: &ExecutedCall,
        tile: u32,
        link: u32,
        ordinal: u32,
    ) -> u32 {
        let link = link as usize;
        self.first[number][link] + tile * call.flat.links[link].sent + ordinal
    }

    /// The slot of that message of the link.
    pub(super) fn slot(&self, link: u32, message: u32) -> usize {
        let (first, count) = self.slots[link as usize];
        (first + message % count) as usize
    }
}
