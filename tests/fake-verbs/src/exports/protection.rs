//! Protection domains, memory regions and memory windows.

use std::ffi::{c_int, c_uint, c_void};
use std::os::raw::c_long;

use super::context::context;
use super::{given, given_mut, null};
use crate::abi;
use crate::fabric::{Entries, REMOTE, RegionData, Settings, Table, fabric};
use crate::misuse::misuse;
use crate::sync::{AcqRel, Acquire, AtomicU32, AtomicU64, Relaxed};

/// A protection domain.
#[repr(C)]
pub(super) struct Domain {
    base: abi::ibv_pd,
    /// No other domain has it.
    pub(super) number: u32,
    /// Objects that belong to it.
    pub(super) users: AtomicU32,
}

/// The domain of a pointer that the caller has.
pub(super) fn domain<'a>(pointer: *mut abi::ibv_pd) -> &'a Domain {
    given!(pointer.cast())
}

#[unsafe(no_mangle)]
extern "C" fn ibv_alloc_pd(pointer: *mut abi::ibv_context) -> *mut abi::ibv_pd {
    let it = context(pointer);
    if let Err(errno) = it.check() {
        null!(errno);
    }
    it.objects.fetch_add(1, Relaxed);
    let number = fabric().new_domain();
    let base = abi::ibv_pd { context: pointer, handle: number };
    Box::into_raw(Box::new(Domain { base, number, users: AtomicU32::new(0) })).cast()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_dealloc_pd(pointer: *mut abi::ibv_pd) -> c_int {
    let it = domain(pointer);
    let users = it.users.load(Acquire);
    if users != 0 {
        return misuse!(libc::EBUSY, "a protection domain is freed that {users} objects belong to");
    }
    context(it.base.context).objects.fetch_sub(1, Relaxed);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<Domain>()) });
    0
}

/// A memory region.
#[repr(C)]
struct MemoryRegion {
    base: abi::ibv_mr,
    place: usize,
    /// Memory of a device, mapped by this library: address and length.
    mapping: Option<(*mut c_void, usize)>,
}

/// Bytes that this process has registered.
static REGISTERED: AtomicU64 = AtomicU64::new(0);

const KNOWN_ACCESS: u32 = abi::IBV_ACCESS_LOCAL_WRITE
    | abi::IBV_ACCESS_REMOTE_WRITE
    | abi::IBV_ACCESS_REMOTE_READ
    | abi::IBV_ACCESS_REMOTE_ATOMIC
    | abi::IBV_ACCESS_MW_BIND
    | abi::IBV_ACCESS_ZERO_BASED
    | abi::IBV_ACCESS_HUGETLB;

/// Access flags from this bit on are hints, which a device ignores if it does not know them.
const OPTIONAL_ACCESS: u32 = 0x3ff0_0000;

fn check_access(access: u32) -> Result<(), c_int> {
    let required = access & !OPTIONAL_ACCESS;
    if required & abi::IBV_ACCESS_ON_DEMAND != 0 {
        return Err(misuse!(libc::EOPNOTSUPP, "registration: there is no paging on demand"));
    }
    if required & !KNOWN_ACCESS != 0 {
        return Err(misuse!(libc::EINVAL, "registration: unknown access flags {access:#x}"));
    }
    let writes = abi::IBV_ACCESS_REMOTE_WRITE | abi::IBV_ACCESS_REMOTE_ATOMIC;
    if required & writes != 0 && required & abi::IBV_ACCESS_LOCAL_WRITE == 0 {
        return Err(misuse!(
            libc::EINVAL,
            "registration: remote writes need IBV_ACCESS_LOCAL_WRITE"
        ));
    }
    Ok(())
}

fn check_mapped(address: usize, length: usize) -> Result<(), c_int> {
    // SAFETY: the call has no arguments in memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize };
    let start = address & !(page - 1);
    let Some(end) = address.checked_add(length) else {
        return Err(misuse!(libc::EINVAL, "registration: the range wraps around"));
    };
    let mut pages = vec![0u8; (end - start).div_ceil(page)];
    let from = std::ptr::without_provenance_mut(start);
    // SAFETY: there is a byte for each page.
    let result = unsafe { libc::mincore(from, end - start, pages.as_mut_ptr()) };
    if result != 0 {
        return Err(misuse!(libc::EFAULT, "registration: {address:#x} is not mapped"));
    }
    Ok(())
}

/// Counts bytes as registered, if the limit allows them.
fn reserve(length: usize) -> Result<(), c_int> {
    let settings = &fabric().settings;
    if Settings::take(&settings.refusals) {
        return Err(settings.refusal.load(Relaxed) as c_int);
    }
    let limit = settings.memory_limit.load(Relaxed);
    let before = REGISTERED.fetch_add(length as u64, AcqRel);
    if limit != 0 && before + length as u64 > limit {
        REGISTERED.fetch_sub(length as u64, AcqRel);
        return Err(libc::ENOMEM);
    }
    settings.registered.fetch_add(1, Relaxed);
    Ok(())
}

struct Registration {
    address: u64,
    length: usize,
    virtual_address: u64,
    access: u32,
    mapping: Option<(*mut c_void, usize)>,
}

fn register(pointer: *mut abi::ibv_pd, it: &Registration) -> Result<*mut abi::ibv_mr, c_int> {
    let domain = domain(pointer);
    let context = context(domain.base.context);
    reserve(it.length)?;
    let Some(place) = fabric().claim(Table::Regions, &fabric().regions) else {
        REGISTERED.fetch_sub(it.length as u64, AcqRel);
        return Err(libc::ENOMEM);
    };
    let region = &fabric().regions[place];
    let data = RegionData {
        address: it.address,
        virtual_address: it.virtual_address,
        length: it.length as u64,
        access: it.access,
        domain: domain.number,
        device: context.device,
        ..RegionData::default()
    };
    let key = region.open(place, data);
    region.allow(key);
    domain.users.fetch_add(1, AcqRel);
    let base = abi::ibv_mr {
        context: domain.base.context,
        pd: pointer,
        addr: std::ptr::without_provenance_mut(it.virtual_address as usize),
        length: it.length,
        handle: place as u32,
        lkey: key,
        rkey: key | REMOTE,
    };
    Ok(Box::into_raw(Box::new(MemoryRegion { base, place, mapping: it.mapping })).cast())
}

fn register_memory(
    pointer: *mut abi::ibv_pd,
    address: *mut c_void,
    length: usize,
    virtual_address: u64,
    access: u32,
) -> *mut abi::ibv_mr {
    let check = || {
        context(domain(pointer).base.context).check()?;
        check_access(access)?;
        if length == 0 {
            return Err(misuse!(libc::EINVAL, "registration of no bytes"));
        }
        check_mapped(address.addr(), length)
    };
    if let Err(errno) = check() {
        null!(errno);
    }
    let address = address.expose_provenance() as u64;
    let zero_based = access & abi::IBV_ACCESS_ZERO_BASED != 0;
    let virtual_address = if zero_based { 0 } else { virtual_address };
    let it = Registration { address, length, virtual_address, access, mapping: None };
    match register(pointer, &it) {
        Ok(region) => {
            // The structure has the address of the memory, whatever work requests use.
            given_mut!(region).addr = std::ptr::without_provenance_mut(address as usize);
            region
        }
        Err(errno) => null!(errno),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_reg_mr(
    pointer: *mut abi::ibv_pd,
    address: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut abi::ibv_mr {
    register_memory(pointer, address, length, address.addr() as u64, access as u32)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_reg_mr_iova(
    pointer: *mut abi::ibv_pd,
    address: *mut c_void,
    length: usize,
    virtual_address: u64,
    access: c_int,
) -> *mut abi::ibv_mr {
    register_memory(pointer, address, length, virtual_address, access as u32)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_reg_mr_iova2(
    pointer: *mut abi::ibv_pd,
    address: *mut c_void,
    length: usize,
    virtual_address: u64,
    access: c_uint,
) -> *mut abi::ibv_mr {
    register_memory(pointer, address, length, virtual_address, access)
}

/// The descriptor is anything that can be mapped, such as a memory file of a simulated device.
#[unsafe(no_mangle)]
extern "C" fn ibv_reg_dmabuf_mr(
    pointer: *mut abi::ibv_pd,
    offset: u64,
    length: usize,
    virtual_address: u64,
    descriptor: c_int,
    access: c_int,
) -> *mut abi::ibv_mr {
    let context = context(domain(pointer).base.context);
    let supported = context.with_device(|device| device.limits.dmabuf) != 0;
    let check = || {
        context.check()?;
        if !supported {
            return Err(libc::EOPNOTSUPP);
        }
        if length == 0 {
            return Err(misuse!(libc::EINVAL, "registration of no bytes"));
        }
        check_access(access as u32)
    };
    if let Err(errno) = check() {
        null!(errno);
    }
    // SAFETY: the call has no arguments in memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 };
    let start = offset & !(page - 1);
    let inside = (offset - start) as usize;
    let whole = length + inside;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let mapped = unsafe {
        let nowhere = std::ptr::null_mut();
        libc::mmap(nowhere, whole, protection, libc::MAP_SHARED, descriptor, start as c_long)
    };
    if mapped == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    let address = mapped.expose_provenance() as u64 + inside as u64;
    let access = access as u32;
    let mapping = Some((mapped, whole));
    match register(pointer, &Registration { address, length, virtual_address, access, mapping }) {
        Ok(region) => region,
        Err(errno) => {
            // SAFETY: it was mapped above, and nothing uses it.
            unsafe { libc::munmap(mapped, whole) };
            null!(errno)
        }
    }
}

/// Not supported, as by the software device that the tests compare with.
#[unsafe(no_mangle)]
extern "C" fn ibv_rereg_mr(
    _: *mut abi::ibv_mr,
    _flags: c_int,
    _: *mut abi::ibv_pd,
    _: *mut c_void,
    _length: usize,
    _access: c_int,
) -> c_int {
    crate::misuse::set_errno(libc::EOPNOTSUPP);
    abi::IBV_REREG_MR_ERR_INPUT
}

#[unsafe(no_mangle)]
extern "C" fn ibv_dereg_mr(pointer: *mut abi::ibv_mr) -> c_int {
    let it: &MemoryRegion = given!(pointer.cast());
    let region = &fabric().regions[it.place];
    if region.key() != it.base.lkey {
        return misuse!(libc::EINVAL, "a region is deregistered that is not registered");
    }
    if region.data().windows != 0 {
        return misuse!(libc::EBUSY, "a region is deregistered that a window is bound to");
    }
    region.forbid();
    region.release();
    REGISTERED.fetch_sub(it.base.length as u64, AcqRel);
    domain(it.base.pd).users.fetch_sub(1, AcqRel);
    if let Some((address, length)) = it.mapping {
        // SAFETY: it was mapped for this region, which nothing uses any more.
        unsafe { libc::munmap(address, length) };
    }
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer.cast::<MemoryRegion>()) });
    0
}

pub(super) extern "C" fn alloc_mw(
    pointer: *mut abi::ibv_pd,
    kind: abi::ibv_mw_type,
) -> *mut abi::ibv_mw {
    if kind != abi::IBV_MW_TYPE_1 && kind != abi::IBV_MW_TYPE_2 {
        null!(misuse!(libc::EINVAL, "memory windows have type 1 or 2, not {kind}"));
    }
    let domain = domain(pointer);
    let Some(place) = fabric().claim(Table::Regions, &fabric().regions) else {
        null!(libc::ENOMEM);
    };
    let region = &fabric().regions[place];
    let device = context(domain.base.context).device;
    let number = domain.number;
    let data = RegionData { domain: number, device, window: kind, ..RegionData::default() };
    let key = region.open(place, data);
    region.allow(key);
    domain.users.fetch_add(1, AcqRel);
    Box::into_raw(Box::new(abi::ibv_mw {
        context: domain.base.context,
        pd: pointer,
        rkey: key | REMOTE,
        handle: place as u32,
        type_: kind,
    }))
}

pub(super) extern "C" fn dealloc_mw(pointer: *mut abi::ibv_mw) -> c_int {
    let it = given!(pointer);
    let region = &fabric().regions[it.handle as usize];
    region.forbid();
    let parent = region.data().parent;
    if parent != 0 {
        let mut of = fabric().regions[parent as usize].data();
        of.windows = of.windows.saturating_sub(1);
    }
    region.release();
    domain(it.pd).users.fetch_sub(1, AcqRel);
    // SAFETY: it was made by a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(pointer) });
    0
}
