//! Tests of the driver module on the simulated GPU: missing libraries and functions are errors, the
//! user's contexts and streams are left unchanged, and every object works and is freed.

// The counter is shared with a callback of the C interface; this crate has no facade for atomics.
#![allow(clippy::disallowed_types)]

use maypole_cuda::driver::{Device, Driver, DriverError};
use maypole_cuda::ipc::{
    EventHandle, Imported, MemoryHandle, export_buffer, export_event, open_event,
};
use maypole_cuda::memory::{
    AddressKind, DeviceBuffer, PinnedBuffer, RegisteredMemory, address_kind,
};
use maypole_cuda::module::KernelModule;
use maypole_cuda::stream::{CaptureStatus, CudaEvent, CudaStream};
use std::env;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::thread;

fn build(folder: &str, without: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let done = Command::new(root.join("../scripts/simulated-gpu"))
        .args(["--without", without, "--kernels"])
        .args([&root.join("tests/simulator.cu"), &built])
        .output()
        .expect("bash runs the script");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    built.join("libcuda.so.1")
}

/// The functions that the simulated older driver lacks; the same as in simulator.rs, so that it is
/// built once.
const OLDER: &str = "cuLaunchKernelEx,cuStreamWriteValue64_v2,cuDeviceGetUuid_v2";

static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| build("simulated-gpu-cases", ""));

/// The driver, for one test at a time, because calls are counted per process.
fn driver() -> (Arc<Driver>, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    (Driver::open(&LIBRARY).expect("the simulated driver"), alone)
}

fn device(driver: &Arc<Driver>, ordinal: i32) -> Arc<Device> {
    Device::open(driver, ordinal).expect("a device")
}

/// The address of a function of the simulated library.
fn symbol(name: &CStr) -> *mut c_void {
    let library = CString::new(LIBRARY.as_os_str().as_encoded_bytes()).expect("a path");
    // SAFETY: both strings end in a zero byte. The library is loaded already, so this only finds
    // it.
    let address =
        unsafe { libc::dlsym(libc::dlopen(library.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
    assert!(!address.is_null(), "{name:?}");
    address
}

/// The number of calls of the driver that `what` makes: of one function, or of all.
fn calls(name: Option<&CStr>, what: impl FnOnce()) -> u64 {
    // SAFETY: sim/calls.cpp defines the functions with these signatures.
    let (reset, one, all) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(c"simCallsReset")),
            std::mem::transmute::<*mut c_void, extern "C" fn(*const libc::c_char) -> u64>(symbol(
                c"simCalls",
            )),
            std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(symbol(c"simCallsTotal")),
        )
    };
    reset();
    what();
    name.map_or_else(|| all(), |name| one(name.as_ptr()))
}

/// Makes a context current as a user does: the context of a device, or none.
fn set_current(ordinal: Option<i32>) {
    // SAFETY: sim/device.cpp defines the functions with these signatures.
    let (retain, set) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut *mut c_void, i32) -> i32>(
                symbol(c"cuDevicePrimaryCtxRetain"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void) -> i32>(symbol(
                c"cuCtxSetCurrent",
            )),
        )
    };
    let mut context = ptr::null_mut();
    if let Some(ordinal) = ordinal {
        assert_eq!(retain(&mut context, ordinal), 0);
    }
    assert_eq!(set(context), 0);
}

/// The argument of the kernels in simulator.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Probe {
    from: u64,
    to: u64,
    value: u64,
}

fn kernels(device: &Arc<Device>) -> KernelModule {
    // SAFETY: for PTX the simulated driver loads the kernels beside it.
    unsafe { KernelModule::load(device, b".version 7.0") }.expect("kernels")
}

fn launch(module: &KernelModule, kernel: &CStr, stream: &CudaStream, probe: Probe) {
    // SAFETY: the kernels take a Probe, and the tests keep its memory until they have synchronised.
    unsafe { module.kernel(kernel).expect("a kernel").launch(1, 32, stream, &probe) }
        .expect("to launch");
}

fn word(stream: &CudaStream, buffer: &DeviceBuffer) -> u64 {
    u64::from_le_bytes(stream.read(buffer, 8).expect("to read").try_into().expect("8 bytes"))
}

#[test]
fn a_missing_driver_is_said_and_no_panic() {
    let path = Path::new("/nowhere/libcuda.so.1");
    let error = Driver::open(path).err().expect("an error");
    assert!(matches!(&error, DriverError::NoLibrary { .. }));
    assert!(error.to_string().contains("/nowhere/libcuda.so.1"), "{error}");
    // On a machine with a driver this finds a device.
    let found = Driver::find().expect("none is no error");
    assert!(found.is_none_or(|driver| driver.devices().expect("a count") > 0));
}

#[test]
fn a_missing_function_is_named_and_the_rest_works() {
    let (_, _alone) = driver();
    let library = build("simulated-gpu-older", OLDER);
    let older = Driver::open(&library).expect("an older driver");
    let device = device(&older, 0);
    assert_ne!(device.uuid().expect("the older function"), [0; 16]);
    let stream = CudaStream::new(&device).expect("a stream");
    let buffer = DeviceBuffer::new(&device, 8).expect("memory");
    // SAFETY: eight bytes of device memory.
    let error = unsafe { stream.write_value(buffer.address(), 1) }.expect_err("it is not there");
    let DriverError::NoFunction { function, since, version } = error else { panic!("{error}") };
    assert_eq!((function, since, version), ("cuStreamWriteValue64_v2", 11070, older.version()));
}

#[test]
fn a_failed_call_has_its_name_and_words() {
    let (driver, _alone) = driver();
    let error = Device::open(&driver, 99).err().expect("there are two");
    let text = error.to_string();
    assert_eq!(error.code(), Some(101));
    assert!(text.contains("cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"), "{text}");
    assert!(text.contains("invalid device ordinal"), "{text}");
}

#[test]
fn devices_describe_themselves() {
    let (driver, _alone) = driver();
    assert_eq!(driver.devices().expect("a count"), 2);
    let [first, second] = [0, 1].map(|ordinal| device(&driver, ordinal));
    assert_eq!(first.pci_bus_id().expect("an id"), "0000:10:00.0");
    assert_ne!(first.uuid().expect("an id"), second.uuid().expect("an id"));
    assert_eq!(first.capability().expect("a capability"), (9, 0));
    assert!(first.name().expect("a name").contains("Simulated"));
    let (free, total) = first.memory().expect("memory");
    assert!(free <= total && total > 0);
    assert!(first.can_access(second.ordinal()).expect("an answer"));
    first.enable_access(&second).expect("access");
    first.enable_access(&second).expect("twice is no error");
}

#[test]
fn the_users_context_stays_current() {
    let (driver, _alone) = driver();
    let [first, second] = [0, 1].map(|ordinal| device(&driver, ordinal));
    let current = || Device::current_ordinal(&driver).expect("an answer");
    for user in [None, Some(0), Some(1)] {
        set_current(user);
        let buffers = [&first, &second].map(|device| DeviceBuffer::new(device, 8).expect("memory"));
        assert_eq!(current(), user);
        let streams = [&first, &second].map(|device| CudaStream::new(device).expect("a stream"));
        for (stream, buffer) in streams.iter().zip(&buffers) {
            stream.write(buffer, &7u64.to_le_bytes()).expect("to write");
            assert_eq!(word(stream, buffer), 7);
            assert!(stream.is_of_primary_context().expect("an answer"));
        }
        let error = streams[0].read(&buffers[0], 8).and_then(|_| first.attribute(-1));
        assert!(error.is_err());
        assert_eq!(current(), user);
        let at = buffers[1].address();
        drop((buffers, streams));
        assert_eq!(current(), user);
        assert_eq!(
            address_kind(&driver, at).expect("an answer"),
            AddressKind::Pageable,
            "it is freed"
        );
    }
    set_current(None);
}

#[test]
fn a_launch_is_two_calls_where_the_context_is_current() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let module = kernels(&device);
    let kernel = module.kernel(c"add").expect("a kernel");
    let (stream, buffer) =
        (CudaStream::new(&device).expect("a stream"), DeviceBuffer::new(&device, 8));
    let buffer = buffer.expect("memory");
    stream.fill(&buffer, 0, 8).expect("to fill");
    let probe = Probe { from: buffer.address(), to: buffer.address(), value: 5 };
    set_current(Some(0));
    // SAFETY: as in `launch`.
    let n = calls(None, || unsafe { kernel.launch(1, 32, &stream, &probe) }.expect("to launch"));
    assert_eq!(n, 2);
    set_current(None);
    assert_eq!(word(&stream, &buffer), 5);
}

#[test]
fn streams_of_the_user_are_not_destroyed() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let users = CudaStream::new(&device).expect("a stream");
    let buffer = DeviceBuffer::new(&device, 8).expect("memory");
    let destroyed = calls(Some(c"cuStreamDestroy_v2"), || {
        let defaults = [0, 1, 2].map(ptr::without_provenance_mut);
        for handle in defaults.into_iter().chain([users.handle()]) {
            // SAFETY: the user's stream outlives this, and the default streams always exist.
            let stream = unsafe { CudaStream::foreign(&device, handle) };
            assert_eq!(stream.capture().expect("an answer"), CaptureStatus::None);
            stream.write(&buffer, &(handle as u64 + 3).to_le_bytes()).expect("to write");
            assert_eq!(word(&stream, &buffer), handle as u64 + 3);
        }
    });
    assert_eq!(destroyed, 0);
    users.synchronize().expect("it is still there");
    assert_eq!(calls(Some(c"cuStreamDestroy_v2"), || drop(users)), 1);
}

#[test]
fn pinned_memory_is_reached_from_both_sides() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let module = kernels(&device);
    let stream = CudaStream::new(&device).expect("a stream");
    let pinned = PinnedBuffer::new(&device, 64).expect("pinned memory");
    assert_eq!(
        address_kind(&driver, pinned.address() + 63).expect("an answer"),
        AddressKind::Pinned
    );
    let mut own = vec![0u64; 8];
    let at = own.as_mut_ptr().cast();
    // SAFETY: `own` outlives the registration.
    let registered = unsafe { RegisteredMemory::new(&device, at, 64) }.expect("to register");
    // SAFETY: the memory is aligned, and is accessed only by atomics and by the kernel.
    let flag = unsafe { pinned.host().cast::<AtomicU64>().as_ref() };
    let probe = Probe { from: pinned.address(), to: registered.address(), value: 1 };
    launch(&module, c"await", &stream, probe);
    let event = CudaEvent::new(&device).expect("an event");
    event.record(&stream).expect("to record");
    assert!(!event.is_passed().expect("an answer") && !stream.is_idle().expect("an answer"));
    flag.store(1, Ordering::Release);
    event.synchronize().expect("the kernel has seen it");
    drop(registered);
    assert_eq!(own[0], 1);
    assert_eq!(
        address_kind(&driver, own.as_ptr() as u64).expect("an answer"),
        AddressKind::Pageable
    );
}

/// Counts one call.
///
/// # Safety
/// `counter` points to an AtomicU64 that is alive.
unsafe extern "C" fn count(counter: *mut c_void) {
    // SAFETY: the test passes an AtomicU64 that outlives the stream.
    unsafe { &*counter.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn streams_wait_for_events_values_and_host_functions() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let [a, b] = [0; 2].map(|_| CudaStream::new(&device).expect("a stream"));
    let (buffer, counter) = (DeviceBuffer::new(&device, 8).expect("memory"), AtomicU64::new(0));
    let [start, end] = [0; 2].map(|_| CudaEvent::timed(&device).expect("an event"));
    a.fill(&buffer, 0, 8).expect("to fill");
    a.synchronize().expect("to fill");
    start.record(&a).expect("to record");
    // SAFETY: eight bytes of device memory.
    unsafe { a.wait_value(buffer.address(), 3) }.expect("to wait");
    // SAFETY: `count` takes the counter, which lives until both streams have run.
    unsafe { a.call_host(count, ptr::from_ref(&counter).cast_mut().cast()) }.expect("to queue");
    end.record(&a).expect("to record");
    assert_eq!(counter.load(Ordering::Relaxed), 0);
    // SAFETY: as above.
    unsafe { b.write_value(buffer.address(), 3) }.expect("to write");
    b.wait(&end).expect("to wait");
    b.synchronize().expect("to finish");
    assert_eq!(counter.load(Ordering::Relaxed), 1);
    assert!(start.milliseconds_to(&end).expect("both are passed") > 0.0);
}

#[test]
fn captures_are_seen_and_replayed() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let module = kernels(&device);
    let stream = CudaStream::new(&device).expect("a stream");
    let buffer = DeviceBuffer::new(&device, 8).expect("memory");
    stream.fill(&buffer, 0, 8).expect("to fill");
    stream.synchronize().expect("to fill");
    stream.begin_capture().expect("to begin");
    assert!(matches!(stream.capture().expect("an answer"), CaptureStatus::Active(_)));
    let probe = Probe { from: buffer.address(), to: buffer.address(), value: 2 };
    launch(&module, c"add", &stream, probe);
    let graph = stream.end_capture().expect("to end");
    for _ in 0..5 {
        // SAFETY: the buffer is allocated, and nothing else uses it.
        unsafe { graph.launch(&stream) }.expect("to launch");
    }
    assert_eq!(word(&stream, &buffer), 10);
    stream.begin_capture().expect("to begin");
    assert_eq!(stream.synchronize().expect_err("not while capturing").code(), Some(900));
    assert_eq!(stream.capture().expect("an answer"), CaptureStatus::Invalidated);
    assert_eq!(stream.end_capture().err().and_then(|error| error.code()), Some(901));
    stream.synchronize().expect("the capture is over");
}

#[test]
fn memory_moves_between_devices() {
    let (driver, _alone) = driver();
    let [first, second] = [0, 1].map(|ordinal| device(&driver, ordinal));
    let [a, b] = [&first, &second].map(|device| DeviceBuffer::new(device, 100).expect("memory"));
    let expected = AddressKind::Device { ordinal: 1, start: b.address(), bytes: 100 };
    assert_eq!(address_kind(&driver, b.address() + 99).expect("an answer"), expected);
    let stream = CudaStream::new(&first).expect("a stream");
    stream.write(&a, &[9; 100]).expect("to write");
    // SAFETY: both have 100 bytes and live until the read has ended.
    unsafe { stream.copy(b.address(), a.address(), 100) }.expect("to copy");
    assert_eq!(stream.read(&b, 100).expect("to read"), [9; 100]);
}

const CHILD: &str = "MAYPOLE_TEST_CUDA_IPC";

/// The other process of the next test; run alone, this test does nothing.
#[test]
fn child_of_the_next_test() {
    let Ok(handles) = env::var(CHILD) else { return };
    let bytes: Vec<u8> = (0..handles.len() / 2)
        .map(|i| u8::from_str_radix(&handles[2 * i..2 * i + 2], 16).expect("hexadecimal"))
        .collect();
    let (memory, rest) = bytes.split_at(64);
    let (event, offset) = rest.split_at(64);
    let offset = u64::from_le_bytes(offset.try_into().expect("8 bytes"));
    let memory = MemoryHandle { bytes: memory.try_into().expect("64 bytes"), offset };
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let stream = CudaStream::new(&device).expect("a stream");
    let imported = Imported::open(&device, &memory).expect("memory of the parent");
    // Memory that is opened for another device is another mapping, which that device reaches.
    let second = self::device(&driver, 1);
    let for_second = Imported::open(&second, &memory).expect("memory of the parent");
    assert_ne!(for_second.address(), imported.address());
    let again = Imported::open(&second, &memory).expect("memory of the parent");
    assert_eq!(again.address(), for_second.address());
    let event = EventHandle { bytes: event.try_into().expect("64 bytes") };
    let event = open_event(&device, &event).expect("an event of the parent");
    stream.wait(&event).expect("to wait");
    let mine = DeviceBuffer::new(&device, 8).expect("memory");
    // SAFETY: the parent keeps the eight bytes until this process ends.
    unsafe { stream.copy(mine.address(), imported.address(), 8) }.expect("to copy");
    let seen = word(&stream, &mine);
    stream.write(&mine, &(seen + 1).to_le_bytes()).expect("to write");
    // SAFETY: as above.
    unsafe { stream.copy(imported.address(), mine.address(), 8) }.expect("to copy");
    stream.synchronize().expect("to finish");
    let stream = CudaStream::new(&second).expect("a stream");
    let theirs = DeviceBuffer::new(&second, 8).expect("memory");
    // SAFETY: as above.
    unsafe { stream.copy(theirs.address(), for_second.address(), 8) }.expect("to copy");
    assert_eq!(word(&stream, &theirs), seen + 1);
}

#[test]
fn memory_and_events_cross_processes() {
    let (driver, _alone) = driver();
    let device = device(&driver, 0);
    let stream = CudaStream::new(&device).expect("a stream");
    let buffer = DeviceBuffer::new(&device, 8).expect("memory");
    let event = CudaEvent::shared(&device).expect("an event");
    stream.write(&buffer, &41u64.to_le_bytes()).expect("to write");
    event.record(&stream).expect("to record");
    let memory = export_buffer(&buffer).expect("a handle");
    assert_eq!(memory.offset, 0);
    assert!(Imported::open(&device, &memory).is_err(), "not in the exporting process");
    let event = export_event(&device, &event).expect("a handle");
    let bytes = [&memory.bytes[..], &event.bytes[..], &memory.offset.to_le_bytes()].concat();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let child = thread::spawn(move || {
        Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "child_of_the_next_test"])
            .env(CHILD, text)
            .output()
            .expect("to run")
    });
    let output = child.join().expect("the child ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(word(&stream, &buffer), 42);
}
