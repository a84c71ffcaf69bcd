//! Exchanges over the control tree: each rank gives some bytes and gets those of all ranks. Items
//! go up the tree to rank 0, then all items go down.

use std::time::Instant;

use super::ControlTree;
use super::gathered::{GatheredItems, read_all};
use crate::bootstrap::error::BootstrapError;
use crate::bootstrap::frame::ControlFrame;
use crate::bootstrap::rank_set::RankSet;
use crate::bootstrap::tree_shape::parent;

/// An exchange in progress.
pub(crate) struct TreeExchange {
    started: Instant,
    gathered: GatheredItems,
    /// The children whose items have not come.
    missing: Vec<u32>,
}

impl ControlTree {
    /// Begins the next exchange. Call [`advance_exchange`](Self::advance_exchange) whenever frames
    /// were read.
    pub(crate) fn begin_exchange(&self, bytes: &[u8]) -> TreeExchange {
        TreeExchange {
            started: Instant::now(),
            gathered: GatheredItems::new(self.rank, self.nranks, bytes),
            missing: self.below.iter().map(|child| child.rank).collect(),
        }
    }

    /// Does what is possible of an exchange without waiting. Returns the result when the exchange
    /// is complete.
    ///
    /// # Errors
    /// A child is at another exchange, or a frame is malformed.
    pub(crate) fn advance_exchange(
        &mut self,
        exchange: &mut TreeExchange,
    ) -> Result<Option<Vec<Vec<u8>>>, BootstrapError> {
        self.take_ups(&mut exchange.gathered, &mut exchange.missing)?;
        if !exchange.missing.is_empty() {
            return Ok(None);
        }
        let whole = self.pass_on(&mut exchange.gathered)?;
        if whole.is_some() {
            self.sequence = self.sequence.wrapping_add(1);
        }
        Ok(whole)
    }

    /// The error of an exchange whose deadline has passed: names the rank that it waits for.
    pub(crate) fn exchange_timeout(&self, exchange: &TreeExchange) -> BootstrapError {
        let missing = &exchange.missing;
        let what = if missing.is_empty() { "to pass on" } else { "to give" };
        BootstrapError::TimedOut {
            rank: self.rank,
            waiting_for: missing.first().copied().or(parent(self.rank)).unwrap_or(self.rank),
            what: format!("{what} its part of exchange {}", self.sequence),
            waited: exchange.started.elapsed(),
        }
    }

    /// Takes the items that children have sent for this exchange.
    fn take_ups(
        &mut self,
        gathered: &mut GatheredItems,
        missing: &mut Vec<u32>,
    ) -> Result<(), BootstrapError> {
        for at in 0..self.below.len() {
            let child = self.below[at].rank;
            if !missing.contains(&child) {
                continue;
            }
            let Some((sequence, items)) = self.below[at].up.take() else { continue };
            if sequence != self.sequence {
                return Err(BootstrapError::Disagreement {
                    what: format!("which exchange is next ({sequence} or {})", self.sequence),
                    ranks: RankSet::new([child]),
                });
            }
            gathered.add(&items, child).ok_or_else(|| self.malformed("items", "child"))?;
            missing.retain(|&other| other != child);
        }
        Ok(())
    }

    /// With all items of the subtree here: sends them up once, then takes the items of all ranks
    /// and sends them down.
    fn pass_on(
        &mut self,
        gathered: &mut GatheredItems,
    ) -> Result<Option<Vec<Vec<u8>>>, BootstrapError> {
        let sequence = self.sequence;
        let items = if self.rank == 0 {
            gathered.body()
        } else {
            if let Some(body) = gathered.take_body() {
                if body.len() > self.most_items() {
                    return Err(self.malformed("items", "subtree"));
                }
                if let Some(above) = &mut self.above {
                    above.send(&ControlFrame::Up { sequence, items: body });
                }
            }
            let Some(items) = self.down.take() else { return Ok(None) };
            items
        };
        let whole =
            read_all(&items, self.nranks).ok_or_else(|| self.malformed("items", "parent"))?;
        let down = ControlFrame::Down { sequence, items };
        for child in &mut self.below {
            child.connection.send(&down);
        }
        Ok(Some(whole))
    }
}
