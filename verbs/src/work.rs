//! Work requests, which say what a queue pair sends, and how their posting can fail.

use crate::error::VerbsError;
use crate::sys;

/// Memory of this process that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalMemory {
    /// The first byte.
    pub start: *const u8,
    /// Number of bytes.
    pub len: u32,
    /// The local key of its region. Not needed if it is sent inline.
    pub key: u32,
}

// SAFETY: it is an address and a length; the caller that posts work with it promises the memory.
unsafe impl Send for LocalMemory {}
// SAFETY: as above.
unsafe impl Sync for LocalMemory {}

/// Memory of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RemoteMemory {
    /// The address of the first byte, in the peer's process.
    pub address: u64,
    /// The remote key of its region.
    pub key: u32,
}

/// What to do with the local memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOperation {
    /// Send it to a receive of the peer, with an immediate value.
    Send {
        /// The immediate value.
        immediate: u32,
    },
    /// Write it to memory of the peer. With an immediate value, this takes a receive of the peer.
    Write {
        /// Where to.
        to: RemoteMemory,
        /// The immediate value.
        immediate: Option<u32>,
    },
}

/// A work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// The id of its completion.
    pub id: u64,
    /// What to do.
    pub operation: SendOperation,
    /// The memory that is sent. `None` sends no bytes.
    pub memory: Option<LocalMemory>,
    /// Whether there is a completion if it succeeds. An error always has one.
    pub signaled: bool,
    /// Whether the memory is copied during the call.
    pub inline: bool,
}

/// A chain of work requests of which not all were posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}, after {posted} requests")]
pub struct PostError {
    /// How many were posted.
    pub posted: usize,
    /// Why the next one was not posted.
    pub error: VerbsError,
}

impl SendRequest {
    pub(crate) fn opcode(&self) -> sys::ibv_wr_opcode {
        match self.operation {
            SendOperation::Send { .. } => sys::IBV_WR_SEND_WITH_IMM,
            SendOperation::Write { immediate: None, .. } => sys::IBV_WR_RDMA_WRITE,
            SendOperation::Write { immediate: Some(_), .. } => sys::IBV_WR_RDMA_WRITE_WITH_IMM,
        }
    }

    /// The immediate value in network order; 0 if there is none.
    pub(crate) fn immediate(&self) -> u32 {
        match self.operation {
            SendOperation::Send { immediate } => immediate.to_be(),
            SendOperation::Write { immediate, .. } => immediate.unwrap_or(0).to_be(),
        }
    }

    pub(crate) fn remote(&self) -> RemoteMemory {
        match self.operation {
            SendOperation::Send { .. } => RemoteMemory::default(),
            SendOperation::Write { to, .. } => to,
        }
    }

    pub(crate) fn flags(&self) -> u32 {
        let signaled = if self.signaled { sys::IBV_SEND_SIGNALED } else { 0 };
        signaled | if self.inline { sys::IBV_SEND_INLINE } else { 0 }
    }
}

/// The status of work that was given up because nothing answered.
pub const NO_ANSWER: u32 = sys::IBV_WC_RETRY_EXC_ERR;
/// The status of work that follows an error, or that was posted to a queue pair that has failed.
pub const WORK_FLUSHED: u32 = sys::IBV_WC_WR_FLUSH_ERR;

/// The meaning of a completion's status, in words.
pub fn describe_status(status: u32) -> &'static str {
    match status {
        sys::IBV_WC_SUCCESS => "success",
        sys::IBV_WC_LOC_LEN_ERR => "local length error",
        sys::IBV_WC_LOC_QP_OP_ERR => "local queue pair operation error",
        sys::IBV_WC_LOC_PROT_ERR => "local protection error",
        sys::IBV_WC_WR_FLUSH_ERR => "flushed after an earlier error",
        sys::IBV_WC_BAD_RESP_ERR => "bad response",
        sys::IBV_WC_LOC_ACCESS_ERR => "local access error",
        sys::IBV_WC_REM_INV_REQ_ERR => "the peer's adapter rejects the request as invalid",
        sys::IBV_WC_REM_ACCESS_ERR => "the peer's adapter denies the access to its memory",
        sys::IBV_WC_REM_OP_ERR => "the peer's adapter failed",
        sys::IBV_WC_RETRY_EXC_ERR => {
            "no answer after all retries: the path, the port or the peer's queue pair is down"
        }
        sys::IBV_WC_RNR_RETRY_EXC_ERR => "the peer had no receive posted",
        sys::IBV_WC_REM_ABORT_ERR => "the peer's adapter aborted",
        sys::IBV_WC_FATAL_ERR => "the adapter failed",
        sys::IBV_WC_RESP_TIMEOUT_ERR => "the response timed out",
        _ => "an error of another kind",
    }
}
