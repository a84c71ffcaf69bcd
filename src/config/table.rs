//! The table of all environment variables that the library reads, with their texts and readers.

use std::path::PathBuf;
use std::time::Duration;

use maypole_transport::fault::FaultRecipe;

use super::number::integer_in;
use super::parse::{
    parse_bits, parse_bool, parse_debug, parse_device, parse_family, parse_isa, parse_protocol,
    parse_seconds, parse_signal, parse_slot_bytes,
};
use super::protocol_rules::ProtocolRules;
use super::row::{Malformed, Variable, read_row, settings};
use super::values::{
    AddressFamily, BitsSetting, DebugLevel, DeviceKind, HostPort, InterfaceFilter, IsaSetting,
    NodeLabels, ProtocolSetting, SubsystemSet,
};
use super::verbs::VerbsSettings;

settings! {
    /// The configuration of this process, with one typed field for each variable.
    pub struct Config {
        /// The settings of RDMA.
        verbs: VerbsSettings,
    }

    /// What is printed. VERSION prints the version line, WARN also errors and warnings, INFO also
    /// decisions, TRACE also every step.
    debug: DebugLevel = "NCCL_DEBUG" {
        values: "VERSION, WARN, INFO or TRACE, in any case"
        default: "nothing is printed"
        parse: parse_debug,
        initial: DebugLevel::None,
    }
    /// The file to which log lines are appended. %h stands for the host name, %p for the process
    /// id.
    debug_file: Option<String> = "NCCL_DEBUG_FILE" {
        values: "a path"
        default: "standard output"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// The subsystems that print at INFO and TRACE. With a leading ^, all but the listed ones
    /// print. Warnings are never filtered.
    debug_subsystems: SubsystemSet = "NCCL_DEBUG_SUBSYS" {
        values: "comma list of INIT, COLL, P2P, SHM, NET, GRAPH, TUNING, ENV, ALLOC, CALL, \
                 PROXY, NVLS, BOOTSTRAP, REG, PROFILE, RAS, ALL, or ^list"
        default: "INIT,BOOTSTRAP,ENV"
        parse: SubsystemSet::parse,
        initial: SubsystemSet::DEFAULT,
    }
    /// The network interfaces that are used to reach other hosts, by prefix of their names. A
    /// leading = requires the whole name, a leading ^ excludes the listed ones.
    socket_interfaces: Option<InterfaceFilter> = "NCCL_SOCKET_IFNAME" {
        values: "comma list of prefixes, or =list, or ^list"
        default: "ib*, then all others except docker* and lo, then docker*, then lo"
        parse: |text| InterfaceFilter::parse(text).map(Some),
        initial: None,
    }
    /// Restricts sockets to one address family.
    socket_family: Option<AddressFamily> = "NCCL_SOCKET_FAMILY" {
        values: "AF_INET or AF_INET6"
        default: "both"
        parse: parse_family,
        initial: None,
    }
    /// In NCCL, the threads that serve the sockets of a peer. Here one thread per rank serves all
    /// sockets, together with the calling thread. The number of TCP streams to each peer is this
    /// number times NCCL_NSOCKS_PERTHREAD, at most 64.
    socket_threads: u32 = "NCCL_SOCKET_NTHREADS" {
        values: "an integer from 1 to 16"
        default: "1"
        parse: |text| integer_in(text, 1, 16).map(|threads| threads as u32),
        initial: 1,
    }
    /// The number of TCP streams to each peer is this number times NCCL_SOCKET_NTHREADS, at most
    /// 64. Ranks with different settings use the smaller number.
    sockets_per_thread: u32 = "NCCL_NSOCKS_PERTHREAD" {
        values: "an integer from 1 to 64"
        default: "1"
        parse: |text| integer_in(text, 1, 64).map(|sockets| sockets as u32),
        initial: 1,
    }
    /// The address of the bootstrap root, on which rank 0 listens. The unique id then need not be
    /// passed to the ranks, but every rank needs MAYPOLE_SECRET_FILE.
    comm_id: Option<HostPort> = "NCCL_COMM_ID" {
        values: "address:port, [v6 address]:port or host:port"
        default: "the root listens where the unique id is created"
        parse: |text| HostPort::parse(text).map(Some),
        initial: None,
    }
    /// A file of 32 random bytes or 64 hexadecimal digits, or with a phrase of at least 16 bytes,
    /// the same for all ranks and readable by its owner alone. It replaces the secret of the unique
    /// id when NCCL_COMM_ID is set.
    secret_file: Option<PathBuf> = "MAYPOLE_SECRET_FILE" {
        values: "a path"
        default: "none; NCCL_COMM_ID is then refused"
        parse: |text| Some(Some(PathBuf::from(text))),
        initial: None,
    }
    /// Allows NCCL_COMM_ID, and rank 0 of torchrun and srun on another host, without
    /// MAYPOLE_SECRET_FILE: anyone who can connect to rank 0 can then take part. Set it only on a
    /// network that you trust.
    trust_network: bool = "MAYPOLE_TRUST_NETWORK" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// The algorithms that may be chosen. A list without a function applies to the functions that
    /// no other list names, and is ignored for a function where it would allow no algorithm. Names
    /// of NCCL algorithms for other hardware are accepted and match nothing; an unknown word is an
    /// error at init.
    algorithms: Option<String> = "NCCL_ALGO" {
        values: "comma list of names, ^ excludes, per function as in ring,tree;allreduce:^tree"
        default: "the fastest by the cost model"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// The least number of copies of an algorithm that run side by side, each on a part of the
    /// data. All lanes of a rank share its core here, so more than one copy helps only with several
    /// network cards.
    min_channels: Option<u32> = "NCCL_MIN_NCHANNELS" {
        values: "an integer from 1 to 16"
        default: "1"
        parse: |text| integer_in(text, 1, 16).map(|n| Some(n as u32)),
        initial: None,
    }
    /// The greatest number of copies of an algorithm that may run side by side. The cost model
    /// chooses among the least number and the powers of two from there to the greatest.
    max_channels: Option<u32> = "NCCL_MAX_NCHANNELS" {
        values: "an integer from 1 to 64; more than 16 count as 16"
        default: "the least number"
        parse: |text| integer_in(text, 1, 64).map(|n| Some(n as u32)),
        initial: None,
    }
    /// The newer name of NCCL_MIN_NCHANNELS, which takes precedence.
    min_ctas: Option<u32> = "NCCL_MIN_CTAS" {
        values: "an integer from 1 to 16"
        default: "NCCL_MIN_NCHANNELS"
        parse: |text| integer_in(text, 1, 16).map(|n| Some(n as u32)),
        initial: None,
    }
    /// The newer name of NCCL_MAX_NCHANNELS, which takes precedence.
    max_ctas: Option<u32> = "NCCL_MAX_CTAS" {
        values: "an integer from 1 to 64; more than 16 count as 16"
        default: "NCCL_MAX_NCHANNELS"
        parse: |text| integer_in(text, 1, 64).map(|n| Some(n as u32)),
        initial: None,
    }
    /// The node of each rank, instead of the host on which it runs, so that hierarchies can be
    /// tried on one machine. A communicator with another number of ranks uses the hosts.
    nodes: Option<NodeLabels> = "MAYPOLE_NODES" {
        values: "sizes of nodes as in 4+4+2, or a label for each rank as in a,b,a,b"
        default: "the hosts"
        parse: |text| NodeLabels::parse(text).map(Some),
        initial: None,
    }
    /// The node of the rank: ranks with the same text are on one node, instead of ranks on the same
    /// host. MAYPOLE_NODES takes precedence. Whether ranks communicate by shared memory or sockets
    /// still depends on the hosts.
    host_id: Option<String> = "NCCL_HOSTID" {
        values: "a text"
        default: "the host, by its kernel and network namespace"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// How long init waits for missing ranks before it fails and names them.
    init_timeout: Duration = "MAYPOLE_INIT_TIMEOUT" {
        values: "seconds, at least 1"
        default: "600"
        parse: parse_seconds,
        initial: Duration::from_secs(600),
    }
    /// The duration after which a wait is reported: which rank is waited for, and what that rank
    /// does. The report is repeated each time the duration doubles.
    report: Duration = "MAYPOLE_REPORT" {
        values: "seconds, at least 1"
        default: "10"
        parse: parse_seconds,
        initial: Duration::from_secs(10),
    }
    /// The duration after which a wait is an error on all ranks. It is useful where a job must end
    /// rather than wait.
    timeout: Option<Duration> = "MAYPOLE_TIMEOUT" {
        values: "seconds, at least 1"
        default: "never"
        parse: |text| parse_seconds(text).map(Some),
        initial: None,
    }
    /// How long a rank that destroys its communicator, or exits, waits until what it has sent over
    /// TCP has reached the memory of its peers. If that does not suffice, all ranks get an error
    /// that names it.
    flush_timeout: Duration = "MAYPOLE_FLUSH_TIMEOUT" {
        values: "seconds, at least 1"
        default: "30"
        parse: parse_seconds,
        initial: Duration::from_secs(30),
    }
    /// The signal at which the process writes the last calls of its communicators to standard
    /// error. It replaces the program's own handler for that signal.
    dump_signal: Option<i32> = "MAYPOLE_DUMP_SIGNAL" {
        values: "USR1, USR2, HUP, WINCH, URG or a number from 1 to 64, with or without SIG"
        default: "none, and no handler is installed"
        parse: parse_signal,
        initial: None,
    }
    /// Whether processes with communicators answer NCCL's RAS protocol, by which `ncclras` and
    /// other programs ask what communicators do. NCCL does unless this is 0; here it must be asked
    /// for, because another NCCL in the same process would use the same port.
    ras_enable: Option<bool> = "NCCL_RAS_ENABLE" {
        values: "an integer, 0 for no"
        default: "yes if NCCL_RAS_ADDR is set, else no"
        parse: |text| parse_bool(text).map(Some),
        initial: None,
    }
    /// Where processes answer NCCL's RAS protocol; all of them share the port. A program of the
    /// same host must belong to the same user, or to root. Everyone who reaches an address other
    /// than loopback from another host can read what communicators do.
    ras_address: Option<HostPort> = "NCCL_RAS_ADDR" {
        values: "address:port, [v6 address]:port or host:port"
        default: "localhost:28028"
        parse: |text| HostPort::parse(text).map(Some),
        initial: None,
    }
    /// The bytes of one slot of a link.
    slot_bytes: Option<usize> = "MAYPOLE_SLOT_BYTES" {
        values: "bytes, a multiple of 64 from 64 to 1073741824"
        default: "chosen by the transport"
        parse: parse_slot_bytes,
        initial: None,
    }
    /// The slots of a link, which are the messages that may be under way at once.
    slot_depth: Option<u32> = "MAYPOLE_SLOT_DEPTH" {
        values: "an integer from 1 to 1024"
        default: "chosen by the transport"
        parse: |text| integer_in(text, 1, 1024).map(|depth| Some(depth as u32)),
        initial: None,
    }
    /// The size of a chunk from which memory of ncclMemAlloc is lent to other processes of the
    /// host, which read it in place, instead of copied, and from which any memory is sent over TCP
    /// from where it lies. The sender must wait until lent memory is released, which costs more
    /// than to copy a small message.
    lend_from: Option<usize> = "MAYPOLE_LEND_FROM" {
        values: "bytes, at least 0"
        default: "32768; 65536 for memory that the call itself writes again; 262144 over TCP"
        parse: |text| integer_in(text, 0, i64::MAX).map(|bytes| Some(bytes as usize)),
        initial: None,
    }
    /// The memory for which communicators are made where the program does not say: that of a CUDA
    /// device, or that of the host. With host no driver is looked for; with cuda a process without
    /// a usable device gets an error.
    device: DeviceKind = "MAYPOLE_DEVICE" {
        values: "auto, host or cuda"
        default: "auto: a CUDA device if this process sees one, else the host"
        parse: parse_device,
        initial: DeviceKind::Auto,
    }
    /// The bytes of one slot of a link in the memory of a CUDA device.
    gpu_slot_bytes: Option<usize> = "MAYPOLE_GPU_SLOT_BYTES" {
        values: "bytes, a multiple of 64 from 64 to 1073741824"
        default: "chosen by the number of ranks"
        parse: parse_slot_bytes,
        initial: None,
    }
    /// The slots of a link in the memory of a CUDA device.
    gpu_slot_depth: Option<u32> = "MAYPOLE_GPU_SLOT_DEPTH" {
        values: "an integer from 1 to 1024"
        default: "4"
        parse: |text| integer_in(text, 1, 1024).map(|depth| Some(depth as u32)),
        initial: None,
    }
    /// Whether communicators of a CUDA device ask the driver about every pointer of a call, and
    /// refuse a pointer to memory that the device does not reach.
    check_pointers: bool = "NCCL_CHECK_POINTERS" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// The bytes of all slots of a link together, which is NCCL's buffer of a channel for large
    /// messages. MAYPOLE_SLOT_DEPTH slots share them. MAYPOLE_SLOT_BYTES takes precedence.
    buffer_bytes: Option<usize> = "NCCL_BUFFSIZE" {
        values: "bytes, from 256 to 1073741824"
        default: "chosen by the transport, and less than in NCCL"
        parse: |text| integer_in(text, 256, 1 << 30).map(|bytes| Some(bytes as usize)),
        initial: None,
    }
    /// How many times a waiting rank polls before it gives up its core.
    spin: Option<u32> = "MAYPOLE_SPIN" {
        values: "an integer from 0 to 4294967295"
        default: "4000; ranks that outnumber the cores they share poll only while a core is left"
        parse: |text| integer_in(text, 0, i64::from(u32::MAX)).map(|spin| Some(spin as u32)),
        initial: None,
    }
    /// The class of results. Canonical results depend on the ranks alone, not on size, algorithm or
    /// transport; fast results may depend on all of them.
    bits: BitsSetting = "MAYPOLE_BITS" {
        values: "canonical, fast or default"
        default: "default: the library's choice"
        parse: parse_bits,
        initial: BitsSetting::Default,
    }
    /// The instructions that compute reductions. If the processor lacks them, a warning is printed
    /// and the widest that it has are used.
    isa: IsaSetting = "MAYPOLE_ISA" {
        values: "auto, scalar, avx2 or avx512"
        default: "auto: the widest that the processor has"
        parse: parse_isa,
        initial: IsaSetting::Auto,
    }
    /// The protocol by which messages travel: LL messages (small ones only), or slots.
    protocol: ProtocolSetting = "MAYPOLE_PROTO" {
        values: "auto, line or slots"
        default: "auto: by the size of the message"
        parse: parse_protocol,
        initial: ProtocolSetting::Auto,
    }
    /// The same in the terms of NCCL, for all collectives together or for each: LL and LL128 are LL
    /// messages, Simple is slots. MAYPOLE_PROTO takes precedence.
    nccl_protocol: ProtocolRules = "NCCL_PROTO" {
        values: "comma list of LL, LL128 and Simple, or ^list; by collective after its name and a \
                 colon, as ^LL128;allreduce:LL128"
        default: "by the size of the message"
        parse: ProtocolRules::parse,
        initial: ProtocolRules::default(),
    }
    /// For tests: injects faults into the links, at random but the same for the same seed. Messages
    /// and credits are delayed, a part of a message is damaged (tag, payload, length, sequence,
    /// kind or acknowledgement), the process of a rank is killed instead of sending its n-th
    /// message, a rank panics instead, or aborts after it. All messages then travel in slots.
    fault: Option<FaultRecipe> = "MAYPOLE_FAULT" {
        values: "comma list of seed=N, delay=RATE:Nus, backpressure=RATE, corrupt=RATE or \
                 corrupt=RATE:PART, kill=RANK:MESSAGE, panic=RANK:MESSAGE, abort=RANK:MESSAGE; a \
                 rate is from 0 to 1"
        default: "no faults"
        parse: |text| FaultRecipe::parse(text).map(Some),
        initial: None,
    }
    /// Forbids shared memory between processes, which use TCP instead.
    shm_disable: bool = "NCCL_SHM_DISABLE" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// Forbids direct access to the memory of a peer. Ranks that are threads of one process then
    /// communicate as ranks of different processes do.
    p2p_disable: bool = "NCCL_P2P_DISABLE" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// Whether calls that make a communicator return when it is ready (1), or at once (0). It
    /// overrides what the program says.
    blocking: Option<bool> = "NCCL_COMM_BLOCKING" {
        values: "0 or 1"
        default: "what the program says"
        parse: |text| integer_in(text, 0, 1).map(|value| Some(value != 0)),
        initial: None,
    }
    /// The network that connects hosts. IB stands for InfiniBand and RoCE, which two ranks use if
    /// both have a device that can be used; Socket forbids that. Another name is ignored with a
    /// warning.
    net: Option<String> = "NCCL_NET" {
        values: "IB or Socket, in any case"
        default: "IB between ranks that can use it, else Socket"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// A file in NCCL's format that describes this machine in place of what the kernel says, for
    /// NCCL_TOPO_DUMP_FILE, `maypole topo` and `maypole doctor`. Calls do not depend on it.
    topology_file: Option<String> = "NCCL_TOPO_FILE" {
        values: "a path"
        default: "the kernel's files in /sys"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// The file to which the topology of the machine is written, in NCCL's format, when a
    /// communicator is made.
    topology_dump: Option<String> = "NCCL_TOPO_DUMP_FILE" {
        values: "a path"
        default: "nothing is written"
        parse: |text| Some(Some(text.to_owned())),
        initial: None,
    }
    /// The rank that writes NCCL_TOPO_DUMP_FILE.
    topology_dump_rank: u32 = "NCCL_TOPO_DUMP_FILE_RANK" {
        values: "an integer from 0 to 4294967295"
        default: "0"
        parse: |text| integer_in(text, 0, i64::from(u32::MAX)).map(|rank| rank as u32),
        initial: 0,
    }
    /// Whether ncclCommInitAll accepts a device that is listed twice.
    multi_rank_gpu: bool = "NCCL_MULTI_RANK_GPU_ENABLE" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// Whether windows can be registered. If not, ncclCommWindowRegister succeeds and returns NULL.
    windows: bool = "NCCL_WIN_ENABLE" {
        values: "an integer, 0 for no"
        default: "1"
        parse: parse_bool,
        initial: true,
    }
}

impl Config {
    /// Reads the table through `lookup`, which is the environment or a substitute of a test.
    /// Returns the values that could not be parsed too.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> (Self, Vec<Malformed>) {
        let mut malformed = Vec::new();
        (Self::read_rows(&lookup, &mut malformed), malformed)
    }
}

/// The rows of the table.
pub fn table() -> impl Iterator<Item = &'static Variable> {
    Config::ROWS.iter().chain(VerbsSettings::ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> (Config, Vec<Malformed>) {
        Config::read(|requested| (requested == name).then(|| value.to_owned()))
    }

    #[test]
    fn names_are_unique_and_rows_are_complete() {
        let mut names: Vec<_> = table().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table().count());
        for row in table() {
            assert!(!row.effect.trim().is_empty() && !row.form.is_empty(), "{}", row.name);
        }
    }

    #[test]
    fn each_row_reads_its_own_variable() {
        // Only the free texts accept this value: it is no number, no word and an empty list. Each
        // other variable must report it, by its own name.
        for row in table() {
            let (_, malformed) = with(row.name, "^=,");
            let free = [
                "NCCL_DEBUG_FILE",
                "MAYPOLE_SECRET_FILE",
                "NCCL_ALGO",
                "NCCL_NET",
                "MAYPOLE_VERBS_LIBRARY",
                "NCCL_HOSTID",
                "NCCL_TOPO_FILE",
                "NCCL_TOPO_DUMP_FILE",
            ];
            let free = free.contains(&row.name);
            let reported: Vec<_> = malformed.iter().map(|value| value.name).collect();
            assert_eq!(reported, if free { vec![] } else { vec![row.name] });
        }
    }

    #[test]
    fn a_malformed_value_is_explained() {
        let (config, malformed) = with("MAYPOLE_SPIN", "lots");
        assert_eq!(config, Config::default());
        let text = malformed[0].to_string();
        assert!(text.contains("MAYPOLE_SPIN") && text.contains("lots") && text.contains("integer"));
    }
}
