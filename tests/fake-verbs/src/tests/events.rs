//! Completion channels, and events of shared receive queues.

use super::*;

#[test]
fn a_completion_wakes_who_has_asked_for_it_once() {
    isolated("tests::events::a_completion_wakes_who_has_asked_for_it_once", TWO, || {
        let (a, b) = connected(SHAPE);
        for i in 0..3 {
            assert_eq!(b.receive(i, &mut []), 0);
        }
        // SAFETY: the calls follow the manual of libibverbs.
        unsafe {
            let arm = (*b.context).ops.req_notify_cq.expect("there is one");
            assert_eq!(arm(b.cq, 0), 0);
            let sender = std::thread::spawn({
                let (context, qp) = (a.context.addr(), a.qp.addr());
                move || {
                    let context: *mut ibv_context = std::ptr::with_exposed_provenance_mut(context);
                    let qp = std::ptr::with_exposed_provenance_mut(qp);
                    let post = (*context).ops.post_send.expect("there is one");
                    for _ in 0..2 {
                        let mut bad = null_mut();
                        assert_eq!(post(qp, &mut request(IBV_WR_SEND, 1), &mut bad), 0);
                    }
                }
            });
            let (mut queue, mut user) = (null_mut(), null_mut());
            assert_eq!(ibv_get_cq_event(b.channel, &mut queue, &mut user), 0);
            assert_eq!(queue, b.cq);
            ibv_ack_cq_events(queue, 1);
            sender.join().expect("it does not panic");
            let fd = (*b.channel).fd;
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // Only one event was asked for.
            assert_eq!(libc::poll(&mut poll, 1, 0), 0);
            assert_eq!((b.completion().wr_id, b.completion().wr_id), (0, 1));
            // Only for messages whose sender asks for it.
            assert_eq!(arm(b.cq, 1), 0);
            assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), 0);
            assert_eq!(libc::poll(&mut poll, 1, 0), 0);
            assert_eq!(b.receive(3, &mut []), 0);
            let mut solicited = request(IBV_WR_SEND, 1);
            solicited.send_flags |= IBV_SEND_SOLICITED;
            assert_eq!(a.post(&mut solicited, &mut []), 0);
            assert_eq!(libc::poll(&mut poll, 1, 0), 1);
            // The event goes with the queue.
            assert_eq!((ibv_destroy_qp(b.qp), ibv_destroy_cq(b.cq)), (0, 0));
            assert_eq!(libc::poll(&mut poll, 1, 0), 0);
        }
    });
}

#[test]
fn a_shared_receive_queue_says_when_few_receives_are_left() {
    isolated("tests::events::a_shared_receive_queue_says_when_few_receives_are_left", TWO, || {
        let (a, b) = connected(Shape { shared: true, ..SHAPE });
        for i in 0..2 {
            assert_eq!(b.receive(i, &mut []), 0);
        }
        // SAFETY: the calls follow the manual of libibverbs.
        unsafe {
            let mut attributes = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: 2 };
            assert_eq!(ibv_modify_srq(b.srq, &mut attributes, IBV_SRQ_LIMIT as c_int), 0);
            assert_eq!(a.post(&mut request(IBV_WR_SEND, 1), &mut []), 0);
            let mut event: ibv_async_event = zeros();
            // The first event: communication is established only in the state "ready to receive".
            assert_eq!(ibv_get_async_event(b.context, &mut event), 0);
            assert_eq!(event.event_type, IBV_EVENT_SRQ_LIMIT_REACHED);
            assert_eq!(event.element.srq, b.srq);
            ibv_ack_async_event(&mut event);
            let mut attributes: ibv_qp_attr = zeros();
            attributes.qp_state = IBV_QPS_ERR;
            assert_eq!(b.modify(&mut attributes, IBV_QP_STATE), 0);
            assert_eq!(ibv_get_async_event(b.context, &mut event), 0);
            assert_eq!(event.event_type, IBV_EVENT_QP_LAST_WQE_REACHED);
            ibv_ack_async_event(&mut event);
        }
    });
}
