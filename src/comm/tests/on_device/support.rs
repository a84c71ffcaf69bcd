//! The simulated GPU for the tests of this process, and ranks on its devices.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use maypole_algorithms::Collective;
use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;

use super::super::Random;
use super::super::case::Case;
use crate::bootstrap::{Options, UniqueId};
use crate::call::Task;
use crate::comm::Communicator;
use crate::config::Config;

/// A lock on the simulated devices: freeing memory waits for all work of the device, also for that
/// of other tests.
pub(super) struct Simulator {
    pub(super) driver: Arc<Driver>,
    _alone: MutexGuard<'static, ()>,
}

/// Builds the simulated driver where it is not up to date, and loads it. From then on this process
/// finds it as libcuda.so.1.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = folder().join("libcuda.so.1");
    Driver::open(&library).expect("the simulated driver");
    library
});

/// The folder in which the simulated GPU is built.
pub(super) fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(3).expect("target/profile/deps");
    let built = target.join("tmp/simulated-gpu");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/simulated-gpu");
    let done = Command::new(script).arg(&built).output().expect("bash runs the script");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "the simulated GPU (it needs g++) cannot be built:\n{said}");
    built
}

/// Waits for other tests that use the simulated GPU.
pub(super) fn simulator() -> Simulator {
    static ALONE: Mutex<()> = Mutex::new(());
    // A failed test leaves no state behind.
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = Driver::open(&LIBRARY).expect("the simulated driver");
    let simulator = Simulator { driver, _alone: alone };
    fail(c"nothing", 0, 0);
    configure(0);
    threads_of_block(0);
    simulator
}

fn symbol(name: &CStr) -> *mut c_void {
    let library = CString::new(LIBRARY.as_os_str().as_encoded_bytes()).expect("a path");
    // SAFETY: both strings end in a zero byte. The library is loaded, so `dlopen` only finds it
    // again.
    let address =
        unsafe { libc::dlsym(libc::dlopen(library.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
    assert!(!address.is_null(), "{name:?}");
    address
}

/// Delays thread blocks and streams at random, by up to so many microseconds.
pub(super) fn configure(jitter_us: u32) {
    // SAFETY: cuda/sim/device.cpp gives the function this signature.
    let configure = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(i32, u32, u32) -> i32>(symbol(
            c"simDeviceConfigure",
        ))
    };
    assert_eq!([0, 1].map(|device| configure(device, 128, jitter_us)), [0, 0]);
}

/// Sets the threads of a block for communicators that are made from now on; 0 for as many as
/// usual.
pub(super) fn threads_of_block(threads: i32) {
    // SAFETY: cuda/sim/device.cpp gives the function this signature.
    let set =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(i32)>(symbol(c"simThreads")) };
    set(threads);
}

/// How often the context of a device is retained.
pub(super) fn retained(device: i32) -> i32 {
    // SAFETY: cuda/sim/device.cpp gives the function this signature.
    let retained = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(i32) -> i32>(symbol(c"simRetained"))
    };
    retained(device)
}

/// Makes allocations wait for the work of the device and its peers, as some drivers do, until the
/// result is dropped.
pub(super) fn allocations_wait() -> Switch {
    Switch::on(c"simAllocationsWait")
}

/// Makes cooperative grids of a device run one after the other, until the result is dropped.
pub(super) fn cooperative_grids_take_turns() -> Switch {
    Switch::on(c"simSerialCooperative")
}

/// Makes the first launch of each kernel load it, which waits for other kernels, until the result
/// is dropped.
pub(super) fn kernels_load_late() -> Switch {
    Switch::on(c"simLazyLoading")
}

/// The handle of a stream in a new context of a device.
pub(super) fn stream_of_another_context(device: i32) -> *mut c_void {
    // SAFETY: cuda/sim gives the functions these signatures, which are the driver's.
    let (create, stream, pop) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut *mut c_void, u32, i32) -> i32>(
                symbol(c"cuCtxCreate_v2"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut *mut c_void, u32) -> i32>(
                symbol(c"cuStreamCreate"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut *mut c_void) -> i32>(symbol(
                c"cuCtxPopCurrent_v2",
            )),
        )
    };
    let (mut context, mut handle) = (std::ptr::null_mut(), std::ptr::null_mut());
    assert_eq!(create(&raw mut context, 0, device), 0);
    assert_eq!(stream(&raw mut handle, 1), 0);
    assert_eq!(pop(&raw mut context), 0);
    handle
}

/// A setting of the simulator that is on until this is dropped.
pub(super) struct Switch(&'static CStr);

impl Switch {
    fn on(name: &'static CStr) -> Self {
        Self::set(name, 1);
        Self(name)
    }

    fn set(name: &CStr, on: i32) {
        // SAFETY: cuda/sim gives all functions that are switches this signature.
        let set = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(i32)>(symbol(name)) };
        set(on);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        Self::set(self.0, 0);
    }
}

/// Makes the `n`-th call of a function from now on fail with `error`; 0 for `n` cancels that for
/// all functions.
pub(super) fn fail(name: &CStr, n: u64, error: i32) {
    // SAFETY: cuda/sim/calls.cpp gives the function this signature.
    let fail = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, u64, i32)>(symbol(
            c"simFail",
        ))
    };
    fail(name.as_ptr(), n, error);
}

/// The calls of the driver that `what` makes, with their names.
pub(super) fn calls(what: impl FnOnce()) -> Vec<(String, u64)> {
    // SAFETY: cuda/sim/calls.cpp gives the functions these signatures.
    let (reset, report) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(c"simCallsReset")),
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_char, usize) -> usize>(symbol(
                c"simCallsReport",
            )),
        )
    };
    reset();
    what();
    let mut text = vec![0u8; 1 << 16];
    let bytes = report(text.as_mut_ptr().cast(), text.len());
    let text = String::from_utf8_lossy(&text[..bytes]).into_owned();
    let line = |line: &str| {
        let (name, count) = line.split_once(' ').expect("name and count");
        (name.to_owned(), count.parse().expect("a number"))
    };
    text.lines().map(line).collect()
}

/// A rank's device memory and stream. What it allocates is freed when all ranks are done, because
/// freeing waits for all work of the device.
pub(super) struct Rank {
    pub(super) comm: Communicator,
    pub(super) device: Arc<Device>,
    pub(super) stream: CudaStream,
    buffers: Vec<Arc<DeviceBuffer>>,
}

impl Rank {
    pub(super) fn new(comm: Communicator, driver: &Arc<Driver>, ordinal: i32) -> Self {
        let device = Device::open(driver, ordinal).expect("a device");
        let stream = CudaStream::new(&device).expect("a stream");
        Self { comm, device, stream, buffers: Vec::new() }
    }

    /// Device memory with this content.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Arc<DeviceBuffer> {
        let buffer = Arc::new(DeviceBuffer::new(&self.device, bytes.len()).expect("device memory"));
        self.stream.write(&buffer, bytes).expect("to write");
        self.stream.synchronize().expect("to write");
        self.buffers.push(buffer.clone());
        buffer
    }

    /// The content of device memory after all that was queued on the rank's stream.
    pub(super) fn get(&self, buffer: &DeviceBuffer) -> Vec<u8> {
        self.stream.read(buffer, buffer.bytes()).expect("to read")
    }
}

/// The communicator of a rank on device `ordinal`.
pub(super) fn join(
    id: &UniqueId,
    rank: u32,
    nranks: u32,
    ordinal: i32,
    config: &Config,
) -> Communicator {
    let options = Options { device: Some(ordinal), ..Options::default() };
    let builder = Communicator::builder(id).rank(rank, nranks).config(config.clone());
    builder.options(options).build().unwrap_or_else(|e| panic!("rank {rank}: {e}"))
}

/// Makes a random call, by each collective in turn, and compares its result.
pub(super) fn random_call(comm: &mut Communicator, random: &mut Random, round: usize) {
    let all = Collective::all(comm.nranks() - 1);
    let case = Case::random(random, all[round % all.len()]);
    let task = Task::from(&case.call(comm.rank()));
    let (schedule, choice) = comm.tuner.choose(&task).expect("a choice");
    let result = case.run(comm, &schedule);
    result.unwrap_or_else(|why| panic!("round {round}, {case:?}, {choice}: {why}"));
}

/// Runs `f` as each rank, in threads, rank `r` on `devices[r]`; fails if that takes longer than a
/// minute.
pub(super) fn on_devices<T: Send + 'static>(
    simulator: &Simulator,
    devices: &[i32],
    config: &Config,
    f: impl Fn(&mut Rank) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = UniqueId::create().expect("a unique id");
    let nranks = devices.len() as u32;
    let f = Arc::new(f);
    let (done, all) = mpsc::channel();
    for (rank, &ordinal) in (0..).zip(devices) {
        let (f, done, config) = (Arc::clone(&f), done.clone(), config.clone());
        let driver = simulator.driver.clone();
        std::thread::spawn(move || {
            let comm = join(&id, rank, nranks, ordinal, &config);
            let mut rank_here = Rank::new(comm, &driver, ordinal);
            let result = f(&mut rank_here);
            let Rank { comm, buffers, .. } = rank_here;
            drop(comm);
            done.send((rank, result, buffers)).expect("the test waits");
        });
    }
    drop(done);
    let patience = Duration::from_secs(60);
    let mut results: Vec<_> =
        (0..nranks).map(|_| all.recv_timeout(patience).expect("a rank failed or hangs")).collect();
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}

/// The ranks of a communicator in one process, rank `r` on `devices[r]`, for one thread to use.
pub(super) fn all_ranks(simulator: &Simulator, devices: &[i32], config: &Config) -> Vec<Rank> {
    let id = UniqueId::create().expect("a unique id");
    let nranks = devices.len() as u32;
    let init = |(rank, &ordinal): (u32, &i32)| {
        let (config, driver) = (config.clone(), simulator.driver.clone());
        std::thread::spawn(move || {
            Rank::new(join(&id, rank, nranks, ordinal, &config), &driver, ordinal)
        })
    };
    let ranks: Vec<_> = (0..).zip(devices).map(init).collect();
    ranks.into_iter().map(|rank| rank.join().expect("the rank ran")).collect()
}
