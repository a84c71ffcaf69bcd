//! What can go wrong with the driver: whose fault it is, and what to do.

use std::ffi::c_int;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// Why the driver did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// No driver on this system.
    #[error(
        "cannot load the CUDA driver {}: {reason}; install the NVIDIA driver, or use host memory",
        path.display()
    )]
    NoLibrary {
        /// What was looked for.
        path: PathBuf,
        /// As the dynamic linker says it.
        reason: String,
    },
    /// The driver is too old.
    #[error(
        "the CUDA driver, of version {}, has no function {function}, which came with {}: update the driver",
        Version(*version), Version(*since)
    )]
    NoFunction {
        /// Its exact name.
        function: &'static str,
        /// First version of the driver that has it, as `cuDriverGetVersion` counts: 12030 is 12.3.
        since: i32,
        /// The version that is loaded; 0 where it cannot be told.
        version: i32,
    },
    /// A call failed.
    #[error("{call} failed: {name} ({code}, {text}){}", advice(*code))]
    Failed {
        /// The function.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// The driver's words for it.
        text: String,
        /// CUresult.
        code: i32,
    },
}

impl DriverError {
    /// CUresult, if a call failed.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True if the device's context is of no use any more, in this process: only a new process helps.
    pub fn is_sticky(&self) -> bool {
        matches!(self.code(), Some(214 | 220 | 700 | 702 | 709 | 710 | 714..=719))
    }
}

/// 12030 as 12.3.
struct Version(i32);

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("unknown"),
            version => write!(f, "{}.{}", version / 1000, version % 1000 / 10),
        }
    }
}

/// What to do, where the name does not say it.
fn advice(code: c_int) -> &'static str {
    match code {
        2 => ": free device memory, or use fewer communicators and channels",
        3 | 4 => ": the process is ending, or was forked after CUDA was initialised",
        100 => ": no device is visible; look at CUDA_VISIBLE_DEVICES and nvidia-smi",
        201 => ": the stream or memory belongs to another context, or to none",
        209 | 222 => {
            ": this library has no kernels for this device and driver; update one or the other"
        }
        217 => ": these devices cannot reach each other's memory",
        400 => ": a stream or event that was destroyed, or of another device",
        700 | 702 | 709 | 710 | 714..=719 => {
            ": a kernel failed, perhaps not one of this library; the process cannot use the device any more"
        }
        720 => ": the blocks of the launch do not fit the device together; use fewer channels",
        800 | 801 => ": the device, or the sandbox it is used in, does not have this",
        802 | 803 => ": the driver's parts do not fit each other; restart after an update",
        900..=908 => {
            ": the call is not one for a stream capture; finish it before, or capture relaxed"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let missing = DriverError::NoFunction { function: "cuX", since: 12030, version: 11080 };
        assert!(
            missing
                .to_string()
                .contains("of version 11.8, has no function cuX, which came with 12.3")
        );
        let failed = |code| DriverError::Failed {
            call: "cuX",
            name: "N".to_owned(),
            text: "t".to_owned(),
            code,
        };
        assert!(failed(719).is_sticky() && !failed(2).is_sticky() && !missing.is_sticky());
        assert!(failed(720).to_string().contains("fewer channels"));
    }
}
