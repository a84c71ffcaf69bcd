//! The grammar of NCCL_ALGO: `ring,tree`, `^ring`, or by collective `allreduce:tree;broadcast:ring`.

use maypole_algorithms::Collective;

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
}

impl AlgorithmFilter {
    /// Parses the value of NCCL_ALGO; an empty one allows everything. Names that no generator has simply never match, as
    /// settings made for NCCL name algorithms that need hardware we do not see.
    pub fn parse(text: &str) -> Self {
        let rule = |part: &str| {
            let (collective, list) = match part.split_once(':') {
                Some((name, list)) => (Some(plain(name)), list),
                None => (None, part),
            };
            let (except, list) = match list.trim().strip_prefix('^') {
                Some(rest) => (true, rest),
                None => (false, list),
            };
            let names = list.split(',').map(plain).filter(|n| !n.is_empty()).collect();
            Rule { collective, except, names }
        };
        let rules = text.split(';').filter(|p| !p.trim().is_empty()).map(rule).collect();
        Self { rules }
    }

    /// Whether `algorithm` may be used for `collective`.
    pub fn allows(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective)
            .is_none_or(|r| r.names.iter().any(|n| *n == plain(algorithm)) != r.except)
    }

    /// Whether the user asked for `algorithm` by its name.
    pub fn names(&self, collective: Collective, algorithm: &str) -> bool {
        self.rule(collective)
            .is_some_and(|r| !r.except && r.names.iter().any(|n| *n == plain(algorithm)))
    }

    fn rule(&self, collective: Collective) -> Option<&Rule> {
        let name = plain(collective.name());
        let named = self.rules.iter().find(|r| r.collective.as_ref() == Some(&name));
        named.or_else(|| self.rules.iter().find(|r| r.collective.is_none()))
    }
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
        let (reduce, gather) = (Collective::AllReduce, Collective::AllGather);
        let cases = [
            ("", true, true),
            ("Ring,Tree", true, false),
            ("^ring", false, true),
            ("allreduce:tree", false, false),
            ("allreduce:^tree;ring", true, true),
            (" AllGather : tree ; oneshot ", false, true),
        ];
        for (text, ring, oneshot) in cases {
            let filter = AlgorithmFilter::parse(text);
            assert_eq!(filter.allows(reduce, "ring"), ring, "{text}");
            assert_eq!(filter.allows(reduce, "oneshot"), oneshot, "{text}");
        }
        let filter = AlgorithmFilter::parse("allgather:direct;ring");
        assert!(filter.allows(gather, "direct") && !filter.allows(gather, "ring"));
        assert!(filter.allows(reduce, "ring") && !filter.allows(reduce, "direct"));
        assert!(filter.names(reduce, "ring") && !filter.names(gather, "ring"));
        assert!(!AlgorithmFilter::parse("^ring").names(reduce, "tree"));
    }
}
