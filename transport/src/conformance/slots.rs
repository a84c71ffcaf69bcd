//! Cases of the slot protocol: order, credits, lengths, lent memory, sleep.

use super::{TestEnd, bytes, pattern, pause, wait};
use crate::link::{Lendable, PostedMemory};

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

/// Longer than a slot.
const LENT: usize = 100_000;

/// How much the link can lend: more than a slot, unless it sends what is lent.
fn lent_len(end: &mut TestEnd) -> Option<usize> {
    let (data, capacity) = (pattern(LENT, 1), end.out.slots.capacity());
    match end.out.slots.lendable() {
        Lendable::Anything => Some(LENT),
        Lendable::ForSending => {
            assert!(end.out.slots.can_lend(data.as_ptr(), capacity));
            assert!(!end.out.slots.can_lend(data.as_ptr(), capacity + 1));
            Some(capacity)
        }
        Lendable::Segments | Lendable::Nothing => None,
    }
}

pub(super) fn lending_rank0(mut end: TestEnd) {
    let Some(len) = lent_len(&mut end) else { return };
    let data = pattern(len, 1);
    for round in 0..10 {
        // SAFETY: `data` lives until all messages are released, below.
        let lent = wait(&end.endpoint, || unsafe {
            end.out.slots.lend(data.as_ptr(), data.len(), round).unwrap()
        });
        assert_eq!(lent, u64::from(2 * round + 1));
        assert_eq!(end.send(&[round as u8], round), u64::from(2 * round + 2));
    }
    // SAFETY: as above.
    wait(&end.endpoint, || unsafe { end.out.slots.lend(data.as_ptr(), data.len(), 10).unwrap() });
    end.out.slots.flush();
    wait(&end.endpoint, || (end.out.slots.released() == 21).then_some(()));
}

pub(super) fn lending_rank1(mut end: TestEnd) {
    let Some(len) = lent_len(&mut end) else { return };
    for round in 0..10_u32 {
        let message = end.receive();
        assert_eq!(message.tag, round);
        assert!(bytes(&message) == pattern(len, 1));
        end.inc.slots.release();
        end.inc.slots.acknowledge();
        assert_eq!(bytes(&end.receive()), [round as u8]);
        end.inc.slots.release();
    }
    assert!(bytes(&end.receive()) == pattern(len, 1));
    end.inc.slots.release();
}

/// The lender ends the use of its memory before the messages are received.
pub(super) fn withdrawing_rank0(mut end: TestEnd) {
    if end.out.slots.lendable() != Lendable::ForSending {
        return;
    }
    let len = end.out.slots.capacity();
    for round in 0..3 {
        let mut data = pattern(len, round);
        for tag in 0..end.out.slots.credits() {
            // SAFETY: `data` is not changed before `withdraw`.
            let lent = wait(&end.endpoint, || unsafe {
                end.out.slots.lend(data.as_ptr(), len, tag).unwrap()
            });
            assert_eq!(
                lent,
                round as u64 * u64::from(end.out.slots.credits()) + u64::from(tag) + 1
            );
        }
        end.out.slots.withdraw();
        data.fill(0xee);
        end.signal();
    }
    end.await_signal();
}

pub(super) fn withdrawing_rank1(mut end: TestEnd) {
    if end.out.slots.lendable() != Lendable::ForSending {
        return;
    }
    for round in 0..3 {
        end.await_signal();
        for tag in 0..end.out.slots.credits() {
            let message = end.receive();
            assert_eq!(message.tag, tag);
            assert!(bytes(&message) == pattern(message.len, round));
            end.inc.slots.release();
        }
    }
    end.signal();
}

/// What the receiver of the case posts for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Posting {
    Fits,
    OtherLength,
    OtherTag,
    Withdrawn,
    AfterwardsToo,
    Nothing,
}

const POSTINGS: [Posting; 8] = [
    Posting::Fits,
    Posting::OtherLength,
    Posting::Fits,
    Posting::OtherTag,
    Posting::Withdrawn,
    Posting::AfterwardsToo,
    Posting::Nothing,
    Posting::Fits,
];

pub(super) fn posting_rank0(mut end: TestEnd) {
    let capacity = end.out.slots.capacity();
    for salt in 0..POSTINGS.len() {
        end.await_signal();
        end.send(&pattern(capacity - salt, salt), salt as u32);
        // The next one finds no memory posted.
        end.send(&pattern(7, salt), 99);
    }
    end.await_signal();
}

pub(super) fn posting_rank1(mut end: TestEnd) {
    let capacity = end.out.slots.capacity();
    for (salt, posting) in POSTINGS.into_iter().enumerate() {
        let (expected, tag) = (pattern(capacity - salt, salt), salt as u32);
        let mut memory = vec![0xee_u8; capacity + 1];
        let data = memory.as_mut_ptr();
        let fits = PostedMemory { data, len: expected.len(), tag };
        let posted = match posting {
            Posting::OtherLength => PostedMemory { len: expected.len() + 1, ..fits },
            Posting::OtherTag => PostedMemory { tag: tag + 1, ..fits },
            _ => fits,
        };
        if posting != Posting::Nothing {
            // SAFETY: the memory is as long, and used again only after the release.
            unsafe { end.inc.slots.post(posted) };
        }
        if posting == Posting::Withdrawn {
            end.inc.slots.withdraw();
        }
        // The message is sent only now.
        end.signal();
        let message = end.receive();
        assert_eq!((message.len, message.tag), (expected.len(), tag));
        assert!(bytes(&message) == expected);
        let stored = matches!(posting, Posting::Fits | Posting::AfterwardsToo);
        assert_eq!(message.data == data.cast_const(), stored && end.inc.slots.takes_posts());
        if posting == Posting::AfterwardsToo {
            // SAFETY: as above; the memory is not used, because the message has arrived.
            unsafe { end.inc.slots.post(PostedMemory { data: data.wrapping_add(1), ..fits }) };
            assert_eq!(end.receive().data, message.data);
        }
        end.inc.slots.release();
        assert!(stored || memory.iter().all(|&byte| byte == 0xee), "it was written");
        assert_eq!(bytes(&end.receive()), pattern(7, salt));
        end.inc.slots.release();
    }
    end.signal();
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
