//! The configuration of the process: every environment variable that the library reads.
//!
//! The configuration is the only global state besides the logger. It is read once, at the first
//! [`Config::get`], from the environment and from files as NCCL reads them. A value that cannot be
//! parsed is never silently ignored: a warning names the variable, the value, the expected form,
//! and the default that is used instead. As in NCCL, an empty value means that the variable is not
//! set. Integers may be decimal, `0x` hexadecimal or `0` octal. A boolean is an integer, 0 for no.
//!
//! `docs/environment.md` is the table as rendered by [`document`]; a test compares them. To write
//! the page again: `MAYPOLE_REGENERATE_DOCS=1 cargo test -p maypole config`.

mod file;
mod foreign;
mod number;
mod page;
mod parse;
mod protocol_rules;
mod row;
mod table;
mod values;
mod verbs;

use maypole_transport::sync::{AtomicBool, Ordering};
use maypole_transport::tcp::MOST_STREAMS;

// The command and the C ABI use these; they are not part of the public interface.
#[doc(hidden)]
pub use file::{SettingOrigin, lookup, unreadable};
#[doc(hidden)]
pub use foreign::{Setting, ineffective, log_settings, settings};
#[doc(hidden)]
pub use number::integer;
#[doc(hidden)]
pub use page::document;
pub use protocol_rules::ProtocolRules;
pub use row::Malformed;
#[doc(hidden)]
pub use row::Variable;
pub use table::Config;
#[doc(hidden)]
pub use table::table;
pub use values::{
    AddressFamily, BitsSetting, DebugLevel, DeviceKind, HostPort, InterfaceFilter, IsaSetting,
    NodeLabels, ProtocolSetting, SubsystemSet,
};
pub use verbs::VerbsSettings;

use crate::process::LazyValue;

impl Config {
    /// Applies variables that set a default for another variable.
    fn resolved(mut self) -> Self {
        self.min_channels = self.min_channels.or(self.min_ctas);
        self.max_channels = self.max_channels.or(self.max_ctas);
        // Slots are whole cache lines.
        let slot = |bytes: usize| ((bytes / self.depth() as usize) & !63).max(64);
        self.slot_bytes = self.slot_bytes.or(self.buffer_bytes.map(slot));
        self
    }

    /// The slots of a link, where their bytes are set too.
    pub fn depth(&self) -> u32 {
        self.slot_depth.unwrap_or(4)
    }

    /// The TCP streams to each peer.
    pub fn streams(&self) -> u32 {
        (self.socket_threads * self.sockets_per_thread).min(MOST_STREAMS)
    }

    /// The numbers of copies of an algorithm that may run side by side: the least number, and the
    /// powers of two from there to the greatest.
    pub fn copies(&self) -> Vec<u32> {
        let most = self.max_channels.map(|most| most.min(16));
        let least = self.min_channels.unwrap_or(1).min(most.unwrap_or(16));
        let most = most.unwrap_or(least);
        let between = (0..5).map(|power| 1 << power).filter(|n| *n > least && *n <= most);
        [least].into_iter().chain(between).collect()
    }

    /// The configuration of this process, read from the environment by the first call.
    pub fn get() -> &'static Self {
        static CONFIG: LazyValue<(Config, Vec<Malformed>)> = LazyValue::new(|| {
            let (config, malformed) = Config::read(|name| lookup(name).map(|(value, _)| value));
            (config.resolved(), malformed)
        });
        static WARNED: AtomicBool = AtomicBool::new(false);
        let (config, malformed) = &*CONFIG;
        // Warnings come after initialization, because the logger reads the configuration too.
        // Nothing that is called above may log.
        if !WARNED.load(Ordering::Relaxed) && !WARNED.swap(true, Ordering::Relaxed) {
            for value in malformed {
                log::warn!("{value}");
            }
            for text in unreadable() {
                log::warn!("{text}");
            }
        }
        config
    }
}

impl Default for Config {
    /// The configuration in an empty environment.
    fn default() -> Self {
        Self::read(|_| None).0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn with(name: &'static str, value: &'static str) -> (Config, Vec<Malformed>) {
        Config::read(|requested| (requested == name).then(|| value.to_owned()))
    }

    #[test]
    fn values_are_parsed() {
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
    }

    #[test]
    fn variables_set_defaults_for_other_variables() {
        let resolved = |config: Config| config.resolved();
        let slot = |name, value| resolved(with(name, value).0).slot_bytes;
        assert_eq!(slot("NCCL_BUFFSIZE", "4194304"), Some(1 << 20));
        assert_eq!(
            (slot("NCCL_BUFFSIZE", "700"), slot("NCCL_BUFFSIZE", "256")),
            (Some(128), Some(64))
        );
        assert_eq!(slot("NCCL_BUFFSIZE", "255"), None);
        let both = Config { slot_bytes: Some(640), ..with("NCCL_BUFFSIZE", "4096").0 };
        assert_eq!(resolved(both).slot_bytes, Some(640));
        let deep = Config { slot_depth: Some(16), ..with("NCCL_BUFFSIZE", "4096").0 };
        assert_eq!(resolved(deep).slot_bytes, Some(256));
        let many = Config { min_ctas: Some(2), max_ctas: Some(4), ..Config::default() };
        assert_eq!(resolved(many.clone()).copies(), [2, 4]);
        let older = Config { min_channels: Some(3), ..many };
        assert_eq!(resolved(older).copies(), [3, 4]);
        assert_eq!(with("NCCL_HOSTID", "a").0.host_id.as_deref(), Some("a"));
    }

    #[test]
    fn copies_are_the_least_number_and_powers_of_two_up_to_the_greatest() {
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
