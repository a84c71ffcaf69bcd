//! Ranges in the timelines of profilers: NVTX 3, as far as ranges on a thread go.
//!
//! A profiler names a library in `NVTX_INJECTION64_PATH`. Whoever has ranges to tell loads it, calls its `InitializeInjectionNvtx2` with
//! a function that finds tables, and the tool puts its functions into the slots that they point to. Without the variable nothing
//! is loaded, and a range is a look at a word. Public documentation and headers of NVTX (github.com/NVIDIA/NVTX) say what the tables are.
//!
//! Not here: marks, categories, colours, payloads, names of streams. Their slots exist, for the tool to fill, and nobody calls them.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The domain of all ranges: profilers look for those of this ABI there.
const DOMAIN: &CStr = c"NCCL";

/// A range on this thread, from when it is made to when it is dropped. Ranges of a thread end in the opposite order of their beginning.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Range {
    tool: Option<&'static Tool>,
}

impl Range {
    /// Begins one. Where no profiler listens nothing happens.
    #[inline]
    pub fn new(name: &'static CStr) -> Self {
        static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
        let tool = TOOL.get_or_init(Tool::load).as_ref();
        if let Some(tool) = tool {
            tool.push(name);
        }
        Self { tool }
    }
}

impl Drop for Range {
    #[inline]
    fn drop(&mut self) {
        if let Some(tool) = self.tool {
            // SAFETY: the tool gave the function and the domain, and this thread has begun a range in it.
            unsafe { (tool.pop)(tool.domain) };
        }
    }
}

type Domain = *mut c_void;
type PushFn = unsafe extern "C" fn(Domain, *const Attributes) -> c_int;
type PopFn = unsafe extern "C" fn(Domain) -> c_int;
type CreateFn = unsafe extern "C" fn(*const c_char) -> Domain;

/// What a tool has for ranges.
#[derive(Debug)]
struct Tool {
    domain: Domain,
    push: PushFn,
    pop: PopFn,
}

// SAFETY: tools take calls from any thread; the domain is a handle that only they look behind.
unsafe impl Send for Tool {}
// SAFETY: as above.
unsafe impl Sync for Tool {}

/// What a range is told as: `nvtxEventAttributes_t`.
#[repr(C)]
struct Attributes {
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

const _: () = assert!(size_of::<Attributes>() == 48);

const VERSION: u16 = 3;
const MESSAGE_ASCII: i32 = 1;

impl Tool {
    /// The tool that the environment names, if there is one, it wants to listen, and it has what ranges need.
    #[cold]
    fn load() -> Option<Self> {
        let path = std::env::var_os("NVTX_INJECTION64_PATH")?;
        let path = CString::new(path.as_bytes()).ok()?;
        // SAFETY: `path` ends in a zero byte; whoever set the variable answers for what the library does when it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        // SAFETY: the library is open, and the name ends in a zero byte.
        let begin = unsafe { libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr()) };
        if begin.is_null() {
            return None;
        }
        // SAFETY: the function of this name has this signature.
        let begin: unsafe extern "C" fn(ExportFn) -> c_int = unsafe { std::mem::transmute(begin) };
        // SAFETY: the tables that it is given outlive the process. It is called once.
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
            // SAFETY: the slot is for a function of this signature.
            let create: CreateFn = unsafe { std::mem::transmute(create) };
            // SAFETY: the name ends in a zero byte.
            unsafe { create(DOMAIN.as_ptr()) }
        };
        // SAFETY: the slot is for a function of this signature.
        let push = unsafe { std::mem::transmute::<*mut c_void, PushFn>(push) };
        // SAFETY: as above.
        let pop = unsafe { std::mem::transmute::<*mut c_void, PopFn>(pop) };
        Some(Self { domain, push, pop })
    }

    #[cold]
    fn push(&self, name: &'static CStr) {
        let attributes = Attributes {
            version: VERSION,
            size: size_of::<Attributes>() as u16,
            category: 0,
            color_type: 0,
            color: 0,
            payload_type: 0,
            reserved: 0,
            payload: 0,
            message_type: MESSAGE_ASCII,
            message: name.as_ptr(),
        };
        // SAFETY: the tool gave the function and the domain; the attributes are whole, and it copies what it keeps.
        unsafe { (self.push)(self.domain, &attributes) };
    }
}

/// A place for a function of the tool.
type Slot = AtomicPtr<c_void>;

/// Slots of the functions without a domain, of those with one, and of those that give names to CUDA's, OpenCL's and other objects. Slot 0 is never used.
static CORE: [Slot; 16] = [const { Slot::new(ptr::null_mut()) }; 16];
static DOMAINS: [Slot; 16] = [const { Slot::new(ptr::null_mut()) }; 16];
static NAMES: [Slot; 15] = [const { Slot::new(ptr::null_mut()) }; 15];

const PUSH: usize = 4;
const POP: usize = 5;
const CREATE: usize = 12;

/// By module, the first slot and how many there are, the unused one too. A tool may ask for any, and only those of `DOMAINS` are called: those that only
/// give names share theirs.
fn slots(module: c_uint) -> Option<&'static [Slot]> {
    match module {
        1 => Some(&CORE),
        2 => Some(&NAMES[..9]),
        3 => Some(&NAMES),
        4 | 6 => Some(&NAMES[..7]),
        5 => Some(&DOMAINS),
        _ => None,
    }
}

/// `NvtxFunctionTable`: the address of each slot, a null for slot 0, and one at the end.
type Table = [AtomicPtr<Slot>; 17];

unsafe extern "C" fn function_table(
    module: c_uint,
    table: *mut *const AtomicPtr<Slot>,
    size: *mut c_uint,
) -> c_int {
    static TABLES: [OnceLock<Table>; 7] = [const { OnceLock::new() }; 7];
    let Some(slots) = slots(module) else { return 0 };
    let addresses = TABLES[module as usize].get_or_init(|| {
        std::array::from_fn(|i| match slots.get(i) {
            Some(slot) if i > 0 => AtomicPtr::new(ptr::from_ref(slot).cast_mut()),
            _ => AtomicPtr::new(ptr::null_mut()),
        })
    });
    // SAFETY: the tool gives places for the answers, or null for what it does not ask.
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
struct Callbacks {
    bytes: usize,
    function_table: unsafe extern "C" fn(c_uint, *mut *const AtomicPtr<Slot>, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct VersionInfo {
    bytes: usize,
    version: u32,
    reserved: u32,
    tool_version: extern "C" fn(u32),
}

type ExportFn = extern "C" fn(u32) -> *const c_void;

/// The tables by their numbers: what the tool is given.
extern "C" fn export(table: u32) -> *const c_void {
    static CALLBACKS: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), function_table };
    static VERSION_INFO: VersionInfo = VersionInfo {
        bytes: size_of::<VersionInfo>(),
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
