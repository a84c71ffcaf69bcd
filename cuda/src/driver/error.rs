//! Errors of the CUDA driver, each with advice what to do.

use std::ffi::c_int;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// Why a call of the driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no driver on this system.
    #[error(
        "cannot load the CUDA driver {}: {reason}; install the NVIDIA driver, or use host memory",
        path.display()
    )]
    NoLibrary {
        /// The library that was to be loaded.
        path: PathBuf,
        /// The message of the dynamic linker.
        reason: String,
    },
    /// The driver is too old to have a function.
    #[error(
        "the CUDA driver, of version {}, has no function {function}, which came with {}: update \
         the driver",
        Version(*version), Version(*since)
    )]
    NoFunction {
        /// The exact name of the function.
        function: &'static str,
        /// The first version of the driver that has it, as `cuDriverGetVersion` counts: 12030
        /// means 12.3.
        since: i32,
        /// The version of the loaded driver; 0 if it is unknown.
        version: i32,
    },
    /// A call failed.
    #[error("{call} failed: {name} ({code}, {text}){}", advice(*code))]
    Failed {
        /// The function.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// The driver's description of the error.
        text: String,
        /// The `CUresult`.
        code: i32,
    },
}

impl DriverError {
    /// The `CUresult`, if a call failed.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the device can no longer be used by this process; a new process can use it.
    pub fn is_sticky(&self) -> bool {
        matches!(self.code(), Some(214 | 220 | 700 | 702 | 709 | 710 | 714..=719))
    }
}

/// A version number for messages: 12030 is shown as 12.3.
struct Version(i32);

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("unknown"),
            version => write!(f, "{}.{}", version / 1000, version % 1000 / 10),
        }
    }
}

/// Advice for a `CUresult`, if its name does not suggest what to do.
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
        400 => ": a stream or event that was destroyed or belongs to another device",
        700 | 702 | 709 | 710 | 714..=719 => {
            ": a kernel failed, perhaps one of another library; this process cannot use the device \
             any more"
        }
        720 => ": the device cannot hold all blocks of the launch at once; use fewer channels",
        800 | 801 => {
            ": the device, or the container or sandbox it is used in, does not support this"
        }
        802 | 803 => {
            ": the parts of the driver have different versions; restart the host after an update"
        }
        900..=908 => {
            ": the call is not allowed in a stream capture; make it before the capture, or use the \
             relaxed capture mode"
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
