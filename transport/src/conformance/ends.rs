//! Cases: how waits end when the communicator is aborted or the peer leaves.

use std::thread;

use super::{TestEnd, bytes, ll_receiver, ll_sender, pause, wait};
use crate::LinkError;

fn check_waits_end_with(end: &mut TestEnd, error: LinkError) {
    let seen = wait(&end.endpoint, || match end.inc.slots.receive() {
        Ok(None) => None,
        other => Some(other),
    });
    assert_eq!(seen.unwrap_err(), error);
    // Credits that are left may be used; waiting for another one ends with the error.
    let mut reserve = || {
        wait(&end.endpoint, || match end.out.slots.reserve() {
            Ok(None) => None,
            other => Some(other),
        })
        .map(|_| end.out.slots.send(0, 0))
    };
    let refused = std::iter::repeat_with(&mut reserve).find_map(Result::err);
    assert_eq!(refused, Some(error));
    assert_eq!(reserve().unwrap_err(), error);
    if !end.has_ll() {
        return;
    }
    assert_eq!(ll_receiver(&mut end.inc).wait_error(8, 0), Some(error));
    while ll_sender(&mut end.out).ready() {
        end.send_ll(&[], 0);
    }
    assert_eq!(ll_sender(&mut end.out).wait_error(), Some(error));
}

const ABORTED: LinkError = LinkError::Aborted { by: 1, reason: 77 };

pub(super) fn abort_rank0(mut end: TestEnd) {
    assert_eq!(end.endpoint.aborted(), None);
    end.signal();
    check_waits_end_with(&mut end, ABORTED);
    assert_eq!(end.endpoint.aborted(), Some(ABORTED));
    // The first abort counts.
    end.endpoint.abort(1);
    assert_eq!(end.endpoint.aborted(), Some(ABORTED));
}

pub(super) fn abort_rank1(mut end: TestEnd) {
    end.await_signal();
    // Both ranks sleep; a third thread ends that.
    let TestEnd { endpoint, inc, .. } = &mut end;
    let endpoint = &*endpoint;
    thread::scope(|scope| {
        scope.spawn(|| {
            pause();
            endpoint.abort(77);
        });
        assert_eq!(wait(endpoint, || inc.slots.receive().err()), ABORTED);
    });
    check_waits_end_with(&mut end, ABORTED);
}

pub(super) fn leave_rank0(mut end: TestEnd) {
    end.await_signal();
    let left = LinkError::PeerLeft { peer: end.peer };
    // Messages sent before are still delivered.
    if end.has_ll() {
        assert_eq!(end.receive_ll(3, 1), [1, 2, 3]);
        ll_receiver(&mut end.inc).release();
    }
    assert_eq!(bytes(&end.receive()), [9]);
    end.inc.slots.release();
    check_waits_end_with(&mut end, left);
    assert_eq!(end.endpoint.gone(end.peer), Some(left));
    assert_eq!(end.endpoint.aborted(), None);
}

pub(super) fn leave_rank1(mut end: TestEnd) {
    if end.has_ll() {
        end.send_ll(&[1, 2, 3], 1);
    }
    end.send(&[9], 0);
    end.signal();
    pause();
}
