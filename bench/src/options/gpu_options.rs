//! The options of nccl-tests that concern GPUs: they are accepted at the values that change nothing
//! on host memory, and refused at all others.

use clap::{Arg, ArgMatches, Command};

use crate::status::Failure;

/// An option of nccl-tests that concerns GPUs.
struct GpuOption {
    letter: char,
    long: &'static str,
    /// The value that changes nothing on host memory.
    accepted: &'static str,
    /// Why other values are refused.
    why: &'static str,
}

const GPU_OPTIONS: [GpuOption; 6] = [
    GpuOption {
        letter: 'G',
        long: "cudagraph",
        accepted: "0",
        why: "there are no graphs of calls on host memory",
    },
    GpuOption {
        letter: 'R',
        long: "local_register",
        accepted: "0",
        why: "host memory needs no registration here",
    },
    GpuOption {
        letter: 'x',
        long: "cta_policy",
        accepted: "0",
        why: "host memory is not moved by thread blocks",
    },
    GpuOption {
        letter: 'D',
        long: "device_implementation",
        accepted: "0",
        why: "kernels that communicate need a GPU",
    },
    GpuOption {
        letter: 'V',
        long: "device_cta_count",
        accepted: "16",
        why: "host memory is not moved by thread blocks",
    },
    GpuOption {
        letter: 'y',
        long: "stream_null",
        accepted: "0",
        why: "there are no streams: a call on host memory is complete when it returns",
    },
];

/// The GPU options as the user gave them: why the first that is not possible is refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuOptions {
    refused: Option<String>,
}

impl GpuOptions {
    /// # Errors
    /// An option has a value that is not possible on host memory.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &self.refused {
            Some(text) => Err(Failure::unsupported(text.clone())),
            None => Ok(()),
        }
    }
}

// By hand rather than derived: the letter and the long name are two arguments of clap, because the
// message repeats what the user wrote.
impl clap::Args for GpuOptions {
    fn augment_args(command: Command) -> Command {
        let arguments = GPU_OPTIONS.iter().flat_map(|option| {
            let help = format!(
                "Only {} is accepted (also --{}): {}",
                option.accepted, option.long, option.why
            );
            let letter = Arg::new(option.letter.to_string()).short(option.letter).help(help);
            let long = Arg::new(option.long).long(option.long).hide(true);
            [letter.value_name("N"), long.value_name("N")]
        });
        command.args(arguments)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for GpuOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let refused = GPU_OPTIONS.iter().find_map(|option| {
            let letter = option.letter.to_string();
            let given = [(&*letter, "-"), (option.long, "--")];
            given.into_iter().find_map(|(name, dashes)| {
                let value = matches.get_one::<String>(name)?;
                (value != option.accepted).then(|| {
                    let GpuOption { accepted, why, .. } = option;
                    format!("{dashes}{name} {value}: {why}; leave it at {accepted}")
                })
            })
        });
        Ok(Self { refused })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
