//! Faults that a test raises.

use super::*;

/// The next asynchronous event of an end.
fn event(of: &End) -> ibv_async_event {
    let mut event: ibv_async_event = zeros();
    // SAFETY: the calls follow the manual of libibverbs.
    unsafe {
        assert_eq!(ibv_get_async_event(of.context, &mut event), 0);
        ibv_ack_async_event(&mut event);
    }
    event
}

fn write(a: &End, b: &End, wr_id: u64) -> c_int {
    a.post(&mut rdma(IBV_WR_RDMA_WRITE, wr_id, b.card()), &mut [a.part(0, 8)])
}

#[test]
fn a_port_that_goes_down_ends_retries() {
    isolated("tests::faults::a_port_that_goes_down_ends_retries", TWO, || {
        let (a, b) = connected(SHAPE);
        control("port fake1/1 down");
        let down = event(&b);
        assert_eq!(down.event_type, IBV_EVENT_PORT_ERR);
        // SAFETY: this event is about a port.
        assert_eq!(unsafe { down.element.port_num }, 1);
        assert_eq!((write(&a, &b, 1), write(&a, &b, 2)), (0, 0));
        let (first, second) = (a.completion(), a.completion());
        assert_eq!((first.wr_id, first.status), (1, IBV_WC_RETRY_EXC_ERR));
        assert_eq!((second.wr_id, second.status), (2, IBV_WC_WR_FLUSH_ERR));
        control("port fake1/1 up");
        assert_eq!(event(&b).event_type, IBV_EVENT_PORT_ACTIVE);
    });
}

#[test]
fn what_is_lost_is_sent_again() {
    isolated("tests::faults::what_is_lost_is_sent_again", TWO, || {
        let (mut a, b) = (End::new(0, SHAPE), End::new(1, SHAPE));
        b.connect(a.card());
        a.to_init();
        // Without a timer, retries never end.
        let mut attributes = End::connection(b.card());
        attributes.timeout = 0;
        a.to_ready(&mut attributes);
        control("drop fake0/1 on");
        a.memory[..8].fill(5);
        assert_eq!(write(&a, &b, 1), 0);
        assert!(a.poll().is_none());
        assert_eq!(b.memory[0], 0);
        control("drop fake0/1 off");
        assert_eq!(a.completion().status, IBV_WC_SUCCESS);
        assert_eq!(b.memory[..9], [5, 5, 5, 5, 5, 5, 5, 5, 0]);
        control("loss fake1/1 300000");
        for i in 0..50 {
            assert_eq!(write(&a, &b, i), 0);
            let got = a.completion();
            assert_eq!((got.wr_id, got.status), (i, IBV_WC_SUCCESS));
        }
    });
}

#[test]
fn an_address_that_moved_is_not_found() {
    isolated("tests::faults::an_address_that_moved_is_not_found", TWO, || {
        let (a, b) = connected(SHAPE);
        assert_eq!(write(&a, &b, 1), 0);
        assert_eq!(a.completion().status, IBV_WC_SUCCESS);
        control("gids fake0/1 reverse");
        assert_eq!(event(&a).event_type, IBV_EVENT_GID_CHANGE);
        assert_eq!(write(&a, &b, 2), 0);
        assert_eq!(a.completion().status, IBV_WC_RETRY_EXC_ERR);
    });
}

#[test]
fn a_receiver_that_is_not_ready_is_asked_again() {
    isolated("tests::faults::a_receiver_that_is_not_ready_is_asked_again", TWO, || {
        let (a, b) = (End::new(0, SHAPE), End::new(1, SHAPE));
        b.connect(a.card());
        a.to_init();
        let mut attributes = End::connection(b.card());
        attributes.rnr_retry = 7;
        a.to_ready(&mut attributes);
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), 0);
        assert!(a.poll().is_none());
        assert_eq!(b.receive(2, &mut []), 0);
        assert_eq!((a.completion().status, b.completion().wr_id), (IBV_WC_SUCCESS, 2));
        let mut fewer: ibv_qp_attr = zeros();
        fewer.qp_state = IBV_QPS_RESET;
        assert_eq!(
            (a.modify(&mut fewer, IBV_QP_STATE), b.modify(&mut fewer, IBV_QP_STATE)),
            (0, 0)
        );
        a.connect(b.card());
        b.connect(a.card());
        assert_eq!(a.post(&mut request(IBV_WR_SEND, 3), &mut []), 0);
        assert_eq!(a.completion().status, IBV_WC_RNR_RETRY_EXC_ERR);
    });
}

#[test]
fn what_is_held_waits() {
    isolated("tests::faults::what_is_held_waits", TWO, || {
        let (a, b) = connected(SHAPE);
        control("hold fake0/1 on");
        assert_eq!((write(&a, &b, 1), write(&a, &b, 2)), (0, 0));
        assert!(a.poll().is_none());
        control("hold fake0/1 off");
        assert_eq!((a.completion().wr_id, a.completion().wr_id), (1, 2));
    });
}

#[test]
fn a_device_that_is_removed_fails_everything() {
    isolated("tests::faults::a_device_that_is_removed_fails_everything", TWO, || {
        let (a, b) = connected(SHAPE);
        let of_a = a.card();
        assert_eq!(a.receive(4, &mut []), 0);
        control("remove fake0");
        assert_eq!(event(&a).event_type, IBV_EVENT_DEVICE_FATAL);
        let flushed = a.completion();
        assert_eq!((flushed.wr_id, flushed.status), (4, IBV_WC_WR_FLUSH_ERR));
        assert_eq!(write(&a, &b, 1), libc::EIO);
        let mut count = 0;
        // SAFETY: as above.
        unsafe { ibv_get_device_list(&mut count) };
        assert_eq!(count, 1);
        let mut late = rdma(IBV_WR_RDMA_WRITE, 1, of_a);
        assert_eq!(b.post(&mut late, &mut [b.part(0, 8)]), 0);
        assert_eq!(b.completion().status, IBV_WC_RETRY_EXC_ERR);
    });
}

#[test]
fn work_and_queue_pairs_fail_on_demand() {
    isolated("tests::faults::work_and_queue_pairs_fail_on_demand", TWO, || {
        let (a, b) = connected(SHAPE);
        control(&format!("fail {IBV_WC_REM_OP_ERR}"));
        assert_eq!((write(&a, &b, 1), write(&a, &b, 2)), (0, 0));
        assert_eq!(a.completion().status, IBV_WC_REM_OP_ERR);
        assert_eq!(a.completion().status, IBV_WC_WR_FLUSH_ERR);
        assert_eq!(b.receive(3, &mut []), 0);
        control(&format!("qp-error {}", b.card().number));
        assert_eq!(b.completion().status, IBV_WC_WR_FLUSH_ERR);
        assert_eq!(event(&b).event_type, IBV_EVENT_QP_FATAL);
    });
}

#[test]
fn registrations_are_refused_on_demand() {
    isolated("tests::faults::registrations_are_refused_on_demand", TWO, || {
        let mut a = End::new(0, SHAPE);
        let mut register = |length| {
            // SAFETY: as above.
            unsafe { ibv_reg_mr(a.pd, a.memory.as_mut_ptr().cast(), length, 1) }
        };
        control("refuse 1");
        assert!(register(8).is_null());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(1));
        // The region of the end counts too.
        control(&format!("memlock {}", SIZE + 100));
        assert!(register(101).is_null());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOMEM));
        let region = register(100);
        assert!(!region.is_null() && register(1).is_null());
        // SAFETY: as above.
        assert_eq!(unsafe { ibv_dereg_mr(region) }, 0);
        assert!(!register(1).is_null());
    });
}

#[test]
fn messages_can_overtake_each_other() {
    isolated("tests::faults::messages_can_overtake_each_other", TWO, || {
        let (mut a, b) = connected(SHAPE);
        control("order messages 5");
        let mut orders = Vec::new();
        for round in 0..8u8 {
            // All are posted before the first is executed.
            control("hold fake0/1 on");
            for i in 0..8u8 {
                assert_eq!(b.receive(0, &mut []), 0);
                a.memory[usize::from(i)] = 16 * round + i;
                let mut write = rdma(IBV_WR_RDMA_WRITE_WITH_IMM, 1, b.card());
                write.__bindgen_anon_1.imm_data = u32::from(i);
                write.wr.rdma.remote_addr = b.card().address + u64::from(i);
                assert_eq!(a.post(&mut write, &mut [a.part(usize::from(i), 1)]), 0);
            }
            control("hold fake0/1 off");
            let mut order = Vec::new();
            for _ in 0..8 {
                assert_eq!(a.completion().status, IBV_WC_SUCCESS);
                // SAFETY: both parts of the union are numbers.
                order.push(unsafe { b.completion().__bindgen_anon_1.imm_data });
            }
            assert_eq!(a.memory[..8], b.memory[..8]);
            orders.push(order.clone());
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
        }
        assert!(orders.iter().any(|order| !order.is_sorted()), "{orders:?}");
    });
}
