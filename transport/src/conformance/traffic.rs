//! Both protocols in both directions at once, with messages of random sizes.

use super::{TestEnd, bytes, lines_in, lines_out, wait};
use crate::ll::{LL_CAPACITY, LlPoll};

/// A small generator: both ends know what the other sends.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A message: by lines or not, and its content; mostly short.
    fn message(&mut self, capacity: usize, has_lines: bool) -> (bool, Vec<u8>) {
        let lines = self.next().is_multiple_of(2) && has_lines;
        let limit = if lines { LL_CAPACITY } else { capacity };
        let limit = if self.next().is_multiple_of(16) { limit } else { 64 };
        let mut data = vec![0; self.next() as usize % (limit + 1)];
        for part in data.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
        (lines, data)
    }
}

/// Both directions and both protocols at once, 100 000 messages in all.
pub(super) fn traffic(mut side: TestEnd, own: u64, theirs: u64) {
    const EACH: usize = 50_000;
    let capacity = side.out.slots.capacity();
    let has_lines = side.has_lines();
    let (mut own, mut theirs) = (Random(own), Random(theirs));
    let (mut sent, mut seen) = (0, 0);
    let mut outgoing = own.message(capacity, has_lines);
    let mut expected = theirs.message(capacity, has_lines);
    while sent < EACH || seen < EACH {
        let TestEnd { endpoint, out, inc, .. } = &mut side;
        // One sleep for whatever comes first: room to send or a message.
        let (can_send, has_come) = wait(endpoint, || {
            let can_send = sent < EACH
                && if outgoing.0 {
                    lines_out(out).ready()
                } else {
                    out.slots.reserve().unwrap().is_some()
                };
            let has_come = seen < EACH
                && if expected.0 {
                    lines_in(inc).poll(expected.1.len(), seen as u32) == LlPoll::Ready
                } else {
                    inc.slots.receive().unwrap().is_some()
                };
            (can_send || has_come).then_some((can_send, has_come))
        });
        if can_send {
            if outgoing.0 {
                side.send_line(&outgoing.1, sent as u32);
            } else {
                side.send(&outgoing.1, sent as u32);
            }
            outgoing = own.message(capacity, has_lines);
            sent += 1;
        }
        if has_come {
            if expected.0 {
                assert!(side.receive_line(expected.1.len(), seen as u32) == expected.1);
                lines_in(&mut side.inc).release();
            } else {
                let message = side.receive();
                assert_eq!(message.tag, seen as u32);
                assert!(bytes(&message) == expected.1, "message {seen} is damaged");
                side.inc.slots.release();
            }
            expected = theirs.message(capacity, has_lines);
            seen += 1;
        }
    }
    side.signal();
    side.join();
}
