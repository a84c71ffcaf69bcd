//! The line protocol: lengths, credits, mismatches, sleep.

use super::{TestEnd, lines_in, lines_out, pattern, pause, wait};
use crate::ll::{LL_CAPACITY, LL_LINE_PAYLOAD, LlPoll, LlSender, SLOTS};

const LINE_LENGTHS: [usize; 13] =
    [0, 1, 3, 8, 17, 55, 56, 57, 112, 113, 1000, LL_CAPACITY - 1, LL_CAPACITY];

pub(super) fn line_lengths_left(mut side: TestEnd) {
    for round in 0..4 {
        for len in LINE_LENGTHS {
            side.send_line(&pattern(len, round), len as u32 + 7);
            if len <= LL_LINE_PAYLOAD {
                // The same again, written in place.
                wait(&side.endpoint, || lines_out(&mut side.out).ready().then_some(()));
                let lines = lines_out(&mut side.out);
                // SAFETY: a slot is free and `len` fits a line.
                unsafe {
                    lines.first_line().copy_from_nonoverlapping(pattern(len, round).as_ptr(), len);
                    lines.publish(len, 1);
                }
                lines.doorbell().ring();
            }
        }
    }
    side.join();
}

pub(super) fn line_lengths_right(mut side: TestEnd) {
    for round in 0..4 {
        for len in LINE_LENGTHS {
            assert!(side.receive_line(len, len as u32 + 7) == pattern(len, round));
            lines_in(&mut side.inc).release();
            if len <= LL_LINE_PAYLOAD {
                side.receive_line(len, 1);
                let line = lines_in(&mut side.inc).first_line();
                // SAFETY: the message is there and not released.
                let data = unsafe { std::slice::from_raw_parts(line, len) };
                assert!(data == pattern(len, round));
                lines_in(&mut side.inc).release();
            }
        }
    }
    side.signal();
}

pub(super) fn line_credits_left(mut side: TestEnd) {
    let credits = LlSender::CREDITS;
    // With any number of releases, as many messages are free as there are credits.
    let mut sent = 0;
    for released in 0..2 * SLOTS as u32 {
        while sent < released + credits {
            assert!(lines_out(&mut side.out).ready(), "{sent} sent, {released} released");
            side.send_line(&sent.to_le_bytes(), sent);
            sent += 1;
        }
        side.signal();
        side.join();
    }
    // And there is an end to it.
    let more = (0..).take_while(|_| {
        let ready = lines_out(&mut side.out).ready();
        if ready {
            side.send_line(&[], 0);
        }
        ready
    });
    assert!(more.count() <= SLOTS as usize);
    side.signal();
}

pub(super) fn line_credits_right(mut side: TestEnd) {
    for number in 0..2 * SLOTS as u32 {
        side.join();
        assert_eq!(side.receive_line(4, number), number.to_le_bytes());
        lines_in(&mut side.inc).release();
        side.signal();
    }
    side.join();
}

pub(super) fn mismatch_left(mut side: TestEnd) {
    side.send_line(&[1; 100], 5);
    side.send_line(&[2; 8], 6);
    side.join();
}

pub(super) fn mismatch_right(mut side: TestEnd) {
    for (right, wrong, len) in [(5, 6, 100), (6, 0, 8)] {
        let lines = lines_in(&mut side.inc);
        let seen = wait(&side.endpoint, || {
            Some(lines.poll(len, wrong)).filter(|&seen| seen != LlPoll::Pending)
        });
        assert_eq!(seen, LlPoll::Mismatch { seen_tag: right });
        side.receive_line(len, right);
        lines_in(&mut side.inc).release();
    }
    assert_eq!(lines_in(&mut side.inc).poll(8, 7), LlPoll::Pending);
    side.signal();
}

pub(super) fn line_sleep_left(mut side: TestEnd) {
    for _ in 0..3 {
        pause();
        side.send_line(&[3; 60], 1);
    }
    side.join();
    while lines_out(&mut side.out).ready() {
        side.send_line(&[4], 2);
    }
    side.signal();
    wait(&side.endpoint, || lines_out(&mut side.out).ready().then_some(()));
    side.join();
}

pub(super) fn line_sleep_right(mut side: TestEnd) {
    for _ in 0..3 {
        assert_eq!(side.receive_line(60, 1), [3; 60]);
        lines_in(&mut side.inc).release();
    }
    side.signal();
    side.join();
    pause();
    for _ in 0..SLOTS / 2 {
        assert_eq!(side.receive_line(1, 2), [4]);
        lines_in(&mut side.inc).release();
    }
    side.signal();
}
