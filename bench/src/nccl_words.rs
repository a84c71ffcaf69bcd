//! The command line of nccl-tests' programs, as getopt_long, strtol and sscanf of C read it: long
//! names may be abbreviated, what is no number counts as 0, and much that is wrong is ignored or
//! replaced by a default. The result is a command line for our own grammar.
//!
//! Two things stay errors, because a run that ends well would say nothing: an option that does not
//! exist, and one without its value.

use std::ffi::{CString, OsString};

use maypole_algorithms::{DType, RedOp};

use crate::options::size;
use crate::status::{BAD_SIZE, Failure};

/// A command line for our own grammar, and what is to be said about the one that was given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadWords {
    /// The words.
    pub(crate) words: Vec<OsString>,
    /// Lines for standard output, which nccl-tests prints there.
    pub(crate) notes: Vec<String>,
    /// Lines for standard error.
    pub(crate) warnings: Vec<String>,
}

/// What the value of an option is.
#[derive(Clone, Copy, PartialEq)]
enum ValueKind {
    /// A number, at least 0.
    Count,
    /// A number; all but 0 means 1.
    Flag,
    /// A number from 0 to this one; another one is ignored.
    Choice(i64),
    /// A number of thread blocks.
    Blocks,
    /// A rank, or a negative number for all.
    Root,
    /// A number of bytes, with the name that an error has for it.
    Size(&'static str),
    Reduction,
    DataType,
    Text,
}
use ValueKind::{Blocks, Choice, Count, DataType, Flag, Reduction, Root, Size, Text};

/// The options of nccl-tests: letter, long name, value.
const OPTIONS: [(char, &str, ValueKind); 31] = [
    ('t', "nthreads", Count),
    ('g', "ngpus", Count),
    ('b', "minbytes", Size("minbytes")),
    ('e', "maxbytes", Size("maxbytes")),
    ('i', "stepbytes", Size("stepBytes")),
    ('f', "stepfactor", Count),
    ('n', "iters", Count),
    ('m', "agg_iters", Count),
    ('w', "warmup_iters", Count),
    ('N', "run_cycles", Count),
    ('p', "parallel_init", Flag),
    ('c', "check", Count),
    ('o', "op", Reduction),
    ('d', "datatype", DataType),
    ('r', "root", Root),
    ('z', "blocking", Choice(3)),
    ('y', "stream_null", Flag),
    ('T', "timeout", Count),
    ('G', "cudagraph", Count),
    ('C', "report_cputime", Flag),
    ('S', "report_timestamps", Flag),
    ('J', "output_file", Text),
    ('a', "average", Choice(3)),
    ('R', "local_register", Choice(2)),
    ('x', "cta_policy", Count),
    ('D', "device_implementation", Count),
    ('V', "device_cta_count", Blocks),
    ('M', "memory", Flag),
    ('u', "unalign", Count),
    ('I', "per_iter_timing", Flag),
    ('K', "per_iter_skip", Count),
];

/// Our own long options, and whether each has a value.
const OWN_OPTIONS: [(&str, bool); 9] = [
    ("processes", true),
    ("buffers", true),
    ("plot", true),
    ("memory_report", true),
    ("fresh", false),
    ("percentiles", false),
    ("resources", false),
    ("roof", false),
    ("help", false),
];

/// Reads the words after the name of a program.
///
/// # Errors
/// What nccl-tests refuses too: sizes.
pub(crate) fn read(words: &[OsString]) -> Result<ReadWords, Failure> {
    let mut read = ReadWords::default();
    let mut given = GivenValues { sizes: [32 << 20; 2], ..GivenValues::default() };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let Some(text) = word.to_str() else {
            read.ignore(&word.to_string_lossy());
            continue;
        };
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (text, None),
        };
        let found = match name.strip_prefix("--") {
            Some("") => {
                rest.by_ref().for_each(|word| read.ignore(&word.to_string_lossy()));
                break;
            }
            Some(long) => long_option(long),
            None if text == "-np" => FoundOption::Own("processes", true),
            None => short_option(text),
        };
        match found {
            FoundOption::Word => read.ignore(text),
            FoundOption::Unknown => read.words.push(word.clone()),
            FoundOption::Own(long, has_value) => {
                // `-np` stays what was typed, for errors.
                let typed = if text == "-np" { "-np".to_owned() } else { format!("--{long}") };
                match (has_value, inline.map(OsString::from)) {
                    (true, Some(value)) => read.words.push(joined(&typed, &value)),
                    (true, None) => {
                        read.words.push(typed.into());
                        read.words.extend(rest.next().cloned());
                    }
                    (false, _) => read.words.push(typed.into()),
                }
            }
            FoundOption::Theirs(index, attached) => {
                let value =
                    inline.or(attached).map(OsString::from).or_else(|| rest.next().cloned());
                let Some(value) = value else {
                    // Our own grammar says that the value is missing.
                    read.words.push(word.clone());
                    break;
                };
                let typed = if name.starts_with("--") { name } else { &text[..2] };
                read.option(index, typed, &value, &mut given)?;
            }
        }
    }
    given.check(&mut read)?;
    Ok(read)
}

/// An option as a word names it.
enum FoundOption {
    /// An option of nccl-tests, by its index, and the value that follows the letter at once.
    Theirs(usize, Option<String>),
    /// An option of our own, and whether it has a value.
    Own(&'static str, bool),
    /// No option of these names, or several.
    Unknown,
    /// No option at all.
    Word,
}

fn short_option(text: &str) -> FoundOption {
    let mut letters = text.chars();
    if letters.next() != Some('-') {
        return FoundOption::Word;
    }
    let Some(letter) = letters.next() else { return FoundOption::Word };
    match OPTIONS.iter().position(|(known, ..)| *known == letter) {
        Some(index) => {
            let attached = letters.as_str();
            let attached = attached.strip_prefix('=').unwrap_or(attached);
            let attached = (!attached.is_empty()).then(|| attached.to_owned());
            FoundOption::Theirs(index, attached)
        }
        None => FoundOption::Unknown,
    }
}

/// The option whose name is `long`, or the only one whose name begins so. The names of nccl-tests
/// come first, so that our own never make an abbreviation ambiguous.
fn long_option(long: &str) -> FoundOption {
    let theirs = OPTIONS.iter().map(|(_, name, _)| *name);
    if let Some(index) = the_one(theirs, long) {
        return FoundOption::Theirs(index, None);
    }
    match the_one(OWN_OPTIONS.iter().map(|(name, _)| *name), long) {
        Some(index) => FoundOption::Own(OWN_OPTIONS[index].0, OWN_OPTIONS[index].1),
        None => FoundOption::Unknown,
    }
}

fn the_one<'a>(names: impl Iterator<Item = &'a str> + Clone, long: &str) -> Option<usize> {
    if let Some(exact) = names.clone().position(|name| name == long) {
        return Some(exact);
    }
    let mut begin = names.enumerate().filter(|(_, name)| name.starts_with(long));
    match (begin.next(), begin.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

/// Values of which several together may be wrong.
#[derive(Default)]
struct GivenValues {
    /// The smallest and the largest size.
    sizes: [usize; 2],
    /// The value of -D.
    implementation: i64,
    /// The value of -R.
    register: i64,
    per_iteration: bool,
    skips: bool,
}

impl GivenValues {
    fn check(&self, read: &mut ReadWords) -> Result<(), Failure> {
        let [min, max] = self.sizes;
        if min > max {
            return Err(refused(format!(
                "invalid sizes for 'minbytes' and 'maxbytes': {min} > {max}"
            )));
        }
        if self.implementation > 0 && self.register != 2 {
            return Err(refused(String::from(
                "device implementation (-D > 0) requires enabling symmetric memory registration \
                 (-R 2)",
            )));
        }
        let percentiles = read.words.iter().any(|word| word == "--percentiles");
        if self.skips && !self.per_iteration && !percentiles {
            read.warnings.push(String::from("-K has no effect without -I 1"));
            read.words.push("--per_iter_skip=0".into());
        }
        Ok(())
    }
}

impl ReadWords {
    fn ignore(&mut self, word: &str) {
        self.warnings.push(format!("'{word}' is ignored: it is no option"));
    }

    /// Adds the option with this index, which was typed as `typed`.
    fn option(
        &mut self,
        index: usize,
        typed: &str,
        value: &OsString,
        given: &mut GivenValues,
    ) -> Result<(), Failure> {
        let (letter, long, kind) = OPTIONS[index];
        let text = value.to_string_lossy();
        let number = integer(&text);
        let converted = match kind {
            Count => number.max(0).to_string(),
            Flag => i64::from(number != 0).to_string(),
            Choice(most) if (0..=most).contains(&number) => number.to_string(),
            Choice(most) => {
                let what = format!("{typed} {text} is ignored; the values are 0 to {most}");
                self.warnings.push(what);
                return Ok(());
            }
            Blocks if (1..=128).contains(&number) => number.to_string(),
            Blocks => {
                self.warnings.push(format!(
                    "device_cta_count (-V) must be positive and less than 128, got {number}. Using \
                     default value 16."
                ));
                String::from("16")
            }
            Root if text == "all" || number < 0 => String::from("all"),
            Root => number.to_string(),
            Size(name) => {
                let bytes = size(&text);
                let bytes =
                    bytes.map_err(|_| refused(format!("invalid size specified for '{name}'")))?;
                match letter {
                    'b' => given.sizes[0] = bytes,
                    'e' => given.sizes[1] = bytes,
                    _ => {}
                }
                bytes.to_string()
            }
            Reduction if text == "all" || text.parse::<RedOp>().is_ok() => text.into_owned(),
            Reduction => {
                self.notes.push(format!("invalid op {text}, defaulting to sum .. "));
                String::from("sum")
            }
            DataType if text == "all" || text.parse::<DType>().is_ok() => text.into_owned(),
            DataType => {
                self.notes.push(format!("invalid type {text}, defaulting to float .. "));
                String::from("float")
            }
            Text => {
                self.words.push(joined(&format!("--{long}"), value));
                return Ok(());
            }
        };
        match letter {
            'D' => given.implementation = number,
            'R' => given.register = number,
            'I' => given.per_iteration = number != 0,
            'K' => given.skips = number > 0,
            _ => {}
        }
        self.words.push(joined(&format!("--{long}"), &converted.into()));
        Ok(())
    }
}

fn joined(name: &str, value: &OsString) -> OsString {
    let mut word = OsString::from(format!("{name}="));
    if name == "-np" {
        word = OsString::from("--processes=");
    }
    word.push(value);
    word
}

/// What nccl-tests refuses with its exit status for sizes.
fn refused(text: String) -> Failure {
    Failure { status: BAD_SIZE, text, common: true }
}

/// The number at the start of a text, as strtol of C reads it with base 0; 0 if there is none.
fn integer(text: &str) -> i64 {
    let Ok(text) = CString::new(text) else { return 0 };
    // SAFETY: the text ends in a zero, and the place of its end is not asked for.
    unsafe { libc::strtol(text.as_ptr(), std::ptr::null_mut(), 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<ReadWords, Failure> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        read(&words)
    }

    /// The words that come of a line about which nothing is said.
    fn words(line: &str) -> String {
        let read = of(line).unwrap_or_else(|failure| panic!("{line}: {failure}"));
        assert_eq!((&read.notes[..], &read.warnings[..]), (&[][..], &[][..]), "{line}");
        let words: Vec<_> = read.words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn letters_and_names_are_the_same() {
        for (line, expected) in [
            ("-n 7", "--iters=7"),
            ("-n7", "--iters=7"),
            ("--iters 7", "--iters=7"),
            ("--iters=7", "--iters=7"),
            ("--ite 7", "--iters=7"),
            ("--st 0", "--st"),
            ("--stepf 2", "--stepfactor=2"),
            ("--mem 1", "--memory=1"),
            ("--memory 1 -M 0", "--memory=1 --memory=0"),
            ("--per_iter_t 1 --per_iter_s 2", "--per_iter_timing=1 --per_iter_skip=2"),
            ("-np 3 -n 4", "-np 3 --iters=4"),
            ("--proc=2 --perc", "--processes=2 --percentiles"),
            ("-J a=b.json", "--output_file=a=b.json"),
            ("--frobnicate", "--frobnicate"),
            ("-n", "-n"),
        ] {
            if line == "--st 0" {
                // Ambiguous: our own grammar says so. What follows is no value then.
                assert_eq!(of(line).expect("words").words, ["--st"], "{line}");
                continue;
            }
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn numbers_are_those_of_strtol() {
        for (line, expected) in [
            ("-n 0x10", "--iters=16"),
            ("-n 010", "--iters=8"),
            ("-n 5abc", "--iters=5"),
            ("-n x", "--iters=0"),
            ("-w -3", "--warmup_iters=0"),
            ("-p 2", "--parallel_init=1"),
            ("-I 2", "--per_iter_timing=1"),
            ("-r -1", "--root=all"),
            ("-r 2", "--root=2"),
            (
                "-R 2 -y 1 -x 1 -V 8",
                "--local_register=2 --stream_null=1 --cta_policy=1 --device_cta_count=8",
            ),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_ignored_or_replaced() {
        let said = |line: &str| {
            let ReadWords { words, notes, warnings } = of(line).expect("no error");
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            (words.join(" "), notes.join("\n"), warnings.join("\n"))
        };
        let of = |words: &str, notes: &str, warnings: &str| {
            (words.to_owned(), notes.to_owned(), warnings.to_owned())
        };
        let note = "invalid type floaty, defaulting to float .. ";
        assert_eq!(said("-d floaty"), of("--datatype=float", note, ""));
        let note = "invalid op mean, defaulting to sum .. ";
        assert_eq!(said("-o mean"), of("--op=sum", note, ""));
        let warning = "-z 4 is ignored; the values are 0 to 3";
        assert_eq!(said("-z 4"), of("", "", warning));
        let warning = "--av 7 is ignored; the values are 0 to 3";
        assert_eq!(said("--av 7"), of("", "", warning));
        let warning = "-K has no effect without -I 1";
        assert_eq!(said("-K 3"), of("--per_iter_skip=3 --per_iter_skip=0", "", warning));
        let warning = "'more' is ignored: it is no option";
        assert_eq!(said("more -n 2"), of("--iters=2", "", warning));
        assert_eq!(said("-n 2 -- more"), of("--iters=2", "", warning));
        assert!(said("-V 0").2.contains("got 0. Using default value 16."));
    }

    #[test]
    fn bad_sizes_have_the_status_of_nccl_tests() {
        for (line, text) in [
            ("-b 1x", "invalid size specified for 'minbytes'"),
            ("-e -1", "invalid size specified for 'maxbytes'"),
            ("-i K", "invalid size specified for 'stepBytes'"),
            ("-b 2M -e 1M", "invalid sizes for 'minbytes' and 'maxbytes': 2097152 > 1048576"),
            ("-b 64M", "invalid sizes for 'minbytes' and 'maxbytes': 67108864 > 33554432"),
            ("-D 1", "device implementation (-D > 0) requires"),
        ] {
            let failure = of(line).expect_err(line);
            assert_eq!((failure.status, failure.text.starts_with(text)), (255, true), "{failure}");
        }
        assert_eq!(words("-b 8 -e 1MB"), "--minbytes=8 --maxbytes=1048576");
    }
}
