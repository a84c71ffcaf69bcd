//! Cases of links that lend segments: memory is read in place at any offset, mixed with copies,
//! freed and made again.

use super::{TestEnd, bytes, pattern, wait};
use crate::link::Lendable;
use crate::segment::Segment;

/// Longer than a slot.
const BYTES: usize = 100_000;

/// Whether the link lends segments. If not, the ranks synchronize before they end, so that neither
/// sees the other leave too early.
fn lends_segments(end: &mut TestEnd) -> bool {
    let lends = end.out.slots.lendable() == Lendable::Segments;
    if !lends {
        end.signal();
        end.await_signal();
    }
    lends
}

fn filled(salt: usize) -> Segment {
    let segment = Segment::new(BYTES).unwrap();
    fill(&segment, salt);
    segment
}

fn fill(segment: &Segment, salt: usize) {
    // SAFETY: the segment is alive and no part of it is lent.
    unsafe { segment.start().copy_from(pattern(BYTES, salt).as_ptr(), BYTES) };
}

/// Waits until the peer has mapped the segment.
fn await_mapped(end: &mut TestEnd, segment: &Segment) {
    wait(&end.endpoint, || end.out.slots.can_lend(segment.start(), BYTES).then_some(()));
}

fn lend(end: &mut TestEnd, segment: &Segment, offset: usize, len: usize, tag: u32) -> u64 {
    let data = segment.start().wrapping_add(offset).cast_const();
    assert!(end.out.slots.can_lend(data, len), "{len} bytes at {offset} cannot be lent");
    // SAFETY: callers do not change the segment until the release.
    wait(&end.endpoint, || unsafe { end.out.slots.lend(data, len, tag).unwrap() })
}

fn await_released(end: &mut TestEnd, sequence: u64) {
    wait(&end.endpoint, || (end.out.slots.released() >= sequence).then_some(()));
}

/// Offset and length of parts of a segment.
const PARTS: [(usize, usize); 7] = [
    (0, BYTES),
    (1, BYTES - 1),
    (4095, 4097),
    (77, 1),
    (BYTES, 0),
    (BYTES - 4096, 4096),
    (12_345, 50_001),
];

pub(super) fn lending_rank0(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let segment = filled(1);
    await_mapped(&mut end, &segment);
    let mut last = 0;
    for (at, len) in PARTS.repeat(3) {
        lend(&mut end, &segment, at, len, at as u32);
        last = end.send(&[at as u8], len as u32);
    }
    // Bytes beyond either end of the segment, and memory outside segments.
    let start = segment.start().cast_const();
    let slots = &mut end.out.slots;
    assert!(!slots.can_lend(start.wrapping_add(1), BYTES));
    assert!(!slots.can_lend(start.wrapping_sub(1), BYTES));
    assert!(!slots.can_lend(start, usize::MAX));
    assert!(!slots.can_lend(pattern(BYTES, 1).as_ptr(), BYTES));
    await_released(&mut end, last);
}

pub(super) fn lending_rank1(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let whole = pattern(BYTES, 1);
    for (at, len) in PARTS.repeat(3) {
        let message = end.receive();
        assert!(message.in_other_process, "the message was copied");
        assert_eq!(message.tag, at as u32);
        assert!(bytes(&message) == &whole[at..at + len], "{len} bytes at {at} are damaged");
        end.inc.slots.release();
        let message = end.receive();
        assert_eq!((bytes(&message), message.in_other_process), (&[at as u8][..], false));
        end.inc.slots.release();
    }
}

const GENERATIONS: usize = 30;

/// Each segment likely lies at the address of the one before.
pub(super) fn freed_rank0(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let stays = filled(99);
    for generation in 0..GENERATIONS {
        let segment = filled(generation);
        await_mapped(&mut end, &segment);
        await_mapped(&mut end, &stays);
        lend(&mut end, &segment, 0, BYTES, 0);
        let last = lend(&mut end, &stays, 0, BYTES, 0);
        await_released(&mut end, last);
        // The same segment with other content.
        fill(&segment, generation + 1);
        let last = lend(&mut end, &segment, 0, BYTES, 0);
        await_released(&mut end, last);
        let start = segment.start().cast_const();
        drop(segment);
        assert!(!end.out.slots.can_lend(start, BYTES), "freed memory would be lent");
    }
}

pub(super) fn freed_rank1(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    for generation in 0..GENERATIONS {
        for salt in [generation, 99, generation + 1] {
            let message = end.receive();
            assert!(message.in_other_process);
            assert!(bytes(&message) == pattern(BYTES, salt), "the content of another round");
            end.inc.slots.release();
        }
    }
}

pub(super) fn both_directions(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let (me, peer) = (end.endpoint.rank() as usize, end.peer as usize);
    let segment = filled(me);
    await_mapped(&mut end, &segment);
    let theirs = pattern(BYTES, peer);
    for round in 0..50 {
        let at = round * 7;
        let sequence = lend(&mut end, &segment, at, BYTES - at, round as u32);
        let message = end.receive();
        assert_eq!((message.tag, message.in_other_process), (round as u32, true));
        assert!(bytes(&message) == &theirs[at..]);
        end.inc.slots.release();
        await_released(&mut end, sequence);
    }
    end.signal();
    end.await_signal();
}

/// Lent memory stays readable as long as the link of the other rank lives.
pub(super) fn leave_rank0(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let segment = filled(3);
    await_mapped(&mut end, &segment);
    lend(&mut end, &segment, 5, BYTES - 5, 0);
    end.signal();
    end.await_signal();
    drop(end);
    drop(segment);
}

pub(super) fn leave_rank1(mut end: TestEnd) {
    if !lends_segments(&mut end) {
        return;
    }
    let message = end.receive();
    end.await_signal();
    assert!(bytes(&message) == &pattern(BYTES, 3)[5..]);
    end.signal();
    let left = crate::LinkError::PeerLeft { peer: end.peer };
    wait(&end.endpoint, || end.endpoint.gone(end.peer));
    assert_eq!(end.endpoint.gone(end.peer), Some(left));
    // Freed memory reads as zeros, unless it is not yet freed.
    let whole = pattern(BYTES, 3);
    assert!(bytes(&message).iter().zip(&whole[5..]).all(|(a, b)| *a == 0 || a == b));
    end.inc.slots.release();
}
