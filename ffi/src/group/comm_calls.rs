//! The calls of one communicator in a group.

use maypole::DeviceCall;
use maypole::ResultCode;
use maypole::Transfer;
use maypole::device::CudaStreamHandle;
use maypole::stream::Stream;

use crate::registry::{CallContext, ExclusiveComm};
use crate::request::{
    OneSidedRequest, OrderedRequest, QueuedRequest, Request, predict_transfers, run_transfers,
};
use crate::stream::CallStream;

/// The calls of one communicator.
#[derive(Default)]
pub(crate) struct CommCalls {
    ordered: Vec<OrderedRequest>,
    transfers: Vec<Transfer>,
    one_sided: Vec<OneSidedRequest>,
    /// The host streams that the calls are on.
    host_streams: Vec<Stream>,
    /// The streams of a CUDA device that the calls are on, each once.
    cuda_streams: Vec<CudaStreamHandle>,
    /// Some calls are on a default stream: the end of the group waits for all of them.
    on_default_stream: bool,
}

// SAFETY: the client lends the buffers to the group until its end, on any thread.
unsafe impl Send for CommCalls {}

impl CommCalls {
    /// No calls, with an empty list for the transfers.
    pub(super) fn with_memory(transfers: Vec<Transfer>) -> Self {
        Self { transfers, ..Self::default() }
    }

    /// Takes the list of the transfers, and empties it.
    pub(super) fn take_memory(&mut self) -> Vec<Transfer> {
        let mut transfers = std::mem::take(&mut self.transfers);
        transfers.clear();
        transfers
    }

    /// The transfers, if they are the only calls, and not on a stream of the client.
    pub(super) fn only_transfers(&self) -> Option<&[Transfer]> {
        let on_streams = !self.host_streams.is_empty() || !self.cuda_streams.is_empty();
        let others = !self.ordered.is_empty() || !self.one_sided.is_empty();
        (!on_streams && !others).then_some(&self.transfers)
    }

    /// Adds a call on that stream.
    #[inline(always)]
    pub(super) fn add(&mut self, stream: CallStream, request: QueuedRequest) {
        match stream {
            CallStream::Default => self.on_default_stream = true,
            CallStream::Host(stream) => self.host_streams.push(stream),
            CallStream::Cuda(stream) if self.cuda_streams.contains(&stream) => {}
            CallStream::Cuda(stream) => self.cuda_streams.push(stream),
        }
        match request {
            QueuedRequest::Ordered(request) => self.ordered.push(request),
            QueuedRequest::Transfer(request) => self.transfers.push(request.into_transfer()),
            QueuedRequest::OneSided(request) => self.one_sided.push(request),
        }
    }

    /// Runs the calls; returns when their results are there.
    pub(super) fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        self.ordered.into_iter().try_for_each(|request| request.run(context))?;
        // Other ranks may wait for what this rank puts and signals. Its own waits come last.
        let (waits, puts): (Vec<_>, _) =
            self.one_sided.into_iter().partition(OneSidedRequest::waits);
        puts.into_iter().try_for_each(|request| request.run(context))?;
        if !self.transfers.is_empty() {
            run_transfers(&self.transfers, context)?;
        }
        waits.into_iter().try_for_each(|request| request.run(context))
    }

    /// The calls for a CUDA device, in their order.
    pub(super) fn device_calls(&self) -> Vec<DeviceCall<'_>> {
        let transfers =
            (!self.transfers.is_empty()).then(|| DeviceCall::Transfers(&self.transfers));
        self.ordered.iter().filter_map(OrderedRequest::device_call).chain(transfers).collect()
    }

    /// The microseconds that the cost model predicts. Calls of `maypole.h` and windows count 0.
    pub(super) fn predict(&self, comm: &ExclusiveComm) -> Result<f64, ResultCode> {
        let mut total = 0.0;
        for request in &self.ordered {
            if let OrderedRequest::Collective(request) = request {
                total += request.predict(comm)?;
            }
        }
        Ok(total + predict_transfers(&self.transfers, comm)?)
    }

    /// Whether windows are registered among the calls.
    pub(super) fn registers_windows(&self) -> bool {
        self.ordered.iter().any(|request| matches!(request, OrderedRequest::Window(_)))
    }

    /// Whether the end of the group waits for the calls on host streams.
    pub(super) fn is_on_default_stream(&self) -> bool {
        self.on_default_stream
    }

    /// Whether the calls are on host streams.
    pub(super) fn is_on_host_streams(&self) -> bool {
        !self.host_streams.is_empty()
    }

    /// Takes the host streams that the calls are on.
    pub(super) fn take_host_streams(&mut self) -> Vec<Stream> {
        std::mem::take(&mut self.host_streams)
    }

    /// The streams of a CUDA device that the calls are on.
    pub(super) fn cuda_streams(&self) -> &[CudaStreamHandle] {
        &self.cuda_streams
    }
}
