//! Settings: which algorithms they exclude, and that they must agree between ranks.

use std::sync::mpsc;
use std::time::Duration;

use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, DType, RedOp};

use super::case::Case;
use super::{as_ranks, over_tcp};
use crate::bootstrap::{Options, UniqueId};
use crate::call::{Call, Task};
use crate::comm::Communicator;
use crate::config::{self, BitsSetting, Config, NodeLabels};
use crate::error::Error;
use crate::tune::Protocol;

#[test]
fn nccl_hostid_sets_the_nodes_of_the_ranks() {
    let id = UniqueId::create().expect("a unique id");
    // The last rank names no node, so its host decides. The name of the host is none of the others'
    // names.
    let texts = [Some("a"), Some("b"), Some("a"), None];
    let ranks = texts.into_iter().zip(0..).map(|(text, rank)| {
        let config = Config { host_id: text.map(str::to_owned), ..Config::default() };
        std::thread::spawn(move || {
            let options = Options::default();
            let comm = Communicator::builder(&id)
                .rank(rank, 4)
                .config(config.clone())
                .options(options.clone())
                .build();
            let mut comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
            let mut sum = [0];
            comm.all_reduce(&[rank as i32], &mut sum, RedOp::Sum).expect("a sum");
            (comm.tuner.grouping.clone(), sum)
        })
    });
    for rank in ranks.collect::<Vec<_>>() {
        let (grouping, sum) = rank.join().expect("the rank ran");
        assert_eq!(grouping, Grouping::new(["a", "b", "a", "host"]));
        assert_eq!(sum, [6]);
    }
}

#[test]
fn ll_is_never_chosen_over_tcp() {
    let config = Config { protocol: config::ProtocolSetting::Line, ..over_tcp(1) };
    let chosen = as_ranks(2, &config, |comm| {
        let mut recv = [0.0f32];
        comm.all_reduce(&[1.0], &mut recv, RedOp::Sum).expect("an all-reduce");
        let call = Call {
            collective: Collective::AllReduce,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: 1,
            dtype: DType::Float32,
            reduction: RedOp::Sum.into(),
        };
        (recv[0], comm.explain(&call).expect("a choice").protocol)
    });
    assert_eq!(chosen, [(2.0, Protocol::Slots); 2]);
}

#[test]
fn an_explicit_class_excludes_algorithms_of_the_other() {
    let config = Config {
        algorithms: Some("ring".to_owned()),
        bits: BitsSetting::Canonical,
        ..Config::default()
    };
    let errors = as_ranks(2, &config, |comm| {
        let mut recv = [0];
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).map_err(|e| e.to_string())
    });
    for error in errors {
        assert!(error.expect_err("ring is fast").contains("NCCL_ALGO"));
    }
}

#[test]
fn settings_that_differ_are_an_error_that_names_both_ranks_and_both_settings() {
    let ring = Config { algorithms: Some("ring".to_owned()), ..Config::default() };
    let small = Config { slot_bytes: Some(4096), ..Config::default() };
    for (odd, theirs, ours) in [
        (ring, "NCCL_ALGO=ring", "NCCL_ALGO= "),
        (small, "MAYPOLE_SLOT_BYTES=4096", "MAYPOLE_SLOT_BYTES=65536"),
    ] {
        for odd_rank in [0, 2] {
            let id = UniqueId::create().expect("a unique id");
            let (done, all) = mpsc::channel();
            for rank in 0..4 {
                let config = if rank == odd_rank { odd.clone() } else { Config::default() };
                let done = done.clone();
                std::thread::spawn(move || {
                    let comm =
                        Communicator::builder(&id).rank(rank, 4).config(config.clone()).build();
                    done.send((rank, comm.map(drop))).expect("the test waits");
                });
            }
            for _ in 0..4 {
                let (rank, result) =
                    all.recv_timeout(Duration::from_secs(60)).expect("a rank hangs");
                let error = result.expect_err("settings differ");
                assert!(matches!(error, Error::InvalidUsage { .. }), "{error}");
                let text = error.to_string();
                // A rank names the first rank that differs from it.
                let other = match (rank == odd_rank, odd_rank) {
                    (false, _) => odd_rank,
                    (true, 0) => 1,
                    (true, _) => 0,
                };
                let (here, there) = if rank == odd_rank { (theirs, ours) } else { (ours, theirs) };
                assert!(text.contains(&format!("rank {rank} and rank {other} differ")), "{text}");
                let (_, settings) = text.split_once("here ").expect("both settings");
                let (first, second) = settings.split_once("there ").expect("both settings");
                assert!(first.contains(here) && second.contains(there), "{text}");
            }
        }
    }
}

#[test]
fn node_labels_of_the_user_make_hierarchies_run() {
    let nodes = |labels: &[&str]| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Config { nodes: Some(NodeLabels { labels }), bits: BitsSetting::Fast, ..Config::default() }
    };
    // Only hierarchies are allowed, where there are any. The last case has labels for another
    // number of ranks, so its nodes are the one host.
    for (config, nested) in [
        (nodes(&["a", "a", "b", "b"]), true),
        (nodes(&["a", "b", "b", "a"]), true),
        (nodes(&["a", "b"]), false),
    ] {
        let config = Config { algorithms: Some("hier".to_owned()), ..config };
        let chosen = as_ranks(4, &config, |comm| {
            let case = Case {
                collective: Collective::AllReduce,
                dtype: DType::Float32,
                op: RedOp::Sum,
                count: 200_000,
                in_place: false,
                skew: 0,
                shared: false,
                seed: 3,
            };
            let call = case.call(comm.rank());
            let (schedule, _) = comm.tuner.choose(&Task::from(&call)).expect("a choice");
            case.run(comm, &schedule).expect("the right bits");
            comm.explain(&call).expect("a choice").algorithm
        });
        for name in chosen {
            assert_eq!(name.starts_with("hier"), nested, "{name}");
        }
    }
}

#[test]
fn unknown_words_in_nccl_algo_fail_the_setup_on_all_ranks() {
    let config = Config { algorithms: Some("ring,tre".to_owned()), ..Config::default() };
    let id = UniqueId::create().expect("a unique id");
    let ranks: Vec<_> = (0..3)
        .map(|rank| {
            let config = config.clone();
            std::thread::spawn(move || {
                Communicator::builder(&id).rank(rank, 3).config(config.clone()).build().map(drop)
            })
        })
        .collect();
    for rank in ranks {
        let error = rank.join().expect("a rank").expect_err("no such algorithm").to_string();
        assert!(error.contains("\"tre\" is not a known algorithm"), "{error}");
    }
}

#[test]
fn the_topology_is_written_by_the_rank_that_the_settings_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a text").to_owned();
    let (described, written) = (path("described.xml"), path("written.xml"));
    let nodes_of_written = || {
        let reading = crate::topology::read_file(written.as_ref()).expect("a topology file");
        reading.machine.nodes.iter().map(|node| node.number).collect::<Vec<_>>()
    };
    let config = Config {
        topology_file: Some(described.clone()),
        topology_dump: Some(written.clone()),
        topology_dump_rank: 1,
        ..Config::default()
    };
    let sum = |nranks| {
        as_ranks(nranks, &config, |comm| {
            let mut sum = [0];
            comm.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a sum");
            sum[0]
        })
    };
    // There is no rank 1.
    assert_eq!(sum(1), [1]);
    assert!(!std::path::Path::new(&written).exists());
    // A file that describes the machine takes the place of /sys.
    let text = r#"<system version="1"><cpu numaid="77" affinity="1"/></system>"#;
    std::fs::write(&described, text).expect("a file");
    assert_eq!(sum(2), [2, 2]);
    assert_eq!(nodes_of_written(), [Some(77)]);
    // One that cannot be used is a warning.
    std::fs::write(&described, r#"<system version="2"/>"#).expect("a file");
    assert_eq!(sum(2), [2, 2]);
    assert_ne!(nodes_of_written(), [Some(77)]);
}
