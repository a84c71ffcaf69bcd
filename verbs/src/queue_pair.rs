//! Reliable connected queue pairs: their states, and posting work to them.

use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::completion::{CompletionQueue, SharedReceiveQueue};
use crate::context::{Context, Gid, ProtectionDomain};
use crate::error::VerbsError;
use crate::library::function;
use crate::sys;
use crate::work::{LocalMemory, PostError, SendOperation, SendRequest};

/// How much work a queue pair takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCapacity {
    /// Sends that are posted and not completed.
    pub sends: u32,
    /// Bytes that a send may take inline.
    pub inline: u32,
}

/// The settings with which a queue pair is made.
#[derive(Clone, Debug)]
pub struct QueuePairSetup {
    /// Where its sends and receives complete.
    pub completions: Arc<CompletionQueue>,
    /// Where its receives come from. Without one, it can have none.
    pub receives: Option<Arc<SharedReceiveQueue>>,
    /// The least capacity. If the device cannot take so much inline, it is made with less.
    pub capacity: QueueCapacity,
}

/// How packets reach the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathAddress {
    /// The local port.
    pub port: u8,
    /// The index of the local GID.
    pub gid_index: u8,
    /// The peer's GID, if packets have a global header, as on Ethernet.
    pub gid: Option<Gid>,
    /// The peer's LID, on InfiniBand.
    pub lid: u16,
    /// The service level.
    pub service_level: u8,
    /// The traffic class, or type of service.
    pub traffic_class: u8,
}

/// The peer's queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQueue {
    /// The number of the queue pair.
    pub number: u32,
    /// The first packet number that it sends.
    pub first_packet: u32,
    /// The MTU of the path, as verbs number it.
    pub mtu: u32,
}

/// When a queue pair gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionTiming {
    /// A packet is sent again after 4.096 us times two to the power of this.
    pub timeout: u8,
    /// How often a packet is sent again, at most 7.
    pub retries: u8,
    /// How often a send that found no receive is tried again; 7 is without limit.
    pub receive_retries: u8,
}

/// A queue pair. Work may be posted by several threads, one after the other.
pub struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    /// The queue pair as one that takes work by the newer functions, if it does.
    extended: Option<NonNull<sys::ibv_qp_ex>>,
    capacity: QueueCapacity,
    domain: Arc<ProtectionDomain>,
    _setup: QueuePairSetup,
}

// SAFETY: libibverbs locks what its functions share.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("number", &self.number()).finish_non_exhaustive()
    }
}

/// Requests that one call of the provider posts.
const CHAIN: usize = 4;

impl QueuePair {
    /// A new queue pair, which is not connected.
    ///
    /// # Errors
    /// The device has no queue pairs left, or none of this capacity.
    pub fn new(domain: &Arc<ProtectionDomain>, setup: QueuePairSetup) -> Result<Self, VerbsError> {
        let mut inline = setup.capacity.inline;
        loop {
            match Self::with_inline(domain, &setup, inline) {
                Err(VerbsError::Failed { errno: libc::EINVAL | libc::ENOMEM, .. })
                    if inline > 0 =>
                {
                    inline /= 2;
                }
                other => return other,
            }
        }
    }

    fn with_inline(
        domain: &Arc<ProtectionDomain>,
        setup: &QueuePairSetup,
        inline: u32,
    ) -> Result<Self, VerbsError> {
        let context = domain.context();
        let capacity = sys::ibv_qp_cap {
            max_send_wr: setup.capacity.sends,
            max_recv_wr: 0,
            max_send_sge: 1,
            max_recv_sge: 0,
            max_inline_data: inline,
        };
        let (cq, srq) = (setup.completions.raw(), setup.receives.as_ref());
        let srq = srq.map_or(ptr::null_mut(), |receives| receives.raw());
        if let Some((create, as_extended)) = extended_functions(context) {
            let mut attributes = sys::ibv_qp_init_attr_ex {
                send_cq: cq,
                recv_cq: cq,
                srq,
                cap: capacity,
                qp_type: sys::IBV_QPT_RC,
                comp_mask: sys::IBV_QP_INIT_ATTR_PD | sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
                pd: domain.raw(),
                send_ops_flags: u64::from(
                    sys::IBV_QP_EX_WITH_RDMA_WRITE
                        | sys::IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
                        | sys::IBV_QP_EX_WITH_SEND_WITH_IMM,
                ),
                ..Default::default()
            };
            // SAFETY: the context is open, all queues live, and the attributes are writable.
            let raw = NonNull::new(unsafe { create(context.raw(), &raw mut attributes) });
            if let Some(raw) = raw {
                // SAFETY: the queue pair was made with the functions for sending.
                let extended = NonNull::new(unsafe { as_extended(raw.as_ptr()) });
                return Ok(Self::owned(raw, extended, attributes.cap, domain, setup));
            }
            // Providers without these functions refuse the flags in various ways.
        }
        let create = function!(context.library(), ibv_create_qp)?;
        let mut attributes = sys::ibv_qp_init_attr {
            send_cq: cq,
            recv_cq: cq,
            srq,
            cap: capacity,
            qp_type: sys::IBV_QPT_RC,
            ..Default::default()
        };
        // SAFETY: the domain and all queues live, and the attributes are writable.
        let raw = NonNull::new(unsafe { create(domain.raw(), &raw mut attributes) });
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_create_qp"))?;
        Ok(Self::owned(raw, None, attributes.cap, domain, setup))
    }

    fn owned(
        raw: NonNull<sys::ibv_qp>,
        extended: Option<NonNull<sys::ibv_qp_ex>>,
        made: sys::ibv_qp_cap,
        domain: &Arc<ProtectionDomain>,
        setup: &QueuePairSetup,
    ) -> Self {
        // The device may have given more sends than were asked for, which nothing needs.
        let capacity = QueueCapacity { sends: setup.capacity.sends, inline: made.max_inline_data };
        Self { raw, extended, capacity, domain: domain.clone(), _setup: setup.clone() }
    }

    /// The number of the queue pair.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives as long as `self`, and its number is constant.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// The capacity of the queue pair.
    pub fn capacity(&self) -> QueueCapacity {
        self.capacity
    }

    /// Whether work is posted by the newer functions (`ibv_wr_start` and so on).
    pub fn is_extended(&self) -> bool {
        self.extended.is_some()
    }

    /// The first step to a connection: binds the queue pair to a port and lets the peer write.
    ///
    /// # Errors
    /// The port or the partition does not exist, or this step was made before.
    pub fn initialize(&self, port: u8, partition_index: u16) -> Result<(), VerbsError> {
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_INIT,
            pkey_index: partition_index,
            port_num: port,
            qp_access_flags: sys::IBV_ACCESS_REMOTE_WRITE,
            ..Default::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_PKEY_INDEX
            | sys::IBV_QP_PORT
            | sys::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attributes, mask)
    }

    /// The second step, after which what the peer sends arrives.
    ///
    /// # Errors
    /// The GID index or the path is not valid, or the first step was not made.
    pub fn receive_from(&self, peer: &PeerQueue, path: &PathAddress) -> Result<(), VerbsError> {
        let mut address = sys::ibv_ah_attr {
            dlid: path.lid,
            sl: path.service_level,
            port_num: path.port,
            ..Default::default()
        };
        if let Some(Gid(gid)) = path.gid {
            address.is_global = 1;
            address.grh = sys::ibv_global_route {
                dgid: sys::ibv_gid { raw: gid },
                sgid_index: path.gid_index,
                hop_limit: 255,
                traffic_class: path.traffic_class,
                flow_label: 0,
            };
        }
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTR,
            path_mtu: peer.mtu,
            dest_qp_num: peer.number,
            rq_psn: peer.first_packet,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ah_attr: address,
            ..Default::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, mask)
    }

    /// The last step, after which work can be posted. `first_packet` is the number of the first
    /// packet that this end sends, which the peer was told.
    ///
    /// # Errors
    /// The steps before were not made.
    pub fn begin_sending(
        &self,
        first_packet: u32,
        timing: &ConnectionTiming,
    ) -> Result<(), VerbsError> {
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTS,
            timeout: timing.timeout,
            retry_cnt: timing.retries,
            rnr_retry: timing.receive_retries,
            sq_psn: first_packet,
            max_rd_atomic: 1,
            ..Default::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY
            | sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, mask)
    }

    /// Ends the queue pair: all its work completes with an error, and nothing arrives any more.
    ///
    /// # Errors
    /// The device is being removed.
    pub fn fail(&self) -> Result<(), VerbsError> {
        let mut attributes = sys::ibv_qp_attr { qp_state: sys::IBV_QPS_ERR, ..Default::default() };
        self.modify(&mut attributes, sys::IBV_QP_STATE)
    }

    fn modify(&self, attributes: &mut sys::ibv_qp_attr, mask: u32) -> Result<(), VerbsError> {
        let modify = function!(self.domain.context().library(), ibv_modify_qp)?;
        // SAFETY: the queue pair lives, and the attributes that the mask names are set.
        let status = unsafe { modify(self.raw.as_ptr(), attributes, mask as i32) };
        VerbsError::check("ibv_modify_qp", status)
    }

    /// Posts work, which the adapter does in this order. The adapter is notified once for each four
    /// requests.
    ///
    /// # Safety
    /// Memory that is not inline lies in a region of this protection domain. It stays registered
    /// until the peer cannot need it any more, and no other thread writes to it until the work is
    /// done. Inline memory is readable, and fits the capacity.
    ///
    /// # Errors
    /// The queue is full or has failed. What was posted before the error stays posted.
    pub unsafe fn post(&self, requests: &[SendRequest]) -> Result<(), PostError> {
        let mut posted = 0;
        for chain in requests.chunks(CHAIN) {
            let result = match self.extended {
                // SAFETY: the caller's promise.
                Some(extended) => unsafe { post_extended(extended.as_ptr(), chain) },
                // SAFETY: the caller's promise.
                None => unsafe { self.post_chain(chain) },
            };
            result.map_err(|(done, error)| PostError { posted: posted + done, error })?;
            posted += chain.len();
        }
        Ok(())
    }

    /// Posts at most [`CHAIN`] requests by the older function.
    ///
    /// # Safety
    /// As for [`post`](Self::post).
    unsafe fn post_chain(&self, requests: &[SendRequest]) -> Result<(), (usize, VerbsError)> {
        // SAFETY: the context is open; its table of functions is constant.
        let post = unsafe { (*self.domain.context().raw()).ops.post_send };
        let post = post.ok_or((0, VerbsError::Missing { function: "post_send" }))?;
        let mut parts = [sys::ibv_sge::default(); CHAIN];
        let mut chain = [sys::ibv_send_wr::default(); CHAIN];
        let (first_part, first) = (parts.as_mut_ptr(), chain.as_mut_ptr());
        for (index, request) in requests.iter().enumerate() {
            let entry = &mut chain[index];
            entry.wr_id = request.id;
            entry.opcode = request.opcode();
            entry.send_flags = request.flags();
            entry.__bindgen_anon_1.imm_data = request.immediate();
            let to = request.remote();
            entry.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
                remote_addr: to.address,
                rkey: to.key,
            };
            if let Some(LocalMemory { start, len, key }) = request.memory {
                // SAFETY: `index` is less than the length of the array.
                unsafe {
                    *first_part.add(index) =
                        sys::ibv_sge { addr: start.addr() as u64, length: len, lkey: key };
                }
                entry.sg_list = first_part.wrapping_add(index);
                entry.num_sge = 1;
            }
            if index + 1 < requests.len() {
                entry.next = first.wrapping_add(index + 1);
            }
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives, and so do the chain and its parts; the caller promises the
        // memory.
        let status = unsafe { post(self.raw.as_ptr(), first, &raw mut bad) };
        VerbsError::check("ibv_post_send", status).map_err(|error| {
            let done = bad.addr().saturating_sub(first.addr()) / size_of::<sys::ibv_send_wr>();
            (if bad.is_null() { 0 } else { done.min(requests.len()) }, error)
        })
    }
}

/// Posts requests by the newer functions: all of them or none.
///
/// # Safety
/// As for [`QueuePair::post`]; the queue pair was made with the functions for sending.
unsafe fn post_extended(
    qp: *mut sys::ibv_qp_ex,
    requests: &[SendRequest],
) -> Result<(), (usize, VerbsError)> {
    let missing = (0, VerbsError::Missing { function: "ibv_wr_start" });
    // SAFETY: the queue pair lives, and its table of functions is constant. The functions are
    // called in the order that libibverbs demands: start, then for each request its builder and its
    // memory, then complete. The caller promises the memory.
    unsafe {
        let (Some(start), Some(complete), Some(write), Some(write_imm), Some(send_imm)) = (
            (*qp).wr_start,
            (*qp).wr_complete,
            (*qp).wr_rdma_write,
            (*qp).wr_rdma_write_imm,
            (*qp).wr_send_imm,
        ) else {
            return Err(missing);
        };
        let (Some(set_sge), Some(set_inline), Some(set_list)) =
            ((*qp).wr_set_sge, (*qp).wr_set_inline_data, (*qp).wr_set_sge_list)
        else {
            return Err(missing);
        };
        start(qp);
        for request in requests {
            (*qp).wr_id = request.id;
            (*qp).wr_flags = request.flags();
            let immediate = request.immediate();
            match request.operation {
                SendOperation::Send { .. } => send_imm(qp, immediate),
                SendOperation::Write { to, immediate: None } => write(qp, to.key, to.address),
                SendOperation::Write { to, .. } => write_imm(qp, to.key, to.address, immediate),
            }
            match request.memory {
                Some(LocalMemory { start, len, .. }) if request.inline => {
                    set_inline(qp, start.cast_mut().cast(), len as usize);
                }
                Some(LocalMemory { start, len, key }) => {
                    set_sge(qp, key, start.addr() as u64, len);
                }
                None => set_list(qp, 0, ptr::null()),
            }
        }
        VerbsError::check("ibv_wr_complete", complete(qp)).map_err(|error| (0, error))
    }
}

type CreateExtended =
    unsafe extern "C" fn(*mut sys::ibv_context, *mut sys::ibv_qp_init_attr_ex) -> *mut sys::ibv_qp;
type AsExtended = unsafe extern "C" fn(*mut sys::ibv_qp) -> *mut sys::ibv_qp_ex;

/// The functions that make queue pairs with the newer functions for sending, if the library has
/// them.
fn extended_functions(context: &Context) -> Option<(CreateExtended, AsExtended)> {
    let as_extended = function!(context.library(), ibv_qp_to_qp_ex).ok()?;
    let raw = context.raw();
    // SAFETY: the context is open. If `abi_compat` has this value, the context is the last field of
    // a `verbs_context`, whose first fields may be missing: `sz` counts the bytes that are there,
    // from the end.
    let create = unsafe {
        if (*raw).abi_compat.addr() != usize::MAX {
            return None;
        }
        let at = mem::offset_of!(sys::verbs_context, context);
        let whole = raw.byte_sub(at).cast::<sys::verbs_context>();
        let needed =
            size_of::<sys::verbs_context>() - mem::offset_of!(sys::verbs_context, create_qp_ex);
        if (*whole).sz < needed {
            return None;
        }
        (*whole).create_qp_ex
    };
    Some((create?, as_extended))
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let context = self.domain.context();
        if let Ok(destroy) = function!(context.library(), ibv_destroy_qp)
            && context.belongs_to_this_process()
        {
            // SAFETY: the queue pair lives until here, and is not used any more.
            unsafe { destroy(self.raw.as_ptr()) };
        }
    }
}
