//! Completion queues.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use super::acknowledged::{Acknowledged, finish};
use super::channel::{channel, discard, leave};
use super::context::{VECTORS, context};
use super::{given, null};
use crate::abi;
use crate::fabric::{CompletionQueue, Entry, Table, fabric};
use crate::misuse::misuse;
use crate::sync::{AcqRel, Acquire, AtomicU32, Relaxed, Release};

/// A completion queue.
#[repr(C)]
pub(super) struct Completion {
    /// Its first part is the structure of ordinary queues.
    base: UnsafeCell<abi::ibv_cq_ex>,
    pub(super) place: u32,
    /// Queue pairs that use it.
    pub(super) users: AtomicU32,
    pub(super) completion_events: Acknowledged,
    pub(super) events: Acknowledged,
    /// Whether a thread is between `ibv_start_poll` and `ibv_end_poll`.
    polling: AtomicU32,
    /// The completion that the functions `ibv_wc_read_*` are about.
    current: UnsafeCell<Entry>,
}

/// The queue of a pointer that the caller has.
pub(super) fn completion<'a>(pointer: *mut abi::ibv_cq) -> &'a Completion {
    given!(pointer.cast())
}

impl Completion {
    fn queue(&self) -> &'static CompletionQueue {
        &fabric().completion_queues[self.place as usize]
    }
}

fn create(
    pointer: *mut abi::ibv_context,
    capacity: u32,
    cq_context: *mut c_void,
    channel_of: *mut abi::ibv_comp_channel,
    vector: u32,
) -> Result<*mut abi::ibv_cq_ex, c_int> {
    let it = context(pointer);
    it.check()?;
    let most = it.with_device(|device| device.limits.completions);
    if capacity == 0 || capacity > most {
        return Err(misuse!(
            libc::EINVAL,
            "a completion queue of {capacity} entries, at most {most}"
        ));
    }
    if vector >= VECTORS {
        return Err(misuse!(libc::EINVAL, "there is no completion vector {vector}"));
    }
    let channel = (!channel_of.is_null()).then(|| channel(channel_of));
    let place = fabric().claim(Table::CompletionQueues, &fabric().completion_queues);
    let place = place.ok_or(libc::ENOMEM)?;
    let queue = &fabric().completion_queues[place];
    if !queue.open(it.place, capacity, channel.map(|channel| channel.place)) {
        queue.destroy();
        return Err(libc::ENOMEM);
    }
    if let Some(channel) = channel {
        channel.queues.fetch_add(1, AcqRel);
    }
    it.objects.fetch_add(1, Relaxed);
    // SAFETY: functions that are missing, null and 0 are valid, and so is the mutex.
    let mut base: abi::ibv_cq_ex = unsafe { zeroed() };
    base.context = pointer;
    base.channel = channel_of;
    base.cq_context = cq_context;
    base.handle = place as u32;
    base.cqe = capacity as c_int;
    base.start_poll = Some(start_poll);
    base.next_poll = Some(next_poll);
    base.end_poll = Some(end_poll);
    base.read_opcode = Some(read_opcode);
    base.read_vendor_err = Some(read_vendor_err);
    base.read_byte_len = Some(read_byte_len);
    base.read_imm_data = Some(read_imm_data);
    base.read_qp_num = Some(read_qp_num);
    base.read_src_qp = Some(read_src_qp);
    base.read_wc_flags = Some(read_wc_flags);
    base.read_slid = Some(read_slid);
    base.read_sl = Some(read_sl);
    base.read_dlid_path_bits = Some(read_dlid_path_bits);
    base.read_completion_ts = Some(read_completion_ts);
    base.read_completion_wallclock_ns = Some(read_completion_ts);
    let made = Box::into_raw(Box::new(Completion {
        base: UnsafeCell::new(base),
        place: place as u32,
        users: AtomicU32::new(0),
        completion_events: Acknowledged::default(),
        events: Acknowledged::default(),
        polling: AtomicU32::new(0),
        current: UnsafeCell::default(),
    }));
    queue.set_object(made.expose_provenance() as u64);
    Ok(made.cast())
}

#[unsafe(no_mangle)]
extern "C" fn ibv_create_cq(
    pointer: *mut abi::ibv_context,
    capacity: c_int,
    cq_context: *mut c_void,
    channel: *mut abi::ibv_comp_channel,
    vector: c_int,
) -> *mut abi::ibv_cq {
    match create(pointer, capacity.max(0) as u32, cq_context, channel, vector as u32) {
        Ok(queue) => queue.cast(),
        Err(errno) => null!(errno),
    }
}

/// What a completion can be asked for.
const KNOWN: u32 = abi::IBV_WC_STANDARD_FLAGS
    | abi::IBV_WC_EX_WITH_COMPLETION_TIMESTAMP
    | abi::IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;

pub(super) extern "C" fn create_cq_ex(
    pointer: *mut abi::ibv_context,
    attributes: *mut abi::ibv_cq_init_attr_ex,
) -> *mut abi::ibv_cq_ex {
    let it = given!(attributes);
    if it.wc_flags & !u64::from(KNOWN) != 0 || it.comp_mask & !abi::IBV_CQ_INIT_ATTR_MASK_FLAGS != 0
    {
        null!(libc::EOPNOTSUPP);
    }
    let flags = if it.comp_mask == 0 { 0 } else { it.flags };
    if flags & !abi::IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 {
        null!(libc::EOPNOTSUPP);
    }
    match create(pointer, it.cqe, it.cq_context, it.channel, it.comp_vector) {
        Ok(queue) => queue,
        Err(errno) => null!(errno),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_resize_cq(pointer: *mut abi::ibv_cq, capacity: c_int) -> c_int {
    let most = context(given!(pointer).context).with_device(|device| device.limits.completions);
    if capacity <= 0 || capacity as u32 > most {
        return misuse!(libc::EINVAL, "a completion queue of {capacity} entries, at most {most}");
    }
    match completion(pointer).queue().resize(capacity as u32) {
        Ok(()) => {
            // SAFETY: the field of the caller's structure, which others only read.
            unsafe { (*pointer).cqe = capacity };
            0
        }
        Err(errno) => misuse!(errno, "a completion queue cannot be made so small"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_destroy_cq(pointer: *mut abi::ibv_cq) -> c_int {
    let it = completion(pointer);
    let users = it.users.load(Acquire);
    if users != 0 {
        return misuse!(libc::EBUSY, "a completion queue is destroyed that {users} objects use");
    }
    let base = given!(pointer);
    let object = pointer.addr() as u64;
    if !base.channel.is_null() {
        let channel = channel(base.channel);
        let dropped = channel.events().forget(object);
        discard(given!(base.channel).fd, dropped);
        it.completion_events.wait();
        leave(channel);
    }
    finish(base.context, object, &it.events);
    it.queue().destroy();
    context(base.context).objects.fetch_sub(1, Relaxed);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Completion>()) });
    0
}

pub(super) extern "C" fn poll_cq(
    pointer: *mut abi::ibv_cq,
    room: c_int,
    to: *mut abi::ibv_wc,
) -> c_int {
    let queue = completion(pointer).queue();
    let mut count = 0;
    while count < room {
        let Some(entry) = queue.poll() else { break };
        // SAFETY: the caller has room for so many, of which nothing has to be dropped.
        unsafe { to.add(count as usize).write(work_completion(&entry)) };
        count += 1;
    }
    count
}

fn work_completion(entry: &Entry) -> abi::ibv_wc {
    abi::ibv_wc {
        wr_id: entry.wr_id,
        status: entry.status,
        opcode: entry.opcode,
        vendor_err: 0,
        byte_len: entry.byte_len,
        __bindgen_anon_1: abi::ibv_wc__bindgen_ty_1 { imm_data: entry.immediate },
        qp_num: entry.number,
        src_qp: entry.source_number,
        wc_flags: entry.flags,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    }
}

pub(super) extern "C" fn req_notify_cq(pointer: *mut abi::ibv_cq, solicited_only: c_int) -> c_int {
    if !completion(pointer).queue().arm(solicited_only != 0) {
        return misuse!(libc::EINVAL, "an event is asked for of a queue without a channel");
    }
    0
}

fn extended<'a>(pointer: *mut abi::ibv_cq_ex) -> &'a Completion {
    completion(pointer.cast())
}

/// Makes the next completion the current one; ENOENT if there is none.
fn advance(pointer: *mut abi::ibv_cq_ex) -> c_int {
    let it = extended(pointer);
    let Some(entry) = it.queue().poll() else { return libc::ENOENT };
    // SAFETY: only the thread between `ibv_start_poll` and `ibv_end_poll` uses these fields.
    unsafe {
        *it.current.get() = entry;
        (*it.base.get()).wr_id = entry.wr_id;
        (*it.base.get()).status = entry.status;
    }
    0
}

extern "C" fn start_poll(
    pointer: *mut abi::ibv_cq_ex,
    attributes: *mut abi::ibv_poll_cq_attr,
) -> c_int {
    if given!(attributes).comp_mask != 0 {
        return misuse!(libc::EINVAL, "ibv_start_poll: bits of comp_mask that do not exist");
    }
    let it = extended(pointer);
    while it.polling.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
        std::thread::yield_now();
    }
    let result = advance(pointer);
    if result != 0 {
        it.polling.store(0, Release);
    }
    result
}

extern "C" fn next_poll(pointer: *mut abi::ibv_cq_ex) -> c_int {
    advance(pointer)
}

extern "C" fn end_poll(pointer: *mut abi::ibv_cq_ex) {
    extended(pointer).polling.store(0, Release);
}

fn current(pointer: *mut abi::ibv_cq_ex) -> Entry {
    // SAFETY: only the thread between `ibv_start_poll` and `ibv_end_poll` calls this.
    unsafe { *extended(pointer).current.get() }
}

extern "C" fn read_opcode(pointer: *mut abi::ibv_cq_ex) -> abi::ibv_wc_opcode {
    current(pointer).opcode
}

extern "C" fn read_vendor_err(_: *mut abi::ibv_cq_ex) -> u32 {
    0
}

extern "C" fn read_byte_len(pointer: *mut abi::ibv_cq_ex) -> u32 {
    current(pointer).byte_len
}

extern "C" fn read_imm_data(pointer: *mut abi::ibv_cq_ex) -> u32 {
    current(pointer).immediate
}

extern "C" fn read_qp_num(pointer: *mut abi::ibv_cq_ex) -> u32 {
    current(pointer).number
}

extern "C" fn read_src_qp(pointer: *mut abi::ibv_cq_ex) -> u32 {
    current(pointer).source_number
}

extern "C" fn read_wc_flags(pointer: *mut abi::ibv_cq_ex) -> c_uint {
    current(pointer).flags
}

extern "C" fn read_slid(_: *mut abi::ibv_cq_ex) -> u32 {
    0
}

extern "C" fn read_sl(_: *mut abi::ibv_cq_ex) -> u8 {
    0
}

extern "C" fn read_dlid_path_bits(_: *mut abi::ibv_cq_ex) -> u8 {
    0
}

extern "C" fn read_completion_ts(pointer: *mut abi::ibv_cq_ex) -> u64 {
    current(pointer).time
}

/// Counts a user of a queue.
pub(super) fn use_queue(pointer: *mut abi::ibv_cq) -> &'static CompletionQueue {
    let it = completion(pointer);
    it.users.fetch_add(1, AcqRel);
    it.queue()
}

/// Counts a user less.
pub(super) fn leave_queue(pointer: *mut abi::ibv_cq) {
    completion(pointer).users.fetch_sub(1, AcqRel);
}
