//! What the receiving adapter does with a message. It runs in the thread of the sender.

use std::time::{SystemTime, UNIX_EPOCH};

use super::gather;
use super::queue::{Core, SendQueue, Work};
use super::timers::{Outcome, TICK, lost, not_ready};
use super::windows;
use crate::abi;
use crate::fabric::network::Path;
use crate::fabric::process::{self, Transfer};
use crate::fabric::{
    Entries, Entry, Fault, QueuePair, Receive, Responder, Settings, Source, fabric, queue_pair,
    region,
};
use crate::memory::{self, CopyError, Segments};
use crate::misuse::log;

/// Bytes in front of a datagram, with the addresses.
const HEADER: usize = 40;

/// The queue pair at the other end of a path.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) place: u32,
    pub(super) pair: &'static QueuePair,
    pub(super) process: u32,
    pub(super) number: u32,
    pub(super) device: u32,
    pub(super) port: u32,
}

/// How a message ends that the receiver does not accept.
enum Refusal {
    /// No answer.
    Silence(&'static str),
    /// The receiver has no receive; the value of its timer.
    NotReady(u8),
    /// The receiver fails with this event, the sender with this status.
    Error(abi::ibv_event_type, abi::ibv_wc_status),
    /// The receive completes with the first status, the sender with the second.
    Receive(Box<Receive>, Source, abi::ibv_wc_status, abi::ibv_wc_status),
}

/// Nanoseconds of the clock of the devices.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Executes a message of a connection, after the local memory was checked.
pub(super) fn message(
    core: &Core,
    queue: &mut SendQueue,
    work: &Work,
    local: &Segments,
    target: &Target,
) -> Outcome {
    match accept(core, queue, work, local, target) {
        Ok(()) => Outcome::Done,
        Err(Refusal::Silence(why)) => lost(core, queue, why),
        Err(_) if core.kind != abi::IBV_QPT_RC => Outcome::Done,
        Err(Refusal::NotReady(timer)) => not_ready(queue, timer),
        Err(Refusal::Error(event, status)) => {
            target.pair.fail(target.place, Some(event));
            Outcome::Failed(status)
        }
        Err(Refusal::Receive(receive, source, theirs, ours)) => {
            target.pair.fail_quietly();
            let entry = Entry { status: theirs, ..received(core, target, &receive, source) };
            complete(target, entry, false);
            target.pair.flush_if_failed(target.place);
            Outcome::Failed(ours)
        }
    }
}

/// Places a part of the data of an RDMA write that is executed later, as a network that reorders
/// packets does. Whatever prevents it is reported when the write is executed.
pub(super) fn place_early(
    core: &Core,
    queue: &SendQueue,
    work: &Work,
    local: &Segments,
    target: &Target,
) {
    let length = local.length();
    let remote = {
        let responder = target.pair.lock();
        if check_connection(core, queue, target, &responder).is_err() {
            return;
        }
        let Ok(remote) = remote(work, length, target, &responder) else { return };
        remote
    };
    let start = fabric().settings.random(length.max(1));
    let count = fabric().settings.random(length - start + 1);
    let _ = memory::write(target.process, &local.part(start, count), &remote.part(start, count));
}

/// The bytes of a packet.
fn mtu(mtu: abi::ibv_mtu) -> u64 {
    128 << mtu.clamp(1, 5)
}

fn accept(
    core: &Core,
    queue: &mut SendQueue,
    work: &Work,
    local: &Segments,
    target: &Target,
) -> Result<(), Refusal> {
    let mut responder = target.pair.lock();
    check_connection(core, queue, target, &responder)?;
    let length = local.length();
    let size = mtu(queue.attributes.path_mtu);
    if length > mtu(responder.attributes.path_mtu) && size > mtu(responder.attributes.path_mtu) {
        return Err(INVALID);
    }
    let remote = remote(work, length, target, &responder)?;
    let sends = matches!(
        work.opcode,
        abi::IBV_WR_SEND | abi::IBV_WR_SEND_WITH_IMM | abi::IBV_WR_SEND_WITH_INV
    );
    let mut taken = None;
    if sends || work.opcode == abi::IBV_WR_RDMA_WRITE_WITH_IMM {
        let timer = responder.attributes.min_rnr_timer;
        if Settings::take(&fabric().settings.not_ready) {
            return Err(Refusal::NotReady(timer));
        }
        let receive = QueuePair::take_receive(&mut responder).ok_or(Refusal::NotReady(timer))?;
        taken = Some(receive);
    }
    // The message is accepted: the next one has the number after its last packet.
    let packets = length.div_ceil(size).max(1) as u32;
    responder.attributes.rq_psn = (responder.attributes.rq_psn + packets) & 0xff_ffff;
    queue.attributes.sq_psn = (queue.attributes.sq_psn + packets) & 0xff_ffff;
    let first = responder.established == 0 && target.pair.state() == abi::IBV_QPS_RTR;
    responder.established = 1;
    drop(responder);
    if first {
        target.pair.raise(abi::IBV_EVENT_COMM_EST);
    }
    let Some((receive, domain, source)) = taken else {
        return copy(work, local, &remote, target);
    };
    let mut entry = received(core, target, &receive, source);
    if sends {
        let into = scatter(&receive, domain, source, target)?;
        if into.length() < length {
            return Err(Refusal::Receive(
                Box::new(receive),
                source,
                abi::IBV_WC_LOC_LEN_ERR,
                abi::IBV_WC_REM_INV_REQ_ERR,
            ));
        }
        put(target, local, &into)?;
        if work.opcode == abi::IBV_WR_SEND_WITH_INV {
            if !windows::invalidate_remotely(target.process, target.number, work.immediate) {
                return Err(REMOTE_ACCESS);
            }
            entry.flags |= abi::IBV_WC_WITH_INV;
            entry.immediate = work.immediate;
        }
    } else {
        copy(work, local, &remote, target)?;
        entry.opcode = abi::IBV_WC_RECV_RDMA_WITH_IMM;
    }
    if matches!(work.opcode, abi::IBV_WR_SEND_WITH_IMM | abi::IBV_WR_RDMA_WRITE_WITH_IMM) {
        entry.flags |= abi::IBV_WC_WITH_IMM;
        entry.immediate = work.immediate;
    }
    entry.byte_len = length as u32;
    if complete(target, entry, work.flags & abi::IBV_SEND_SOLICITED != 0) {
        Ok(())
    } else {
        Err(Refusal::Error(abi::IBV_EVENT_QP_FATAL, abi::IBV_WC_REM_OP_ERR))
    }
}

const INVALID: Refusal = Refusal::Error(abi::IBV_EVENT_QP_REQ_ERR, abi::IBV_WC_REM_INV_REQ_ERR);
const REMOTE_ACCESS: Refusal =
    Refusal::Error(abi::IBV_EVENT_QP_ACCESS_ERR, abi::IBV_WC_REM_ACCESS_ERR);

/// Whether the receiver takes a packet of this sender for one of its connection.
fn check_connection(
    core: &Core,
    queue: &SendQueue,
    target: &Target,
    responder: &Responder,
) -> Result<(), Refusal> {
    let there = &responder.attributes;
    let state = target.pair.state();
    let can_receive =
        matches!(state, abi::IBV_QPS_RTR | abi::IBV_QPS_RTS | abi::IBV_QPS_SQD | abi::IBV_QPS_SQE);
    let silence = |why| Err(Refusal::Silence(why));
    if target.pair.number() != target.number || responder.kind != core.kind {
        return silence("the queue pair of this number is another one");
    }
    if !can_receive {
        return silence("the queue pair at the other end cannot receive");
    }
    if responder.device != target.device || u32::from(there.port_num) != target.port {
        return silence("the queue pair of this number is at another port");
    }
    if there.dest_qp_num != core.number {
        return silence("the queue pair at the other end is connected to another one");
    }
    if let Some(address) = queue.address.filter(|address| address.global.is_some()) {
        // SAFETY: both parts of the union are 16 bytes, of which any value is valid.
        let theirs = unsafe { there.ah_attr.grh.dgid.raw };
        if theirs != address.own.raw {
            return silence("the queue pair at the other end is connected to another address");
        }
    }
    let reliable = core.kind == abi::IBV_QPT_RC;
    if reliable && there.rq_psn & 0xff_ffff != queue.attributes.sq_psn & 0xff_ffff {
        return silence("the packet has not the number that the other end waits for");
    }
    if target.process != process::me() && !process::is_alive(target.process) {
        return silence("the process at the other end is dead");
    }
    Ok(())
}

/// The memory at the other end that a work request names.
fn remote(
    work: &Work,
    length: u64,
    target: &Target,
    responder: &Responder,
) -> Result<Segments, Refusal> {
    let there = &responder.attributes;
    let access = match work.opcode {
        abi::IBV_WR_RDMA_WRITE | abi::IBV_WR_RDMA_WRITE_WITH_IMM => abi::IBV_ACCESS_REMOTE_WRITE,
        abi::IBV_WR_RDMA_READ => abi::IBV_ACCESS_REMOTE_READ,
        abi::IBV_WR_ATOMIC_CMP_AND_SWP | abi::IBV_WR_ATOMIC_FETCH_AND_ADD => {
            abi::IBV_ACCESS_REMOTE_ATOMIC
        }
        _ => return Ok(Segments::new()),
    };
    let writes = access == abi::IBV_ACCESS_REMOTE_WRITE;
    if there.qp_access_flags & access == 0 || !writes && there.max_dest_rd_atomic == 0 {
        log(format_args!("queue pair {} does not allow such operations", target.number));
        return Err(INVALID);
    }
    let atomic = access == abi::IBV_ACCESS_REMOTE_ATOMIC;
    let length = if atomic { 8 } else { length };
    if atomic && !work.remote_address.is_multiple_of(8) {
        return Err(INVALID);
    }
    if length == 0 {
        return Ok(Segments::new());
    }
    let bytes = (work.remote_address, length);
    let key = work.remote_key;
    let domain = responder.domain;
    match region::check(key, true, target.process, domain, target.number, bytes, access) {
        Ok(address) => Ok(Segments::one(address, length)),
        Err(fault) => {
            log(format_args!("remote key {key:#x} at {:#x}: {fault:?}", work.remote_address));
            Err(REMOTE_ACCESS)
        }
    }
}

/// The memory of a receive.
fn scatter(
    receive: &Receive,
    domain: u32,
    source: Source,
    target: &Target,
) -> Result<Segments, Refusal> {
    let mut into = Segments::new();
    for entry in receive.entries[..receive.count].iter().filter(|entry| entry.length != 0) {
        let bytes = (entry.addr, u64::from(entry.length));
        let (process, number) = (target.process, target.number);
        let access = region::LOCAL_WRITE;
        match region::check(entry.lkey, false, process, domain, number, bytes, access) {
            Ok(address) => into.push(address, bytes.1),
            Err(fault) => return Err(bad_receive(receive, source, fault)),
        }
    }
    Ok(into)
}

fn bad_receive(receive: &Receive, source: Source, fault: Fault) -> Refusal {
    log(format_args!("receive {:#x}: {fault:?}", receive.wr_id));
    let (theirs, ours) = (abi::IBV_WC_LOC_PROT_ERR, abi::IBV_WC_REM_OP_ERR);
    Refusal::Receive(Box::new(*receive), source, theirs, ours)
}

fn put(target: &Target, local: &Segments, into: &Segments) -> Result<(), Refusal> {
    memory::write(target.process, local, into).map_err(copy_failed)
}

fn copy_failed(error: CopyError) -> Refusal {
    match error {
        CopyError::Dead => Refusal::Silence("the process at the other end is dead"),
        CopyError::Unmapped => {
            log(format_args!("registered memory is not mapped any more"));
            Refusal::Error(abi::IBV_EVENT_QP_FATAL, abi::IBV_WC_REM_OP_ERR)
        }
    }
}

/// Moves the data of an RDMA operation.
fn copy(work: &Work, local: &Segments, remote: &Segments, target: &Target) -> Result<(), Refusal> {
    let process = target.process;
    match work.opcode {
        abi::IBV_WR_RDMA_READ => memory::read(process, remote, local).map_err(copy_failed),
        abi::IBV_WR_ATOMIC_CMP_AND_SWP | abi::IBV_WR_ATOMIC_FETCH_AND_ADD => {
            atomic(work, local, remote, process).map_err(copy_failed)
        }
        _ => put(target, local, remote),
    }
}

fn atomic(work: &Work, local: &Segments, remote: &Segments, process: u32) -> Result<(), CopyError> {
    let mut before = [0u8; 8];
    let buffer = Segments::one((&raw mut before).expose_provenance() as u64, 8);
    // Atomic among all adapters of the fabric.
    let _guard = fabric().atomics.lock();
    memory::read(process, remote, &buffer)?;
    let old = u64::from_ne_bytes(before);
    let new = if work.opcode == abi::IBV_WR_ATOMIC_FETCH_AND_ADD {
        old.wrapping_add(work.compare_add)
    } else if old == work.compare_add {
        work.swap
    } else {
        old
    };
    let after = new.to_ne_bytes();
    memory::write(process, &memory::of_bytes(&after), remote)?;
    memory::write(process::me(), &memory::of_bytes(&before), local)
}

/// The completion of a receive, before its details.
fn received(core: &Core, target: &Target, receive: &Receive, source: Source) -> Entry {
    Entry {
        wr_id: receive.wr_id,
        status: abi::IBV_WC_SUCCESS,
        opcode: abi::IBV_WC_RECV,
        number: target.number,
        source_number: core.number,
        queue_pair: target.place,
        source,
        time: now(),
        ..Entry::default()
    }
}

/// Adds a completion at the other end. False if its queue is full.
fn complete(target: &Target, entry: Entry, solicited: bool) -> bool {
    let queue = target.pair.lock().receive_queue;
    let pushed = fabric().completion_queues[queue as usize].push(entry, solicited);
    pushed.is_ok()
}

/// Executes a datagram. Whatever the network or the receiver does not like is lost.
pub(super) fn datagram(core: &Core, queue: &SendQueue, work: &Work) -> Outcome {
    let Some(datagram) = &work.datagram else {
        return Outcome::Failed(abi::IBV_WC_LOC_QP_OP_ERR);
    };
    let path = fabric().network.lock().path(&datagram.address);
    if path == Path::Held {
        return Outcome::Wait(TICK);
    }
    let found = queue_pair::find(datagram.number);
    let process = found.and_then(|(_, pair)| pair.process()).unwrap_or(process::me());
    let _transfer = Transfer::begin(process);
    let local = match gather::local(core, work) {
        Ok(local) => local,
        Err(status) => return Outcome::Failed(status),
    };
    let port = datagram.address.port;
    let most = {
        let network = fabric().network.lock();
        network.devices[core.device as usize].port(port).map_or(0, |port| mtu(port.mtu))
    };
    if local.length() > most {
        return Outcome::Failed(abi::IBV_WC_LOC_LEN_ERR);
    }
    let (Path::To { device, port, loss }, Some((place, pair))) = (path, found) else {
        log(format_args!("a datagram is lost: {path:?}"));
        return Outcome::Done;
    };
    let number = datagram.number;
    let target = Target { place, pair, process, number, device, port };
    if loss != 0 && fabric().settings.random(1_000_000) < u64::from(loss) {
        return Outcome::Done;
    }
    // The highest bit of a key stands for the key of the own queue pair.
    let own_key = datagram.key >> 31 != 0;
    let key = if own_key { queue.attributes.qkey } else { datagram.key };
    if let Err(Refusal::Receive(receive, source, status, _)) =
        accept_datagram(core, work, &local, &target, key)
    {
        let entry = Entry { status, ..received(core, &target, &receive, source) };
        target.pair.fail_quietly();
        complete(&target, entry, false);
        target.pair.flush_if_failed(target.place);
    }
    Outcome::Done
}

fn accept_datagram(
    core: &Core,
    work: &Work,
    local: &Segments,
    target: &Target,
    key: u32,
) -> Result<(), Refusal> {
    let mut responder = target.pair.lock();
    let state = target.pair.state();
    let can_receive =
        matches!(state, abi::IBV_QPS_RTR | abi::IBV_QPS_RTS | abi::IBV_QPS_SQD | abi::IBV_QPS_SQE);
    let right = can_receive
        && target.pair.number() == target.number
        && responder.kind == abi::IBV_QPT_UD
        && responder.device == target.device
        && u32::from(responder.attributes.port_num) == target.port
        && responder.attributes.qkey == key;
    if !right {
        log(format_args!("a datagram for queue pair {} is lost at its end", target.number));
        return Err(Refusal::Silence("not for this queue pair"));
    }
    let taken = QueuePair::take_receive(&mut responder);
    drop(responder);
    let (receive, domain, source) = taken.ok_or(Refusal::NotReady(0))?;
    let into = scatter(&receive, domain, source, target)?;
    let length = local.length();
    if into.length() < length + HEADER as u64 {
        let (theirs, ours) = (abi::IBV_WC_LOC_LEN_ERR, abi::IBV_WC_SUCCESS);
        return Err(Refusal::Receive(Box::new(receive), source, theirs, ours));
    }
    let header = header(work, length);
    put(target, &memory::of_bytes(&header), &into.part(0, HEADER as u64))?;
    put(target, local, &into.part(HEADER as u64, length))?;
    let mut entry = received(core, target, &receive, source);
    entry.flags |= abi::IBV_WC_GRH;
    if work.opcode == abi::IBV_WR_SEND_WITH_IMM {
        entry.flags |= abi::IBV_WC_WITH_IMM;
        entry.immediate = work.immediate;
    }
    entry.byte_len = (length + HEADER as u64) as u32;
    if !complete(target, entry, work.flags & abi::IBV_SEND_SOLICITED != 0) {
        target.pair.fail(target.place, Some(abi::IBV_EVENT_QP_FATAL));
    }
    Ok(())
}

/// The global routing header of a datagram.
fn header(work: &Work, length: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    (header[6], header[7]) = (0x1b, 64);
    if let Some(datagram) = &work.datagram {
        header[8..24].copy_from_slice(&datagram.address.own.raw);
        header[24..].copy_from_slice(&datagram.address.global.unwrap_or_default());
    }
    header
}
