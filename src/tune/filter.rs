//! The grammar of NCCL_ALGO: `ring,tree`, `^ring`, or by collective
//! `ring,tree;allreduce:^tree;broadcast:ring`.

use maypole_algorithms::Collective;
use maypole_algorithms::hierarchy::FAMILY;

use super::{Protocol, candidates};
use crate::error::Error;

/// The algorithms that a user allows, by collective.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlgorithmFilter {
    rules: Vec<FilterRule>,
}

/// One list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FilterRule {
    /// The collective, in lower case without separators. None is every collective that no other
    /// rule names.
    collective: Option<String>,
    /// Whether the names are excluded, not allowed.
    except: bool,
    names: Vec<String>,
    /// The only protocol by which each of the names is allowed, if one is given.
    protocols: Vec<Option<Protocol>>,
}

/// Algorithms of NCCL for hardware that this library does not use. Their names are accepted, and
/// match no algorithm.
const NCCL_HARDWARE_ALGORITHMS: [&str; 4] = ["CollnetDirect", "CollnetChain", "NVLS", "NVLSTree"];

impl AlgorithmFilter {
    /// Parses the value of NCCL_ALGO. An empty value allows everything. Case, `_` and `-` are
    /// ignored.
    ///
    /// # Errors
    /// A word is neither an algorithm nor a collective, which is an error in NCCL too.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let rule = |part: &str| {
            let (collective, list) = match part.split_once(':') {
                Some((name, list)) => (Some(normalized(name)), list),
                None => (None, part),
            };
            let (except, list) = match list.trim().strip_prefix('^') {
                Some(rest) => (true, rest),
                None => (false, list),
            };
            let names: Vec<_> = list.split(',').map(normalized).filter(|n| !n.is_empty()).collect();
            let protocols = vec![None; names.len()];
            FilterRule { collective, except, names, protocols }
        };
        let rules: Vec<FilterRule> =
            text.split(';').filter(|p| !p.trim().is_empty()).map(rule).collect();
        let algorithms: Vec<&str> =
            candidates::names().into_iter().chain(NCCL_HARDWARE_ALGORITHMS).collect();
        let collectives = Collective::all(0).map(Collective::name);
        for FilterRule { collective, names, .. } in &rules {
            if let Some(name) = collective {
                check_known("collective", name, &collectives, text)?;
            }
            for name in names {
                check_known("algorithm", name, &algorithms, text)?;
            }
        }
        Ok(Self { rules })
    }

    /// The filter for one collective from a comma list of algorithms. A name may end in a protocol,
    /// as `ring_LL`; then the algorithm is allowed by that protocol alone. LL and LL128 are LL
    /// messages, Simple is slots.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn select(collective: Collective, list: &str) -> Result<Self, Error> {
        let entries = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let (names, protocols): (Vec<String>, Vec<_>) = entries.map(split_protocol).unzip();
        // A rule that names its collective is always obeyed, see `among`.
        let mut filter = Self::parse(&format!("{}:{}", collective.name(), names.join(",")))?;
        for rule in &mut filter.rules {
            rule.protocols.clone_from(&protocols);
        }
        Ok(filter)
    }

    /// The only protocol by which `algorithm` is allowed, if the user gives one.
    pub fn protocol(&self, collective: Collective, algorithm: &str) -> Option<Protocol> {
        let rule = self.rule(collective)?;
        let mut asked = rule.protocols_of(algorithm);
        let first = asked.next()?;
        asked.all(|other| other == first).then_some(first).flatten()
    }

    /// Those of `algorithms` that may be used for `collective`. A rule for all collectives that
    /// would exclude all of them is ignored, as in NCCL, where most collectives have a single
    /// algorithm. A rule for this collective is always obeyed.
    pub fn among<'a>(&self, collective: Collective, algorithms: &[&'a str]) -> Vec<&'a str> {
        let Some(rule) = self.rule(collective) else { return algorithms.to_vec() };
        let allowed: Vec<&str> =
            algorithms.iter().filter(|name| rule.allows(name)).copied().collect();
        let binds = rule.collective.is_some() || !allowed.is_empty();
        if binds { allowed } else { algorithms.to_vec() }
    }

    /// Whether the rule for `collective` allows `algorithm`; true without a rule.
    pub fn allows(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective).is_none_or(|rule| rule.allows(algorithm))
    }

    /// Whether the user allows `algorithm` by its name or that of its family.
    pub fn names(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective).is_some_and(|r| !r.except && r.lists(algorithm))
    }

    fn rule(&self, collective: Collective) -> Option<&FilterRule> {
        let name = normalized(collective.name());
        let named = self.rules.iter().find(|r| r.collective.as_ref() == Some(&name));
        named.or_else(|| self.rules.iter().find(|r| r.collective.is_none()))
    }
}

impl FilterRule {
    /// Whether the rule has the algorithm in its list.
    fn lists(&self, algorithm: &str) -> bool {
        self.protocols_of(algorithm).next().is_some()
    }

    /// The protocol of every entry for the algorithm, by its own name or by that of its family.
    fn protocols_of(&self, algorithm: &str) -> impl Iterator<Item = Option<Protocol>> {
        let name = normalized(algorithm);
        let entries = self.names.iter().zip(&self.protocols);
        let of_it = move |(listed, _): &(&String, &Option<Protocol>)| {
            **listed == name || **listed == FAMILY && name.starts_with(FAMILY)
        };
        entries.filter(of_it).map(|(_, protocol)| *protocol)
    }

    fn allows(&self, algorithm: &str) -> bool {
        self.lists(algorithm) != self.except
    }
}

/// Checks that `name` is one of `all`.
fn check_known(kind: &str, name: &str, all: &[&str], text: &str) -> Result<(), Error> {
    if all.iter().any(|known| normalized(known) == name) {
        return Ok(());
    }
    Err(Error::InvalidUsage {
        what: format!(
            "NCCL_ALGO is \"{text}\", in which \"{name}\" is not a known {kind}; use one of: {}",
            all.join(", ")
        ),
    })
}

/// Splits a name that may end in a protocol.
fn split_protocol(name: &str) -> (String, Option<Protocol>) {
    let name = name.to_ascii_lowercase();
    let ends = [("_simple", Protocol::Slots), ("_ll128", Protocol::Ll), ("_ll", Protocol::Ll)];
    let found = ends.iter().find_map(|(end, of)| Some((name.strip_suffix(end)?, *of)));
    found.map_or_else(|| (name.clone(), None), |(bare, of)| (bare.to_owned(), Some(of)))
}

/// A name in the form in which names are compared: `All_Reduce` and `allreduce` are the same.
fn normalized(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed_by_nccls_grammar() {
        let of = |text: &str, collective| {
            let filter = AlgorithmFilter::parse(text).unwrap_or_else(|e| panic!("{e}"));
            filter.among(collective, &["ring", "oneshot"]).join(" ")
        };
        let (reduce, gather) = (Collective::AllReduce, Collective::AllGather);
        let cases = [
            ("", "ring oneshot", "ring oneshot"),
            ("Ring,Tree", "ring", "ring"),
            ("^ring", "oneshot", "oneshot"),
            ("allreduce:tree", "", "ring oneshot"),
            ("RING;All_Reduce:^ring", "oneshot", "ring"),
            ("allreduce:^tree;ring", "ring oneshot", "ring"),
            (" AllGather : tree ; oneshot ", "oneshot", ""),
            ("^ring,NVLS", "oneshot", "oneshot"),
            // Would exclude everything for each collective, so it is ignored.
            ("NVLS,collnetdirect", "ring oneshot", "ring oneshot"),
            ("allreduce:NVLSTree", "", "ring oneshot"),
            ("^ring,oneshot", "ring oneshot", "ring oneshot"),
        ];
        for (text, first, second) in cases {
            assert_eq!(
                (of(text, reduce), of(text, gather)),
                (first.into(), second.into()),
                "{text}"
            );
        }
        let filter = AlgorithmFilter::parse("allgather:direct;ring").expect("a rule");
        assert!(filter.names(reduce, "ring") && !filter.names(gather, "ring"));
        assert!(filter.allows(gather, "direct") && !filter.allows(gather, "ring"));
        let filter = AlgorithmFilter::parse("hier;allgather:^hierdirect").expect("a family");
        assert!(filter.allows(reduce, "hierring") && !filter.allows(reduce, "ring"));
        assert!(filter.allows(gather, "hierpat") && !filter.allows(gather, "hierdirect"));
        assert!(!AlgorithmFilter::parse("^ring").expect("a rule").names(reduce, "tree"));
    }

    #[test]
    fn names_for_one_call_may_end_in_a_protocol() {
        let of = |list: &str| AlgorithmFilter::select(Collective::AllReduce, list);
        let protocol = |list: &str, name: &str| {
            let filter = of(list).unwrap_or_else(|e| panic!("{e}"));
            let allowed = filter.allows(Collective::AllReduce, name);
            allowed.then(|| filter.protocol(Collective::AllReduce, name))
        };
        let list = "RING_LL, tree_SIMPLE,ring_ll128 ,oneshot";
        assert_eq!(protocol(list, "ring"), Some(Some(Protocol::Ll)));
        assert_eq!(protocol(list, "tree"), Some(Some(Protocol::Slots)));
        assert_eq!(protocol(list, "oneshot"), Some(None));
        assert_eq!(protocol(list, "pairs"), None);
        // Both protocols, and no restriction.
        assert_eq!(protocol("ring_LL,ring_SIMPLE", "ring"), Some(None));
        assert_eq!(protocol("ring,ring_SIMPLE", "ring"), Some(None));
        assert_eq!(protocol("hier_LL", "hierring"), Some(Some(Protocol::Ll)));
        assert!(of("ring_fast").is_err() && of("_LL").is_ok());
        let other = of("ring_LL").expect("a rule").protocol(Collective::AllGather, "ring");
        assert_eq!(other, None);
    }

    #[test]
    fn unknown_words_are_refused() {
        for (text, word) in [("ring,tre", "\"tre\""), ("allredce:ring", "\"allredce\"")] {
            let error = AlgorithmFilter::parse(text).expect_err("a misspelling").to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        }
    }
}
