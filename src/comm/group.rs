//! A group of sends and receives on slices.

use std::marker::PhantomData;

use super::Communicator;
use crate::element::Element;
use crate::error::Error;
use crate::transfer::Transfer;

/// Sends and receives that run at the same time; see [`Communicator::group`].
#[must_use = "the transfers run when `run` is called"]
pub struct TransferGroup<'a> {
    comm: &'a mut Communicator,
    transfers: Vec<Transfer>,
    /// The memory of the transfers is borrowed until they are done.
    memory: PhantomData<&'a mut [u8]>,
}

impl Communicator {
    /// A group of sends and receives, which run together: no rank waits for the order in which
    /// another lists them. Transfers between two ranks are matched in their order.
    ///
    /// ```
    /// use maypole::{Communicator, UniqueId};
    ///
    /// let id = UniqueId::create()?;
    /// let mut comm = Communicator::new(&id, 0, 1)?;
    /// let mut copy = [0; 3];
    /// comm.group().send(&[1, 2, 3], 0).recv(&mut copy, 0).run()?;
    /// assert_eq!(copy, [1, 2, 3]);
    /// # Ok::<(), maypole::Error>(())
    /// ```
    pub fn group(&mut self) -> TransferGroup<'_> {
        let transfers = self.host.spare_transfers.take();
        TransferGroup { comm: self, transfers, memory: PhantomData }
    }

    /// Sends `data` to rank `to` and receives `received` from rank `from`, at the same time.
    ///
    /// # Errors
    /// As for [`TransferGroup::run`].
    pub fn send_recv<T: Element>(
        &mut self,
        data: &[T],
        to: u32,
        received: &mut [T],
        from: u32,
    ) -> Result<(), Error> {
        self.group().send(data, to).recv(received, from).run()
    }
}

impl<'a> TransferGroup<'a> {
    /// Adds a send of `data` to `peer`, which receives as many elements.
    pub fn send<T: Element>(mut self, data: &'a [T], peer: u32) -> Self {
        let (bytes, data) = (size_of_val(data), data.as_ptr().cast());
        self.transfers.push(Transfer::Send { data, bytes, peer });
        self
    }

    /// Adds a receive into `data` of what `peer` sends, exactly as many elements.
    pub fn recv<T: Element>(mut self, data: &'a mut [T], peer: u32) -> Self {
        let (bytes, data) = (size_of_val(data), data.as_mut_ptr().cast());
        self.transfers.push(Transfer::Receive { data, bytes, peer });
        self
    }

    /// Runs all transfers; returns when all are done.
    ///
    /// # Errors
    /// Those of [`Communicator::exchange`].
    pub fn run(self) -> Result<(), Error> {
        // SAFETY: the slices are borrowed as long as the group lives, those that are received into
        // exclusively, so that they do not overlap; their types have no invalid values.
        let result = unsafe { self.comm.exchange(&self.transfers) };
        self.comm.host.spare_transfers.keep(self.transfers);
        result
    }
}
