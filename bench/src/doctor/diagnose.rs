//! What the properties of a machine mean for the library, and what to change.

use super::hardware;
use super::parse::{bytes, chosen_word, cpu_max, limit, list_length, meminfo};
use super::{Finding, MachineFacts, Severity, finding, fine};

/// The open descriptors that a program with 64 peers on a host needs: a few for each peer, and some
/// for the program.
const DESCRIPTORS: u64 = 1024;
/// The memory that a job of a few ranks with default slots needs, in bytes.
const MEMORY: u64 = 256 << 20;
/// The number of further processes and threads that should be allowed.
const PIDS: u64 = 64;

pub(super) fn diagnose(facts: &MachineFacts) -> Vec<Finding> {
    let mut all = vec![cores(facts), simd(facts)];
    all.extend(caches(facts));
    all.extend(hardware::diagnose(facts));
    all.extend([
        memory(facts),
        huge_pages(facts),
        shm(facts),
        descriptors(facts),
        memlock(facts),
        pids(facts),
        interfaces(facts),
        ports(facts),
        verbs(facts),
        gpu(facts),
        ptrace(facts),
        kernel(facts),
    ]);
    all
}

fn cores(facts: &MachineFacts) -> Finding {
    let MachineFacts { affinity, online, .. } = *facts;
    let quota = facts.cpu_max.as_deref().and_then(cpu_max);
    let limit = quota.map_or("no quota".to_owned(), |cores| format!("a quota of {cores:.1}"));
    let found = format!("{affinity} of {online} online, {limit}");
    match quota {
        Some(cores) if cores < affinity as f64 => finding(
            "cores",
            found,
            Severity::Hurts,
            "a process that has used up its quota stops until the next period, and so do the ranks \
             that wait for it",
            "raise the CPU limit of the container, or pin it to that many cores instead (docker \
             --cpuset-cpus)",
        ),
        _ if affinity == 1 => finding(
            "cores",
            found,
            Severity::Note,
            "all ranks share one core, so a call takes as long as the scheduler's time slices",
            "give the job more cores, or an affinity mask with more cores",
        ),
        _ if affinity < online => finding(
            "cores",
            found,
            Severity::Note,
            "the affinity mask excludes some cores; with more ranks than allowed cores, ranks \
             share cores",
            "",
        ),
        _ => fine("cores", found),
    }
}

fn simd(facts: &MachineFacts) -> Finding {
    let has = |name: &str| facts.cpu_flags.iter().any(|flag| flag == name);
    let sets = ["avx512f", "avx2", "f16c"].into_iter().filter(|name| has(name)).collect::<Vec<_>>();
    if has("avx2") {
        return fine("instructions", sets.join(" "));
    }
    finding(
        "instructions",
        if sets.is_empty() { "no AVX2".to_owned() } else { sets.join(" ") },
        Severity::Note,
        "reductions use scalar code, which is several times slower for large messages",
        "if this is a virtual machine, give it the processor model of its host",
    )
}

fn caches(facts: &MachineFacts) -> Vec<Finding> {
    let mut all = Vec::new();
    if !facts.caches.is_empty() {
        all.push(fine("caches", facts.caches.join(", ")));
    }
    let nodes = facts.numa.as_deref().map_or(0, list_length);
    all.push(match nodes {
        0 => finding(
            "NUMA",
            "not known: /sys/devices/system/node is missing".to_owned(),
            Severity::Note,
            "it cannot be seen which processors and devices are near each other",
            "mount /sys in the container; a kernel without NUMA has no such folder",
        ),
        1 => fine("NUMA", "one node".to_owned()),
        nodes => finding(
            "NUMA",
            format!("{nodes} nodes"),
            Severity::Note,
            "if the scheduler moves a rank to another NUMA node, its memory stays on the first one",
            "pin ranks (mpirun --bind-to core, numactl)",
        ),
    });
    all
}

fn memory(facts: &MachineFacts) -> Finding {
    let available = meminfo(&facts.meminfo, "MemAvailable").unwrap_or(u64::MAX);
    let left = limit(&facts.memory_max)
        .map(|most| most.saturating_sub(limit(&facts.memory_current).unwrap_or(0)));
    let usable = available.min(left.unwrap_or(u64::MAX));
    let group = left.map_or("no limit of the control group".to_owned(), |left| {
        format!("{} left of the control group's limit", bytes(left))
    });
    let found = format!("{} available, {group}", bytes(available));
    if usable < MEMORY {
        return finding(
            "memory",
            found,
            Severity::Hurts,
            "the kernel kills a rank that needs more memory, without a message of the library; the \
             other ranks then fail and name it",
            "raise the limit (docker --memory), or lower MAYPOLE_SLOT_BYTES and MAYPOLE_SLOT_DEPTH",
        );
    }
    fine("memory", found)
}

fn huge_pages(facts: &MachineFacts) -> Finding {
    let reserved = meminfo(&facts.meminfo, "HugePages_Total").unwrap_or(0);
    let transparent =
        facts.transparent_huge.as_deref().and_then(chosen_word).unwrap_or("not available");
    fine(
        "huge pages",
        format!("transparent: {transparent}; reserved: {reserved}; Maypole needs none"),
    )
}

fn shm(facts: &MachineFacts) -> Finding {
    let size =
        facts.dev_shm.map_or("not available".to_owned(), |free| format!("{} free", bytes(free)));
    fine("/dev/shm", format!("{size}; not used: shared memory is passed as descriptors"))
}

fn descriptors(facts: &MachineFacts) -> Finding {
    let (soft, hard) = facts.descriptors;
    let found = format!("{soft} at once, {hard} at most");
    match soft {
        ..DESCRIPTORS => finding(
            "descriptors",
            found,
            Severity::Hurts,
            "a rank opens a few descriptors for each peer; initialization fails if there are \
             none left",
            &format!("ulimit -n {}", hard.clamp(DESCRIPTORS, 65536)),
        ),
        _ => fine("descriptors", found),
    }
}

fn memlock(facts: &MachineFacts) -> Finding {
    let found = bytes(facts.memlock);
    if facts.verbs_devices.is_empty() || facts.memlock >= 1 << 30 {
        return fine("locked memory", found);
    }
    finding(
        "locked memory",
        found,
        Severity::Hurts,
        "an RDMA device locks the memory that it reads and writes",
        "ulimit -l unlimited (in a container: docker --ulimit memlock=-1)",
    )
}

fn pids(facts: &MachineFacts) -> Finding {
    let Some(most) = limit(&facts.pids_max) else {
        return fine("processes", "no limit of the control group".to_owned());
    };
    let used = limit(&facts.pids_current).unwrap_or(0);
    let found = format!("{used} of at most {most} in the control group");
    if most.saturating_sub(used) < PIDS {
        return finding(
            "processes",
            found,
            Severity::Hurts,
            "every process with a communicator has a service thread; initialization fails if it \
             cannot start",
            "raise the limit (docker --pids-limit)",
        );
    }
    fine("processes", found)
}

fn interfaces(facts: &MachineFacts) -> Finding {
    let one = |it: &super::NetworkInterface| {
        let speed = it.speed.map_or("speed unknown".to_owned(), |speed| format!("{speed} Mbit/s"));
        let mtu = it.mtu.map_or(String::new(), |mtu| format!(", packets of {mtu}"));
        format!("{} ({speed}{mtu})", it.name)
    };
    let list = facts.interfaces.iter().map(one).collect::<Vec<_>>().join(", ");
    match &facts.no_choice {
        Some(why) => finding(
            "interfaces",
            if list.is_empty() { "none is up".to_owned() } else { list },
            Severity::Hurts,
            why,
            "set NCCL_SOCKET_IFNAME to an interface that is up, or unset it; at least lo must be \
             up",
        ),
        None => {
            let found = format!("{list}; used: {}", facts.chosen.join(" "));
            if facts.chosen.iter().all(|it| it.starts_with("127.") || it == "::1") {
                let means = "only loopback is used, so ranks of other hosts cannot connect";
                return finding("interfaces", found, Severity::Note, means, "");
            }
            fine("interfaces", found)
        }
    }
}

fn ports(facts: &MachineFacts) -> Finding {
    let bad: Vec<_> = facts
        .reachable
        .iter()
        .filter_map(|(address, result)| Some(format!("{address}: {}", result.as_ref().err()?)))
        .collect();
    if bad.is_empty() {
        let count = facts.reachable.len();
        return fine("ports", format!("{count} of {count} addresses of this host can be reached"));
    }
    finding(
        "ports",
        bad.join("; "),
        Severity::Hurts,
        "ranks find each other over TCP, on the same host too",
        "make this host reachable from itself at its own addresses: check firewall rules and \
         NCCL_SOCKET_IFNAME",
    )
}

fn verbs(facts: &MachineFacts) -> Finding {
    match (facts.verbs_devices.as_slice(), facts.verbs_library) {
        ([], library) => {
            let library = if library { "is installed" } else { "is not installed" };
            fine("RDMA", format!("no device; libibverbs {library}; TCP is used"))
        }
        (devices, true) => fine("RDMA", format!("{}; libibverbs loads", devices.join(", "))),
        (devices, false) => finding(
            "RDMA",
            format!("{}, but libibverbs.so.1 does not load", devices.join(", ")),
            Severity::Note,
            "the device cannot be used; TCP is used",
            "install libibverbs1 and the provider of the device (Debian: ibverbs-providers)",
        ),
    }
}

fn gpu(facts: &MachineFacts) -> Finding {
    let nodes = facts.gpu_nodes.iter().filter(|node| numbered(node)).count();
    let driver =
        facts.gpu_driver.as_deref().unwrap_or("no driver").lines().next().unwrap_or_default();
    match (nodes, facts.cuda_library) {
        (0, false) => fine("GPU", "none; host memory is used".to_owned()),
        (0, true) => {
            fine("GPU", "libcuda loads, but there is no device; host memory is used".to_owned())
        }
        (_, true) => fine("GPU", format!("{nodes}; {driver}; libcuda loads")),
        (_, false) => finding(
            "GPU",
            format!("{nodes}; {driver}; libcuda.so.1 does not load"),
            Severity::Hurts,
            "the GPUs cannot be used",
            "in a container: use nvidia-container-toolkit with the capability `compute`; otherwise \
             install the libraries of the driver",
        ),
    }
}

/// `/dev/nvidia0`, but not `/dev/nvidiactl`.
fn numbered(node: &str) -> bool {
    node.trim_start_matches("/dev/nvidia").chars().all(|c| c.is_ascii_digit())
}

fn ptrace(facts: &MachineFacts) -> Finding {
    let scope = facts.ptrace_scope.as_deref().map(str::trim);
    let found = match scope {
        None => "no restrictions of Yama".to_owned(),
        Some("0") => "processes of one user may read each other's memory".to_owned(),
        Some(other) => format!("Yama's ptrace_scope is {other}"),
    };
    // The library does not read another process's memory.
    fine("ptrace", found + "; Maypole does not need it")
}

fn kernel(facts: &MachineFacts) -> Finding {
    let bad: Vec<_> = facts
        .calls
        .iter()
        .filter_map(|(call, result)| Some(format!("{call}: {}", result.as_ref().err()?)))
        .collect();
    if bad.is_empty() {
        let names: Vec<_> = facts.calls.iter().map(|(name, _)| *name).collect();
        return fine("kernel", format!("{} work", names.join(", ")));
    }
    let essential = bad.iter().any(|it| !it.starts_with("pidfd_open"));
    let (severity, means) = if essential {
        (
            Severity::Hurts,
            "processes of this host cannot share memory, or cannot wait for each other",
        )
    } else {
        (
            Severity::Note,
            "the death of a peer is noticed only when its connections end, a little later",
        )
    };
    let change =
        "allow the system call: check the seccomp profile of the container, or use a newer kernel";
    finding("kernel", bad.join("; "), severity, means, change)
}

#[cfg(test)]
mod tests {
    use super::super::NetworkInterface;
    use super::*;

    /// A machine without a fault.
    fn healthy() -> MachineFacts {
        MachineFacts {
            affinity: 8,
            online: 8,
            cpu_max: Some("max 100000".into()),
            cpu_flags: ["sse2", "avx2", "f16c"].map(String::from).to_vec(),
            numa: Some("0".into()),
            meminfo: "MemAvailable: 8000000 kB\n".into(),
            memory_max: Some("max".into()),
            pids_max: Some("max".into()),
            descriptors: (65536, 1 << 20),
            memlock: 65536,
            interfaces: vec![NetworkInterface {
                name: "eth0".into(),
                speed: Some(10000),
                mtu: Some(1500),
            }],
            reachable: vec![("10.0.0.1".into(), Ok(()))],
            chosen: vec!["10.0.0.1".into(), "127.0.0.1".into()],
            calls: vec![("memfd_create", Ok(())), ("pidfd_open", Ok(()))],
            ..MachineFacts::default()
        }
    }

    #[test]
    fn a_healthy_machine_is_fine() {
        let bad: Vec<_> =
            diagnose(&healthy()).into_iter().filter(|it| it.severity != Severity::Fine).collect();
        assert_eq!(bad, []);
    }

    #[test]
    fn every_fault_is_found_alone_and_has_a_remedy() {
        type Fault = (&'static str, fn(&mut MachineFacts));
        let faults: [Fault; 9] = [
            ("cores", |it| it.cpu_max = Some("150000 100000".into())),
            ("memory", |it| it.meminfo = "MemAvailable: 1000 kB\n".into()),
            ("memory", |it| {
                it.memory_max = Some((512_u64 << 20).to_string());
                it.memory_current = Some((500_u64 << 20).to_string());
            }),
            ("descriptors", |it| it.descriptors = (256, 4096)),
            ("locked memory", |it| {
                it.verbs_devices = vec!["mlx5_0".into()];
                it.verbs_library = true;
            }),
            ("processes", |it| {
                it.pids_max = Some("100".into());
                it.pids_current = Some("90".into());
            }),
            ("interfaces", |it| it.no_choice = Some("no interface that is up matches".into())),
            ("ports", |it| it.reachable[0].1 = Err("connection refused".into())),
            ("GPU", |it| it.gpu_nodes = vec!["/dev/nvidia0".into(), "/dev/nvidiactl".into()]),
        ];
        for (what, break_it) in faults {
            let mut facts = healthy();
            break_it(&mut facts);
            let bad: Vec<_> =
                diagnose(&facts).into_iter().filter(|it| it.severity == Severity::Hurts).collect();
            assert_eq!(bad.iter().map(|it| it.what).collect::<Vec<_>>(), [what]);
            assert!(!bad[0].means.is_empty() && !bad[0].change.is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn a_forbidden_system_call_hurts_only_if_it_is_needed() {
        let severity = |call| {
            let facts =
                MachineFacts { calls: vec![(call, Err("not permitted".into()))], ..healthy() };
            kernel(&facts).severity
        };
        assert_eq!(
            (severity("memfd_create"), severity("pidfd_open")),
            (Severity::Hurts, Severity::Note)
        );
    }
}
