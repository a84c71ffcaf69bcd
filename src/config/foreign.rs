//! Variables of NCCL that have no effect here, with the reasons, so that a user who sets one is
//! told.

use std::collections::BTreeSet;

use super::file::{self, SettingOrigin, lookup};
use super::table::table;

// The reasons why variables have no effect.
const DEVICE: &str = "it controls GPU kernels or GPU memory of NCCL, which are not used here";
const VERBS: &str = "it controls a part of InfiniBand and RoCE that this version does not have";
const PLUGIN: &str = "this version does not support plugins";
const TOPOLOGY: &str = "links and algorithms are chosen by another model, see docs/tuning.md";
const PROTOCOL: &str = "it tunes a protocol of NCCL that is not used here";
const SERVICE: &str = "NCCL_RAS_ENABLE and NCCL_RAS_ADDR are the settings of this service";

/// The beginnings of names, the longer before the shorter, and why such variables have no effect.
/// The reason is empty for variables that are not for the library.
const FAMILIES: &[(&str, &str)] = &[
    ("NCCL_IB_", VERBS),
    ("NCCL_NET_GDR", VERBS),
    ("NCCL_GDRCOPY_", DEVICE),
    ("NCCL_GDR_", DEVICE),
    ("NCCL_DMABUF_", VERBS),
    ("NCCL_NET_PLUGIN", PLUGIN),
    ("NCCL_TUNER_", PLUGIN),
    ("NCCL_PROFILER_", PLUGIN),
    ("NCCL_PROFILE_", PLUGIN),
    ("NCCL_ENV_PLUGIN", PLUGIN),
    ("NCCL_GIN_", DEVICE),
    ("NCCL_RMA_", DEVICE),
    ("NCCL_CFT_", DEVICE),
    ("NCCL_SYM_", DEVICE),
    ("NCCL_NVLS", DEVICE),
    ("NCCL_NVLINK", DEVICE),
    ("NCCL_NVB_", DEVICE),
    ("NCCL_MNNVL_", DEVICE),
    ("NCCL_COLLNET_", DEVICE),
    ("NCCL_SHARP_", DEVICE),
    ("NCCL_CUMEM_", DEVICE),
    ("NCCL_GRAPH_", DEVICE),
    ("NCCL_LAUNCH_", DEVICE),
    ("NCCL_CGA_", DEVICE),
    ("NCCL_CTA_", DEVICE),
    ("NCCL_MIN_", DEVICE),
    ("NCCL_MAX_", DEVICE),
    ("NCCL_NCHANNELS", DEVICE),
    ("NCCL_NTHREADS", DEVICE),
    ("NCCL_SINGLE_", DEVICE),
    ("NCCL_STACK_", DEVICE),
    ("NCCL_SET_", DEVICE),
    ("NCCL_P2P_", DEVICE),
    ("NCCL_PXN_", DEVICE),
    ("NCCL_C2C_", DEVICE),
    ("NCCL_LOCAL_REGISTER", DEVICE),
    ("NCCL_LEGACY_", DEVICE),
    ("NCCL_MEM_", DEVICE),
    ("NCCL_TOPO_", TOPOLOGY),
    ("NCCL_CROSS_", TOPOLOGY),
    ("NCCL_NET_", TOPOLOGY),
    ("NCCL_RINGS", TOPOLOGY),
    ("NCCL_PAT_", TOPOLOGY),
    ("NCCL_IGNORE_", "the library binds no thread to cores"),
    ("NCCL_RUNTIME_", "links are always made on first use"),
    ("NCCL_LL", PROTOCOL),
    ("NCCL_WORK_", PROTOCOL),
    ("NCCL_PROXY_", PROTOCOL),
    ("NCCL_PROGRESS_", PROTOCOL),
    ("NCCL_CHUNK_", PROTOCOL),
    ("NCCL_THREAD_", DEVICE),
    ("NCCL_SHM_", "shared memory has no setting other than NCCL_SHM_DISABLE"),
    ("NCCL_CHECK_", "arguments are always checked, and calls are compared between ranks"),
    ("NCCL_SOCKET_", "connections are retried until MAYPOLE_INIT_TIMEOUT"),
    ("NCCL_OOB_", "NCCL_SOCKET_IFNAME chooses interfaces for all sockets"),
    ("NCCL_UID_", "the bootstrap root needs no staggering, because ranks form a tree"),
    ("NCCL_RAS_", SERVICE),
    ("NCCL_COMM_", "communicators share no resources"),
    ("NCCL_DEBUG_", "log lines have a single format"),
    ("NCCL_NVTX_", DEVICE),
    ("NCCL_DUMP_", TOPOLOGY),
    ("NCCL_PARAM_", "the parameter API shows every setting"),
    ("NCCL_CONF_FILE", ""),
    // Variables for the benchmark programs and the tests.
    ("NCCL_TESTS_", ""),
    ("MAYPOLE_BENCH_", ""),
    ("MAYPOLE_LAUNCHER", ""),
    ("MAYPOLE_TEST_", ""),
];

/// A variable of NCCL or of this library that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
    /// The source of the value.
    pub origin: SettingOrigin,
    /// The reason why it has no effect. None if it has one.
    pub ineffective: Option<&'static str>,
}

/// The variables that are set in the environment and the files of this process, by name.
pub fn settings() -> Vec<Setting> {
    let environment = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let names: BTreeSet<String> = environment
        .chain(file::names().map(str::to_owned))
        .filter(|name| name.starts_with("NCCL_") || name.starts_with("MAYPOLE_"))
        .collect();
    let setting = |name: String| {
        let (value, origin) = lookup(&name)?;
        let ineffective = reason_without_effect(&name);
        Some(Setting { name, value, origin, ineffective })
    };
    names.into_iter().filter_map(setting).collect()
}

/// The beginnings of the names of NCCL's variables that have no effect, and the reasons. A variable
/// with such a beginning that is in the table has an effect nevertheless.
pub fn ineffective() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().copied().filter(|(_, why)| !why.is_empty())
}

/// Logs the variables of NCCL that are set, their sources, and which of them have no effect.
pub fn log_settings() {
    if !log::log_enabled!(target: "ENV", log::Level::Info) {
        return;
    }
    for Setting { name, value, origin, ineffective } in settings() {
        match ineffective {
            None => log::info!(target: "ENV", "{name} set by {origin} to {value}."),
            Some(why) => {
                log::info!(
                    target: "ENV",
                    "{name} set by {origin} to {value}. It has no effect here: {why}"
                );
            }
        }
    }
}

/// The reason why a variable has no effect. None if it has one, or is not for the library.
fn reason_without_effect(name: &str) -> Option<&'static str> {
    if table().any(|row| row.name == name) {
        return None;
    }
    let unknown = if name.starts_with("NCCL_") {
        "neither NCCL 2.32 nor this library is known to read it"
    } else {
        "this library does not read it; `maypole env` lists what it reads"
    };
    let known = FAMILIES.iter().find(|(beginning, _)| name.starts_with(beginning));
    Some(known.map_or(unknown, |(_, why)| why)).filter(|why| !why.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_outside_the_table_have_a_reason_for_no_effect() {
        assert_eq!(reason_without_effect("NCCL_DEBUG"), None);
        assert_eq!(reason_without_effect("NCCL_P2P_DISABLE"), None);
        assert_eq!(reason_without_effect("NCCL_P2P_LEVEL"), Some(DEVICE));
        assert_eq!(reason_without_effect("NCCL_IB_HCA"), None);
        assert_eq!(reason_without_effect("NCCL_IB_MERGE_NICS"), Some(VERBS));
        assert_eq!(reason_without_effect("NCCL_CONF_FILE"), None);
        assert!(reason_without_effect("NCCL_NO_SUCH_THING").unwrap().contains("neither"));
        assert!(reason_without_effect("MAYPOLE_TYPO").unwrap().contains("maypole env"));
    }

    #[test]
    fn longer_beginnings_come_before_shorter_ones() {
        for (at, (name, _)) in FAMILIES.iter().enumerate() {
            let hidden = FAMILIES[..at].iter().any(|(before, _)| name.starts_with(before));
            assert!(!hidden, "{name}");
        }
    }
}
