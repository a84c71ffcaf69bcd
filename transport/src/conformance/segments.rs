//! Segments on links that lend them: read in place at any offset, mixed with copies, freed and made anew.

use super::{TestEnd, bytes, pattern, wait};
use crate::link::Lendable;
use crate::segment::Segment;

/// Longer than a slot.
const BYTES: usize = 100_000;

/// Whether the link has what the cases need; if not, both ends are there before they go.
fn lends_segments(side: &mut TestEnd) -> bool {
    let lends = side.out.slots.lendable() == Lendable::Segments;
    if !lends {
        side.signal();
        side.join();
    }
    lends
}

fn filled(salt: usize) -> Segment {
    let segment = Segment::new(BYTES).unwrap();
    fill(&segment, salt);
    segment
}

fn fill(segment: &Segment, salt: usize) {
    // SAFETY: the segment is alive, and nothing of it is lent.
    unsafe { segment.start().copy_from(pattern(BYTES, salt).as_ptr(), BYTES) };
}

/// Waits until the peer has mapped it.
fn mapped(side: &mut TestEnd, segment: &Segment) {
    wait(&side.endpoint, || side.out.slots.can_lend(segment.start(), BYTES).then_some(()));
}

fn lend(side: &mut TestEnd, segment: &Segment, at: usize, len: usize, tag: u32) -> u64 {
    let data = segment.start().wrapping_add(at).cast_const();
    assert!(side.out.slots.can_lend(data, len), "{len} bytes at {at} cannot be lent");
    // SAFETY: callers keep the segment as it is until the release.
    wait(&side.endpoint, || unsafe { side.out.slots.lend(data, len, tag).unwrap() })
}

fn released(side: &mut TestEnd, sequence: u64) {
    wait(&side.endpoint, || (side.out.slots.released() >= sequence).then_some(()));
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

pub(super) fn lending_left(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let segment = filled(1);
    mapped(&mut side, &segment);
    let mut last = 0;
    for (at, len) in PARTS.repeat(3) {
        lend(&mut side, &segment, at, len, at as u32);
        last = side.send(&[at as u8], len as u32);
    }
    // Partly beyond either end, and memory of no segment.
    let start = segment.start().cast_const();
    let slots = &mut side.out.slots;
    assert!(!slots.can_lend(start.wrapping_add(1), BYTES));
    assert!(!slots.can_lend(start.wrapping_sub(1), BYTES));
    assert!(!slots.can_lend(start, usize::MAX));
    assert!(!slots.can_lend(pattern(BYTES, 1).as_ptr(), BYTES));
    released(&mut side, last);
}

pub(super) fn lending_right(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let whole = pattern(BYTES, 1);
    for (at, len) in PARTS.repeat(3) {
        let message = side.receive();
        assert!(message.in_other_process, "it was copied");
        assert_eq!(message.tag, at as u32);
        assert!(bytes(&message) == &whole[at..at + len], "{len} bytes at {at} are damaged");
        side.inc.slots.release();
        let message = side.receive();
        assert_eq!((bytes(&message), message.in_other_process), (&[at as u8][..], false));
        side.inc.slots.release();
    }
}

const GENERATIONS: usize = 30;

/// Each likely lies where the one before lay.
pub(super) fn going_left(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let stays = filled(99);
    for generation in 0..GENERATIONS {
        let segment = filled(generation);
        mapped(&mut side, &segment);
        mapped(&mut side, &stays);
        lend(&mut side, &segment, 0, BYTES, 0);
        let last = lend(&mut side, &stays, 0, BYTES, 0);
        released(&mut side, last);
        // The same memory with other content.
        fill(&segment, generation + 1);
        let last = lend(&mut side, &segment, 0, BYTES, 0);
        released(&mut side, last);
        let start = segment.start().cast_const();
        drop(segment);
        assert!(!side.out.slots.can_lend(start, BYTES), "freed memory would be lent");
    }
}

pub(super) fn going_right(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    for generation in 0..GENERATIONS {
        for salt in [generation, 99, generation + 1] {
            let message = side.receive();
            assert!(message.in_other_process);
            assert!(bytes(&message) == pattern(BYTES, salt), "memory of another time");
            side.inc.slots.release();
        }
    }
}

pub(super) fn both_ways(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let (me, peer) = (side.endpoint.rank() as usize, side.peer as usize);
    let segment = filled(me);
    mapped(&mut side, &segment);
    let theirs = pattern(BYTES, peer);
    for round in 0..50 {
        let at = round * 7;
        let sequence = lend(&mut side, &segment, at, BYTES - at, round as u32);
        let message = side.receive();
        assert_eq!((message.tag, message.in_other_process), (round as u32, true));
        assert!(bytes(&message) == &theirs[at..]);
        side.inc.slots.release();
        released(&mut side, sequence);
    }
    side.signal();
    side.join();
}

/// What it lent is there as long as the link of the other end.
pub(super) fn leave_left(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let segment = filled(3);
    mapped(&mut side, &segment);
    lend(&mut side, &segment, 5, BYTES - 5, 0);
    side.signal();
    side.join();
    drop(side);
    drop(segment);
}

pub(super) fn leave_right(mut side: TestEnd) {
    if !lends_segments(&mut side) {
        return;
    }
    let message = side.receive();
    side.join();
    assert!(bytes(&message) == &pattern(BYTES, 3)[5..]);
    side.signal();
    let left = crate::LinkError::PeerLeft { peer: side.peer };
    wait(&side.endpoint, || side.endpoint.gone(side.peer));
    assert_eq!(side.endpoint.gone(side.peer), Some(left));
    // Freed memory: zeros, if not what was there.
    let whole = pattern(BYTES, 3);
    assert!(bytes(&message).iter().zip(&whole[5..]).all(|(a, b)| *a == 0 || a == b));
    side.inc.slots.release();
}
