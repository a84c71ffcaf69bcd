//! The grammar of NCCL_PROTO, which is that of NCCL_ALGO: `LL,Simple`, `^LL128`, or by collective
//! `^LL128;allreduce:LL128`.

use maypole_algorithms::Collective;

use super::values::ProtocolSetting;

/// The value of `NCCL_PROTO`: the protocols that the user allows, by collective.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtocolRules {
    /// Each with the collective, in lower case without separators. None is every collective that no
    /// other rule names.
    rules: Vec<(Option<String>, ProtocolSetting)>,
}

impl ProtocolRules {
    /// Parses the value. None if a word is neither a protocol nor a collective, or if a list
    /// excludes every protocol.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let known = Collective::all(0).map(|collective| normalized(collective.name()));
        let rule = |part: &str| match part.split_once(':') {
            None => Some((None, protocols(part)?)),
            Some((name, list)) => {
                let name = normalized(name);
                known.contains(&name).then_some((Some(name), protocols(list)?))
            }
        };
        let parts = text.split(';').filter(|part| !part.trim().is_empty());
        Some(Self { rules: parts.map(rule).collect::<Option<_>>()? })
    }

    /// The protocols for this collective.
    pub(crate) fn of(&self, collective: Collective) -> ProtocolSetting {
        let name = normalized(collective.name());
        let rule = |wanted: Option<&str>| self.rules.iter().find(|(of, _)| of.as_deref() == wanted);
        let found = rule(Some(&name)).or_else(|| rule(None));
        found.map_or(ProtocolSetting::Auto, |(_, protocols)| *protocols)
    }
}

/// A list of protocols.
fn protocols(list: &str) -> Option<ProtocolSetting> {
    let list = list.trim();
    let (negated, list) = match list.strip_prefix('^') {
        Some(list) => (true, list),
        None => (false, list),
    };
    let (mut line, mut slots) = (negated, negated);
    for name in list.split(',') {
        match name.trim().to_ascii_lowercase().as_str() {
            // Excluding LL128 leaves LL.
            "ll" | "ll128" if !negated => line = true,
            "ll" => line = false,
            "ll128" => {}
            "simple" => slots = !negated,
            _ => return None,
        }
    }
    match (line, slots) {
        (true, true) => Some(ProtocolSetting::Auto),
        (true, false) => Some(ProtocolSetting::Line),
        (false, true) => Some(ProtocolSetting::Slots),
        (false, false) => None,
    }
}

/// A name in the form in which names are compared: `All_Reduce` and `allreduce` are the same.
fn normalized(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_for_all_collectives() {
        let cases = [
            ("LL", Some(ProtocolSetting::Line)),
            ("ll128,LL", Some(ProtocolSetting::Line)),
            ("Simple", Some(ProtocolSetting::Slots)),
            ("LL,Simple", Some(ProtocolSetting::Auto)),
            ("LL,LL128,Simple", Some(ProtocolSetting::Auto)),
            ("^LL", Some(ProtocolSetting::Slots)),
            ("^LL128", Some(ProtocolSetting::Auto)),
            ("^Simple", Some(ProtocolSetting::Line)),
            ("^LL,Simple", None),
            ("fast", None),
        ];
        for (text, expected) in cases {
            let rules = ProtocolRules::parse(text);
            assert_eq!(rules.map(|rules| rules.of(Collective::AllReduce)), expected, "{text}");
        }
    }

    #[test]
    fn a_list_may_be_for_one_collective() {
        use ProtocolSetting::{Auto, Line, Slots};
        let cases = [
            ("^LL128;allreduce:LL128", Some((Line, Auto))),
            ("allreduce:simple", Some((Slots, Auto))),
            ("Simple;allreduce:^LL", Some((Slots, Slots))),
            (" All_Reduce : LL ; Simple ", Some((Line, Slots))),
            ("LL;allgather:Simple", Some((Line, Slots))),
            ("allredce:LL", None),
            ("allreduce:fast", None),
            ("allreduce:^LL,Simple", None),
        ];
        for (text, expected) in cases {
            let rules = ProtocolRules::parse(text);
            let of = |rules: ProtocolRules| {
                (rules.of(Collective::AllReduce), rules.of(Collective::AllGather))
            };
            assert_eq!(rules.map(of), expected, "{text}");
        }
    }
}
