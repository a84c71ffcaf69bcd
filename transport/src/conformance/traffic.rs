//! A case with both protocols in both directions at the same time and messages of random sizes.

use super::{TestEnd, bytes, ll_receiver, ll_sender, wait};
use crate::ll::{LL_CAPACITY, LlPoll};

/// A random number generator. Both ranks know the seed of the other, and so what it sends.
struct TrafficRandom(u64);

impl TrafficRandom {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Whether the next message uses LL, and its content; mostly short.
    fn message(&mut self, capacity: usize, has_ll: bool) -> (bool, Vec<u8>) {
        let uses_ll = self.next().is_multiple_of(2) && has_ll;
        let limit = if uses_ll { LL_CAPACITY } else { capacity };
        let limit = if self.next().is_multiple_of(16) { limit } else { 64 };
        let mut data = vec![0; self.next() as usize % (limit + 1)];
        for part in data.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
        (uses_ll, data)
    }
}

/// How many messages each rank sends: 50 000, or what `MAYPOLE_TEST_TRAFFIC` says, for machines on
/// which a message takes long, such as an emulated one.
fn messages() -> usize {
    let given = std::env::var("MAYPOLE_TEST_TRAFFIC").ok();
    given.map_or(50_000, |text| text.parse().expect("MAYPOLE_TEST_TRAFFIC is a number"))
}

/// Sends and receives many messages.
pub(super) fn traffic(mut end: TestEnd, own: u64, theirs: u64) {
    let each = messages();
    let capacity = end.out.slots.capacity();
    let has_ll = end.has_ll();
    let (mut own, mut theirs) = (TrafficRandom(own), TrafficRandom(theirs));
    let (mut sent, mut seen) = (0, 0);
    let mut outgoing = own.message(capacity, has_ll);
    let mut expected = theirs.message(capacity, has_ll);
    while sent < each || seen < each {
        let TestEnd { endpoint, out, inc, .. } = &mut end;
        // One sleep for whichever comes first: room to send, or a message.
        let (can_send, has_arrived) = wait(endpoint, || {
            let can_send = sent < each
                && if outgoing.0 {
                    ll_sender(out).ready()
                } else {
                    out.slots.reserve().unwrap().is_some()
                };
            let has_arrived = seen < each
                && if expected.0 {
                    ll_receiver(inc).poll(expected.1.len(), seen as u32) == LlPoll::Ready
                } else {
                    inc.slots.receive().unwrap().is_some()
                };
            (can_send || has_arrived).then_some((can_send, has_arrived))
        });
        if can_send {
            if outgoing.0 {
                end.send_ll(&outgoing.1, sent as u32);
            } else {
                end.send(&outgoing.1, sent as u32);
            }
            outgoing = own.message(capacity, has_ll);
            sent += 1;
        }
        if has_arrived {
            if expected.0 {
                assert!(end.receive_ll(expected.1.len(), seen as u32) == expected.1);
                ll_receiver(&mut end.inc).release();
            } else {
                let message = end.receive();
                assert_eq!(message.tag, seen as u32);
                assert!(bytes(&message) == expected.1, "message {seen} is damaged");
                end.inc.slots.release();
            }
            expected = theirs.message(capacity, has_ll);
            seen += 1;
        }
    }
    end.signal();
    end.await_signal();
}
