//! Ranges in the timelines of profilers, by the thread ranges of NVTX 3.
//!
//! A profiler names a library, the tool, in `NVTX_INJECTION64_PATH`. A program with ranges loads it
//! and calls its `InitializeInjectionNvtx2` with a function that finds tables of slots. The tool
//! stores its functions in these slots. Without the variable nothing is loaded, and a range costs
//! one load of a word. The public headers of NVTX (github.com/NVIDIA/NVTX) define the tables.
//!
//! Marks, categories, colours, payloads and names of streams are not used. Their slots exist, so
//! that the tool can fill them, but are never called.

// The slots are written by the tool through its C interface and read once, after that call; loom
// has nothing to check here, and this crate does not depend on the crate with the facade.
#![allow(clippy::disallowed_types)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::once::MadeOnce;

/// The domain of all ranges, in which profilers expect the ranges of this ABI.
const DOMAIN: &CStr = c"NCCL";

/// A range on this thread, from its creation to its drop. The ranges of a thread end in the reverse
/// order of their creation.
#[must_use = "the range ends when it is dropped"]
#[derive(Debug)]
pub struct NvtxRange {
    tool: Option<&'static Tool>,
}

impl NvtxRange {
    /// Begins a range. Nothing happens if there is no profiler.
    #[inline]
    pub fn new(name: &'static CStr) -> Self {
        static TOOL: MadeOnce<Option<Tool>> = MadeOnce::new();
        extern "C" fn load() {
            TOOL.set(Tool::load());
        }
        let tool = TOOL.get_or_make(load).and_then(Option::as_ref);
        if let Some(tool) = tool {
            tool.push(name);
        }
        Self { tool }
    }
}

impl Drop for NvtxRange {
    #[inline]
    fn drop(&mut self) {
        if let Some(tool) = self.tool {
            // SAFETY: the tool supplied the function and the domain, and this thread has begun a
            // range in it.
            unsafe { (tool.pop)(tool.domain) };
        }
    }
}

type Domain = *mut c_void;
type PushFn = unsafe extern "C" fn(Domain, *const RangeAttributes) -> c_int;
type PopFn = unsafe extern "C" fn(Domain) -> c_int;
type CreateFn = unsafe extern "C" fn(*const c_char) -> Domain;

/// The functions of a tool for ranges.
#[derive(Debug)]
struct Tool {
    domain: Domain,
    push: PushFn,
    pop: PopFn,
}

// SAFETY: tools accept calls from any thread, and the domain is an opaque handle of the tool.
unsafe impl Send for Tool {}
// SAFETY: as for `Send`.
unsafe impl Sync for Tool {}

/// The description of a range, `nvtxEventAttributes_t`.
#[repr(C)]
struct RangeAttributes {
    version: u16,
    size: u16,
    category: u32,
    color_type: i32,
    color: u32,
    payload_type: i32,
    reserved: i32,
    payload: u64,
    message_type: i32,
    message: *const c_char,
}

const _: () = assert!(size_of::<RangeAttributes>() == 48);

const VERSION: u16 = 3;
const MESSAGE_ASCII: i32 = 1;

impl Tool {
    /// Loads the tool that the environment names. `None` if there is none, it declines, or it does
    /// not have the functions for ranges.
    #[cold]
    fn load() -> Option<Self> {
        let path = std::env::var_os("NVTX_INJECTION64_PATH")?;
        let path = CString::new(path.as_bytes()).ok()?;
        // SAFETY: `path` ends in a zero byte. The user who set the variable is responsible for what
        // the library does when it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        // SAFETY: the library is open, and the name ends in a zero byte.
        let begin = unsafe { libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr()) };
        if begin.is_null() {
            return None;
        }
        // SAFETY: NVTX defines that the function of this name has this signature.
        let begin: unsafe extern "C" fn(ExportFn) -> c_int = unsafe { std::mem::transmute(begin) };
        // SAFETY: the tables that the tool gets from `export` are static. It is called once.
        if unsafe { begin(export) } == 0 {
            return None;
        }
        let [create, push, pop] =
            [CREATE, PUSH, POP].map(|slot| DOMAINS[slot].load(Ordering::Acquire));
        if push.is_null() || pop.is_null() {
            return None;
        }
        let domain = if create.is_null() {
            ptr::null_mut()
        } else {
            // SAFETY: NVTX defines the signature of the function in this slot.
            let create: CreateFn = unsafe { std::mem::transmute(create) };
            // SAFETY: the name ends in a zero byte.
            unsafe { create(DOMAIN.as_ptr()) }
        };
        // SAFETY: NVTX defines the signature of the function in this slot.
        let push = unsafe { std::mem::transmute::<*mut c_void, PushFn>(push) };
        // SAFETY: NVTX defines the signature of the function in this slot.
        let pop = unsafe { std::mem::transmute::<*mut c_void, PopFn>(pop) };
        Some(Self { domain, push, pop })
    }

    #[cold]
    fn push(&self, name: &'static CStr) {
        let attributes = RangeAttributes {
            version: VERSION,
            size: size_of::<RangeAttributes>() as u16,
            category: 0,
            color_type: 0,
            color: 0,
            payload_type: 0,
            reserved: 0,
            payload: 0,
            message_type: MESSAGE_ASCII,
            message: name.as_ptr(),
        };
        // SAFETY: the tool supplied the function and the domain. The attributes are complete, and
        // the tool copies what it keeps.
        unsafe { (self.push)(self.domain, &attributes) };
    }
}

/// A slot for a function of the tool.
type FunctionSlot = AtomicPtr<c_void>;

/// The slots of the functions without a domain, of those with one, and of those that name objects
/// of CUDA, OpenCL and others. Slot 0 is never used.
static CORE: [FunctionSlot; 16] = [const { FunctionSlot::new(ptr::null_mut()) }; 16];
static DOMAINS: [FunctionSlot; 16] = [const { FunctionSlot::new(ptr::null_mut()) }; 16];
static NAMES: [FunctionSlot; 15] = [const { FunctionSlot::new(ptr::null_mut()) }; 15];

const PUSH: usize = 4;
const POP: usize = 5;
const CREATE: usize = 12;

/// The slots of a module of NVTX, the unused slot 0 included. A tool may ask for any module. Only
/// slots of `DOMAINS` are called, so the modules that name objects share their slots.
fn slots(module: c_uint) -> Option<&'static [FunctionSlot]> {
    match module {
        1 => Some(&CORE),
        2 => Some(&NAMES[..9]),
        3 => Some(&NAMES),
        4 | 6 => Some(&NAMES[..7]),
        5 => Some(&DOMAINS),
        _ => None,
    }
}

/// `NvtxFunctionTable`: the address of each slot; null for slot 0 and at the end.
type FunctionTable = [AtomicPtr<FunctionSlot>; 17];

/// Gives the tool the slots of a module: `NvtxExportTableCallbacks::GetModuleFunctionTable`.
///
/// # Safety
/// `table` and `size` are null or valid for a write.
unsafe extern "C" fn function_table(
    module: c_uint,
    table: *mut *const AtomicPtr<FunctionSlot>,
    size: *mut c_uint,
) -> c_int {
    static TABLES: [FunctionTable; 7] =
        [const { [const { AtomicPtr::new(ptr::null_mut()) }; 17] }; 7];
    let Some(slots) = slots(module) else { return 0 };
    let addresses = &TABLES[module as usize];
    for (address, slot) in addresses.iter().zip(slots).skip(1) {
        address.store(ptr::from_ref(slot).cast_mut(), Ordering::Relaxed);
    }
    // SAFETY: the caller guarantees that both are null or valid for a write.
    unsafe {
        if !size.is_null() {
            *size = slots.len() as c_uint;
        }
        if !table.is_null() {
            *table = addresses.as_ptr();
        }
    }
    1
}

extern "C" fn tool_version(_: u32) {}

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct ExportedCallbacks {
    bytes: usize,
    function_table:
        unsafe extern "C" fn(c_uint, *mut *const AtomicPtr<FunctionSlot>, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct ExportedVersion {
    bytes: usize,
    version: u32,
    reserved: u32,
    tool_version: extern "C" fn(u32),
}

type ExportFn = extern "C" fn(u32) -> *const c_void;

/// Gives the tool an exported table by its number; null if there is no such table.
extern "C" fn export(table: u32) -> *const c_void {
    static CALLBACKS: ExportedCallbacks =
        ExportedCallbacks { bytes: size_of::<ExportedCallbacks>(), function_table };
    static VERSION_INFO: ExportedVersion = ExportedVersion {
        bytes: size_of::<ExportedVersion>(),
        version: VERSION as u32,
        reserved: 0,
        tool_version,
    };
    match table {
        1 => ptr::from_ref(&CALLBACKS).cast(),
        3 => ptr::from_ref(&VERSION_INFO).cast(),
        _ => ptr::null(),
    }
}
