//! `ncclConfig_t`, the configuration of a communicator: read from clients of every version since
//! 2.14, checked, and overridden by the environment, as NCCL does.
//!
//! It starts with our defaults. Over them come the fields that both the client's version and this
//! one have. Fields that the client's version did not have yet, and undefined ones, are defaults
//! again. The rest is checked. At last the environment overrides fields.
//!
//! On host memory only `blocking` and `commName` change anything. The other fields steer GPU
//! kernels and networks; they are checked all the same, so that a wrong value is an error on host
//! memory too, and not on GPUs alone.

use std::ffi::{CStr, c_char, c_int, c_uint};

use maypole::ResultCode;
use maypole::config::Config;

use super::{copy_known_fields, wrong_field};
use crate::boundary::invalid_argument;
use crate::layout::{API_MAGIC, NcclConfig, UNDEFINED, VERSION};

/// What the configuration of a communicator changes here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommSettings {
    /// Calls return when they are done, and not at once with `ncclInProgress`.
    pub(crate) blocking: bool,
    /// `commName`, for logs.
    pub(crate) name: String,
}

impl Default for CommSettings {
    fn default() -> Self {
        Self { blocking: true, name: String::new() }
    }
}

/// An integer field of the configuration.
struct IntegerField {
    name: &'static str,
    /// The version of NCCL that added the field.
    since: c_uint,
    get: fn(&mut NcclConfig) -> &mut c_int,
    valid: fn(c_int) -> bool,
    expected: &'static str,
}

macro_rules! integer_fields {
    ($($name:literal $field:ident $since:literal $valid:expr, $expected:literal;)*) => {
        const INTEGER_FIELDS: &[IntegerField] = &[$(IntegerField {
            name: $name,
            since: $since,
            get: |config| &mut config.$field,
            valid: $valid,
            expected: $expected,
        }),*];
    };
}

integer_fields! {
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
    "nvlsHostMode" nvls_host_mode 23200
        |v| (0..4).contains(&v) || v == c_int::MAX, "ncclNvlsHostMode*";
}

/// The versions of NCCL that added the two names.
const NET_NAME_SINCE: c_uint = 21700;
const COMM_NAME_SINCE: c_uint = 22700;

/// The bytes of the smallest configuration, that of 2.14.
const SMALLEST_CONFIG: usize = 24;

/// Reads the client's configuration. NULL stands for that of the parent, or for the defaults.
///
/// # Safety
/// `config` is NULL, or readable for 16 bytes and, if these are the start of a configuration, for
/// as many bytes as its size says; its strings are NULL or end in a zero.
pub(crate) unsafe fn read_settings(
    config: *const NcclConfig,
    parent: Option<&CommSettings>,
) -> Result<CommSettings, ResultCode> {
    if config.is_null() {
        return Ok(match parent {
            Some(parent) => parent.clone(),
            None => override_by_environment(CommSettings::default()),
        });
    }
    let mut ours = undefined_config();
    // SAFETY: the structure has the header and holds integers and raw pointers alone; the caller
    // promises that `config` is as long as its size says.
    unsafe { copy_known_fields(config, &mut ours, SMALLEST_CONFIG, "NCCL_CONFIG_INITIALIZER") }?;
    // SAFETY: the caller promises strings that are NULL or end in a zero.
    unsafe { check_fields(ours) }.map(override_by_environment)
}

/// A configuration with every field undefined.
fn undefined_config() -> NcclConfig {
    let mut config = NcclConfig {
        size: size_of::<NcclConfig>(),
        magic: API_MAGIC,
        version: VERSION as c_uint,
        // SAFETY: the structure holds integers and pointers, for which zeros are valid.
        ..unsafe { std::mem::zeroed() }
    };
    for field in INTEGER_FIELDS {
        *(field.get)(&mut config) = UNDEFINED;
    }
    config
}

/// Checks the fields that the client's version knows, and returns what they change.
///
/// # Safety
/// The strings of `config` that its version knows are NULL or end in a zero.
unsafe fn check_fields(mut config: NcclConfig) -> Result<CommSettings, ResultCode> {
    let version = config.version;
    for field in INTEGER_FIELDS {
        let value = (field.get)(&mut config);
        if field.since > version {
            *value = UNDEFINED;
        }
        if *value != UNDEFINED && !(field.valid)(*value) {
            return Err(wrong_field(field.name, *value, field.expected));
        }
    }
    let (least, most) = (config.min_ctas, config.max_ctas);
    if least != UNDEFINED && most != UNDEFINED && least > most {
        return Err(invalid_argument(&format!(
            "the configuration's minCTAs of {least} is more than its maxCTAs of {most}"
        )));
    }
    let text = |string: *const c_char, since| {
        let is_set = !string.is_null() && since <= version;
        // SAFETY: the caller promises that a string that its version knows ends in a zero.
        is_set.then(|| unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned())
    };
    if let Some(network) = text(config.net_name, NET_NAME_SINCE) {
        warn_of_missing_network("netName", &network);
    }
    let name = text(config.comm_name, COMM_NAME_SINCE).unwrap_or_default();
    Ok(CommSettings { blocking: config.blocking != 0, name })
}

/// Warns where `setting` asks for a network that this version does not have.
fn warn_of_missing_network(setting: &str, network: &str) {
    if !["socket", "ib"].iter().any(|known| network.eq_ignore_ascii_case(known)) {
        log::warn!(
            "{setting} asks for the network {network}, which is not in this version; \
             IB or Socket is used"
        );
    }
}

/// Applies the variables that override fields. On host memory only these change anything.
fn override_by_environment(mut settings: CommSettings) -> CommSettings {
    let config = Config::get();
    settings.blocking = config.blocking.unwrap_or(settings.blocking);
    if let Some(network) = &config.net {
        warn_of_missing_network("NCCL_NET", network);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(config: &NcclConfig) -> Result<CommSettings, ResultCode> {
        // SAFETY: the reference is to a whole configuration, whose strings are NULL or literals.
        unsafe { read_settings(config, None) }
    }

    #[test]
    fn configurations_of_every_version_are_read() {
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
            let nonblocking = NcclConfig { size, version, blocking: 0, ..undefined_config() };
            // As many bytes as that client has, and nothing after them.
            let mut memory = vec![0_u8; size];
            let whole = size.min(size_of::<NcclConfig>());
            // SAFETY: both are at least `whole` bytes long.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    (&raw const nonblocking).cast(),
                    memory.as_mut_ptr(),
                    whole,
                );
            }
            let aligned: Vec<u64> =
                memory.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).collect();
            // SAFETY: the memory holds a configuration of `size` bytes.
            let settings = unsafe { read_settings(aligned.as_ptr().cast(), None) }.unwrap();
            assert!(!settings.blocking, "{version}");
        }
    }

    #[test]
    fn fields_that_a_client_does_not_know_are_not_read() {
        // 2.14 had padding and more where later versions have fields.
        let odd = NcclConfig {
            version: 21400,
            min_ctas: -7,
            comm_name: std::ptr::without_provenance(1),
            ..undefined_config()
        };
        assert!(read_from(&odd).is_ok());
        assert!(read_from(&NcclConfig { min_ctas: -7, ..undefined_config() }).is_err());
    }

    #[test]
    fn every_field_is_checked() {
        for field in INTEGER_FIELDS {
            let bad = [-1, -2, 0, 65, 1000].into_iter().find(|value| !(field.valid)(*value));
            let mut config = undefined_config();
            *(field.get)(&mut config) = bad.unwrap_or(-1);
            assert_eq!(read_from(&config), Err(ResultCode::InvalidArgument), "{}", field.name);
        }
        assert!(read_from(&NcclConfig { min_ctas: 4, max_ctas: 2, ..undefined_config() }).is_err());
        assert!(read_from(&NcclConfig { magic: 1, ..undefined_config() }).is_err());
        assert!(read_from(&NcclConfig { size: 8, ..undefined_config() }).is_err());
    }

    #[test]
    fn names_are_kept_and_parents_inherited() {
        let named = NcclConfig { comm_name: c"x".as_ptr(), ..undefined_config() };
        let settings = read_from(&named).unwrap();
        assert_eq!(settings, CommSettings { blocking: true, name: "x".into() });
        // SAFETY: the configuration is NULL.
        let inherited = unsafe { read_settings(std::ptr::null(), Some(&settings)) };
        assert_eq!(inherited, Ok(settings));
    }
}
