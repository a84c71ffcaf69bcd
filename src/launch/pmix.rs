//! The variables and the protocol of PMIx, of Open MPI's mpirun, PRRTE and `srun --mpi=pmix`.
//! libpmix is loaded only if this process has a PMIx server.
//!
//! Rank 0 puts one value, and all ranks wait at a fence that distributes it; then PMIx is closed.
//! The value is as safe as the launcher's own connections. Seven functions and three structures of
//! PMIx are used. Their layout is the same in all versions that are named `libpmix.so.2` (PMIx 3 to
//! 6, `pmix_common.h`).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use crate::process::spawn_thread;

use super::job::{LauncherJob, RendezvousMethod, VariableLookup, number, rank_of_nranks};

const NAME: &str = "PMIx (mpirun of Open MPI)";

/// The key of the value.
const KEY: &CStr = c"maypole.launch";

pub(super) fn job(lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    let open_mpi = rank_of_nranks(lookup, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let namespace = lookup("PMIX_NAMESPACE");
    let pmix_rank = number(lookup, "PMIX_RANK")?;
    let (rank, nranks) = match (open_mpi, &namespace, pmix_rank) {
        (Some(rank_and_size), ..) => rank_and_size,
        (None, Some(_), Some(rank)) => {
            match rank_of_nranks(lookup, "SLURM_PROCID", "SLURM_NTASKS")? {
                Some((_, nranks)) if rank < nranks => (rank, nranks),
                _ => {
                    return Err(format!(
                        "PMIX_NAMESPACE and PMIX_RANK={rank} are set, but neither \
                         OMPI_COMM_WORLD_SIZE nor SLURM_NTASKS says how many processes there are"
                    ));
                }
            }
        }
        _ => return Ok(None),
    };
    let local_size = number(lookup, "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let job_id = namespace.clone().or_else(|| lookup("OMPI_MCA_ess_base_jobid"));
    // Only if all processes are on this host can they use an abstract socket.
    let host_socket =
        job_id.filter(|_| local_size == Some(nranks)).map(|id| format!("openmpi/{id}"));
    let method = match (namespace, host_socket) {
        (Some(_), host_socket) => RendezvousMethod::Pmix { host_socket },
        (None, Some(name)) => RendezvousMethod::HostSocket(name),
        (None, None) if nranks == 1 => RendezvousMethod::HostSocket("alone".to_owned()),
        (None, None) => {
            return Err(format!(
                "OMPI_COMM_WORLD_SIZE={nranks}, but the processes cannot find each other: neither \
                 PMIX_NAMESPACE is set, nor OMPI_MCA_ess_base_jobid with all processes on this \
                 host (OMPI_COMM_WORLD_LOCAL_SIZE={})",
                local_size.map_or("unset".to_owned(), |size| size.to_string())
            ));
        }
    };
    Ok(Some(LauncherJob { launcher: NAME, rank, nranks, method }))
}

/// `pmix_proc_t`: a process of a job.
#[repr(C)]
#[derive(Clone, Copy)]
struct PmixProc {
    namespace: [c_char; 256],
    rank: u32,
}

/// `pmix_value_t`: a type and a union, whose largest member is three words.
#[repr(C)]
#[derive(Clone, Copy)]
struct PmixValue {
    kind: u16,
    data: [*mut c_void; 3],
}

/// `pmix_info_t`: a named option of a call.
#[repr(C)]
struct PmixInfo {
    key: [c_char; 512],
    flags: u32,
    value: PmixValue,
}

/// `PMIX_BOOL`.
const BOOL: u16 = 1;
/// `PMIX_STRING`.
const STRING: u16 = 3;
/// `PMIX_GLOBAL`: all processes of the job may get the value.
const GLOBAL: u8 = 3;

/// The functions of libpmix, which stays loaded.
struct PmixFunctions {
    init: unsafe extern "C" fn(*mut PmixProc, *mut PmixInfo, usize) -> c_int,
    put: unsafe extern "C" fn(u8, *const c_char, *mut PmixValue) -> c_int,
    commit: unsafe extern "C" fn() -> c_int,
    fence: unsafe extern "C" fn(*const PmixProc, usize, *const PmixInfo, usize) -> c_int,
    get: unsafe extern "C" fn(
        *const PmixProc,
        *const c_char,
        *const PmixInfo,
        usize,
        *mut *mut PmixValue,
    ) -> c_int,
    finalize: unsafe extern "C" fn(*const PmixInfo, usize) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// Loads libpmix.
///
/// # Errors
/// It is not installed, or lacks a function.
pub(super) fn load() -> io::Result<()> {
    PmixFunctions::load().map(drop)
}

/// Broadcasts rank 0's text, which is `mine` there, to all ranks, until `deadline`.
///
/// libpmix waits without end for processes that do not call it. So another thread calls it, which
/// is left behind if it is late.
pub(super) fn broadcast(rank: u32, mine: Option<&str>, deadline: Instant) -> io::Result<String> {
    let mine = mine.map(str::to_owned);
    within(deadline, move || broadcast_without_end(rank, mine.as_deref()))
}

/// The result of `call` on another thread, which must be there at `deadline`.
fn within(
    deadline: Instant,
    call: impl FnOnce() -> io::Result<String> + Send + 'static,
) -> io::Result<String> {
    let (send, receive) = mpsc::channel();
    // Nobody receives what comes too late.
    let run = move || drop(send.send(call()));
    spawn_thread("maypole-pmix", None, run)?;
    let left = deadline.saturating_duration_since(Instant::now());
    receive.recv_timeout(left).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => io::Error::new(
                io::ErrorKind::TimedOut,
                "PMIx did not bring the processes together within MAYPOLE_INIT_TIMEOUT; all \
                 processes of the job must run this program, or another one that uses Maypole",
            ),
            RecvTimeoutError::Disconnected => io::Error::other("the thread that calls PMIx ended"),
        })
    })
}

/// The same without a limit.
fn broadcast_without_end(rank: u32, mine: Option<&str>) -> io::Result<String> {
    let pmix = PmixFunctions::load()?;
    let mut me = PmixProc { namespace: [0; 256], rank: 0 };
    // SAFETY: `me` is writable, and the number of options is 0.
    pmix.check("PMIx_Init", unsafe { (pmix.init)(&raw mut me, std::ptr::null_mut(), 0) })?;
    if me.rank != rank {
        return Err(io::Error::other(format!(
            "PMIx says that this is rank {}, the environment says rank {rank}",
            me.rank
        )));
    }
    if let Some(text) = mine.filter(|_| rank == 0) {
        let text = CString::new(text).map_err(io::Error::other)?;
        let null = std::ptr::null_mut();
        let mut value =
            PmixValue { kind: STRING, data: [text.as_ptr().cast_mut().cast(), null, null] };
        // SAFETY: key and value are valid for the call, and PMIx copies them.
        pmix.check("PMIx_Put", unsafe { (pmix.put)(GLOBAL, KEY.as_ptr(), &raw mut value) })?;
        // SAFETY: PMIx_Init has succeeded, which is all that the call needs.
        pmix.check("PMIx_Commit", unsafe { (pmix.commit)() })?;
    }
    let mut collect = PmixInfo {
        key: [0; 512],
        flags: 0,
        value: PmixValue { kind: BOOL, data: [std::ptr::null_mut(); 3] },
    };
    let name = c"pmix.collect".to_bytes();
    collect.key.iter_mut().zip(name).for_each(|(to, &byte)| *to = byte as c_char);
    // The union's first byte is `true`.
    collect.value.data[0] = std::ptr::without_provenance_mut(usize::from_le(1));
    // SAFETY: no processes means all of the job; `collect` is the one option and outlives the call.
    pmix.check("PMIx_Fence", unsafe { (pmix.fence)(std::ptr::null(), 0, &raw const collect, 1) })?;
    let root = PmixProc { rank: 0, ..me };
    let mut found: *mut PmixValue = std::ptr::null_mut();
    // SAFETY: the process and the key are valid, and `found` is writable.
    let status =
        unsafe { (pmix.get)(&raw const root, KEY.as_ptr(), std::ptr::null(), 0, &raw mut found) };
    pmix.check("PMIx_Get", status)?;
    // SAFETY: after success `found` points to a value of libpmix. It is never freed: it is one
    // string in the life of the process.
    let value =
        unsafe { found.as_ref() }.filter(|value| value.kind == STRING && !value.data[0].is_null());
    let Some(value) = value else {
        return Err(io::Error::other(
            "PMIx_Get returned something else than the string that rank 0 put",
        ));
    };
    // SAFETY: a value of type PMIX_STRING whose pointer is not null points to a C string.
    let text = unsafe { CStr::from_ptr(value.data[0].cast()) }.to_string_lossy().into_owned();
    // SAFETY: PMIx_Init has succeeded, and the number of options is 0.
    pmix.check("PMIx_Finalize", unsafe { (pmix.finalize)(std::ptr::null(), 0) })?;
    Ok(text)
}

impl PmixFunctions {
    fn load() -> io::Result<Self> {
        // SAFETY: the name is a C string. The library's constructors are as trusted as the
        // launcher.
        let library =
            unsafe { libc::dlopen(c"libpmix.so.2".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(io::Error::other(format!(
                "libpmix.so.2 cannot be loaded: {}",
                loader_error()
            )));
        }
        let symbol = |name: &CStr| {
            // SAFETY: `library` is a handle of a loaded library, which is never closed.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if found.is_null() {
                let name = name.to_string_lossy();
                return Err(io::Error::other(format!("libpmix.so.2 has no {name}")));
            }
            Ok(found)
        };
        // SAFETY: each field has the type that `pmix.h` gives the function of its name.
        unsafe {
            Ok(Self {
                init: function(symbol(c"PMIx_Init")?),
                put: function(symbol(c"PMIx_Put")?),
                commit: function(symbol(c"PMIx_Commit")?),
                fence: function(symbol(c"PMIx_Fence")?),
                get: function(symbol(c"PMIx_Get")?),
                finalize: function(symbol(c"PMIx_Finalize")?),
                error_string: function(symbol(c"PMIx_Error_string")?),
            })
        }
    }

    fn check(&self, call: &str, status: c_int) -> io::Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: PMIx_Error_string returns a constant C string for every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy();
        Err(io::Error::other(format!("{call}: {text} ({status})")))
    }
}

/// The function at an address, as a function pointer.
///
/// # Safety
/// `F` must be a function pointer type that fits the function at `address`.
unsafe fn function<F: Copy>(address: *mut c_void) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the sizes are equal, as asserted, and the caller vouches for the type.
    unsafe { std::mem::transmute_copy(&address) }
}

/// What the dynamic loader says about its last failure.
fn loader_error() -> String {
    // SAFETY: dlerror has no preconditions. Its result is null, or a C string that is valid until
    // this thread calls the loader again.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: it is not null, and this thread has not called the loader since.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::variables;
    use super::*;

    fn job_in(set: &[(&str, &str)]) -> Result<Option<LauncherJob>, String> {
        job(&variables(set))
    }

    fn pmix(host_socket: Option<&str>) -> RendezvousMethod {
        RendezvousMethod::Pmix { host_socket: host_socket.map(str::to_owned) }
    }

    const OPEN_MPI: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ];

    #[test]
    fn a_call_that_does_not_return_is_an_error_in_time() {
        let deadline = Instant::now() + std::time::Duration::from_millis(20);
        let error = within(deadline, || {
            std::thread::park();
            Ok(String::new())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let later = Instant::now() + std::time::Duration::from_secs(60);
        assert_eq!(within(later, || Ok("text".to_owned())).unwrap(), "text");
    }

    #[test]
    fn structures_have_the_layout_of_the_header() {
        assert_eq!(
            (size_of::<PmixProc>(), size_of::<PmixValue>(), size_of::<PmixInfo>()),
            (260, 32, 552)
        );
        assert_eq!(std::mem::offset_of!(PmixInfo, value), 520);
    }

    #[test]
    fn open_mpi_on_one_host_does_not_need_libpmix() {
        let job = job_in(&[&OPEN_MPI[..], &[("PMIX_NAMESPACE", "9"), ("PMIX_RANK", "1")]].concat());
        assert_eq!(job.unwrap().unwrap().method, pmix(Some("openmpi/9")));
        let job = job_in(&[&OPEN_MPI[..], &[("OMPI_MCA_ess_base_jobid", "9")]].concat());
        assert_eq!(job.unwrap().unwrap().method, RendezvousMethod::HostSocket("openmpi/9".into()));
        let error = job_in(&OPEN_MPI).unwrap_err();
        assert!(error.contains("neither PMIX_NAMESPACE"), "{error}");
    }

    #[test]
    fn slurm_with_pmix_gives_the_number_of_ranks() {
        let set_by_pmix = [("PMIX_NAMESPACE", "slurm.pmix.7.0"), ("PMIX_RANK", "2")];
        assert!(job_in(&set_by_pmix).unwrap_err().contains("says how many"));
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")];
        let job = job_in(&[&set_by_pmix[..], &slurm].concat()).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.method), (2, 4, pmix(None)));
    }
}
