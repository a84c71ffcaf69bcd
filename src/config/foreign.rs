//! NCCL's variables that change nothing here: known by name, so that whoever sets one is told, and told why.

use std::collections::BTreeSet;

use super::{SettingOrigin, file, lookup, table};

/// Why a variable changes nothing.
const DEVICE: &str = "it steers GPU kernels or GPU memory, and there is no GPU";
const VERBS: &str = "it steers InfiniBand and RoCE, which are not in this version";
const PLUGIN: &str = "plugins are not in this version";
const TOPOLOGY: &str = "links and algorithms are chosen by another model, see docs/tuning.md";
const PROTOCOL: &str = "it tunes a protocol of NCCL's that is not used here";
const SERVICE: &str =
    "the service is not in this version; `maypole ps` tells what communicators do";

/// Beginnings of names, the longer before the shorter, and why they change nothing.
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
    ("NCCL_SHM_", "shared memory is passed over sockets and has no settings but NCCL_SHM_DISABLE"),
    ("NCCL_CHECK_", "arguments are always checked, and calls compared between ranks"),
    ("NCCL_SOCKET_", "connections are retried until MAYPOLE_INIT_TIMEOUT"),
    ("NCCL_OOB_", "NCCL_SOCKET_IFNAME chooses interfaces for all sockets"),
    ("NCCL_UID_", "the root serves a tree, and needs no staggering"),
    ("NCCL_RAS_", SERVICE),
    ("NCCL_COMM_", "communicators share nothing, so there is nothing to choose"),
    ("NCCL_DEBUG_", "lines have one form"),
    ("NCCL_NVTX_", DEVICE),
    ("NCCL_DUMP_", TOPOLOGY),
    ("NCCL_PARAM_", "the parameter API shows every setting"),
    ("NCCL_CONF_FILE", ""),
    // For the benchmark programs and the tests.
    ("NCCL_TESTS_", ""),
    ("MAYPOLE_BENCH_", ""),
    ("MAYPOLE_LAUNCHER", ""),
    ("MAYPOLE_TEST_", ""),
];

/// A variable of NCCL's or of ours that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: String,
    /// Where.
    pub origin: SettingOrigin,
    /// Why it changes nothing, if so.
    pub ineffective: Option<&'static str>,
}

/// What is set in this process' environment and files, by name.
pub fn settings() -> Vec<Setting> {
    let environment = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let names: BTreeSet<String> = environment
        .chain(file::names().map(str::to_owned))
        .filter(|name| name.starts_with("NCCL_") || name.starts_with("MAYPOLE_"))
        .collect();
    let setting = |name: String| {
        let (value, origin) = lookup(&name)?;
        let ineffective = verdict(&name);
        Some(Setting { name, value, origin, ineffective })
    };
    names.into_iter().filter_map(setting).collect()
}

/// Beginnings of names of NCCL's variables that change nothing, and why. What begins so and is in the table has its effect.
pub fn ineffective() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().copied().filter(|(_, why)| !why.is_empty())
}

/// Logs which variables of NCCL are set, by whom, and which of them change nothing.
pub fn log_settings() {
    if !log::log_enabled!(target: "ENV", log::Level::Info) {
        return;
    }
    for Setting { name, value, origin, ineffective } in settings() {
        match ineffective {
            None => log::info!(target: "ENV", "{name} set by {origin} to {value}."),
            Some(why) => {
                log::info!(target: "ENV", "{name} set by {origin} to {value}. It has no effect here: {why}");
            }
        }
    }
}

/// Why the variable changes nothing; None if it does, or is not for the library.
fn verdict(name: &str) -> Option<&'static str> {
    if table().any(|row| row.name == name) {
        return None;
    }
    let unknown = if name.starts_with("NCCL_") {
        "neither NCCL 2.32 nor this library is known to read it"
    } else {
        "this library does not read it; `maypole env` lists what it reads"
    };
    let family = FAMILIES.iter().find(|(beginning, _)| name.starts_with(beginning));
    Some(family.map_or(unknown, |(_, why)| why)).filter(|why| !why.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_an_effect_and_others_say_why_not() {
        assert_eq!(verdict("NCCL_DEBUG"), None);
        assert_eq!(verdict("NCCL_P2P_DISABLE"), None);
        assert_eq!(verdict("NCCL_P2P_LEVEL"), Some(DEVICE));
        assert_eq!(verdict("NCCL_IB_HCA"), Some(VERBS));
        assert_eq!(verdict("NCCL_CONF_FILE"), None);
        assert!(verdict("NCCL_NO_SUCH_THING").unwrap().contains("neither"));
        assert!(verdict("MAYPOLE_TYPO").unwrap().contains("maypole env"));
    }

    #[test]
    fn no_family_hides_behind_a_shorter_one() {
        for (at, (name, _)) in FAMILIES.iter().enumerate() {
            let hidden = FAMILIES[..at].iter().any(|(before, _)| name.starts_with(before));
            assert!(!hidden, "{name}");
        }
    }
}
