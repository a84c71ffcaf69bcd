//! The options of nccl-tests that concern GPUs. Some are refused but for the value that changes
//! nothing on host memory; the others are accepted, since they change nothing or say what is done
//! with the buffers.

use clap::{Arg, ArgMatches, Command};

use crate::status::Failure;

/// An option of nccl-tests that concerns GPUs.
struct GpuOption {
    letter: char,
    long: &'static str,
    /// Why all values but 0 are refused; None if none is.
    refused: Option<&'static str>,
    help: &'static str,
}

const GPU_OPTIONS: [GpuOption; 6] = [
    GpuOption {
        letter: 'G',
        long: "cudagraph",
        refused: Some("there are no graphs of calls on host memory"),
        help: "Only 0 is accepted: there are no graphs of calls on host memory",
    },
    GpuOption {
        letter: 'D',
        long: "device_implementation",
        refused: Some("kernels that communicate need a GPU"),
        help: "Only 0 is accepted: kernels that communicate need a GPU",
    },
    GpuOption {
        letter: 'R',
        long: "local_register",
        refused: None,
        help: "1 or 2 takes buffers of the library and registers them with the communicator",
    },
    GpuOption {
        letter: 'x',
        long: "cta_policy",
        refused: None,
        help: "Changes nothing: host memory is not moved by thread blocks",
    },
    GpuOption {
        letter: 'V',
        long: "device_cta_count",
        refused: None,
        help: "Changes nothing: host memory is not moved by thread blocks",
    },
    GpuOption {
        letter: 'y',
        long: "stream_null",
        refused: None,
        help: "Changes nothing: a call on host memory is complete when it returns",
    },
];

/// The GPU options as the user gave them.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuOptions {
    /// Why the first that is not possible is refused.
    refused: Option<String>,
    /// -R: whether buffers are registered.
    register: bool,
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

    /// Whether buffers are registered with the communicator.
    pub(crate) fn registers(&self) -> bool {
        self.register
    }
}

// By hand rather than derived: the letter and the long name are two arguments of clap, because the
// message repeats what the user wrote.
impl clap::Args for GpuOptions {
    fn augment_args(command: Command) -> Command {
        let arguments = GPU_OPTIONS.iter().flat_map(|option| {
            let help = format!("{} (also --{})", option.help, option.long);
            let letter = Arg::new(option.letter.to_string()).short(option.letter).help(help);
            let long = Arg::new(option.long).long(option.long).hide(true);
            [letter.value_name("N"), long.value_name("N")]
                .map(|argument| argument.value_parser(clap::value_parser!(i64)))
        });
        command.args(arguments)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for GpuOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // What was typed, and the value, if the option was given.
        let given = |option: &GpuOption| {
            let letter = option.letter.to_string();
            let names = [(&*letter, "-"), (option.long, "--")];
            names.into_iter().find_map(|(name, dashes)| {
                let value = *matches.get_one::<i64>(name)?;
                Some((format!("{dashes}{name} {value}"), value))
            })
        };
        let refused = GPU_OPTIONS.iter().find_map(|option| {
            let (typed, value) = given(option)?;
            let why = option.refused.filter(|_| value != 0)?;
            Some(format!("{typed}: {why}; leave it at 0"))
        });
        let register = GPU_OPTIONS.iter().filter(|option| option.letter == 'R');
        let register = register.filter_map(given).any(|(_, value)| value != 0);
        Ok(Self { refused, register })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
