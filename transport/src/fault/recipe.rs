//! What goes wrong on a rank's links, and how often: the setting `MAYPOLE_FAULT`.

use std::time::Duration;

use crate::Rank;

/// How often something happens, in parts of 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRate(pub(super) u64);

/// What goes wrong, and how often. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultRecipe {
    /// The seed of all random choices.
    pub seed: u64,
    /// How many of the messages, credits and acknowledgements are delayed.
    pub delay: FaultRate,
    /// The longest delay.
    pub longest: Duration,
    /// How many reservations are refused at first although there is credit.
    pub backpressure: FaultRate,
    /// How many messages are damaged.
    pub corrupt: FaultRate,
    /// The part of these messages that is damaged.
    pub part: DamagedPart,
    /// The process of this rank kills itself instead of sending this message, counted from 1 over
    /// all its links.
    pub kill: Option<(Rank, u64)>,
    /// This rank panics instead of sending this message.
    pub panic: Option<(Rank, u64)>,
    /// This rank aborts right after it has sent this message.
    pub abort: Option<(Rank, u64)>,
}

/// The part of a message that is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DamagedPart {
    /// Its tag, which the receiver compares with its own.
    #[default]
    Tag,
    /// A byte of its payload, which nothing above the link checks. Lent messages and empty messages
    /// are not damaged.
    Payload,
    /// Its length, which becomes any other number.
    Length,
    /// Its sequence.
    Sequence,
    /// Its kind: a message that is lent, or a frame of another kind.
    Kind,
    /// The acknowledgement of its release, which says that more messages were released.
    Acknowledgement,
}

impl DamagedPart {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tag" => Self::Tag,
            "payload" => Self::Payload,
            "length" => Self::Length,
            "sequence" => Self::Sequence,
            "kind" => Self::Kind,
            "acknowledgement" => Self::Acknowledgement,
            _ => return None,
        })
    }
}

impl FaultRecipe {
    /// Parses a text such as
    /// `seed=7,delay=0.1:200us,backpressure=0.05,corrupt=0.001,kill=1:20,abort=2:30`: any of these
    /// items, in any order. A rate is from 0 to 1. `corrupt=0.001:payload` damages payloads, and
    /// `length`, `sequence`, `kind` and `acknowledgement` damage these. `None` if the text is
    /// something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut recipe = Self::default();
        for item in text.split(',') {
            let (name, value) = item.trim().split_once('=')?;
            let (first, second) = match value.split_once(':') {
                Some((first, second)) => (first, Some(second)),
                None => (value, None),
            };
            match (name, second) {
                ("seed", None) => recipe.seed = first.parse().ok()?,
                ("delay", Some(longest)) => {
                    recipe.delay = FaultRate::parse(first)?;
                    let micros: u32 = longest.strip_suffix("us")?.parse().ok()?;
                    recipe.longest = Duration::from_micros(micros.into());
                }
                ("backpressure", None) => recipe.backpressure = FaultRate::parse(first)?,
                ("corrupt", part) => {
                    recipe.corrupt = FaultRate::parse(first)?;
                    recipe.part = part.map_or(Some(DamagedPart::Tag), DamagedPart::parse)?;
                }
                ("kill", Some(message)) => recipe.kill = Some(rank_and_message(first, message)?),
                ("panic", Some(message)) => recipe.panic = Some(rank_and_message(first, message)?),
                ("abort", Some(message)) => recipe.abort = Some(rank_and_message(first, message)?),
                _ => return None,
            }
        }
        Some(recipe)
    }

    /// The recipe without `kill`, `panic` and `abort`, for a communicator made from this one, whose
    /// ranks have other numbers.
    #[must_use]
    pub fn without_ends(&self) -> Self {
        Self { kill: None, panic: None, abort: None, ..self.clone() }
    }
}

fn rank_and_message(rank: &str, message: &str) -> Option<(Rank, u64)> {
    let message = message.parse().ok().filter(|&message| message > 0)?;
    Some((rank.parse().ok()?, message))
}

impl FaultRate {
    pub(super) const ALWAYS: f64 = (1u64 << 32) as f64;

    fn parse(text: &str) -> Option<Self> {
        let rate: f64 = text.parse().ok()?;
        (0.0..=1.0).contains(&rate).then_some(Self((rate * Self::ALWAYS) as u64))
    }

    /// Whether it happens, for a random number.
    pub(super) fn happens(self, random: u64) -> bool {
        random >> 32 < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_parsed() {
        let all = FaultRecipe::parse(
            "seed=7, delay=0.5:200us,backpressure=1,corrupt=0.25:payload,kill=1:20,abort=2:1",
        );
        let expected = FaultRecipe {
            seed: 7,
            delay: FaultRate(1 << 31),
            longest: Duration::from_micros(200),
            backpressure: FaultRate(1 << 32),
            corrupt: FaultRate(1 << 30),
            part: DamagedPart::Payload,
            kill: Some((1, 20)),
            panic: None,
            abort: Some((2, 1)),
        };
        assert_eq!(all, Some(expected));
        for (part, word) in [
            (DamagedPart::Length, "length"),
            (DamagedPart::Sequence, "sequence"),
            (DamagedPart::Kind, "kind"),
            (DamagedPart::Acknowledgement, "acknowledgement"),
        ] {
            let recipe = FaultRecipe::parse(&format!("corrupt=1:{word}"));
            assert_eq!(recipe.map(|recipe| recipe.part), Some(part));
        }
        assert_eq!(FaultRecipe::parse("panic=3:4").and_then(|it| it.panic), Some((3, 4)));
        assert!(FaultRate(1 << 32).happens(u64::MAX) && !FaultRate(0).happens(0));
        for bad in
            ["", "seed", "seed=x", "delay=0.1", "delay=0.1:5", "delay=2:5us", "kill=1", "x=1"]
        {
            assert_eq!(FaultRecipe::parse(bad), None, "{bad}");
        }
        for bad in ["kill=1:0", "corrupt=NaN", "corrupt=0.1:head", "backpressure=-1", "seed=1:2"] {
            assert_eq!(FaultRecipe::parse(bad), None, "{bad}");
        }
    }
}
