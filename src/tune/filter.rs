//! The grammar of NCCL_ALGO: `ring,tree`, `^ring`, or by collective `ring,tree;allreduce:^tree;broadcast:ring`.

use maypole_algorithms::Collective;
use maypole_algorithms::hierarchy::FAMILY;

use super::{Protocol, candidates};
use crate::error::Error;

/// Which algorithms a user allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlgorithmFilter {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Lower case without separators; None is every collective that no other rule names.
    collective: Option<String>,
    /// The names are those forbidden.
    except: bool,
    names: Vec<String>,
    /// Of each of the names, by which protocol alone.
    protocols: Vec<Option<Protocol>>,
}

/// Algorithms of NCCL's that need hardware which is not for host memory: their names are understood, and there is no such algorithm.
const ELSEWHERE: [&str; 4] = ["CollnetDirect", "CollnetChain", "NVLS", "NVLSTree"];

impl AlgorithmFilter {
    /// Parses the value of NCCL_ALGO; an empty one allows everything. Case does not matter, nor do `_` and `-`.
    ///
    /// # Errors
    /// Words that are neither algorithms nor collectives, as in NCCL.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let rule = |part: &str| {
            let (collective, list) = match part.split_once(':') {
                Some((name, list)) => (Some(plain(name)), list),
                None => (None, part),
            };
            let (except, list) = match list.trim().strip_prefix('^') {
                Some(rest) => (true, rest),
                None => (false, list),
            };
            let names: Vec<_> = list.split(',').map(plain).filter(|n| !n.is_empty()).collect();
            let protocols = vec![None; names.len()];
            Rule { collective, except, names, protocols }
        };
        let rules: Vec<Rule> = text.split(';').filter(|p| !p.trim().is_empty()).map(rule).collect();
        let algorithms: Vec<&str> = candidates::names().into_iter().chain(ELSEWHERE).collect();
        let collectives = Collective::all(0).map(Collective::name);
        for Rule { collective, names, .. } in &rules {
            if let Some(name) = collective {
                known("collective", name, &collectives, text)?;
            }
            for name in names {
                known("algorithm", name, &algorithms, text)?;
            }
        }
        Ok(Self { rules })
    }

    /// The algorithms of a comma list, for one collective alone. A name may end in a protocol, as `ring_LL`: then it is allowed by
    /// that alone. LL and LL128 are flag lines, Simple is slots.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn select(collective: Collective, list: &str) -> Result<Self, Error> {
        let entries = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let (names, protocols): (Vec<String>, Vec<_>) = entries.map(with_protocol).unzip();
        // A rule for this collective binds, whatever other collectives could make of the names.
        let mut filter = Self::parse(&format!("{}:{}", collective.name(), names.join(",")))?;
        for rule in &mut filter.rules {
            rule.protocols.clone_from(&protocols);
        }
        Ok(filter)
    }

    /// By which protocol alone `algorithm` is allowed, if the user says so.
    pub fn protocol(&self, collective: Collective, algorithm: &str) -> Option<Protocol> {
        let rule = self.rule(collective)?;
        let mut asked = rule.protocols_of(algorithm);
        let first = asked.next()?;
        asked.all(|other| other == first).then_some(first).flatten()
    }

    /// Those of `algorithms` that may be used for `collective`. A rule for all collectives that leaves none of them is about others: in NCCL
    /// too most collectives have one algorithm alone, whatever the rule. A rule for this collective is obeyed.
    pub fn among<'a>(&self, collective: Collective, algorithms: &[&'a str]) -> Vec<&'a str> {
        let Some(rule) = self.rule(collective) else { return algorithms.to_vec() };
        let allowed: Vec<&str> =
            algorithms.iter().filter(|name| rule.allows(name)).copied().collect();
        let binds = rule.collective.is_some() || !allowed.is_empty();
        if binds { allowed } else { algorithms.to_vec() }
    }

    /// Whether the rule for `collective`, if there is one, allows `algorithm`, whatever others there are.
    pub fn allows(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective).is_none_or(|rule| rule.allows(algorithm))
    }

    /// Whether the user asked for `algorithm` by its name.
    pub fn names(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective).is_some_and(|r| !r.except && r.lists(algorithm))
    }

    fn rule(&self, collective: Collective) -> Option<&Rule> {
        let name = plain(collective.name());
        let named = self.rules.iter().find(|r| r.collective.as_ref() == Some(&name));
        named.or_else(|| self.rules.iter().find(|r| r.collective.is_none()))
    }
}

impl Rule {
    fn lists(&self, algorithm: &str) -> bool {
        self.protocols_of(algorithm).next().is_some()
    }

    /// Of every entry for the algorithm, by its own name or by that of its family.
    fn protocols_of(&self, algorithm: &str) -> impl Iterator<Item = Option<Protocol>> {
        let name = plain(algorithm);
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

fn known(kind: &str, name: &str, all: &[&str], text: &str) -> Result<(), Error> {
    if all.iter().any(|known| plain(known) == name) {
        return Ok(());
    }
    Err(Error::InvalidUsage {
        what: format!(
            "NCCL_ALGO is \"{text}\", in which \"{name}\" is no {kind}; there are: {}",
            all.join(", ")
        ),
    })
}

/// A name as NCCL has it for one call, without and with the protocol at its end.
fn with_protocol(name: &str) -> (String, Option<Protocol>) {
    let name = name.to_ascii_lowercase();
    let ends = [("_simple", Protocol::Slots), ("_ll128", Protocol::Ll), ("_ll", Protocol::Ll)];
    let found = ends.iter().find_map(|(end, of)| Some((name.strip_suffix(end)?, *of)));
    found.map_or_else(|| (name.clone(), None), |(bare, of)| (bare.to_owned(), Some(of)))
}

/// `All_Reduce` and `allreduce` are the same name.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
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
            // Leaves nothing for any collective, of which it then does not speak.
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
        // Either.
        assert_eq!(protocol("ring_LL,ring_SIMPLE", "ring"), Some(None));
        assert_eq!(protocol("ring,ring_SIMPLE", "ring"), Some(None));
        assert_eq!(protocol("hier_LL", "hierring"), Some(Some(Protocol::Ll)));
        assert!(of("ring_fast").is_err() && of("_LL").is_ok());
        let other = of("ring_LL").expect("a rule").protocol(Collective::AllGather, "ring");
        assert_eq!(other, None);
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        for (text, word) in [("ring,tre", "\"tre\""), ("allredce:ring", "\"allredce\"")] {
            let error = AlgorithmFilter::parse(text).expect_err("a misspelling").to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        }
    }
}
