//! What an adapter rejects.

use super::*;

/// The status with which a request of `a` fails, after which its queue pair is in error.
fn failure(a: &End) -> ibv_wc_status {
    let status = a.completion().status;
    assert_ne!(status, IBV_WC_SUCCESS);
    let mut after = request(IBV_WR_SEND, 99);
    assert_eq!(a.post(&mut after, &mut []), 0);
    assert_eq!(a.completion().status, IBV_WC_WR_FLUSH_ERR);
    status
}

/// The next asynchronous event of an end, acknowledged.
fn event(of: &End) -> ibv_event_type {
    let mut event: ibv_async_event = zeros();
    // SAFETY: the calls follow the manual of libibverbs.
    unsafe {
        assert_eq!(ibv_get_async_event(of.context, &mut event), 0);
        ibv_ack_async_event(&mut event);
    }
    event.event_type
}

#[test]
fn a_wrong_local_key_fails_at_the_sender() {
    isolated("tests::rules::a_wrong_local_key_fails_at_the_sender", TWO, || {
        let (a, b) = connected(SHAPE);
        let mut part = a.part(0, 8);
        part.lkey += 1;
        assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 1, b.card()), &mut [part]), 0);
        assert_eq!(failure(&a), IBV_WC_LOC_PROT_ERR);
    });
}

#[test]
fn a_wrong_remote_key_fails_at_both_ends() {
    isolated("tests::rules::a_wrong_remote_key_fails_at_both_ends", TWO, || {
        let (a, b) = connected(SHAPE);
        assert_eq!(b.receive(6, &mut []), 0);
        // SAFETY: the region is registered. Its local key is not a remote one.
        let key = unsafe { (*b.mr).lkey };
        let card = Card { key, ..b.card() };
        assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 1, card), &mut [a.part(0, 8)]), 0);
        assert_eq!(failure(&a), IBV_WC_REM_ACCESS_ERR);
        let flushed = b.completion();
        assert_eq!((flushed.wr_id, flushed.status), (6, IBV_WC_WR_FLUSH_ERR));
        assert_eq!(event(&b), IBV_EVENT_QP_ACCESS_ERR);
    });
}

#[test]
fn bytes_outside_of_a_region_are_not_written() {
    isolated("tests::rules::bytes_outside_of_a_region_are_not_written", TWO, || {
        let (mut a, b) = connected(SHAPE);
        a.memory.fill(1);
        let card = Card { address: b.card().address + SIZE as u64 - 7, ..b.card() };
        assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 1, card), &mut [a.part(0, 8)]), 0);
        assert_eq!(failure(&a), IBV_WC_REM_ACCESS_ERR);
        assert!(b.memory.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_message_that_is_too_long_fails_at_both_ends() {
    isolated("tests::rules::a_message_that_is_too_long_fails_at_both_ends", TWO, || {
        let (a, b) = connected(SHAPE);
        assert_eq!(b.receive(6, &mut [b.part(0, 7)]), 0);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut [a.part(0, 8)]), 0);
        assert_eq!(failure(&a), IBV_WC_REM_INV_REQ_ERR);
        assert_eq!(b.completion().status, IBV_WC_LOC_LEN_ERR);
    });
}

#[test]
fn a_receive_without_a_region_fails_at_both_ends() {
    isolated("tests::rules::a_receive_without_a_region_fails_at_both_ends", TWO, || {
        let (a, b) = connected(SHAPE);
        let mut part = b.part(0, 8);
        part.lkey += 1;
        assert_eq!(b.receive(6, &mut [part]), 0);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut [a.part(0, 8)]), 0);
        assert_eq!(failure(&a), IBV_WC_REM_OP_ERR);
        assert_eq!(b.completion().status, IBV_WC_LOC_PROT_ERR);
    });
}

#[test]
fn an_operation_that_the_queue_pair_does_not_allow_fails() {
    let name = "tests::rules::an_operation_that_the_queue_pair_does_not_allow_fails";
    isolated(name, TWO, || {
        let (a, b) = connected(SHAPE);
        let mut attributes: ibv_qp_attr = zeros();
        attributes.qp_access_flags = IBV_ACCESS_REMOTE_READ;
        assert_eq!(b.modify(&mut attributes, IBV_QP_ACCESS_FLAGS), 0);
        assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 1, b.card()), &mut [a.part(0, 8)]), 0);
        assert_eq!(failure(&a), IBV_WC_REM_INV_REQ_ERR);
        assert_eq!(event(&b), IBV_EVENT_QP_REQ_ERR);
    });
}

#[test]
fn queues_have_the_size_that_was_asked_for() {
    isolated("tests::rules::queues_have_the_size_that_was_asked_for", TWO, || {
        let (a, b) = connected(Shape { sends: 2, receives: 2, ..SHAPE });
        for _ in 0..2 {
            assert_eq!(b.receive(0, &mut []), 0);
        }
        assert_eq!(b.receive(0, &mut []), libc::ENOMEM);
        for _ in 0..2 {
            assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), 0);
        }
        // All is done, but a place is free only when the completion is polled.
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), libc::ENOMEM);
        assert_eq!(b.receive(0, &mut []), libc::ENOMEM);
        assert_eq!((a.completion().status, b.completion().status), (0, 0));
        assert_eq!(b.receive(0, &mut []), 0);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), 0);
    });
}

#[test]
fn work_without_completions_holds_its_places() {
    isolated("tests::rules::work_without_completions_holds_its_places", TWO, || {
        let (a, b) = connected(Shape { sends: 3, ..SHAPE });
        let write = |flags| {
            let mut write = rdma(IBV_WR_RDMA_WRITE, 1, b.card());
            write.send_flags = flags;
            a.post(&mut write, &mut [a.part(0, 8)])
        };
        assert_eq!((write(0), write(0), write(IBV_SEND_SIGNALED)), (0, 0, 0));
        assert_eq!(write(0), libc::ENOMEM);
        assert_eq!(a.completion().status, IBV_WC_SUCCESS);
        assert_eq!((write(0), write(0), write(0)), (0, 0, 0));
        assert_eq!(write(0), libc::ENOMEM);
    });
}

#[test]
fn a_completion_queue_that_overflows_is_an_error() {
    isolated("tests::rules::a_completion_queue_that_overflows_is_an_error", TWO, || {
        let (a, b) = connected(Shape { completions: 1, ..SHAPE });
        for _ in 0..2 {
            assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 1, b.card()), &mut []), 0);
        }
        assert_eq!((event(&a), event(&a)), (IBV_EVENT_CQ_ERR, IBV_EVENT_QP_FATAL));
    });
}

#[test]
fn posting_and_changing_need_the_right_state() {
    isolated("tests::rules::posting_and_changing_need_the_right_state", TWO, || {
        let (a, b) = (End::new(0, SHAPE), End::new(1, SHAPE));
        assert_eq!(a.receive(1, &mut []), libc::EINVAL);
        a.to_init();
        assert_eq!(a.receive(1, &mut []), 0);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), libc::EINVAL);
        let mut attributes = End::connection(b.card());
        attributes.qp_state = IBV_QPS_RTR;
        // Without the numbers of packets.
        let mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN;
        assert_eq!(a.modify(&mut attributes, mask), libc::EINVAL);
        // An entry of the table that is empty.
        attributes.ah_attr.grh.sgid_index = 9;
        let mask = mask | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
        assert_eq!(a.modify(&mut attributes, mask), libc::EINVAL);
        attributes.ah_attr.grh.sgid_index = INDEX;
        a.to_ready(&mut attributes);
        let mut inline = request(IBV_WR_SEND, 1);
        inline.send_flags |= IBV_SEND_INLINE;
        assert_eq!(a.post(&mut inline, &mut [a.part(0, 65)]), libc::EINVAL);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut [a.part(0, 1); 5]), libc::EINVAL);
    });
}

#[test]
fn objects_in_use_are_not_destroyed() {
    isolated("tests::rules::objects_in_use_are_not_destroyed", TWO, || {
        let a = End::new(0, Shape { shared: true, ..SHAPE });
        // SAFETY: the calls follow the manual of libibverbs.
        unsafe {
            assert_eq!(ibv_dealloc_pd(a.pd), libc::EBUSY);
            assert_eq!(ibv_destroy_cq(a.cq), libc::EBUSY);
            assert_eq!(ibv_destroy_srq(a.srq), libc::EBUSY);
            assert_eq!(ibv_destroy_qp(a.qp), 0);
            assert_eq!((ibv_destroy_cq(a.cq), ibv_destroy_srq(a.srq)), (0, 0));
            assert_eq!(ibv_dealloc_pd(a.pd), libc::EBUSY);
            assert_eq!((ibv_dereg_mr(a.mr), ibv_dealloc_pd(a.pd)), (0, 0));
        }
    });
}

#[test]
fn a_registration_needs_memory_and_sensible_access() {
    isolated("tests::rules::a_registration_needs_memory_and_sensible_access", TWO, || {
        let mut a = End::new(0, SHAPE);
        let register = |at: *mut c_void, length, access: u32| {
            // SAFETY: as above.
            let region = unsafe { ibv_reg_mr(a.pd, at, length, access as c_int) };
            assert!(region.is_null());
            std::io::Error::last_os_error().raw_os_error().expect("an error")
        };
        let at = a.memory.as_mut_ptr().cast();
        assert_eq!(register(at, 8, IBV_ACCESS_REMOTE_WRITE), libc::EINVAL);
        assert_eq!(register(at, 0, IBV_ACCESS_LOCAL_WRITE), libc::EINVAL);
        let nowhere = std::ptr::without_provenance_mut(4096);
        assert_eq!(register(nowhere, 8, IBV_ACCESS_LOCAL_WRITE), libc::EFAULT);
    });
}

#[test]
fn a_misuse_can_end_the_process() {
    let name = "tests::rules::a_misuse_can_end_the_process";
    if is_child(name) {
        let a = End::new(0, SHAPE);
        a.receive(1, &mut []);
        return;
    }
    let setup = format!("{TWO}; misuse abort");
    let output = child(name, &setup).output().expect("the test starts again");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("a receive is posted to a queue pair in state RESET"), "{text}");
}
