//! Cases of the LL protocol: lengths, credits, mismatches, sleep.

use super::{TestEnd, ll_receiver, ll_sender, pattern, pause, wait};
use crate::ll::{LL_CAPACITY, LL_LINE_PAYLOAD, LL_SLOTS, LlPoll, LlSender};

const LL_LENGTHS: [usize; 13] =
    [0, 1, 3, 8, 17, 55, 56, 57, 112, 113, 1000, LL_CAPACITY - 1, LL_CAPACITY];

pub(super) fn lengths_rank0(mut end: TestEnd) {
    for round in 0..4 {
        for len in LL_LENGTHS {
            end.send_ll(&pattern(len, round), len as u32 + 7);
            if len <= LL_LINE_PAYLOAD {
                // The same message again, written in place.
                wait(&end.endpoint, || ll_sender(&mut end.out).ready().then_some(()));
                let ll = ll_sender(&mut end.out);
                // SAFETY: a slot is free and `len` fits a line.
                unsafe {
                    ll.first_line().copy_from_nonoverlapping(pattern(len, round).as_ptr(), len);
                    ll.publish(len, 1);
                }
                ll.doorbell().ring();
            }
        }
    }
    end.await_signal();
}

pub(super) fn lengths_rank1(mut end: TestEnd) {
    for round in 0..4 {
        for len in LL_LENGTHS {
            assert!(end.receive_ll(len, len as u32 + 7) == pattern(len, round));
            ll_receiver(&mut end.inc).release();
            if len <= LL_LINE_PAYLOAD {
                end.receive_ll(len, 1);
                let first_line = ll_receiver(&mut end.inc).first_line();
                // SAFETY: the message has arrived and is not released.
                let data = unsafe { std::slice::from_raw_parts(first_line, len) };
                assert!(data == pattern(len, round));
                ll_receiver(&mut end.inc).release();
            }
        }
    }
    end.signal();
}

pub(super) fn credits_rank0(mut end: TestEnd) {
    let credits = LlSender::CREDITS;
    // After any number of releases, as many messages can be sent as there are credits.
    let mut sent = 0;
    for released in 0..2 * LL_SLOTS as u32 {
        while sent < released + credits {
            assert!(ll_sender(&mut end.out).ready(), "{sent} sent, {released} released");
            end.send_ll(&sent.to_le_bytes(), sent);
            sent += 1;
        }
        end.signal();
        end.await_signal();
    }
    // The number of free slots is bounded.
    let more = (0..).take_while(|_| {
        let ready = ll_sender(&mut end.out).ready();
        if ready {
            end.send_ll(&[], 0);
        }
        ready
    });
    assert!(more.count() <= LL_SLOTS as usize);
    end.signal();
}

pub(super) fn credits_rank1(mut end: TestEnd) {
    for number in 0..2 * LL_SLOTS as u32 {
        end.await_signal();
        assert_eq!(end.receive_ll(4, number), number.to_le_bytes());
        ll_receiver(&mut end.inc).release();
        end.signal();
    }
    end.await_signal();
}

pub(super) fn mismatch_rank0(mut end: TestEnd) {
    end.send_ll(&[1; 100], 5);
    end.send_ll(&[2; 8], 6);
    end.await_signal();
}

pub(super) fn mismatch_rank1(mut end: TestEnd) {
    for (right, wrong, len) in [(5, 6, 100), (6, 0, 8)] {
        let ll = ll_receiver(&mut end.inc);
        let seen = wait(&end.endpoint, || {
            Some(ll.poll(len, wrong)).filter(|&seen| seen != LlPoll::Pending)
        });
        assert_eq!(seen, LlPoll::Mismatch { seen_tag: right });
        end.receive_ll(len, right);
        ll_receiver(&mut end.inc).release();
    }
    assert_eq!(ll_receiver(&mut end.inc).poll(8, 7), LlPoll::Pending);
    end.signal();
}

pub(super) fn sleep_rank0(mut end: TestEnd) {
    for _ in 0..3 {
        pause();
        end.send_ll(&[3; 60], 1);
    }
    end.await_signal();
    while ll_sender(&mut end.out).ready() {
        end.send_ll(&[4], 2);
    }
    end.signal();
    wait(&end.endpoint, || ll_sender(&mut end.out).ready().then_some(()));
    end.await_signal();
}

pub(super) fn sleep_rank1(mut end: TestEnd) {
    for _ in 0..3 {
        assert_eq!(end.receive_ll(60, 1), [3; 60]);
        ll_receiver(&mut end.inc).release();
    }
    end.signal();
    end.await_signal();
    pause();
    for _ in 0..LL_SLOTS / 2 {
        assert_eq!(end.receive_ll(1, 2), [4]);
        ll_receiver(&mut end.inc).release();
    }
    end.signal();
}

/// Rounds of a message by each protocol, the slot first in every other round.
const ORDER_ROUNDS: u32 = 200;

pub(super) fn order_rank0(mut end: TestEnd) {
    for round in 0..ORDER_ROUNDS {
        if round % 2 == 0 {
            end.send(&[5], round);
        }
        end.send_ll(&[6; 60], round);
        if round % 2 == 1 {
            end.send(&[5], round);
        }
    }
    end.await_signal();
}

pub(super) fn order_rank1(mut end: TestEnd) {
    for round in 0..ORDER_ROUNDS {
        // A receiver that sees the later message also sees the earlier one.
        if round % 2 == 0 {
            let TestEnd { endpoint, inc, .. } = &mut end;
            let tag = wait(endpoint, || ll_receiver(inc).begun());
            let message = inc.slots.receive().unwrap().expect("the earlier message");
            assert_eq!((tag, message.tag), (round, round));
        } else {
            assert_eq!(end.receive().tag, round);
            assert_eq!(ll_receiver(&mut end.inc).poll(60, round), LlPoll::Ready);
        }
        end.receive();
        end.inc.slots.release();
        assert_eq!(end.receive_ll(60, round), [6; 60]);
        ll_receiver(&mut end.inc).release();
    }
    assert_eq!(ll_receiver(&mut end.inc).begun(), None);
    end.signal();
}
