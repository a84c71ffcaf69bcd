//! The configuration table: every environment variable the library reads, in one place.
//!
//! The table is the only global state besides the logger. It is read from the environment, and from files as NCCL
//! reads them, once, at the first [`Config::get`]. A value that cannot be read is never silently ignored: a warning names the variable,
//! the value, the form that was expected and the default that is used instead. As in NCCL, an empty value means that the
//! variable is not set; integers may be decimal, `0x` hexadecimal or `0` octal; a boolean is an integer, 0 for no.
//!
//! `docs/environment.md` is the table rendered by [`document`]; a test holds them equal. To write it again:
//! `MAYPOLE_REGENERATE_DOCS=1 cargo test -p maypole config`.

mod file;
mod foreign;
mod parse;
mod values;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use maypole_transport::fault::FaultRecipe;
use maypole_transport::tcp::MOST_STREAMS;

pub use file::{SettingOrigin, lookup};
pub use foreign::{Setting, ineffective, log_settings, settings};
pub use parse::integer;
use parse::{
    integer_in, parse_bits, parse_bool, parse_debug, parse_device, parse_family, parse_isa,
    parse_nccl_protocol, parse_protocol, parse_seconds, parse_signal, parse_slot_bytes,
};
pub use values::{
    AddressFamily, BitsSetting, DebugLevel, DeviceKind, HostPort, InterfaceFilter, IsaSetting,
    NodeLabels, ProtocolSetting, SubsystemSet,
};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name in the environment.
    pub name: &'static str,
    /// The values it takes.
    pub form: &'static str,
    /// What holds when it is not set, in words.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// A value that could not be read. The default is used in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} is \"{value}\", which is not understood; expected: {form}; using the default: {default}"
)]
pub struct Malformed {
    /// Name of the variable.
    pub name: &'static str,
    /// Its value, with what is not UTF-8 replaced.
    pub value: String,
    /// The values it takes.
    pub form: &'static str,
    /// What is used instead.
    pub default: &'static str,
}

/// Declares the table once: the struct, its rows and its reader cannot drift apart.
macro_rules! table {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $name:literal, $form:literal, $default:literal, $parse:expr, $initial:expr;)*) => {
        /// The configuration of this process, one typed field for each variable.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $(
                #[doc = concat!("`", $name, "`: ", $form, ". Default: ", $default, ".\n\n")]
                $(#[doc = $doc])*
                pub $field: $type,
            )*
        }

        const TABLE: &[Variable] = &[$(Variable {
            name: $name,
            form: $form,
            default: $default,
            effect: concat!($($doc),*),
        }),*];

        impl Config {
            /// Reads the table through `lookup` (the environment, or a test's substitute) and reports what was malformed.
            pub fn read(lookup: impl Fn(&str) -> Option<String>) -> (Self, Vec<Malformed>) {
                let mut malformed = Vec::new();
                let mut rows = TABLE.iter();
                let config = Self {
                    $($field: read_row(rows.next(), &lookup, &mut malformed, $parse, $initial),)*
                };
                (config, malformed)
            }
        }
    };
}

table! {
    /// What is printed. VERSION prints the version line, WARN errors and their causes, INFO decisions, TRACE every step.
    debug: DebugLevel = "NCCL_DEBUG", "VERSION, WARN, INFO or TRACE, in any case", "nothing is printed",
        parse_debug, DebugLevel::None;
    /// Where it is printed; %h is the host name, %p the process id. Lines are appended.
    debug_file: Option<String> = "NCCL_DEBUG_FILE", "a path", "standard output",
        |text| Some(Some(text.to_owned())), None;
    /// Which parts print at INFO and TRACE; a leading ^ prints all but the listed ones. Warnings are never filtered.
    debug_subsystems: SubsystemSet = "NCCL_DEBUG_SUBSYS",
        "comma list of INIT, COLL, P2P, SHM, NET, GRAPH, TUNING, ENV, ALLOC, CALL, PROXY, NVLS, BOOTSTRAP, REG, PROFILE, RAS, ALL, or ^list",
        "INIT,BOOTSTRAP,ENV", SubsystemSet::parse, SubsystemSet::DEFAULT;
    /// Which network interfaces are used to reach other hosts, by prefix of their names; = wants the whole name, ^ excludes.
    socket_interfaces: Option<InterfaceFilter> = "NCCL_SOCKET_IFNAME", "comma list of prefixes, or =list, or ^list",
        "ib*, then all others except docker* and lo, then docker*, then lo", |text| InterfaceFilter::parse(text).map(Some), None;
    /// Restricts sockets to one address family.
    socket_family: Option<AddressFamily> = "NCCL_SOCKET_FAMILY", "AF_INET or AF_INET6", "both", parse_family, None;
    /// Threads that serve a peer's sockets in NCCL. Here one thread per rank serves all of them, together with the caller, and
    /// the TCP streams to each peer are this number times NCCL_NSOCKS_PERTHREAD, at most 64.
    socket_threads: u32 = "NCCL_SOCKET_NTHREADS", "an integer from 1 to 16", "1",
        |text| integer_in(text, 1, 16).map(|threads| threads as u32), 1;
    /// TCP streams to each peer: this number times NCCL_SOCKET_NTHREADS, at most 64. Ranks that differ use the smaller number.
    sockets_per_thread: u32 = "NCCL_NSOCKS_PERTHREAD", "an integer from 1 to 64", "1",
        |text| integer_in(text, 1, 64).map(|sockets| sockets as u32), 1;
    /// Address of the bootstrap root, listened on by rank 0: a unique id then needs no passing around, but every rank
    /// needs MAYPOLE_SECRET_FILE.
    comm_id: Option<HostPort> = "NCCL_COMM_ID", "address:port, [v6 address]:port or host:port",
        "the root listens where the unique id is made", |text| HostPort::parse(text).map(Some), None;
    /// File of at least 16 secret bytes, the same for all ranks, that takes the place of the unique id's secret when
    /// NCCL_COMM_ID is set.
    secret_file: Option<PathBuf> = "MAYPOLE_SECRET_FILE", "a path", "none; NCCL_COMM_ID is then refused",
        |text| Some(Some(PathBuf::from(text))), None;
    /// Which algorithms may be chosen. A list without a function is for those that no other list names; where it leaves none it is not
    /// obeyed. Names of NCCL's that are for other hardware are understood; init fails on words that mean nothing.
    algorithms: Option<String> = "NCCL_ALGO", "comma list of names, ^ excludes, per function as ring,tree;allreduce:^tree",
        "the fastest by the cost model", |text| Some(Some(text.to_owned())), None;
    /// The fewest copies of an algorithm that run side by side, each on a part of the data. All lanes of a rank share its core here, so
    /// that more than one gain nothing but over several network cards.
    min_channels: Option<u32> = "NCCL_MIN_NCHANNELS", "an integer from 1 to 16", "1",
        |text| integer_in(text, 1, 16).map(|n| Some(n as u32)), None;
    /// The most copies of an algorithm that may run side by side; the cost model chooses among the powers of two between the
    /// fewest and the most.
    max_channels: Option<u32> = "NCCL_MAX_NCHANNELS", "an integer from 1 to 64; more than 16 are 16", "the fewest",
        |text| integer_in(text, 1, 64).map(|n| Some(n as u32)), None;
    /// The newer name of NCCL_MIN_NCHANNELS, which wins.
    min_ctas: Option<u32> = "NCCL_MIN_CTAS", "an integer from 1 to 16", "NCCL_MIN_NCHANNELS",
        |text| integer_in(text, 1, 16).map(|n| Some(n as u32)), None;
    /// The newer name of NCCL_MAX_NCHANNELS, which wins.
    max_ctas: Option<u32> = "NCCL_MAX_CTAS", "an integer from 1 to 64; more than 16 are 16", "NCCL_MAX_NCHANNELS",
        |text| integer_in(text, 1, 64).map(|n| Some(n as u32)), None;
    /// Which ranks are on one node, in place of the hosts that they run on: hierarchies can so be tried on one machine. Communicators of
    /// another number of ranks go by the hosts.
    nodes: Option<NodeLabels> = "MAYPOLE_NODES", "sizes of nodes as 4+4+2, or a label for each rank as a,b,a,b", "the hosts",
        |text| NodeLabels::parse(text).map(Some), None;
    /// Which ranks are on one node: those that are given the same text, in place of those that run on one host. MAYPOLE_NODES wins. How ranks
    /// reach each other, by shared memory or sockets, goes by the hosts all the same.
    host_id: Option<String> = "NCCL_HOSTID", "a text", "the host, by its kernel and network namespace",
        |text| Some(Some(text.to_owned())), None;
    /// How long initialisation waits for missing ranks before it fails and names them.
    init_timeout: Duration = "MAYPOLE_INIT_TIMEOUT", "seconds, at least 1", "600", parse_seconds, Duration::from_secs(600);
    /// After what time a wait is reported: who is waited for, and what that rank does. Again at each doubling of it.
    report: Duration = "MAYPOLE_REPORT", "seconds, at least 1", "10", parse_seconds, Duration::from_secs(10);
    /// After what time a wait is an error, on all ranks. Of use where a job must end rather than wait.
    timeout: Option<Duration> = "MAYPOLE_TIMEOUT", "seconds, at least 1", "never",
        |text| parse_seconds(text).map(Some), None;
    /// At this signal the process writes the last calls of its communicators to standard error. Takes the place of the
    /// program's own handler for that signal.
    dump_signal: Option<i32> = "MAYPOLE_DUMP_SIGNAL", "USR1, USR2, HUP, WINCH, URG or a number from 1 to 64, with or without SIG",
        "none, and no handler is installed", parse_signal, None;
    /// Bytes of one slot of a link.
    slot_bytes: Option<usize> = "MAYPOLE_SLOT_BYTES", "bytes, a multiple of 64 from 64 to 1073741824",
        "chosen by the transport", parse_slot_bytes, None;
    /// Slots of a link: messages that may be on their way at once.
    slot_depth: Option<u32> = "MAYPOLE_SLOT_DEPTH", "an integer from 1 to 1024", "chosen by the transport",
        |text| integer_in(text, 1, 1024).map(|depth| Some(depth as u32)), None;
    /// From how many bytes of a chunk on memory of ncclMemAlloc is lent to other processes of the host, which read it in place, rather than
    /// copied. What is lent must be waited for, which costs more than copying little.
    lend_from: Option<usize> = "MAYPOLE_LEND_FROM", "bytes, at least 0",
        "32768, and 65536 of memory that the call itself writes again",
        |text| integer_in(text, 0, i64::MAX).map(|bytes| Some(bytes as usize)), None;
    /// Which memory communicators are for, where the program does not say: that of a CUDA device, or of the host. With host no
    /// driver is looked for; with cuda a process without a usable device is told so.
    device: DeviceKind = "MAYPOLE_DEVICE", "auto, host or cuda", "auto: a CUDA device if this process sees one, else the host",
        parse_device, DeviceKind::Auto;
    /// Bytes of one slot of a link in the memory of a CUDA device.
    gpu_slot_bytes: Option<usize> = "MAYPOLE_GPU_SLOT_BYTES", "bytes, a multiple of 64 from 64 to 1073741824",
        "chosen by the number of ranks", parse_slot_bytes, None;
    /// Slots of a link in the memory of a CUDA device.
    gpu_slot_depth: Option<u32> = "MAYPOLE_GPU_SLOT_DEPTH", "an integer from 1 to 1024", "4",
        |text| integer_in(text, 1, 1024).map(|depth| Some(depth as u32)), None;
    /// Whether calls of communicators of a CUDA device ask the driver about every pointer, and refuse one to memory that the device does not
    /// reach.
    check_pointers: bool = "NCCL_CHECK_POINTERS", "an integer, 0 for no", "0", parse_bool, false;
    /// Bytes of all slots of a link together, NCCL's buffer of a channel for large messages: MAYPOLE_SLOT_DEPTH slots share them.
    /// MAYPOLE_SLOT_BYTES wins.
    buffer_bytes: Option<usize> = "NCCL_BUFFSIZE", "bytes, from 256 to 1073741824", "chosen by the transport, and less than NCCL's",
        |text| integer_in(text, 256, 1 << 30).map(|bytes| Some(bytes as usize)), None;
    /// How many times a waiting rank polls before it gives up its core.
    spin: Option<u32> = "MAYPOLE_SPIN", "an integer from 0 to 4294967295",
        "automatic: by whether the ranks of the host outnumber its cores",
        |text| integer_in(text, 0, i64::from(u32::MAX)).map(|spin| Some(spin as u32)), None;
    /// Canonical results depend on the ranks alone, not on size, algorithm or transport; fast ones may.
    bits: BitsSetting = "MAYPOLE_BITS", "canonical, fast or default", "default: the library's choice", parse_bits, BitsSetting::Default;
    /// Which instructions reduce; one that the processor lacks is refused with a warning.
    isa: IsaSetting = "MAYPOLE_ISA", "auto, scalar, avx2 or avx512", "auto: the widest that the processor has", parse_isa, IsaSetting::Auto;
    /// Which protocol of a link carries messages: flag lines (small ones only) or slots.
    protocol: ProtocolSetting = "MAYPOLE_PROTO", "auto, line or slots", "auto: by the size of the message", parse_protocol, ProtocolSetting::Auto;
    /// The same in NCCL's words, for all collectives together: LL and LL128 are flag lines, Simple is slots. MAYPOLE_PROTO wins.
    nccl_protocol: ProtocolSetting = "NCCL_PROTO", "comma list of LL, LL128 and Simple, or ^list", "by the size of the message",
        parse_nccl_protocol, ProtocolSetting::Auto;
    /// For tests: makes things go wrong on the links, at random but the same for the same seed. Messages and credits come late, tags or
    /// payloads are damaged, a rank's process is killed in place of sending its n-th message, or it aborts after it. All
    /// messages then travel in slots.
    fault: Option<FaultRecipe> = "MAYPOLE_FAULT",
        "comma list of seed=N, delay=RATE:Nus, backpressure=RATE, corrupt=RATE or corrupt=RATE:payload, kill=RANK:MESSAGE, abort=RANK:MESSAGE; a rate is from 0 to 1",
        "nothing goes wrong", |text| FaultRecipe::parse(text).map(Some), None;
    /// Forbids shared memory between processes; they use TCP instead.
    shm_disable: bool = "NCCL_SHM_DISABLE", "an integer, 0 for no", "0", parse_bool, false;
    /// Forbids direct access to a peer's memory; ranks that are threads of one process then meet as those of several do.
    p2p_disable: bool = "NCCL_P2P_DISABLE", "an integer, 0 for no", "0", parse_bool, false;
    /// Whether calls that make a communicator return when it is there (1), or at once (0). Overrides what the program says.
    blocking: Option<bool> = "NCCL_COMM_BLOCKING", "0 or 1", "what the program says",
        |text| integer_in(text, 0, 1).map(|value| Some(value != 0)), None;
    /// Which network connects hosts. There is Socket; another one is warned about, and Socket used.
    net: Option<String> = "NCCL_NET", "Socket, in any case", "Socket", |text| Some(Some(text.to_owned())), None;
    /// Whether ncclCommInitAll takes a device that is listed twice.
    multi_rank_gpu: bool = "NCCL_MULTI_RANK_GPU_ENABLE", "an integer, 0 for no", "0", parse_bool, false;
    /// Whether windows can be registered; if not, ncclCommWindowRegister succeeds and gives NULL.
    windows: bool = "NCCL_WIN_ENABLE", "an integer, 0 for no", "1", parse_bool, true;
}

impl Config {
    /// With what one variable says where another one says nothing.
    fn settled(mut self) -> Self {
        if self.protocol == ProtocolSetting::Auto {
            self.protocol = self.nccl_protocol;
        }
        self.min_channels = self.min_channels.or(self.min_ctas);
        self.max_channels = self.max_channels.or(self.max_ctas);
        // Slots are whole cache lines.
        let slot = |bytes: usize| ((bytes / self.depth() as usize) & !63).max(64);
        self.slot_bytes = self.slot_bytes.or(self.buffer_bytes.map(slot));
        self
    }

    /// Slots of a link.
    pub fn depth(&self) -> u32 {
        self.slot_depth.unwrap_or(4)
    }

    /// TCP streams to each peer.
    pub fn streams(&self) -> u32 {
        (self.socket_threads * self.sockets_per_thread).min(MOST_STREAMS)
    }

    /// How many copies of an algorithm may run side by side: the fewest, and powers of two from there to the most.
    pub fn copies(&self) -> Vec<u32> {
        let most = self.max_channels.map(|most| most.min(16));
        let least = self.min_channels.unwrap_or(1).min(most.unwrap_or(16));
        let most = most.unwrap_or(least);
        let between = (0..5).map(|power| 1 << power).filter(|n| *n > least && *n <= most);
        [least].into_iter().chain(between).collect()
    }

    /// The configuration of this process, read from the environment by the first call.
    pub fn get() -> &'static Self {
        static CONFIG: OnceLock<Config> = OnceLock::new();
        let mut malformed = Vec::new();
        let config = CONFIG.get_or_init(|| {
            let (config, found) = Self::read(|name| lookup(name).map(|(value, _)| value));
            malformed = found;
            config.settled()
        });
        // Only now: the logger reads the configuration too.
        for value in malformed {
            log::warn!("{value}");
        }
        config
    }
}

impl Default for Config {
    /// The configuration under an empty environment.
    fn default() -> Self {
        Self::read(|_| None).0
    }
}

/// The rows of the table.
pub fn table() -> impl Iterator<Item = &'static Variable> {
    TABLE.iter()
}

/// The table as the page `docs/environment.md`.
pub fn document() -> String {
    let mut page = String::from(
        "# Environment variables\n\n\
         Read once, at the first use of the library; what the environment does not set may be set in the file that\n\
         `NCCL_CONF_FILE` names, else `~/.nccl.conf`, else `/etc/nccl.conf` (lines `NAME=value`, `#` comments). A value that is not understood is reported by a warning and the\n\
         default is used. An empty value means not set; integers may be decimal, `0x` hexadecimal or `0` octal.\n\
         This page is generated from `src/config.rs`.\n",
    );
    for row in table() {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n* Values: {}\n* Default: {}\n",
            row.name,
            row.effect.trim(),
            row.form,
            row.default
        );
    }
    page.push_str(
        "\n# Variables of NCCL that change nothing\n\n\
         Those that begin so and are not above are known, and named in the log under `NCCL_DEBUG=INFO` where they are set.\n\n\
         | beginning | why |\n| --- | --- |\n",
    );
    for (beginning, why) in ineffective() {
        let _ = writeln!(page, "| {beginning} | {why} |");
    }
    page
}

fn read_row<T>(
    row: Option<&'static Variable>,
    lookup: &impl Fn(&str) -> Option<String>,
    malformed: &mut Vec<Malformed>,
    parse: impl Fn(&str) -> Option<T>,
    initial: T,
) -> T {
    let Some(row) = row else { return initial };
    let Some(value) = lookup(row.name).filter(|value| !value.is_empty()) else { return initial };
    match parse(value.trim()) {
        Some(parsed) => parsed,
        None => {
            malformed.push(Malformed {
                name: row.name,
                value,
                form: row.form,
                default: row.default,
            });
            initial
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> (Config, Vec<Malformed>) {
        Config::read(|asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn page_is_the_table() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/environment.md");
        if std::env::var_os("MAYPOLE_REGENERATE_DOCS").is_some() {
            std::fs::write(page, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(page).unwrap(), document());
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
        // A value no variable but the free texts accepts: exactly the others must complain, each under its name.
        for row in table() {
            let (_, malformed) = with(row.name, "^:no,,such value");
            let free =
                ["NCCL_DEBUG_FILE", "MAYPOLE_SECRET_FILE", "NCCL_ALGO", "NCCL_NET", "NCCL_HOSTID"];
            let free = free.contains(&row.name);
            let complaints: Vec<_> = malformed.iter().map(|value| value.name).collect();
            assert_eq!(complaints, if free { vec![] } else { vec![row.name] });
        }
    }

    #[test]
    fn values() {
        assert_eq!(with("NCCL_DEBUG", "info").0.debug, DebugLevel::Info);
        assert!(with("NCCL_SHM_DISABLE", "1").0.shm_disable);
        assert!(!with("NCCL_SHM_DISABLE", "0x0").0.shm_disable);
        assert_eq!(with("NCCL_SHM_DISABLE", "").1, []);
        assert_eq!(with("MAYPOLE_INIT_TIMEOUT", "010").0.init_timeout, Duration::from_secs(8));
        assert_eq!(with("MAYPOLE_SLOT_BYTES", "0x1000").0.slot_bytes, Some(4096));
        assert_eq!(with("MAYPOLE_SLOT_BYTES", "100").1.len(), 1);
        assert_eq!(with("MAYPOLE_DUMP_SIGNAL", "SIGUSR2").0.dump_signal, Some(libc::SIGUSR2));
        assert_eq!(with("MAYPOLE_DUMP_SIGNAL", "10").0.dump_signal, Some(10));
        assert_eq!(with("NCCL_SOCKET_FAMILY", "AF_INET6").0.socket_family, Some(AddressFamily::V6));
        assert_eq!(with("NCCL_NSOCKS_PERTHREAD", "4").0.streams(), 4);
        let most = Config { socket_threads: 16, sockets_per_thread: 16, ..Config::default() };
        assert_eq!((Config::default().streams(), most.streams()), (1, 64));
        assert_eq!(integer("--1"), None);
        assert_eq!(integer("0x-1"), None);
        assert_eq!(integer("-12"), Some(-12));
        assert_eq!(integer("9223372036854775808"), None);
    }

    #[test]
    fn protocols_in_nccls_words() {
        let cases = [
            ("LL", Some(ProtocolSetting::Line)),
            ("ll128,LL", Some(ProtocolSetting::Line)),
            ("Simple", Some(ProtocolSetting::Slots)),
            ("LL,Simple", Some(ProtocolSetting::Auto)),
            ("^LL", Some(ProtocolSetting::Slots)),
            ("^LL128", Some(ProtocolSetting::Auto)),
            ("^Simple", Some(ProtocolSetting::Line)),
            ("^LL,Simple", None),
            ("fast", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_nccl_protocol(text), expected, "{text}");
        }
        let both = Config { protocol: ProtocolSetting::Line, ..with("NCCL_PROTO", "Simple").0 };
        assert_eq!(with("NCCL_PROTO", "Simple").0.settled().protocol, ProtocolSetting::Slots);
        assert_eq!(both.settled().protocol, ProtocolSetting::Line);
    }

    #[test]
    fn what_another_variable_says_holds_where_one_says_nothing() {
        let settled = |config: Config| config.settled();
        let slot = |name, value| settled(with(name, value).0).slot_bytes;
        assert_eq!(slot("NCCL_BUFFSIZE", "4194304"), Some(1 << 20));
        assert_eq!(
            (slot("NCCL_BUFFSIZE", "700"), slot("NCCL_BUFFSIZE", "256")),
            (Some(128), Some(64))
        );
        assert_eq!(slot("NCCL_BUFFSIZE", "255"), None);
        let both = Config { slot_bytes: Some(640), ..with("NCCL_BUFFSIZE", "4096").0 };
        assert_eq!(settled(both).slot_bytes, Some(640));
        let deep = Config { slot_depth: Some(16), ..with("NCCL_BUFFSIZE", "4096").0 };
        assert_eq!(settled(deep).slot_bytes, Some(256));
        let many = Config { min_ctas: Some(2), max_ctas: Some(4), ..Config::default() };
        assert_eq!(settled(many.clone()).copies(), [2, 4]);
        let older = Config { min_channels: Some(3), ..many };
        assert_eq!(settled(older).copies(), [3, 4]);
        assert_eq!(with("NCCL_HOSTID", "a").0.host_id.as_deref(), Some("a"));
    }

    #[test]
    fn malformed_value_is_explained() {
        let (config, malformed) = with("MAYPOLE_SPIN", "lots");
        assert_eq!(config, Config::default());
        let text = malformed[0].to_string();
        assert!(text.contains("MAYPOLE_SPIN") && text.contains("lots") && text.contains("integer"));
    }

    #[test]
    fn copies_are_the_fewest_and_powers_of_two_up_to_the_most() {
        let copies = |min_channels, max_channels| {
            Config { min_channels, max_channels, ..Config::default() }.copies()
        };
        assert_eq!(copies(None, None), [1]);
        assert_eq!(copies(Some(3), None), [3]);
        assert_eq!(copies(None, Some(64)), [1, 2, 4, 8, 16]);
        assert_eq!(copies(Some(3), Some(9)), [3, 4, 8]);
        assert_eq!(copies(Some(8), Some(2)), [2]);
    }
}
