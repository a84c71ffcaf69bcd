//! PMIx, as Open MPI's mpirun, PRRTE and `srun --mpi=pmix` offer it: libpmix is loaded when there is a server to talk to.
//!
//! Rank 0 puts one value and all meet at a fence that carries it; then PMIx is closed. What travels is as safe as the
//! launcher's own connections. Of its interface seven calls and three structures are used, whose layout is the same in all
//! versions that have the name `libpmix.so.2` (PMIx 3 to 6, `pmix_common.h`).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;

use super::job::{Job, Lookup, Way, number, place};

const NAME: &str = "PMIx (mpirun of Open MPI)";

/// Under which the value is put.
const KEY: &CStr = c"maypole.launch";

pub(super) fn job(lookup: Lookup) -> Result<Option<Job>, String> {
    let open_mpi = place(lookup, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let namespace = lookup("PMIX_NAMESPACE");
    let pmix_rank = number(lookup, "PMIX_RANK")?;
    let (rank, nranks) = match (open_mpi, &namespace, pmix_rank) {
        (Some(place), ..) => place,
        (None, Some(_), Some(rank)) => match place(lookup, "SLURM_PROCID", "SLURM_NTASKS")? {
            Some((_, nranks)) if rank < nranks => (rank, nranks),
            _ => {
                return Err(format!(
                    "PMIX_NAMESPACE and PMIX_RANK={rank} are set, but neither OMPI_COMM_WORLD_SIZE nor SLURM_NTASKS says how many \
                     processes there are"
                ));
            }
        },
        _ => return Ok(None),
    };
    let local = number(lookup, "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let here = namespace.clone().or_else(|| lookup("OMPI_MCA_ess_base_jobid"));
    let here = here.filter(|_| local == Some(nranks)).map(|job| format!("openmpi/{job}"));
    let way = match (namespace, here) {
        (Some(_), here) => Way::Pmix(here),
        (None, Some(here)) => Way::Host(here),
        (None, None) if nranks == 1 => Way::Host("alone".to_owned()),
        (None, None) => {
            return Err(format!(
                "OMPI_COMM_WORLD_SIZE={nranks}, but neither PMIX_NAMESPACE, by which its processes could find one another, nor \
                 OMPI_MCA_ess_base_jobid with all of them on this host (OMPI_COMM_WORLD_LOCAL_SIZE={}) is set",
                local.map_or("unset".to_owned(), |local| local.to_string())
            ));
        }
    };
    Ok(Some(Job { launcher: NAME, rank, nranks, way }))
}

/// `pmix_proc_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Proc {
    namespace: [c_char; 256],
    rank: u32,
}

/// `pmix_value_t`: the union's largest member is three words.
#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    kind: u16,
    data: [*mut c_void; 3],
}

/// `pmix_info_t`.
#[repr(C)]
struct Info {
    key: [c_char; 512],
    flags: u32,
    value: Value,
}

const BOOL: u16 = 1;
const STRING: u16 = 3;
const GLOBAL: u8 = 3;

/// The calls of libpmix, which stays loaded.
struct Pmix {
    init: unsafe extern "C" fn(*mut Proc, *mut Info, usize) -> c_int,
    put: unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int,
    commit: unsafe extern "C" fn() -> c_int,
    fence: unsafe extern "C" fn(*const Proc, usize, *const Info, usize) -> c_int,
    get: unsafe extern "C" fn(
        *const Proc,
        *const c_char,
        *const Info,
        usize,
        *mut *mut Value,
    ) -> c_int,
    finalize: unsafe extern "C" fn(*const Info, usize) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// Whether PMIx can be used at all.
pub(super) fn load() -> io::Result<()> {
    Pmix::load().map(drop)
}

/// Gives what rank 0 gives to all.
pub(super) fn broadcast(rank: u32, mine: Option<&str>) -> io::Result<String> {
    let pmix = Pmix::load()?;
    let mut me = Proc { namespace: [0; 256], rank: 0 };
    // SAFETY: `me` is writable, and no information is given.
    pmix.check("PMIx_Init", unsafe { (pmix.init)(&raw mut me, std::ptr::null_mut(), 0) })?;
    if me.rank != rank {
        return Err(io::Error::other(format!(
            "PMIx says rank {}, the environment {rank}",
            me.rank
        )));
    }
    if let Some(text) = mine.filter(|_| rank == 0) {
        let text = CString::new(text).map_err(io::Error::other)?;
        let null = std::ptr::null_mut();
        let mut value = Value { kind: STRING, data: [text.as_ptr().cast_mut().cast(), null, null] };
        // SAFETY: key and value are valid for the call, which copies them.
        pmix.check("PMIx_Put", unsafe { (pmix.put)(GLOBAL, KEY.as_ptr(), &raw mut value) })?;
        // SAFETY: it has no preconditions after init.
        pmix.check("PMIx_Commit", unsafe { (pmix.commit)() })?;
    }
    let mut collect = Info {
        key: [0; 512],
        flags: 0,
        value: Value { kind: BOOL, data: [std::ptr::null_mut(); 3] },
    };
    let name = c"pmix.collect".to_bytes();
    collect.key.iter_mut().zip(name).for_each(|(to, &byte)| *to = byte as c_char);
    // `true`, in the first byte of the union.
    collect.value.data[0] = std::ptr::without_provenance_mut(usize::from_le(1));
    // SAFETY: no processes means all of the job; one piece of information is given.
    pmix.check("PMIx_Fence", unsafe { (pmix.fence)(std::ptr::null(), 0, &raw const collect, 1) })?;
    let root = Proc { rank: 0, ..me };
    let mut found: *mut Value = std::ptr::null_mut();
    // SAFETY: the process and the key are valid, and `found` is writable.
    let status =
        unsafe { (pmix.get)(&raw const root, KEY.as_ptr(), std::ptr::null(), 0, &raw mut found) };
    pmix.check("PMIx_Get", status)?;
    // SAFETY: on success it points to a value of libpmix', which is left to it: one string for the life of the process.
    let value =
        unsafe { found.as_ref() }.filter(|value| value.kind == STRING && !value.data[0].is_null());
    let Some(value) = value else {
        return Err(io::Error::other("PMIx_Get: what rank 0 put is not what came"));
    };
    // SAFETY: a value of this kind holds a C string.
    let text = unsafe { CStr::from_ptr(value.data[0].cast()) }.to_string_lossy().into_owned();
    // SAFETY: it has no preconditions after init.
    pmix.check("PMIx_Finalize", unsafe { (pmix.finalize)(std::ptr::null(), 0) })?;
    Ok(text)
}

impl Pmix {
    fn load() -> io::Result<Self> {
        // SAFETY: the name is a C string; the library's constructors are trusted as the launcher is.
        let library =
            unsafe { libc::dlopen(c"libpmix.so.2".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(io::Error::other(format!(
                "libpmix.so.2 cannot be loaded: {}",
                loader_error()
            )));
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library was just loaded and is never closed.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if found.is_null() {
                let name = name.to_string_lossy();
                return Err(io::Error::other(format!("libpmix.so.2 has no {name}")));
            }
            Ok(found)
        };
        // SAFETY: the types of the fields are those of `pmix.h`.
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
        // SAFETY: it returns a constant string for every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy();
        Err(io::Error::other(format!("{call}: {text} ({status})")))
    }
}

/// The address of a function as a pointer to it.
///
/// # Safety
/// `F` must be the type of a pointer to the function that is there.
unsafe fn function<F: Copy>(address: *mut c_void) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: of equal size, and of the right type by the contract.
    unsafe { std::mem::transmute_copy(&address) }
}

fn loader_error() -> String {
    // SAFETY: it returns null or a string that lives until the next call of the loader on this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::under;
    use super::*;

    const OPEN_MPI: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ];

    #[test]
    fn structures_are_those_of_the_header() {
        assert_eq!((size_of::<Proc>(), size_of::<Value>(), size_of::<Info>()), (260, 32, 552));
        assert_eq!(std::mem::offset_of!(Info, value), 520);
    }

    #[test]
    fn open_mpi_on_one_host_does_without_the_library() {
        let job = under(&[&OPEN_MPI[..], &[("PMIX_NAMESPACE", "9"), ("PMIX_RANK", "1")]].concat());
        assert_eq!(job.unwrap().unwrap().way, Way::Pmix(Some("openmpi/9".into())));
        let job = under(&[&OPEN_MPI[..], &[("OMPI_MCA_ess_base_jobid", "9")]].concat());
        assert_eq!(job.unwrap().unwrap().way, Way::Host("openmpi/9".into()));
        let error = under(&OPEN_MPI).unwrap_err();
        assert!(error.contains("neither PMIX_NAMESPACE"), "{error}");
    }

    #[test]
    fn slurm_with_pmix_says_how_many_there_are() {
        let pmix = [("PMIX_NAMESPACE", "slurm.pmix.7.0"), ("PMIX_RANK", "2")];
        assert!(under(&pmix).unwrap_err().contains("says how many"));
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")];
        let job = under(&[&pmix[..], &slurm].concat()).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.way), (2, 4, Way::Pmix(None)));
    }
}
