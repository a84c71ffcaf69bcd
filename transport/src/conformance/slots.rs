//! Cases of the slot protocol: order, credits, lengths, lent memory, sleep.

use super::{TestEnd, bytes, pattern, pause, wait};
use crate::link::Lendable;

const MESSAGES: u64 = 200;

pub(super) fn order_rank0(mut end: TestEnd) {
    for number in 1..=MESSAGES {
        assert_eq!(end.send(&number.to_le_bytes(), !number as u32), number);
    }
    wait(&end.endpoint, || (end.out.slots.released() == MESSAGES).then_some(()));
}

pub(super) fn order_rank1(mut end: TestEnd) {
    for number in 1..=MESSAGES {
        let message = end.receive();
        assert_eq!(bytes(&message), number.to_le_bytes());
        assert_eq!((message.sequence, message.tag), (number, !number as u32));
        assert_eq!(end.receive().data, message.data, "receive is idempotent");
        end.inc.slots.release();
    }
}

pub(super) fn credits_rank0(mut end: TestEnd) {
    let credits = u64::from(end.out.slots.credits());
    for number in 1..=credits {
        // Credits that the link states; they may come late.
        let slot = end.reserve();
        let again = end.out.slots.reserve().unwrap().expect("reserve is idempotent");
        assert_eq!(slot.data, again.data);
        assert_eq!(end.out.slots.send(0, 0), number);
    }
    for release in 1..=2 * credits {
        assert!(end.out.slots.reserve().unwrap().is_none(), "a credit too many");
        wait(&end.endpoint, || (end.out.slots.released() == release - 1).then_some(()));
        end.signal();
        end.reserve();
        end.out.slots.send(0, 0);
    }
    end.signal();
}

pub(super) fn credits_rank1(mut end: TestEnd) {
    for number in 1..=2 * u64::from(end.out.slots.credits()) {
        end.await_signal();
        assert_eq!(end.receive().sequence, number);
        end.inc.slots.release();
    }
    end.await_signal();
}

fn lengths(end: &TestEnd) -> Vec<usize> {
    let capacity = end.out.slots.capacity();
    [0, 1, 63, 64, 65, capacity - 1, capacity].repeat(2)
}

pub(super) fn lengths_rank0(mut end: TestEnd) {
    for (salt, len) in lengths(&end).into_iter().enumerate() {
        end.send(&pattern(len, salt), len as u32);
    }
    end.await_signal();
}

pub(super) fn lengths_rank1(mut end: TestEnd) {
    for (salt, len) in lengths(&end).into_iter().enumerate() {
        let message = end.receive();
        assert_eq!((message.len, message.tag), (len, len as u32));
        assert!(bytes(&message) == pattern(len, salt));
        end.inc.slots.release();
    }
    end.signal();
}

/// Longer than a slot, because lent memory needs no slot.
const LENT: usize = 100_000;

pub(super) fn lending_rank0(mut end: TestEnd) {
    if end.out.slots.lendable() != Lendable::Anything {
        return;
    }
    let data = pattern(LENT, 1);
    for round in 0..10 {
        // SAFETY: `data` lives until all messages are released, below.
        let lent = wait(&end.endpoint, || unsafe {
            end.out.slots.lend(data.as_ptr(), data.len(), round).unwrap()
        });
        assert_eq!(lent, u64::from(2 * round + 1));
        assert_eq!(end.send(&[round as u8], round), u64::from(2 * round + 2));
    }
    wait(&end.endpoint, || (end.out.slots.released() == 20).then_some(()));
}

pub(super) fn lending_rank1(mut end: TestEnd) {
    if end.out.slots.lendable() != Lendable::Anything {
        return;
    }
    for round in 0..10_u32 {
        let message = end.receive();
        assert_eq!(message.tag, round);
        assert!(bytes(&message) == pattern(LENT, 1));
        end.inc.slots.release();
        assert_eq!(bytes(&end.receive()), [round as u8]);
        end.inc.slots.release();
    }
}

pub(super) fn sleep_rank0(mut end: TestEnd) {
    for _ in 0..3 {
        pause();
        end.send(&[1], 0);
    }
    end.await_signal();
    // No credits are left: sleep until the other rank releases one.
    while end.out.slots.reserve().unwrap().is_some() {
        end.out.slots.send(0, 0);
    }
    end.signal();
    end.reserve();
    end.await_signal();
}

pub(super) fn sleep_rank1(mut end: TestEnd) {
    for _ in 0..3 {
        assert_eq!(bytes(&end.receive()), [1]);
        end.inc.slots.release();
    }
    end.signal();
    end.await_signal();
    pause();
    end.receive();
    end.inc.slots.release();
    end.signal();
}
