//! The builder of a communicator: its ids, this rank's number, and all that has a default.

use std::time::Duration;

use super::Communicator;
use crate::bootstrap::{AbortSignal, Options, UniqueId};
use crate::config::Config;
use crate::error::Error;

/// Sets up a [`Communicator`]; see [`Communicator::builder`].
///
/// Only [`rank`](Self::rank) has no default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder {
    ids: Vec<UniqueId>,
    rank: Option<(u32, u32)>,
    config: Option<Config>,
    options: Options,
}

impl Communicator {
    /// Joins the communicator of `id` as `rank` of `nranks`, for host memory, with the settings of
    /// the environment. Returns when all ranks have joined.
    ///
    /// # Errors
    /// As for [`Builder::build`].
    pub fn new(id: &UniqueId, rank: u32, nranks: u32) -> Result<Self, Error> {
        Self::builder(id).rank(rank, nranks).build()
    }

    /// The builder of the communicator of `id`, on this rank.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use maypole::{Communicator, UniqueId};
    ///
    /// let id = UniqueId::create()?;
    /// let comm = Communicator::builder(&id).rank(0, 1).timeout(Duration::from_secs(60)).build()?;
    /// assert_eq!((comm.rank(), comm.nranks()), (0, 1));
    /// # Ok::<(), maypole::Error>(())
    /// ```
    pub fn builder(id: &UniqueId) -> Builder {
        Builder { ids: vec![*id], rank: None, config: None, options: Options::default() }
    }
}

impl Builder {
    /// This rank's number, from 0 to `nranks - 1`, and the number of ranks.
    pub fn rank(mut self, rank: u32, nranks: u32) -> Self {
        self.rank = Some((rank, nranks));
        self
    }

    /// Further ids, each with a bootstrap root of its own. The roots share the work of introducing
    /// many ranks to each other: each serves a block of ranks. All ranks pass the same ids in the
    /// same order.
    pub fn more_roots(mut self, ids: &[UniqueId]) -> Self {
        self.ids.extend_from_slice(ids);
        self
    }

    /// The CUDA device whose memory the communicator is for, by its number among the devices that
    /// this process sees; `None`, the default, for host memory. Ranks may differ in it.
    pub fn device(mut self, device: impl Into<Option<i32>>) -> Self {
        self.options.device = device.into();
        self
    }

    /// Settings other than those of the environment.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// How long to wait for the other ranks. The default is `MAYPOLE_INIT_TIMEOUT`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// The signal by which other threads can abort the setup, and later the communicator.
    pub fn abort_signal(mut self, signal: impl Into<Option<AbortSignal>>) -> Self {
        self.options.abort = signal.into();
        self
    }

    /// Device, timeout and abort signal in one value, as [`Communicator::split_with`] takes them.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Joins the communicator; returns when all ranks have joined.
    ///
    /// # Errors
    /// Ranks that do not join within the timeout, a rank number used twice, an id of another job,
    /// settings that differ between ranks, an abort. [`Error::InvalidUsage`] if
    /// [`rank`](Self::rank) was not called.
    pub fn build(self) -> Result<Communicator, Error> {
        let Self { ids, rank, config, options } = self;
        let Some((rank, nranks)) = rank else {
            return Err(Error::InvalidUsage {
                what: String::from(
                    "a communicator was built without a rank; call `rank(rank, nranks)` on its \
                     builder",
                ),
            });
        };
        let config = config.as_ref().unwrap_or_else(|| Config::get());
        Communicator::join(&ids, rank, nranks, config, &options)
    }
}
