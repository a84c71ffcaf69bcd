//! One rank alone on the device, with at most a link to itself, and the memory that its works need.

// The words are shared with kernels, not with threads that loom could check; this crate has no
// facade for atomics.
#![allow(clippy::disallowed_types)]

use super::device::TestDevice;
use maypole_cuda::launch::{
    DEPARTED_BYTES, KERNEL_NAME, KernelError, KernelLaunch, KernelWork, LANE_STATE_BYTES, LinkEnd,
};
use maypole_cuda::memory::{DeviceBuffer, PinnedBuffer};
use maypole_cuda::stream::CudaStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Whether there is a link.
pub(crate) enum Link {
    None,
    /// A link from the rank to itself, as link 0 of both tables.
    Own,
}

pub(crate) struct Alone<'a> {
    device: &'a TestDevice,
    stream: CudaStream,
    /// The words for abort, error and finished works.
    pinned: PinnedBuffer,
    /// The lane states, then `departed`, then the sending and the receiving end.
    state: DeviceBuffer,
    kept: Vec<DeviceBuffer>,
    works: u64,
}

const LANES: usize = 4;
const DEPTH: u64 = 2;
const SLOT: u64 = 8192;
const LINE_WORDS: u64 = SLOT / 4 + 2;
const ENDS: usize = LANES * LANE_STATE_BYTES + DEPARTED_BYTES;

impl<'a> Alone<'a> {
    /// The content of memory before anything is written to it.
    pub(crate) const FILL: u8 = 0xa5;

    pub(crate) fn new(device: &'a TestDevice, link: Link) -> Self {
        let on = &device.device;
        let mut alone = Self {
            device,
            stream: CudaStream::new(on).expect("a stream"),
            pinned: PinnedBuffer::new(on, 24).expect("pinned memory"),
            state: DeviceBuffer::new(on, ENDS + 2 * 72).expect("memory"),
            kept: Vec::new(),
            works: 0,
        };
        let mut state = vec![0; ENDS];
        if matches!(link, Link::Own) {
            let slots = alone.put(&vec![Self::FILL; (DEPTH * SLOT) as usize]);
            let ll = alone.put(&vec![0; (DEPTH * LINE_WORDS * 8) as usize]);
            let heads = alone.put(&[Self::FILL; DEPTH as usize * 8]);
            let counters = alone.put(&[0; 32]);
            let [filled, drained, sent, taken] = [0, 8, 16, 24].map(|at| counters + at);
            for position in [sent, taken] {
                let end = LinkEnd {
                    slots,
                    heads,
                    ll,
                    filled,
                    drained,
                    position,
                    slot_bytes: SLOT,
                    depth: DEPTH,
                    ll_words: LINE_WORDS,
                };
                state.extend(end.words().iter().flat_map(|word| word.to_le_bytes()));
            }
        }
        alone.stream.write(&alone.state, &state).expect("to write");
        alone.stream.synchronize().expect("to write");
        alone
    }

    /// The address of memory that holds `data`, kept as long as `self`.
    pub(crate) fn put(&mut self, data: &[u8]) -> u64 {
        let buffer = DeviceBuffer::new(&self.device.device, data.len()).expect("memory");
        self.stream.write(&buffer, data).expect("to write");
        let address = buffer.address();
        self.kept.push(buffer);
        address
    }

    /// The current content of memory that [`put`](Self::put) allocated.
    pub(crate) fn get(&self, address: u64, bytes: usize) -> Vec<u8> {
        let buffer = self.kept.iter().find(|b| b.address() == address).expect("memory of `put`");
        self.stream.read(buffer, bytes).expect("to read")
    }

    /// Runs `work` with the program `words`, `scratch` bytes of scratch memory and a send buffer
    /// that contains `data`, on one block or as many as the work says. Returns the receive buffer,
    /// which has the same length. Both buffers begin `askew` bytes after an aligned address.
    pub(crate) fn run(
        &mut self,
        words: &[u32],
        work: KernelWork,
        scratch: u64,
        data: &[u8],
        askew: [u64; 2],
    ) -> Vec<u8> {
        let kept = self.kept.len();
        let program: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let program = self.put(&program);
        let skewed = [&vec![0; askew[0] as usize], data].concat();
        let input = self.put(&skewed) + askew[0];
        let bytes = data.len() + askew[1] as usize;
        let output = self.put(&vec![Self::FILL; bytes]);
        let scratch = self.put(&vec![Self::FILL; scratch as usize]);
        let scratch_lengths = self.put(&[Self::FILL; 64]);
        let lanes = self.state.address();
        let pinned = self.pinned.address();
        let absolute = data.is_empty();
        let work = KernelWork {
            program,
            sending: lanes + ENDS as u64,
            receiving: lanes + ENDS as u64 + 72,
            input: if absolute { 0 } else { input },
            output: if absolute { 0 } else { output + askew[1] },
            scratch,
            scratch_lengths,
            lanes,
            departed: lanes + (LANES * LANE_STATE_BYTES) as u64,
            abort: pinned,
            error: pinned + 8,
            finished: pinned + 16,
            blocks: work.blocks.max(1),
            ..work
        };
        let launch = KernelLaunch::new(&[work]);
        // SAFETY: the kernel takes a KernelLaunch. `encode` has checked the program, and the memory
        // to which it is bound is large enough.
        let launched = unsafe {
            self.device.module.launch(KERNEL_NAME, launch.blocks(), 32, &self.stream, &launch)
        };
        launched.expect("to launch");
        self.works += 1;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.stream.is_idle().expect("a stream without error") {
            if Instant::now() > deadline {
                self.word(0).store(1, Ordering::Release);
                panic!("the rank is still at it");
            }
            sleep(Duration::from_micros(50));
        }
        assert_eq!(KernelError::from_word(self.word(1).load(Ordering::Acquire)), None);
        assert_eq!(self.word(2).load(Ordering::Acquire), self.works);
        let found = self.get(output, bytes).split_off(askew[1] as usize);
        self.kept.truncate(kept);
        found
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: there are three words, which live as long as `self`, and both sides access them
        // atomically.
        unsafe { AtomicU64::from_ptr(self.pinned.host().as_ptr().cast::<u64>().add(index)) }
    }
}
