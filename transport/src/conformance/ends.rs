//! How waits end when the communicator is aborted or the peer leaves.

use std::thread;

use super::{TestEnd, bytes, lines_in, lines_out, pause, wait};
use crate::LinkError;

fn ends_with(side: &mut TestEnd, error: LinkError) {
    let seen = wait(&side.endpoint, || match side.inc.slots.receive() {
        Ok(None) => None,
        other => Some(other),
    });
    assert_eq!(seen.unwrap_err(), error);
    // Credits that are left may be used; waiting for one is in vain, and ends.
    let mut reserve = || {
        wait(&side.endpoint, || match side.out.slots.reserve() {
            Ok(None) => None,
            other => Some(other),
        })
        .map(|_| side.out.slots.send(0, 0))
    };
    let refused = std::iter::repeat_with(&mut reserve).find_map(Result::err);
    assert_eq!(refused, Some(error));
    assert_eq!(reserve().unwrap_err(), error);
    if !side.has_lines() {
        return;
    }
    assert_eq!(lines_in(&mut side.inc).wait_error(8, 0), Some(error));
    while lines_out(&mut side.out).ready() {
        side.send_line(&[], 0);
    }
    assert_eq!(lines_out(&mut side.out).wait_error(), Some(error));
}

const ABORTED: LinkError = LinkError::Aborted { by: 1, reason: 77 };

pub(super) fn abort_left(mut side: TestEnd) {
    assert_eq!(side.endpoint.aborted(), None);
    side.signal();
    ends_with(&mut side, ABORTED);
    assert_eq!(side.endpoint.aborted(), Some(ABORTED));
    // The first one counts.
    side.endpoint.abort(1);
    assert_eq!(side.endpoint.aborted(), Some(ABORTED));
}

pub(super) fn abort_right(mut side: TestEnd) {
    side.join();
    // Both ends sleep; a third thread ends it.
    let TestEnd { endpoint, inc, .. } = &mut side;
    let endpoint = &*endpoint;
    thread::scope(|scope| {
        scope.spawn(|| {
            pause();
            endpoint.abort(77);
        });
        assert_eq!(wait(endpoint, || inc.slots.receive().err()), ABORTED);
    });
    ends_with(&mut side, ABORTED);
}

pub(super) fn leave_left(mut side: TestEnd) {
    side.join();
    let left = LinkError::PeerLeft { peer: side.peer };
    // What was sent before is still delivered.
    if side.has_lines() {
        assert_eq!(side.receive_line(3, 1), [1, 2, 3]);
        lines_in(&mut side.inc).release();
    }
    assert_eq!(bytes(&side.receive()), [9]);
    side.inc.slots.release();
    ends_with(&mut side, left);
    assert_eq!(side.endpoint.gone(side.peer), Some(left));
    assert_eq!(side.endpoint.aborted(), None);
}

pub(super) fn leave_right(mut side: TestEnd) {
    if side.has_lines() {
        side.send_line(&[1, 2, 3], 1);
    }
    side.send(&[9], 0);
    side.signal();
    pause();
}
