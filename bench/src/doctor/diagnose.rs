//! What the facts mean for the library.

use super::parse::{bytes, chosen, cpu_max, limit, listed, meminfo};
use super::{Facts, Finding, Verdict};

/// Descriptors that 64 ranks of a host need, with some to spare for the program: a few for each peer.
const DESCRIPTORS: u64 = 1024;
/// Memory below which a job of a few ranks with default slots is cramped.
const MEMORY: u64 = 256 << 20;
/// Processes and threads that should be free.
const PIDS: u64 = 64;

pub(super) fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![cores(facts), simd(facts)];
    all.extend(caches(facts));
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

fn finding(
    what: &'static str,
    found: String,
    verdict: Verdict,
    means: &str,
    change: &str,
) -> Finding {
    Finding { what, found, verdict, means: means.to_owned(), change: change.to_owned() }
}

fn fine(what: &'static str, found: String) -> Finding {
    finding(what, found, Verdict::Fine, "", "")
}

fn cores(facts: &Facts) -> Finding {
    let Facts { affinity, online, .. } = *facts;
    let quota = facts.cpu_max.as_deref().and_then(cpu_max);
    let limit = quota.map_or("no quota".to_owned(), |cores| format!("a quota of {cores:.1}"));
    let found = format!("{affinity} of {online} online, {limit}");
    match quota {
        Some(cores) if cores < affinity as f64 => finding(
            "cores",
            found,
            Verdict::Hurts,
            "a process that has used up its quota stands still for the rest of the period, with all who wait for it",
            "raise the container's CPU limit, or pin it to that many cores instead (docker --cpuset-cpus)",
        ),
        _ if affinity == 1 => finding(
            "cores",
            found,
            Verdict::Note,
            "ranks share one core: calls take as long as the scheduler's turns",
            "give the job more cores, or a wider affinity mask",
        ),
        _ if affinity < online => finding(
            "cores",
            found,
            Verdict::Note,
            "the affinity mask leaves some out; ranks beyond the mask's size share cores",
            "",
        ),
        _ => fine("cores", found),
    }
}

fn simd(facts: &Facts) -> Finding {
    let has = |name: &str| facts.cpu_flags.iter().any(|flag| flag == name);
    let sets = ["avx512f", "avx2", "f16c"].into_iter().filter(|name| has(name)).collect::<Vec<_>>();
    if has("avx2") {
        return fine("instructions", sets.join(" "));
    }
    finding(
        "instructions",
        if sets.is_empty() { "no AVX2".to_owned() } else { sets.join(" ") },
        Verdict::Note,
        "reductions run on scalar code, several times slower for large messages",
        "if this is a virtual machine, give it the host's processor model",
    )
}

fn caches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    if !facts.caches.is_empty() {
        all.push(fine("caches", facts.caches.join(", ")));
    }
    let nodes = facts.numa.as_deref().map_or(0, listed);
    all.push(match nodes {
        0 | 1 => fine("NUMA", "one node".to_owned()),
        nodes => finding(
            "NUMA",
            format!("{nodes} nodes"),
            Verdict::Note,
            "a rank that the scheduler moves to another node leaves its memory behind",
            "pin ranks (mpirun --bind-to core, numactl)",
        ),
    });
    all
}

fn memory(facts: &Facts) -> Finding {
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
            Verdict::Hurts,
            "the kernel ends a rank that needs more, without a word from us; all others then fail with its number",
            "raise the limit (docker --memory), or lower MAYPOLE_SLOT_BYTES and MAYPOLE_SLOT_DEPTH",
        );
    }
    fine("memory", found)
}

fn huge_pages(facts: &Facts) -> Finding {
    let reserved = meminfo(&facts.meminfo, "HugePages_Total").unwrap_or(0);
    let transparent = facts.transparent_huge.as_deref().and_then(chosen).unwrap_or("not there");
    fine("huge pages", format!("transparent: {transparent}; reserved: {reserved}; none is needed"))
}

fn shm(facts: &Facts) -> Finding {
    let size = facts.dev_shm.map_or("not there".to_owned(), |free| format!("{} free", bytes(free)));
    fine("/dev/shm", format!("{size}; it is not used: shared memory is passed as descriptors"))
}

fn descriptors(facts: &Facts) -> Finding {
    let (soft, hard) = facts.descriptors;
    let found = format!("{soft} at once, {hard} at most");
    match soft {
        ..DESCRIPTORS => finding(
            "descriptors",
            found,
            Verdict::Hurts,
            "a rank has a few descriptors open for each peer; init fails when there are none left",
            &format!("ulimit -n {}", hard.clamp(DESCRIPTORS, 65536)),
        ),
        _ => fine("descriptors", found),
    }
}

fn memlock(facts: &Facts) -> Finding {
    let found = bytes(facts.memlock);
    if facts.verbs_devices.is_empty() || facts.memlock >= 1 << 30 {
        return fine("locked memory", found);
    }
    finding(
        "locked memory",
        found,
        Verdict::Hurts,
        "an RDMA device locks the memory it reads and writes",
        "ulimit -l unlimited (in a container: docker --ulimit memlock=-1)",
    )
}

fn pids(facts: &Facts) -> Finding {
    let Some(most) = limit(&facts.pids_max) else {
        return fine("processes", "no limit of the control group".to_owned());
    };
    let used = limit(&facts.pids_current).unwrap_or(0);
    let found = format!("{used} of at most {most} in the control group");
    if most.saturating_sub(used) < PIDS {
        return finding(
            "processes",
            found,
            Verdict::Hurts,
            "every process with a communicator has a service thread; init fails if it cannot start",
            "raise the limit (docker --pids-limit)",
        );
    }
    fine("processes", found)
}

fn interfaces(facts: &Facts) -> Finding {
    let one = |it: &super::Interface| {
        let speed = it.speed.map_or("speed unknown".to_owned(), |speed| format!("{speed} Mbit/s"));
        let mtu = it.mtu.map_or(String::new(), |mtu| format!(", packets of {mtu}"));
        format!("{} ({speed}{mtu})", it.name)
    };
    let list = facts.interfaces.iter().map(one).collect::<Vec<_>>().join(", ");
    match &facts.no_choice {
        Some(why) => finding(
            "interfaces",
            if list.is_empty() { "none is up".to_owned() } else { list },
            Verdict::Hurts,
            why,
            "name one that is up in NCCL_SOCKET_IFNAME, or unset it; bring up at least lo",
        ),
        None => {
            let found = format!("{list}; used: {}", facts.chosen.join(" "));
            if facts.chosen.iter().all(|it| it.starts_with("127.") || it == "::1") {
                let means = "only loopback is used: ranks of other hosts cannot come";
                return finding("interfaces", found, Verdict::Note, means, "");
            }
            fine("interfaces", found)
        }
    }
}

fn ports(facts: &Facts) -> Finding {
    let bad: Vec<_> = facts
        .reachable
        .iter()
        .filter_map(|(address, result)| Some(format!("{address}: {}", result.as_ref().err()?)))
        .collect();
    if bad.is_empty() {
        let count = facts.reachable.len();
        return fine("ports", format!("{count} of {count} own addresses listen and are reached"));
    }
    finding(
        "ports",
        bad.join("; "),
        Verdict::Hurts,
        "ranks find one another over TCP, those of one host too",
        "let this host reach itself at its own addresses: look at firewall rules and NCCL_SOCKET_IFNAME",
    )
}

fn verbs(facts: &Facts) -> Finding {
    match (facts.verbs_devices.as_slice(), facts.verbs_library) {
        ([], library) => {
            let library = if library { "is there" } else { "is not there" };
            fine("RDMA", format!("no device; libibverbs {library}; TCP is used"))
        }
        (devices, true) => fine("RDMA", format!("{}; libibverbs loads", devices.join(", "))),
        (devices, false) => finding(
            "RDMA",
            format!("{}, but libibverbs.so.1 does not load", devices.join(", ")),
            Verdict::Note,
            "the device cannot be used; TCP is used",
            "install libibverbs1 and the device's provider (Debian: ibverbs-providers)",
        ),
    }
}

fn gpu(facts: &Facts) -> Finding {
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
            Verdict::Hurts,
            "the GPUs cannot be used",
            "in a container: nvidia-container-toolkit with the capability `compute`; else install the driver's libraries",
        ),
    }
}

/// `/dev/nvidia0`, but not `/dev/nvidiactl`.
fn numbered(node: &str) -> bool {
    node.trim_start_matches("/dev/nvidia").chars().all(|c| c.is_ascii_digit())
}

fn ptrace(facts: &Facts) -> Finding {
    let scope = facts.ptrace_scope.as_deref().map(str::trim);
    let found = match scope {
        None => "no restrictions of Yama".to_owned(),
        Some("0") => "processes of a user may look at each other".to_owned(),
        Some(other) => format!("Yama's ptrace_scope is {other}"),
    };
    // Nothing here reads another process' memory.
    fine("ptrace", found + "; nothing of ours needs it")
}

fn kernel(facts: &Facts) -> Finding {
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
    let (verdict, means) = if essential {
        (
            Verdict::Hurts,
            "processes of this host cannot share memory, or cannot wait for one another",
        )
    } else {
        (
            Verdict::Note,
            "the death of a peer is noticed by the end of its connections alone, a little later",
        )
    };
    let change = "allow the call: look at the container's seccomp profile, or use a newer kernel";
    finding("kernel", bad.join("; "), verdict, means, change)
}

#[cfg(test)]
mod tests {
    use super::super::Interface;
    use super::*;

    /// A machine with nothing wrong.
    fn healthy() -> Facts {
        Facts {
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
            interfaces: vec![Interface {
                name: "eth0".into(),
                speed: Some(10000),
                mtu: Some(1500),
            }],
            reachable: vec![("10.0.0.1".into(), Ok(()))],
            chosen: vec!["10.0.0.1".into(), "127.0.0.1".into()],
            calls: vec![("memfd_create", Ok(())), ("pidfd_open", Ok(()))],
            ..Facts::default()
        }
    }

    #[test]
    fn a_healthy_machine_is_fine() {
        let bad: Vec<_> =
            diagnose(&healthy()).into_iter().filter(|it| it.verdict != Verdict::Fine).collect();
        assert_eq!(bad, []);
    }

    #[test]
    fn every_illness_is_found_alone_and_can_be_helped() {
        type Illness = (&'static str, fn(&mut Facts));
        let illnesses: [Illness; 9] = [
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
        for (what, fall_ill) in illnesses {
            let mut facts = healthy();
            fall_ill(&mut facts);
            let bad: Vec<_> =
                diagnose(&facts).into_iter().filter(|it| it.verdict == Verdict::Hurts).collect();
            assert_eq!(bad.iter().map(|it| it.what).collect::<Vec<_>>(), [what]);
            assert!(!bad[0].means.is_empty() && !bad[0].change.is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn a_call_that_is_forbidden_hurts_only_if_it_is_needed() {
        let verdict = |call| {
            let facts = Facts { calls: vec![(call, Err("not permitted".into()))], ..healthy() };
            kernel(&facts).verdict
        };
        assert_eq!(
            (verdict("memfd_create"), verdict("pidfd_open")),
            (Verdict::Hurts, Verdict::Note)
        );
    }
}
