//! The numbers of the channels between two ranks: transfers first, then schedules, then windows.

use maypole_algorithms::schedule::Channel;

/// The channel of sends and receives.
pub(crate) const TRANSFERS: Channel = 0;

/// The channel that carries channel 0 of a schedule; the schedule's other channels follow.
pub(crate) const FIRST_OF_SCHEDULES: Channel = TRANSFERS + 1;

/// The most channels that a schedule may use; schedules that need more are not considered. An
/// unused channel costs no memory.
pub(crate) const MAX_OF_SCHEDULES: Channel = 16;

/// The channel of windows.
pub(crate) const WINDOWS: Channel = FIRST_OF_SCHEDULES + MAX_OF_SCHEDULES;
