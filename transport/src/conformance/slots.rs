//! The slot protocol: order, credits, lengths, lent memory, sleep.

use super::{TestEnd, bytes, pattern, pause, wait};
use crate::link::Lendable;

const MESSAGES: u64 = 200;

pub(super) fn order_left(mut side: TestEnd) {
    for number in 1..=MESSAGES {
        assert_eq!(side.send(&number.to_le_bytes(), !number as u32), number);
    }
    wait(&side.endpoint, || (side.out.slots.released() == MESSAGES).then_some(()));
}

pub(super) fn order_right(mut side: TestEnd) {
    for number in 1..=MESSAGES {
        let message = side.receive();
        assert_eq!(bytes(&message), number.to_le_bytes());
        assert_eq!((message.sequence, message.tag), (number, !number as u32));
        assert_eq!(side.receive().data, message.data, "receive is idempotent");
        side.inc.slots.release();
    }
}

pub(super) fn credits_left(mut side: TestEnd) {
    let credits = u64::from(side.out.slots.credits());
    for number in 1..=credits {
        // Credits that were stated; they may take their time.
        let slot = side.reserve();
        let again = side.out.slots.reserve().unwrap().expect("reserve is idempotent");
        assert_eq!(slot.data, again.data);
        assert_eq!(side.out.slots.send(0, 0), number);
    }
    for release in 1..=2 * credits {
        assert!(side.out.slots.reserve().unwrap().is_none(), "a credit too many");
        wait(&side.endpoint, || (side.out.slots.released() == release - 1).then_some(()));
        side.signal();
        side.reserve();
        side.out.slots.send(0, 0);
    }
    side.signal();
}

pub(super) fn credits_right(mut side: TestEnd) {
    for number in 1..=2 * u64::from(side.out.slots.credits()) {
        side.join();
        assert_eq!(side.receive().sequence, number);
        side.inc.slots.release();
    }
    side.join();
}

fn lengths(side: &TestEnd) -> Vec<usize> {
    let capacity = side.out.slots.capacity();
    [0, 1, 63, 64, 65, capacity - 1, capacity].repeat(2)
}

pub(super) fn lengths_left(mut side: TestEnd) {
    for (salt, len) in lengths(&side).into_iter().enumerate() {
        side.send(&pattern(len, salt), len as u32);
    }
    side.join();
}

pub(super) fn lengths_right(mut side: TestEnd) {
    for (salt, len) in lengths(&side).into_iter().enumerate() {
        let message = side.receive();
        assert_eq!((message.len, message.tag), (len, len as u32));
        assert!(bytes(&message) == pattern(len, salt));
        side.inc.slots.release();
    }
    side.signal();
}

/// Longer than a slot: what is lent needs none.
const LENT: usize = 100_000;

pub(super) fn lending_left(mut side: TestEnd) {
    if side.out.slots.lendable() != Lendable::Anything {
        return;
    }
    let data = pattern(LENT, 1);
    for round in 0..10 {
        // SAFETY: `data` lives until all is released, below.
        let lent = wait(&side.endpoint, || unsafe {
            side.out.slots.lend(data.as_ptr(), data.len(), round).unwrap()
        });
        assert_eq!(lent, u64::from(2 * round + 1));
        assert_eq!(side.send(&[round as u8], round), u64::from(2 * round + 2));
    }
    wait(&side.endpoint, || (side.out.slots.released() == 20).then_some(()));
}

pub(super) fn lending_right(mut side: TestEnd) {
    if side.out.slots.lendable() != Lendable::Anything {
        return;
    }
    for round in 0..10_u32 {
        let message = side.receive();
        assert_eq!(message.tag, round);
        assert!(bytes(&message) == pattern(LENT, 1));
        side.inc.slots.release();
        assert_eq!(bytes(&side.receive()), [round as u8]);
        side.inc.slots.release();
    }
}

pub(super) fn sleep_left(mut side: TestEnd) {
    for _ in 0..3 {
        pause();
        side.send(&[1], 0);
    }
    side.join();
    // All credits gone: sleep until the other end releases one.
    while side.out.slots.reserve().unwrap().is_some() {
        side.out.slots.send(0, 0);
    }
    side.signal();
    side.reserve();
    side.join();
}

pub(super) fn sleep_right(mut side: TestEnd) {
    for _ in 0..3 {
        assert_eq!(bytes(&side.receive()), [1]);
        side.inc.slots.release();
    }
    side.signal();
    side.join();
    pause();
    side.receive();
    side.inc.slots.release();
    side.signal();
}
