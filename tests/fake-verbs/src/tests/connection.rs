//! Messages between two ends of a process.

use super::*;

#[test]
fn a_write_with_immediate_arrives_and_completes_at_both_ends() {
    isolated(
        "tests::connection::a_write_with_immediate_arrives_and_completes_at_both_ends",
        TWO,
        || {
            let (mut a, b) = connected(SHAPE);
            assert_eq!(b.receive(5, &mut []), 0);
            a.memory[..300].fill(9);
            let mut write = rdma(IBV_WR_RDMA_WRITE_WITH_IMM, 3, b.card());
            write.__bindgen_anon_1.imm_data = 0x0102_0304;
            assert_eq!(a.post(&mut write, &mut [a.part(0, 100), a.part(100, 200)]), 0);
            let sent = a.completion();
            assert_eq!(
                (sent.wr_id, sent.status, sent.opcode),
                (3, IBV_WC_SUCCESS, IBV_WC_RDMA_WRITE)
            );
            let got = b.completion();
            assert_eq!((got.wr_id, got.status), (5, IBV_WC_SUCCESS));
            assert_eq!((got.opcode, got.byte_len), (IBV_WC_RECV_RDMA_WITH_IMM, 300));
            // SAFETY: both parts of the union are numbers.
            assert_eq!(unsafe { got.__bindgen_anon_1.imm_data }, 0x0102_0304);
            assert_eq!(got.wc_flags, IBV_WC_WITH_IMM);
            assert_eq!(b.memory[299..301], [9, 0]);
            assert!(a.poll().is_none() && b.poll().is_none());
        },
    );
}

#[test]
fn sends_go_to_a_shared_receive_queue_in_order() {
    isolated("tests::connection::sends_go_to_a_shared_receive_queue_in_order", TWO, || {
        let (mut a, b) = connected(Shape { shared: true, ..SHAPE });
        for i in 0..3 {
            assert_eq!(b.receive(i, &mut [b.part(100 * i as usize, 100)]), 0);
        }
        for i in 0..3u8 {
            a.memory[0] = i + 1;
            let mut send = request(IBV_WR_SEND, 0);
            send.send_flags |= if i == 1 { IBV_SEND_INLINE } else { 0 };
            assert_eq!(a.post(&mut send, &mut [a.part(0, 1)]), 0);
            assert_eq!(a.completion().status, IBV_WC_SUCCESS);
            let got = b.completion();
            assert_eq!((got.wr_id, got.status, got.byte_len), (u64::from(i), IBV_WC_SUCCESS, 1));
            assert_eq!(b.memory[100 * usize::from(i)], i + 1);
        }
    });
}

#[test]
fn reads_and_atomics_return_what_was_there() {
    isolated("tests::connection::reads_and_atomics_return_what_was_there", TWO, || {
        let (a, mut b) = connected(SHAPE);
        b.memory[..8].copy_from_slice(&41u64.to_ne_bytes());
        assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_READ, 1, b.card()), &mut [a.part(0, 8)]), 0);
        assert_eq!(a.completion().status, IBV_WC_SUCCESS);
        assert_eq!(a.memory[..8], 41u64.to_ne_bytes());
        let mut add = request(IBV_WR_ATOMIC_FETCH_AND_ADD, 2);
        add.wr.atomic.remote_addr = b.card().address;
        add.wr.atomic.rkey = b.card().key;
        add.wr.atomic.compare_add = 2;
        assert_eq!(a.post(&mut add, &mut [a.part(8, 8)]), 0);
        assert_eq!(a.completion().opcode, IBV_WC_FETCH_ADD);
        assert_eq!(a.memory[8..16], 41u64.to_ne_bytes());
        assert_eq!(b.memory[..8], 43u64.to_ne_bytes());
    });
}
