//! Reads the properties of this machine. Nothing is judged here, and what cannot be read is left
//! out.

use std::ffi::CStr;
use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use maypole::config::Config;
use maypole::internal::topology::{self, Inventory};

use super::parse::list_length;
use super::{MachineFacts, NetworkInterface};

/// How long a connection of this host to itself may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn read() -> MachineFacts {
    let group = control_group();
    let group_value = |name: &str| text(group.join(name));
    let addresses = maypole::internal::bootstrap::addresses(Config::get());
    let reachable =
        addresses.iter().flatten().map(|&ip| (ip.to_string(), connect_to_self(ip))).collect();
    let chosen = addresses.iter().flatten().map(ToString::to_string).collect();
    let no_choice = addresses.err().map(|error| error.to_string());
    let inventory = topology::read(Path::new("/"));
    MachineFacts {
        affinity: affinity(),
        online: text("/sys/devices/system/cpu/online").map_or(0, |it| list_length(&it)),
        cpu_max: group_value("cpu.max"),
        cpu_flags: cpu_flags(),
        caches: caches(),
        numa: text("/sys/devices/system/node/online"),
        governors: governors(&inventory),
        inventory,
        clock_driver: text(format!("{}/scaling_driver", clock_folder(0)))
            .map(|it| it.trim().to_owned()),
        topology_file: Config::get().topology_file.clone().map(|path| {
            let read = topology::read_file(Path::new(&path));
            (path, read.map(drop).map_err(|error| error.to_string()))
        }),
        meminfo: text("/proc/meminfo").unwrap_or_default(),
        transparent_huge: text("/sys/kernel/mm/transparent_hugepage/enabled"),
        memory_max: group_value("memory.max"),
        memory_current: group_value("memory.current"),
        pids_max: group_value("pids.max"),
        pids_current: group_value("pids.current"),
        dev_shm: free_bytes(c"/dev/shm"),
        descriptors: resource(libc::RLIMIT_NOFILE),
        memlock: resource(libc::RLIMIT_MEMLOCK).0,
        interfaces: interfaces(),
        reachable,
        chosen,
        no_choice,
        verbs_devices: names("/sys/class/infiniband"),
        verbs_library: loads(c"libibverbs.so.1"),
        gpu_nodes: names("/dev")
            .into_iter()
            .filter(|name| name.starts_with("nvidia"))
            .map(|name| format!("/dev/{name}"))
            .collect(),
        cuda_library: loads(c"libcuda.so.1"),
        gpu_driver: text("/proc/driver/nvidia/version"),
        ptrace_scope: text("/proc/sys/kernel/yama/ptrace_scope"),
        calls: calls(),
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn names(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The control group (version 2) of this process. In a container the mounted tree begins at it.
fn control_group() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let own = text("/proc/self/cgroup")
        .and_then(|it| it.lines().find_map(|line| line.strip_prefix("0::/").map(str::to_owned)))
        .map(|path| root.join(path));
    own.filter(|path| path.join("pids.max").exists()).unwrap_or_else(|| root.to_owned())
}

/// The number of processors in the affinity mask. The control group may allow fewer.
fn affinity() -> usize {
    // SAFETY: an all-zero set is valid, and the kernel writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) {
            0 => libc::CPU_COUNT(&set) as usize,
            _ => 0,
        }
    }
}

fn cpu_flags() -> Vec<String> {
    let text = text("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags = line.and_then(|line| line.split_once(':')).map(|(_, flags)| flags);
    flags.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn caches() -> Vec<String> {
    let base = Path::new("/sys/devices/system/cpu/cpu0/cache");
    names("/sys/devices/system/cpu/cpu0/cache")
        .iter()
        .filter(|name| name.starts_with("index"))
        .filter_map(|name| {
            let field = |field| Some(text(base.join(name).join(field))?.trim().to_owned());
            Some(format!(
                "L{} {} {}",
                field("level")?,
                field("type")?.to_lowercase(),
                field("size")?
            ))
        })
        .collect()
}

fn clock_folder(cpu: u32) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq")
}

/// How the clocks of the allowed processors are controlled, each way once.
fn governors(inventory: &Inventory) -> Vec<String> {
    let of = |cpu| text(format!("{}/scaling_governor", clock_folder(cpu)));
    let mut governors: Vec<_> =
        inventory.allowed.iter().filter_map(of).map(|it| it.trim().to_owned()).collect();
    governors.sort();
    governors.dedup();
    governors
}

fn free_bytes(path: &CStr) -> Option<u64> {
    // SAFETY: the path is a C string; an all-zero structure is valid, and it is writable.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        let status = libc::statvfs(path.as_ptr(), &raw mut found);
        (status == 0).then_some(found.f_bavail * found.f_frsize)
    }
}

fn resource(which: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(which, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

fn interfaces() -> Vec<NetworkInterface> {
    let base = Path::new("/sys/class/net");
    names("/sys/class/net")
        .into_iter()
        .filter(|name| {
            // Loopback and tunnels are up, although their state is `unknown`.
            text(base.join(name).join("operstate")).is_some_and(|it| it.trim() != "down")
        })
        .map(|name| {
            let number = |field| text(base.join(&name).join(field))?.trim().parse().ok();
            NetworkInterface { speed: number("speed"), mtu: number("mtu"), name }
        })
        .collect()
}

/// Listens at an address of this host and connects to it.
fn connect_to_self(ip: IpAddr) -> Result<(), String> {
    let listener = TcpListener::bind((ip, 0)).map_err(|error| format!("cannot listen: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .map(drop)
        .map_err(|error| format!("cannot be reached: {error}"))
}

/// Whether a shared library can be loaded.
fn loads(name: &CStr) -> bool {
    // SAFETY: the name is a C string. The constructors of the loaded library are trusted: Maypole
    // loads the same driver libraries.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null()
}

/// Tries the system calls that not every kernel or container allows. The trials change nothing.
fn calls() -> Vec<(&'static str, Result<(), String>)> {
    // SAFETY: the name is a C string.
    let memfd = unsafe { libc::memfd_create(c"maypole-doctor".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: pidfd_open takes two numbers and no pointer.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let mut word = 1_u32;
    // SAFETY: `word` outlives the call, which wakes no thread and returns at once.
    let futex = unsafe { libc::syscall(libc::SYS_futex, &raw mut word, libc::FUTEX_WAKE, 0) };
    vec![
        ("memfd_create", opened(i64::from(memfd))),
        ("pidfd_open", opened(pidfd)),
        ("futex", if futex < 0 { opened(futex) } else { Ok(()) }),
        ("fork", fork()),
    ]
}

/// Closes a descriptor that was just opened, or returns why it could not be opened.
fn opened(fd: i64) -> Result<(), String> {
    match libc::c_int::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

fn fork() -> Result<(), String> {
    // SAFETY: the child calls only _exit, which is async-signal-safe.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => {
            // SAFETY: `child` is a child of this process, and a null status pointer is allowed.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            Ok(())
        }
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}
