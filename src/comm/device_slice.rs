//! Typed slices of device memory, and collectives on them.
//!
//! A [`DeviceSlice`] borrows memory of a CUDA device as a Rust slice borrows memory of the host,
//! but the host cannot read it. It comes safely from a [`DeviceAllocation`], or unsafely from a
//! pointer.

use std::marker::PhantomData;

use maypole_algorithms::Collective;
use maypole_reduce::Reduction;

use super::Communicator;
use super::stream_calls::{DeviceCall, StreamCalls, launch_calls};
use crate::call::Call;
use crate::device::{CudaStreamHandle, DeviceAllocation};
use crate::element::Element;
use crate::error::Error;

/// Elements in the memory of a CUDA device, borrowed for reading.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a, T> {
    device: i32,
    start: *const T,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

/// Elements in the memory of a CUDA device, borrowed for writing.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    device: i32,
    start: *mut T,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> DeviceSlice<'a, T> {
    /// The `len` elements at `start`, in memory of CUDA device number `device`.
    ///
    /// # Safety
    /// The memory is valid for reads by the device, aligned to an element, and not written to as
    /// long as `'a` lasts.
    pub unsafe fn from_raw_parts(device: i32, start: *const T, len: usize) -> Self {
        Self { device, start, len, memory: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If the range is not within the slice.
    pub fn slice(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let start = self.start.wrapping_add(range.start);
        Self { start, len: range.len(), ..self }
    }
}

impl<'a, T: Element> DeviceSliceMut<'a, T> {
    /// The `len` elements at `start`, in memory of CUDA device number `device`.
    ///
    /// # Safety
    /// The memory is valid for reads and writes by the device, aligned to an element, and not used
    /// by anyone else as long as `'a` lasts.
    pub unsafe fn from_raw_parts(device: i32, start: *mut T, len: usize) -> Self {
        Self { device, start, len, memory: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same elements, borrowed from this slice for a shorter time.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { memory: PhantomData, ..*self }
    }

    /// The elements up to `at`, and those from there on.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "{at} of {}", self.len);
        let (start, len) = (self.start.wrapping_add(at), self.len - at);
        (Self { len: at, ..self }, Self { start, len, ..self })
    }
}

impl DeviceAllocation {
    /// As many elements as fit, for reading. The memory has undefined content at first.
    pub fn as_slice<T: Element>(&self) -> DeviceSlice<'_, T> {
        let len = self.bytes() / size_of::<T>();
        // SAFETY: the allocation owns the memory, is aligned for every element type, and is
        // borrowed.
        unsafe { DeviceSlice::from_raw_parts(self.device(), self.address().cast(), len) }
    }

    /// As many elements as fit, for writing.
    pub fn as_mut_slice<T: Element>(&mut self) -> DeviceSliceMut<'_, T> {
        let len = self.bytes() / size_of::<T>();
        // SAFETY: the allocation owns the memory, is aligned for every element type, and is
        // exclusively borrowed.
        unsafe { DeviceSliceMut::from_raw_parts(self.device(), self.address().cast(), len) }
    }
}

/// A collective on device memory, for [`Communicator::run_on_device`] or
/// [`Communicator::queue_on_stream`].
///
/// The buffers have the lengths that the method of the same name of [`Communicator`] needs; they
/// are checked when the call is made. A rank that needs no send or no receive buffer, because it is
/// not the root, passes an empty slice.
#[derive(Debug)]
pub struct DeviceCollective<'a, T> {
    collective: Collective,
    send: DeviceSlice<'a, T>,
    recv: DeviceSliceMut<'a, T>,
    reduction: Reduction,
}

impl<'a, T: Element> DeviceCollective<'a, T> {
    /// See [`Communicator::all_reduce`].
    pub fn all_reduce(
        send: DeviceSlice<'a, T>,
        recv: DeviceSliceMut<'a, T>,
        reduction: impl Into<Reduction>,
    ) -> Self {
        Self { collective: Collective::AllReduce, send, recv, reduction: reduction.into() }
    }

    /// See [`Communicator::all_reduce_in_place`].
    pub fn all_reduce_in_place(
        data: DeviceSliceMut<'a, T>,
        reduction: impl Into<Reduction>,
    ) -> Self {
        let send = in_place(&data);
        Self::all_reduce(send, data, reduction)
    }

    /// See [`Communicator::reduce_scatter`].
    pub fn reduce_scatter(
        send: DeviceSlice<'a, T>,
        recv: DeviceSliceMut<'a, T>,
        reduction: impl Into<Reduction>,
    ) -> Self {
        Self { collective: Collective::ReduceScatter, send, recv, reduction: reduction.into() }
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather(send: DeviceSlice<'a, T>, recv: DeviceSliceMut<'a, T>) -> Self {
        Self::without_reduction(Collective::AllGather, send, recv)
    }

    /// See [`Communicator::broadcast`].
    pub fn broadcast(send: DeviceSlice<'a, T>, recv: DeviceSliceMut<'a, T>, root: u32) -> Self {
        Self::without_reduction(Collective::Broadcast { root }, send, recv)
    }

    /// See [`Communicator::broadcast_in_place`].
    pub fn broadcast_in_place(data: DeviceSliceMut<'a, T>, root: u32) -> Self {
        let send = in_place(&data);
        Self::broadcast(send, data, root)
    }

    /// See [`Communicator::reduce`].
    pub fn reduce(
        send: DeviceSlice<'a, T>,
        recv: DeviceSliceMut<'a, T>,
        reduction: impl Into<Reduction>,
        root: u32,
    ) -> Self {
        let collective = Collective::Reduce { root };
        Self { collective, send, recv, reduction: reduction.into() }
    }

    /// See [`Communicator::all_to_all`].
    pub fn all_to_all(send: DeviceSlice<'a, T>, recv: DeviceSliceMut<'a, T>) -> Self {
        Self::without_reduction(Collective::AllToAll, send, recv)
    }

    /// See [`Communicator::gather`].
    pub fn gather(send: DeviceSlice<'a, T>, recv: DeviceSliceMut<'a, T>, root: u32) -> Self {
        Self::without_reduction(Collective::Gather { root }, send, recv)
    }

    /// See [`Communicator::scatter`].
    pub fn scatter(send: DeviceSlice<'a, T>, recv: DeviceSliceMut<'a, T>, root: u32) -> Self {
        Self::without_reduction(Collective::Scatter { root }, send, recv)
    }

    fn without_reduction(
        collective: Collective,
        send: DeviceSlice<'a, T>,
        recv: DeviceSliceMut<'a, T>,
    ) -> Self {
        Self { collective, send, recv, reduction: maypole_algorithms::RedOp::Max.into() }
    }

    /// The call on rank `rank` of `nranks`, after a check of the devices and of all lengths.
    fn check(&self, comm: &Communicator) -> Result<Call, Error> {
        let Self { collective, send, recv, reduction } = self;
        let (rank, nranks) = (comm.rank(), comm.nranks());
        let Some(device) = comm.device() else {
            return Err(Error::InvalidUsage {
                what: String::from(
                    "a call on device memory in a communicator for host memory; build it with \
                     `device(number)`",
                ),
            });
        };
        if let Some(other) = [send.device, recv.device].into_iter().find(|it| *it != device) {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{collective} of a slice on CUDA device {other}, in a communicator for device \
                     {device}"
                ),
            });
        }
        let at_root = collective.root().is_none_or(|root| root == rank);
        let sends = at_root
            || !matches!(collective, Collective::Broadcast { .. } | Collective::Scatter { .. });
        let receives =
            at_root || !matches!(collective, Collective::Reduce { .. } | Collective::Gather { .. });
        let blocks_sent = collective.input_chunks(nranks, 1) as usize;
        let blocks_received = match collective {
            // The number of blocks that the root receives.
            Collective::Gather { .. } => nranks as usize,
            _ => collective.output_chunks(nranks, 1) as usize,
        };
        let count = if receives { recv.len / blocks_received } else { send.len / blocks_sent };
        let fits = |used: bool, len: usize, blocks: usize| !used || len == count * blocks;
        if !fits(sends, send.len, blocks_sent) || !fits(receives, recv.len, blocks_received) {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{collective} from {} to {} elements on rank {rank} of {nranks}; it needs \
                     {blocks_sent} blocks to send and {blocks_received} to receive, all of one \
                     length",
                    send.len, recv.len
                ),
            });
        }
        Ok(Call {
            collective: *collective,
            send: send.start.cast(),
            recv: recv.start.cast(),
            count,
            dtype: T::DTYPE,
            reduction: *reduction,
        })
    }
}

/// The send buffer of a call in place. The call reads it only through `data`, which it owns.
fn in_place<'a, T: Element>(data: &DeviceSliceMut<'a, T>) -> DeviceSlice<'a, T> {
    let DeviceSliceMut { device, start, len, .. } = *data;
    DeviceSlice { device, start: start.cast_const(), len, memory: PhantomData }
}

impl Communicator {
    /// Runs a collective on device memory, behind all work of the device's default stream so far;
    /// returns when its result is in the receive buffer.
    ///
    /// # Errors
    /// [`Error::InvalidUsage`] in a communicator for host memory, [`Error::InvalidArgument`] for
    /// slices of another device or of lengths that the collective does not allow, all harmless;
    /// else those of [`run`](Self::run).
    pub fn run_on_device<T: Element>(
        &mut self,
        call: &DeviceCollective<'_, T>,
    ) -> Result<(), Error> {
        let call = call.check(self)?;
        // SAFETY: the slices are borrowed for the call and as long as was checked.
        unsafe { self.run(&call) }
    }

    /// Queues a collective on device memory on `stream` and returns. Work that is queued on the
    /// stream later sees its result.
    ///
    /// # Errors
    /// As for [`run_on_device`](Self::run_on_device). Later failures are reported by
    /// [`async_error`](Self::async_error).
    ///
    /// # Safety
    /// `stream` is a live stream of the communicator's device. The memory of the call stays valid,
    /// and is not used by anyone else, until the stream is done with the call; if the stream is
    /// captured, at every replay.
    pub unsafe fn queue_on_stream<T: Element>(
        &mut self,
        call: DeviceCollective<'_, T>,
        stream: CudaStreamHandle,
    ) -> Result<(), Error> {
        let calls = vec![DeviceCall::Collective(call.check(self)?)];
        // SAFETY: the caller's promise, and the lengths that were checked.
        unsafe { launch_calls(vec![StreamCalls { comm: self, calls, stream }]) }
    }
}
