//! `ncclConfig_t`: read from clients of every version since 2.14, checked, and overridden by the environment, as NCCL does.
//!
//! Own defaults first; over them the bytes that both the client and this version have; fields that the client's version did
//! not have yet, and undefined ones, are defaults again; then the rest is checked; then the environment has the last word.
//!
//! On host memory only `blocking` and `commName` change anything. The other fields steer GPU kernels and networks; they
//! are checked all the same, so that a program that is wrong here is not found wrong only there.

use std::ffi::{CStr, c_int, c_uint};

use maypole::ResultCode;
use maypole::config::Config;

use crate::boundary::invalid;
use crate::layout::{API_MAGIC, NcclConfig, UNDEFINED};

/// What a configuration means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Calls return when they are done.
    pub(crate) blocking: bool,
    /// `commName`, for logs.
    pub(crate) name: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { blocking: true, name: String::new() }
    }
}

/// A field of integers.
struct Field {
    name: &'static str,
    /// The version that brought it.
    since: c_uint,
    of: fn(&mut NcclConfig) -> &mut c_int,
    valid: fn(c_int) -> bool,
    expected: &'static str,
}

macro_rules! fields {
    ($($name:literal $field:ident $since:literal $valid:expr, $expected:literal;)*) => {
        const FIELDS: &[Field] = &[$(Field {
            name: $name,
            since: $since,
            of: |config| &mut config.$field,
            valid: $valid,
            expected: $expected,
        }),*];
    };
}

fields! {
    "blocking" blocking 21400 |v| v == 0 || v == 1, "0 or 1";
    "cgaClusterSize" cga_cluster_size 21700 |v| v >= 0, "0 or more";
    "minCTAs" min_ctas 21700 |v| v > 0, "1 or more";
    "maxCTAs" max_ctas 21700 |v| v > 0, "1 or more, and not less than minCTAs";
    "splitShare" split_share 21800 |v| v == 0 || v == 1, "0 or 1";
    "trafficClass" traffic_class 22600 |v| v >= 0, "0 or more";
    "collnetEnable" collnet_enable 22700 |v| v == 0 || v == 1, "0 or 1";
    "CTAPolicy" cta_policy 22700 |v| (0..4).contains(&v), "NCCL_CTA_POLICY_*";
    "shrinkShare" shrink_share 22700 |v| v == 0 || v == 1, "0 or 1";
    "nvlsCTAs" nvls_ctas 22700 |v| v > 0, "1 or more";
    "nChannelsPerNetPeer" n_channels_per_net_peer 22800 |v| (1..=64).contains(&v), "1 to 64";
    "nvlinkCentricSched" nvlink_centric_sched 22800 |v| v == 0 || v == 1, "0 or 1";
    "graphUsageMode" graph_usage_mode 22900 |v| (0..3).contains(&v), "0, 1 or 2";
    "numRmaCtx" num_rma_ctx 22900 |v| v >= 0, "0 or more";
    "maxP2pPeers" max_p2p_peers 23000 |v| v > 0, "1 or more";
    "graphStreamOrdering" graph_stream_ordering 23005 |v| v == 0 || v == 1, "0 or 1";
    "launchOrderImplicit" launch_order_implicit 23100 |v| v == 0 || v == 1, "0 or 1";
    "numRmaSig" num_rma_sig 23100 |v| v >= 0, "0 or more";
    "rmaEagerInit" rma_eager_init 23100 |v| v == 0 || v == 1, "0 or 1";
    "hostCftMode" host_cft_mode 23100 |v| (1..4).contains(&v), "ncclHostCft*";
    "nvlsHostMode" nvls_host_mode 23200 |v| (0..4).contains(&v) || v == c_int::MAX, "ncclNvlsHostMode*";
}

/// Versions of the two names.
const NET_NAME_SINCE: c_uint = 21700;
const COMM_NAME_SINCE: c_uint = 22700;

/// The smallest configuration there ever was.
const LEAST: usize = 24;

/// Reads the client's configuration; NULL is that of the parent, or the default.
///
/// # Safety
/// `config` is NULL, or readable for 16 bytes, and if these are the start of a configuration, for as many as it says; its
/// strings are NULL or end in a zero.
pub(crate) unsafe fn read(
    config: *const NcclConfig,
    parent: Option<&Settings>,
) -> Result<Settings, ResultCode> {
    if config.is_null() {
        let settings = parent.cloned().unwrap_or_default();
        return Ok(if parent.is_some() { settings } else { overridden(settings) });
    }
    // SAFETY: the caller's promise.
    let (size, magic) =
        unsafe { ((&raw const (*config).size).read(), (&raw const (*config).magic).read()) };
    if magic != API_MAGIC {
        return Err(invalid("the configuration was not initialised by NCCL_CONFIG_INITIALIZER"));
    }
    if size < LEAST {
        return Err(invalid(&format!(
            "a configuration of {size} bytes is smaller than any NCCL had"
        )));
    }
    let mut ours = undefined();
    // SAFETY: the caller's promise; no more than there is room for.
    unsafe {
        std::ptr::copy_nonoverlapping(
            config.cast::<u8>(),
            (&raw mut ours).cast::<u8>(),
            size.min(size_of::<NcclConfig>()),
        );
    }
    // SAFETY: the caller's promise.
    unsafe { understand(ours) }.map(overridden)
}

/// Every field undefined.
fn undefined() -> NcclConfig {
    let mut config = NcclConfig {
        size: size_of::<NcclConfig>(),
        magic: API_MAGIC,
        version: crate::identity::VERSION as c_uint,
        // SAFETY: integers, and pointers that are NULL.
        ..unsafe { std::mem::zeroed() }
    };
    for field in FIELDS {
        *(field.of)(&mut config) = UNDEFINED;
    }
    config
}

/// # Safety
/// The strings are NULL or end in a zero.
unsafe fn understand(mut config: NcclConfig) -> Result<Settings, ResultCode> {
    let version = config.version;
    for field in FIELDS {
        let value = (field.of)(&mut config);
        if field.since > version {
            *value = UNDEFINED;
        }
        if *value != UNDEFINED && !(field.valid)(*value) {
            return Err(invalid(&format!(
                "the configuration's {} is {value}; it must be {}",
                field.name, field.expected
            )));
        }
    }
    let (least, most) = (config.min_ctas, config.max_ctas);
    if least != UNDEFINED && most != UNDEFINED && least > most {
        return Err(invalid(&format!(
            "the configuration's minCTAs of {least} is more than its maxCTAs of {most}"
        )));
    }
    let text = |at: *const std::ffi::c_char, since| {
        let known = !at.is_null() && since <= version;
        // SAFETY: the caller's promise.
        known.then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
    };
    if let Some(net) = text(config.net_name, NET_NAME_SINCE) {
        check_net("netName", &net);
    }
    let name = text(config.comm_name, COMM_NAME_SINCE).unwrap_or_default();
    Ok(Settings { blocking: config.blocking != 0, name })
}

/// Names a network that is not here, where one was asked for.
fn check_net(place: &str, name: &str) {
    if !name.eq_ignore_ascii_case("socket") {
        log::warn!(
            "{place} asks for the network {name}, which is not in this version; Socket is used"
        );
    }
}

/// The environment's last word. Of the variables that override fields only these change anything on host memory.
fn overridden(mut settings: Settings) -> Settings {
    let config = Config::get();
    settings.blocking = config.blocking.unwrap_or(settings.blocking);
    if let Some(net) = &config.net {
        check_net("NCCL_NET", net);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(config: &NcclConfig) -> Result<Settings, ResultCode> {
        // SAFETY: a whole configuration.
        unsafe { read(config, None) }
    }

    #[test]
    fn clients_of_every_version_are_understood() {
        let sizes = [
            (24, 21400),
            (40, 21700),
            (48, 21800),
            (72, 22700),
            (80, 22800),
            (88, 22900),
            (96, 23000),
            (112, 23100),
            (120, 23203),
            (200, 24000),
        ];
        for (size, version) in sizes {
            let nonblocking = NcclConfig { size, version, blocking: 0, ..undefined() };
            // As much as that client has, and nothing after it.
            let mut memory = vec![0_u8; size];
            let whole = size.min(size_of::<NcclConfig>());
            // SAFETY: both are that long.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    (&raw const nonblocking).cast(),
                    memory.as_mut_ptr(),
                    whole,
                );
            }
            let aligned: Vec<u64> =
                memory.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).collect();
            // SAFETY: a configuration of `size` bytes.
            let settings = unsafe { read(aligned.as_ptr().cast(), None) }.unwrap();
            assert!(!settings.blocking, "{version}");
        }
    }

    #[test]
    fn what_a_client_did_not_know_is_not_read() {
        // 2.14 had padding and more where later versions have fields.
        let odd = NcclConfig {
            version: 21400,
            min_ctas: -7,
            comm_name: std::ptr::without_provenance(1),
            ..undefined()
        };
        assert!(read_from(&odd).is_ok());
        assert!(read_from(&NcclConfig { min_ctas: -7, ..undefined() }).is_err());
    }

    #[test]
    fn every_field_is_checked() {
        for field in FIELDS {
            let bad = [-1, -2, 0, 65, 1000].into_iter().find(|value| !(field.valid)(*value));
            let mut config = undefined();
            *(field.of)(&mut config) = bad.unwrap_or(-1);
            assert_eq!(read_from(&config), Err(ResultCode::InvalidArgument), "{}", field.name);
        }
        assert!(read_from(&NcclConfig { min_ctas: 4, max_ctas: 2, ..undefined() }).is_err());
        assert!(read_from(&NcclConfig { magic: 1, ..undefined() }).is_err());
        assert!(read_from(&NcclConfig { size: 8, ..undefined() }).is_err());
    }

    #[test]
    fn names_and_parents_are_kept() {
        let named = NcclConfig { comm_name: c"x".as_ptr(), ..undefined() };
        let settings = read_from(&named).unwrap();
        assert_eq!(settings, Settings { blocking: true, name: "x".into() });
        // SAFETY: NULL.
        assert_eq!(unsafe { read(std::ptr::null(), Some(&settings)) }, Ok(settings.clone()));
    }
}
