//! The ranks of a test, all in this process or one of several processes. Each has a communicator of
//! a device, and one of host memory for comparison.

use std::sync::Arc;

use maypole::{Communicator, UniqueId};
use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;

use crate::ranks::Invitation;

/// Bytes of device memory of a rank for the buffers of a round.
pub(crate) const ARENA: usize = 12 << 20;

/// Streams of a rank.
pub(crate) const STREAMS: usize = 3;

/// A rank.
pub(crate) struct Member {
    /// The communicator of a device.
    pub(crate) comm: Communicator,
    /// The communicator of host memory, with the same rank.
    pub(crate) host: Communicator,
    pub(crate) device: Arc<Device>,
    pub(crate) streams: Vec<CudaStream>,
    pub(crate) arena: Arc<DeviceBuffer>,
}

/// The ranks in this process.
pub(crate) struct World {
    pub(crate) nranks: u32,
    pub(crate) here: Vec<Member>,
}

/// The device of rank `rank`: ranks 0 and 1 share a device, and the others follow in turn.
pub(crate) fn ordinal(rank: u32, devices: u32) -> i32 {
    ((rank / 2) % devices) as i32
}

fn join(id: &UniqueId, nranks: u32, rank: u32, device: Option<i32>) -> Communicator {
    Communicator::builder(id)
        .rank(rank, nranks)
        .device(device)
        .build()
        .unwrap_or_else(|error| panic!("rank {rank} on {device:?}: {error}"))
}

impl Member {
    fn new(comm: Communicator, host: Communicator) -> Self {
        let driver = Driver::find().expect("a driver that works").expect("a driver");
        let ordinal = comm.device().expect("a communicator of a device");
        let device = Device::open(&driver, ordinal).expect("a device");
        let streams = (0..STREAMS).map(|_| CudaStream::new(&device).expect("a stream"));
        let arena = Arc::new(DeviceBuffer::new(&device, ARENA).expect("device memory"));
        Self { streams: streams.collect(), comm, host, device, arena }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.comm.rank()
    }
}

impl World {
    /// All ranks as threads of this process, on as many devices as it sees.
    pub(crate) fn of_threads(nranks: usize) -> Self {
        let devices = maypole::device::count().expect("a driver that works");
        assert!(devices > 0, "the simulated GPU was not found");
        let ids = [(); 2].map(|()| UniqueId::create().expect("a unique id"));
        let nranks = nranks as u32;
        let ranks: Vec<_> = (0..nranks)
            .map(|rank| {
                std::thread::spawn(move || {
                    let comm = join(&ids[0], nranks, rank, Some(ordinal(rank, devices)));
                    Member::new(comm, join(&ids[1], nranks, rank, None))
                })
            })
            .collect();
        let here = ranks.into_iter().map(|rank| rank.join().expect("the rank joins")).collect();
        Self { nranks, here }
    }

    /// Makes this process one rank of a job.
    pub(crate) fn of_process(invitation: Invitation) -> Self {
        let Invitation { id, rank, nranks, .. } = invitation;
        let devices = maypole::device::count().expect("a driver that works");
        assert!(devices > 0, "the simulated GPU was not found");
        let mut host = join(&id, nranks, rank, None);
        let mut bytes = match rank {
            0 => UniqueId::create().expect("a unique id").to_bytes(),
            _ => [0; 128],
        };
        host.broadcast_in_place(&mut bytes, 0).expect("the host's communicator works");
        let id = UniqueId::from_bytes(bytes).expect("an id");
        let comm = join(&id, nranks, rank, Some(ordinal(rank, devices)));
        Self { nranks, here: vec![Member::new(comm, host)] }
    }

    /// Runs `f` as each rank of this process, each in a thread.
    pub(crate) fn each<T: Send>(&mut self, f: impl Fn(&mut Member) -> T + Sync) -> Vec<T> {
        if let [member] = &mut self.here[..] {
            return vec![f(member)];
        }
        std::thread::scope(|scope| {
            let f = &f;
            let ranks: Vec<_> =
                self.here.iter_mut().map(|member| scope.spawn(move || f(member))).collect();
            ranks
                .into_iter()
                .map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }
}
