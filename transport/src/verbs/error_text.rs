//! The texts of errors of RDMA connections.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::Rank;
use crate::error::LinkError;
use crate::process::PerProcess;

/// Texts of errors that live as long as the process, each once.
#[derive(Default)]
struct KeptTexts(HashSet<&'static str>);

impl KeptTexts {
    /// Most texts. There are few, because they name ranks and devices and no numbers that grow; but
    /// some have the words of a peer, which may be malicious.
    const MOST: usize = 256;

    /// The text, if there is room for it.
    fn keep(&mut self, text: String) -> Result<&'static str, String> {
        if let Some(kept) = self.0.get(text.as_str()) {
            return Ok(kept);
        }
        if self.0.len() == Self::MOST {
            return Err(text);
        }
        let kept: &'static str = text.leak();
        self.0.insert(kept);
        Ok(kept)
    }
}

/// The text of an error for which `LinkError`, which is copied, needs a static one.
pub(super) fn kept_text(text: String) -> &'static str {
    static TEXTS: PerProcess<Mutex<KeptTexts>> = PerProcess::new();
    let kept = TEXTS.get().lock().unwrap_or_else(PoisonError::into_inner).keep(text);
    kept.unwrap_or_else(|text| {
        log::warn!("an RDMA connection failed: {text}");
        "there were too many reasons to keep this one; see the log of this rank"
    })
}

/// The error of a connection to `peer` over RDMA.
pub(super) fn rdma_error(peer: Rank, why: String) -> LinkError {
    LinkError::Rdma { peer, why: kept_text(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_make_this_process_keep_any_number_of_texts() {
        let mut texts = KeptTexts::default();
        let kept = |texts: &mut KeptTexts, n: usize| texts.keep(format!("reason {n}"));
        for n in 0..KeptTexts::MOST {
            assert_eq!(kept(&mut texts, n), Ok(&*format!("reason {n}")));
        }
        for n in KeptTexts::MOST..2 * KeptTexts::MOST {
            assert_eq!(kept(&mut texts, n), Err(format!("reason {n}")));
        }
        assert_eq!(kept(&mut texts, 7), Ok("reason 7"));
        assert_eq!(texts.0.len(), KeptTexts::MOST);
    }
}
