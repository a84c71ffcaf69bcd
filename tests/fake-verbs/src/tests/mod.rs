//! Tests of the library through its C interface. Each runs in a process of its own, as the fabric
//! and its settings belong to a process.

mod connection;
mod events;
mod faults;
mod layout;
mod processes;
mod random;
mod rules;
mod speed;

use std::ffi::{CString, c_int, c_void};
use std::mem::zeroed;
use std::process::Command;
use std::ptr::null_mut;

use crate::abi::*;

/// Names the test that a child process runs.
const CHILD: &str = "MAYPOLE_FAKE_VERBS_TEST";
/// After this time a test counts as one that hangs.
const WATCHDOG_SECONDS: u32 = 300;

/// Runs `body` in a process of its own, with this setup: `name` is that of the calling test.
fn isolated(name: &str, setup: &str, body: impl FnOnce()) {
    if is_child(name) {
        body();
        return;
    }
    let output = child(name, setup).output().expect("the test starts again");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
}

/// Whether this is the process that runs the test `name` alone. It ends if it hangs, or if the
/// process that has started it ends.
fn is_child(name: &str) -> bool {
    if std::env::var(CHILD).as_deref() != Ok(name) {
        return false;
    }
    // SAFETY: both calls have no arguments in memory.
    unsafe {
        libc::alarm(WATCHDOG_SECONDS);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    true
}

/// A process that runs the test `name` alone.
fn child(name: &str, setup: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of the test"));
    command.args(["--exact", name, "--nocapture"]).env(CHILD, name);
    command.env("MAYPOLE_FAKE_VERBS_SETUP", setup);
    command
}

const TWO: &str = "device fake0; device fake1";

unsafe extern "C" {
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device;
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
    fn ibv_reg_mr(pd: *mut ibv_pd, at: *mut c_void, len: usize, access: c_int) -> *mut ibv_mr;
    fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
    fn ibv_create_cq(
        context: *mut ibv_context,
        capacity: c_int,
        user: *mut c_void,
        channel: *mut ibv_comp_channel,
        vector: c_int,
    ) -> *mut ibv_cq;
    fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
    fn ibv_create_qp(pd: *mut ibv_pd, init: *mut ibv_qp_init_attr) -> *mut ibv_qp;
    fn ibv_modify_qp(qp: *mut ibv_qp, attributes: *mut ibv_qp_attr, mask: c_int) -> c_int;
    fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int;
    fn ibv_create_srq(pd: *mut ibv_pd, init: *mut ibv_srq_init_attr) -> *mut ibv_srq;
    fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int;
    fn ibv_modify_srq(srq: *mut ibv_srq, attributes: *mut ibv_srq_attr, mask: c_int) -> c_int;
    fn ibv_get_cq_event(
        channel: *mut ibv_comp_channel,
        cq: *mut *mut ibv_cq,
        user: *mut *mut c_void,
    ) -> c_int;
    fn ibv_ack_cq_events(cq: *mut ibv_cq, count: u32);
    fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
    fn ibv_ack_async_event(event: *mut ibv_async_event);
    fn ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, to: *mut ibv_gid) -> c_int;
    fn maypole_fake_verbs_control(commands: *const std::ffi::c_char) -> c_int;
}

/// Runs commands of the fabric.
fn control(commands: &str) {
    let commands = CString::new(commands).expect("no zeros");
    // SAFETY: the text ends with a zero.
    assert_eq!(unsafe { maypole_fake_verbs_control(commands.as_ptr()) }, 0);
}

/// Zeros, for structures of C.
fn zeros<T: Copy>() -> T {
    // SAFETY: the tests use it for structures of numbers and pointers that may be null.
    unsafe { zeroed() }
}

/// A device with one of each object, and memory that is registered.
struct End {
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    channel: *mut ibv_comp_channel,
    cq: *mut ibv_cq,
    srq: *mut ibv_srq,
    qp: *mut ibv_qp,
    mr: *mut ibv_mr,
    memory: Box<[u8]>,
}

/// What the other end needs to know.
#[derive(Clone, Copy)]
struct Card {
    number: u32,
    gid: [u8; 16],
    address: u64,
    key: u32,
}

/// How an end is made.
#[derive(Clone, Copy)]
struct Shape {
    sends: u32,
    receives: u32,
    completions: c_int,
    shared: bool,
}

/// Bytes that an end registers.
const SIZE: usize = 1 << 20;

const SHAPE: Shape = Shape { sends: 16, receives: 16, completions: 64, shared: false };

/// All access that a region can have.
const ALL: u32 = IBV_ACCESS_LOCAL_WRITE
    | IBV_ACCESS_REMOTE_WRITE
    | IBV_ACCESS_REMOTE_READ
    | IBV_ACCESS_REMOTE_ATOMIC;

/// The index of the address that the tests use: RoCE v2 with IPv4.
const INDEX: u8 = 3;

impl End {
    /// On the device at this place of the list.
    fn new(device: usize, shape: Shape) -> Self {
        let mut memory = vec![0u8; SIZE].into_boxed_slice();
        // SAFETY: the calls follow the manual of libibverbs.
        unsafe {
            let list = ibv_get_device_list(null_mut());
            let context = ibv_open_device(*list.add(device));
            let pd = ibv_alloc_pd(context);
            let channel = ibv_create_comp_channel(context);
            let cq = ibv_create_cq(context, shape.completions, null_mut(), channel, 0);
            assert!(!cq.is_null());
            let mut srq = null_mut();
            if shape.shared {
                let attr = ibv_srq_attr { max_wr: shape.receives, max_sge: 2, srq_limit: 0 };
                srq = ibv_create_srq(pd, &mut ibv_srq_init_attr { srq_context: null_mut(), attr });
            }
            let mut init: ibv_qp_init_attr = zeros();
            (init.send_cq, init.recv_cq, init.srq) = (cq, cq, srq);
            init.qp_type = IBV_QPT_RC;
            init.cap = ibv_qp_cap {
                max_send_wr: shape.sends,
                max_recv_wr: shape.receives,
                max_send_sge: 4,
                max_recv_sge: 2,
                max_inline_data: 64,
            };
            let qp = ibv_create_qp(pd, &mut init);
            assert!(!qp.is_null());
            let mr = ibv_reg_mr(pd, memory.as_mut_ptr().cast(), memory.len(), ALL as c_int);
            assert!(!mr.is_null());
            Self { context, pd, channel, cq, srq, qp, mr, memory }
        }
    }

    fn card(&self) -> Card {
        let mut gid: ibv_gid = zeros();
        // SAFETY: as above; both parts of the union are bytes.
        unsafe {
            assert_eq!(ibv_query_gid(self.context, 1, c_int::from(INDEX), &mut gid), 0);
            let (number, key) = ((*self.qp).qp_num, (*self.mr).rkey);
            let address = self.memory.as_ptr().expose_provenance() as u64;
            Card { number, gid: gid.raw, address, key }
        }
    }

    fn modify(&self, attributes: &mut ibv_qp_attr, mask: u32) -> c_int {
        // SAFETY: as above.
        unsafe { ibv_modify_qp(self.qp, attributes, mask as c_int) }
    }

    fn to_init(&self) {
        let mut attributes: ibv_qp_attr = zeros();
        attributes.qp_state = IBV_QPS_INIT;
        attributes.port_num = 1;
        attributes.qp_access_flags = ALL;
        let mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
        assert_eq!(self.modify(&mut attributes, mask), 0);
    }

    /// The attributes of a connection, with retries that end soon.
    fn connection(to: Card) -> ibv_qp_attr {
        let mut attributes: ibv_qp_attr = zeros();
        attributes.path_mtu = IBV_MTU_4096;
        attributes.dest_qp_num = to.number;
        (attributes.rq_psn, attributes.sq_psn) = (7, 7);
        (attributes.max_rd_atomic, attributes.max_dest_rd_atomic) = (1, 1);
        (attributes.timeout, attributes.retry_cnt, attributes.rnr_retry) = (8, 1, 1);
        attributes.min_rnr_timer = 1;
        attributes.ah_attr.is_global = 1;
        attributes.ah_attr.port_num = 1;
        attributes.ah_attr.grh.sgid_index = INDEX;
        attributes.ah_attr.grh.dgid.raw = to.gid;
        attributes
    }

    fn to_ready(&self, attributes: &mut ibv_qp_attr) {
        attributes.qp_state = IBV_QPS_RTR;
        let mask = IBV_QP_STATE
            | IBV_QP_AV
            | IBV_QP_PATH_MTU
            | IBV_QP_DEST_QPN
            | IBV_QP_RQ_PSN
            | IBV_QP_MAX_DEST_RD_ATOMIC
            | IBV_QP_MIN_RNR_TIMER;
        assert_eq!(self.modify(attributes, mask), 0);
        attributes.qp_state = IBV_QPS_RTS;
        let mask = IBV_QP_STATE
            | IBV_QP_TIMEOUT
            | IBV_QP_RETRY_CNT
            | IBV_QP_RNR_RETRY
            | IBV_QP_SQ_PSN
            | IBV_QP_MAX_QP_RD_ATOMIC;
        assert_eq!(self.modify(attributes, mask), 0);
    }

    fn connect(&self, to: Card) {
        self.to_init();
        self.to_ready(&mut Self::connection(to));
    }

    /// An entry for a part of the registered memory.
    fn part(&self, start: usize, length: u32) -> ibv_sge {
        let addr = self.memory[start..].as_ptr().expose_provenance() as u64;
        // SAFETY: the region is registered.
        ibv_sge { addr, length, lkey: unsafe { (*self.mr).lkey } }
    }

    fn receive(&self, wr_id: u64, entries: &mut [ibv_sge]) -> c_int {
        let mut request: ibv_recv_wr = zeros();
        request.wr_id = wr_id;
        (request.sg_list, request.num_sge) = (entries.as_mut_ptr(), entries.len() as c_int);
        let mut bad = null_mut();
        // SAFETY: as above.
        unsafe {
            let ops = &(*self.context).ops;
            if self.srq.is_null() {
                ops.post_recv.expect("there is one")(self.qp, &mut request, &mut bad)
            } else {
                ops.post_srq_recv.expect("there is one")(self.srq, &mut request, &mut bad)
            }
        }
    }

    /// Posts one work request.
    fn post(&self, request: &mut ibv_send_wr, entries: &mut [ibv_sge]) -> c_int {
        (request.sg_list, request.num_sge) = (entries.as_mut_ptr(), entries.len() as c_int);
        let mut bad = null_mut();
        // SAFETY: as above.
        unsafe { (*self.context).ops.post_send.expect("there is one")(self.qp, request, &mut bad) }
    }

    /// A completion, if there is one.
    fn poll(&self) -> Option<ibv_wc> {
        let mut wc: ibv_wc = zeros();
        // SAFETY: as above.
        let count =
            unsafe { (*self.context).ops.poll_cq.expect("there is one")(self.cq, 1, &mut wc) };
        (count == 1).then_some(wc)
    }

    /// Waits for a completion.
    fn completion(&self) -> ibv_wc {
        loop {
            if let Some(wc) = self.poll() {
                return wc;
            }
            std::thread::yield_now();
        }
    }
}

/// A work request that makes a completion.
fn request(opcode: ibv_wr_opcode, wr_id: u64) -> ibv_send_wr {
    let mut request: ibv_send_wr = zeros();
    (request.opcode, request.wr_id) = (opcode, wr_id);
    request.send_flags = IBV_SEND_SIGNALED;
    request
}

/// An RDMA request to the start of the other end's memory.
fn rdma(opcode: ibv_wr_opcode, wr_id: u64, to: Card) -> ibv_send_wr {
    let mut request = request(opcode, wr_id);
    request.wr.rdma.remote_addr = to.address;
    request.wr.rdma.rkey = to.key;
    request
}

/// Two ends that are connected.
fn connected(shape: Shape) -> (End, End) {
    let (a, b) = (End::new(0, shape), End::new(1, shape));
    a.connect(b.card());
    b.connect(a.card());
    (a, b)
}
