//! Runs the benchmark programs as a user of nccl-tests does: the form of the table, the meaning of
//! the columns, wrong results that must be found, ranks as threads, groups, JSON.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use crate::nccl_tests::{PROGRAMS, PrintedPlacement, PrintedRow, run, table};

/// Whether a program is one of these, which are given without `_perf`.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.contains(&name.trim_end_matches("_perf"))
}

/// The factor from algorithm bandwidth to bus bandwidth among `n` ranks, and the bytes that the
/// algorithm bandwidth counts.
fn bandwidth_rules(name: &str, line: &PrintedRow, n: f64) -> (f64, f64) {
    let factor = match name.trim_end_matches("_perf") {
        "all_reduce" => 2.0 * (n - 1.0) / n,
        "broadcast" | "reduce" | "sendrecv" | "hypercube" => 1.0,
        _ => (n - 1.0) / n,
    };
    let bytes = 4.0 * line.count as f64;
    let counted = match name.trim_end_matches("_perf") {
        "all_reduce" | "broadcast" | "reduce" | "sendrecv" => bytes,
        "hypercube" => bytes * (n - 1.0),
        // Blocks differ in size: the size is the largest total of a rank.
        "alltoallv" => line.size as f64,
        _ => bytes * n,
    };
    (factor, counted)
}

/// Whether two numbers are equal within the two decimals that are printed, and a further `slack`.
fn close(a: f64, b: f64, slack: f64) -> bool {
    (a - b).abs() <= 0.0051 + slack
}

#[test]
fn every_program_prints_the_table_of_nccl_tests() {
    for name in PROGRAMS {
        let table = table(name, "-np 4 -b 64 -e 256K -f 64 -n 3 -w 1", &[], 0);
        let parameter = |wanted: &str| {
            let found = table.parameters.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(parameter("minBytes"), Some("64"));
        assert_eq!((parameter("step"), parameter("iters")), (Some("64(factor)"), Some("3")));
        assert_eq!((table.ranks.len(), table.rows.len(), table.wrong), (4, 3, 0), "{name}");
        let mut busbw = Vec::new();
        for line in &table.rows {
            let reduces = is_one_of(name, &["all_reduce", "reduce", "reduce_scatter", "sendrecv"]);
            let rooted = is_one_of(name, &["broadcast", "reduce", "gather", "scatter"]);
            assert_eq!(line.dtype, "float");
            let blank = if is_one_of(name, &["hypercube"]) { "" } else { "none" };
            assert_eq!(line.redop, if reduces { "sum" } else { blank }, "{name}");
            assert_eq!(line.root, if rooted { 0 } else { -1 }, "{name}");
            // In place these are timed and not checked.
            let in_place = !is_one_of(name, &["alltoall", "alltoallv", "sendrecv"]);
            let wrong = line.in_place.as_ref().map(|side| side.wrong);
            assert_eq!(wrong, Some(in_place.then_some(0.0)), "{name}");
            let (factor, counted) = bandwidth_rules(name, line, 4.0);
            assert_eq!(
                line.out_of_place.as_ref().map(|side| side.wrong),
                Some(Some(0.0)),
                "{name}"
            );
            for PrintedPlacement { time, algbw, busbw: bus, .. } in
                line.out_of_place.iter().chain(&line.in_place)
            {
                assert!(close(*bus, algbw * factor, 0.0051 * factor), "{name}: {line:?}");
                // The time is printed with two decimals too.
                let expected = counted / time / 1e3;
                let slack = expected * 0.0051 / time;
                assert!(
                    close(*algbw, expected, slack),
                    "{name}: {algbw} is not {expected} in {line:?}"
                );
                busbw.push(*bus);
            }
        }
        let mean = busbw.iter().sum::<f64>() / busbw.len() as f64;
        assert!(close(table.average, mean, 0.0), "{name}: {} is not {mean}", table.average);
    }
}

#[test]
fn sizes_and_counts_are_those_of_nccl_tests() {
    for (name, size, count) in [
        ("all_reduce_perf", 1000, 250),
        ("broadcast_perf", 1000, 250),
        ("sendrecv_perf", 1000, 250),
        // Blocks of whole 16 bytes: 1000 / 4 / 3 is 83 elements, of which 80 are whole.
        ("all_gather_perf", 960, 80),
        ("reduce_scatter_perf", 960, 80),
        ("alltoall_perf", 960, 80),
        ("gather_perf", 960, 80),
        ("scatter_perf", 960, 80),
        // Blocks by distance: 0, 1/3 and 2/3 of 960 bytes.
        ("alltoallv_perf", 960, 80),
    ] {
        let table = table(name, "-np 3 -b 1000 -e 1000 -n 1", &[], 0);
        assert_eq!((table.rows[0].size, table.rows[0].count), (size, count), "{name}");
    }
}

#[test]
fn a_wrong_value_is_found_by_every_program() {
    for name in PROGRAMS {
        let corrupt = [("MAYPOLE_BENCH_CORRUPT", "1")];
        let table = table(name, "-np 2 -b 64K -e 64K -n 1", &corrupt, 7);
        // One element in every rank that receives, for each placement.
        let receivers = if is_one_of(name, &["reduce", "gather"]) { 1 } else { 2 };
        let sides = table.rows[0].out_of_place.iter().chain(&table.rows[0].in_place);
        let placements = sides.filter(|side| side.wrong.is_some()).count() as u64;
        assert_eq!(table.wrong, receivers * placements, "{name}");
    }
}

#[test]
fn every_root_type_and_operation_is_right() {
    for (name, rows) in [
        ("broadcast_perf", 12 * 3),
        ("reduce_perf", 12 * 6 * 3),
        ("gather_perf", 12 * 3),
        ("scatter_perf", 12 * 3),
        ("reduce_scatter_perf", 12 * 6),
        ("alltoall_perf", 12),
        ("alltoallv_perf", 12),
        // nccl-tests repeats it for each operation, though nothing is reduced.
        ("sendrecv_perf", 12 * 6),
    ] {
        let table = table(name, "-np 3 -d all -o all -r all -b 9K -e 9K -n 1 -u 3", &[], 0);
        assert_eq!(table.rows.len(), rows, "{name}");
        assert!(
            table.rows.iter().all(|line| line.out_of_place.as_ref().unwrap().wrong == Some(0.0))
        );
    }
}

#[test]
fn ranks_may_be_threads() {
    for (arguments, ranks, pids) in [("-t 3", 3, 1), ("-g 2", 2, 1), ("-np 2 -t 2 -g 2", 8, 2)] {
        let table = table("all_reduce_perf", &format!("{arguments} -b 4K -e 4K -n 2"), &[], 0);
        let mut all: Vec<u32> = table.ranks.iter().map(|&(_, pid)| pid).collect();
        assert_eq!(all.len(), ranks, "{arguments}");
        all.dedup();
        assert_eq!(all.len(), pids, "{arguments}");
        let side = table.rows[0].out_of_place.as_ref().unwrap();
        let n = ranks as f64;
        assert!(close(side.busbw, side.algbw * 2.0 * (n - 1.0) / n, 0.011), "{side:?}");
    }
}

#[test]
fn groups_have_communicators_of_their_own() {
    for (variable, value, groups) in [
        ("NCCL_TESTS_SPLIT", "MOD 2", [0, 1, 0, 1]),
        ("NCCL_TESTS_SPLIT", "DIV 2", [0, 0, 1, 1]),
        ("NCCL_TESTS_SPLIT", "AND 0x2", [0, 0, 2, 2]),
        ("NCCL_TESTS_SPLIT", "OR 2", [2, 3, 2, 3]),
        ("NCCL_TESTS_SPLIT_MASK", "0x1", [0, 1, 0, 1]),
    ] {
        let table = table("all_gather_perf", "-np 4 -b 8K -e 8K -n 2", &[(variable, value)], 0);
        let colors: Vec<u32> = table.ranks.iter().map(|&(group, _)| group).collect();
        assert_eq!(colors, groups, "{value}");
        // Each group has two ranks, so each rank sends half of the size.
        assert_eq!(table.rows[0].count * 4 * 2, 8192, "{value}");
    }
    let output = run("reduce_perf", "-np 4 -r 2 -b 8 -e 8", &[("NCCL_TESTS_SPLIT", "MOD 2")]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), errors.lines().count()), (Some(6), 1), "{errors}");
    assert!(errors.contains("-r 2: no such rank among 2"), "{errors}");
}

#[test]
fn too_little_bandwidth_is_a_failure() {
    let least = |value| [("NCCL_TESTS_MIN_BW", value)];
    table("all_reduce_perf", "-np 2 -b 64K -e 64K -n 2", &least("0.000001"), 0);
    table("all_reduce_perf", "-np 2 -b 64K -e 64K -n 2", &least("1000000"), 7);
}

#[test]
fn a_hypercube_needs_a_power_of_two() {
    let three = table("hypercube_perf", "-np 3 -b 8K -e 8K -n 1", &[], 0);
    assert_eq!((three.rows.len(), three.average), (0, 0.0));
}

#[test]
fn a_matrix_file_gives_the_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("matrix");
    std::fs::write(&path, "0 160 320\n1600 0 0\n32 32 32\n").expect("it is written");
    let variables = [
        ("NCCL_TESTS_ALLTOALLV_MATRIX_FILE", path.to_str().expect("text")),
        ("NCCL_TESTS_ALLTOALLV_MATRIX_SCALE", "2"),
        ("NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY", "1"),
    ];
    let measured = table("alltoallv_perf", "-np 3 -b 8K -e 8K -n 1", &variables, 0);
    // Rank 0 receives the most: twice 1632 bytes.
    assert_eq!((measured.rows[0].size, measured.rows[0].count), (3264, 0));
    for (arguments, part) in
        [("-np 4 -b 8K -e 8K", "for 3 ranks"), ("-np 3 -b 1K -e 1K", "-e must be")]
    {
        let output = run("alltoallv_perf", arguments, &variables);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), errors.lines().count()), (Some(6), 1), "{errors}");
        assert!(errors.contains(part), "{errors}");
    }
}

#[test]
fn more_columns_follow_the_standard_ones() {
    let all = "--roof --resources --percentiles -S 1 -M 1 -C 1 -z 1 -p 1 -N 2 -m 3 -a 3";
    let output = run("all_reduce_perf", &format!("-np 2 -b 1K -e 8K -f 8 -n 4 {all}"), &[]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{text}");
    // Two sizes, measured twice.
    let is_row = |line: &&str| !line.starts_with('#') && !line.is_empty();
    let rows: Vec<&str> = text.lines().filter(is_row).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        // The standard 13 columns, 2 percentiles for each placement, roof and its percentage,
        // processor time and memory, date and time.
        assert_eq!(row.split_whitespace().count(), 13 + 4 + 4 + 2, "{row}");
    }
    for part in [
        "# Blocking Enabled: ",
        "# Parallel Init Enabled: ",
        "cputime",
        "# GPU memory usage     : Initialization ",
        "timestamp",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let single = table("all_reduce_perf", "-np 2 -b 1K -e 1K -n 4 --roof --resources", &[], 0);
    assert_eq!(single.rows[0].rest.len(), 4);
    let roof: f64 = single.rows[0].rest[0].parse().expect("a time");
    assert!(roof >= 0.0);
    let output = run("all_reduce_perf", "-np 2 -b 1K -e 1K -n 9 -I 1 -K 3", &[]);
    let text = String::from_utf8(output.stdout).expect("text");
    let row = text.lines().find(|line| !line.starts_with('#')).expect("a line");
    let numbers: Vec<f64> = row.split_whitespace().skip(5).map(|w| w.parse().expect(w)).collect();
    assert_eq!(numbers.len(), 2 * 8);
    // The shortest, the 99th percentile and the longest iteration.
    assert!(numbers[4] <= numbers[6] && numbers[6] <= numbers[5], "{row}");
}

#[test]
fn results_are_written_as_json_and_as_a_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let (json, plot) = (file("result.json"), file("plot.svg"));
    let arguments = format!("-np 2 -t 2 -b 1K -e 64K -f 8 -n 3 -I 1 -J {json} --plot {plot}");
    for written in [json.clone(), format!("{json}.0"), format!("{json}.1")] {
        let output = run("reduce_scatter_perf", &arguments, &[("NCCL_TESTS_MIN_BW", "0.0000001")]);
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.starts_with(&format!("# Writing JSON output to {written}\n")), "{text}");
        let all: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&written).expect("it is there"))
                .expect("JSON");
        assert_eq!(all["version"], 3);
        assert_eq!(all["config"]["per_iter_skip"], 0);
        assert_eq!(all["errors"], serde_json::json!([""]));
        assert_eq!(all["config"]["devices"].as_array().expect("a list").len(), 4);
        assert_eq!(all["config"]["nthreads"], 2);
        let results = all["results"].as_array().expect("a list");
        assert_eq!(results.len(), 3);
        for result in results {
            assert_eq!((&result["type"], &result["redop"]), (&"float".into(), &"sum".into()));
            assert_eq!(
                (&result["root"], &result["experiment_name"]),
                (&"    -1".into(), &"".into())
            );
            for placement in ["out_of_place", "in_place"] {
                assert!(result[placement]["time"].as_f64() > Some(0.0), "{result}");
                assert_eq!(result[placement]["nwrong"], 0, "{result}");
                let times = &result[format!("{placement}_per_iter")]["times_us"];
                assert_eq!(times.as_array().map(Vec::len), Some(3), "{result}");
                let of_processes =
                    &result[format!("{placement}_per_iter")]["per_process_max_times_us"];
                let lens: Option<Vec<_>> = of_processes.as_array().map(|all| {
                    all.iter().map(|times| times.as_array().map_or(0, Vec::len)).collect()
                });
                assert_eq!(lens, Some(vec![3, 3]), "{result}");
            }
        }
        assert_eq!(all["out_of_bounds"]["okay"], "true");
        assert_eq!(all["average_bus_bandwidth"]["okay"], "true");
        let ours = |word: &str| word.starts_with("NCCL_") || word.starts_with("MAYPOLE_");
        let variables = all["env"].as_array().expect("a list");
        assert!(variables.iter().all(|word| word.as_str().is_some_and(ours)), "{variables:?}");
    }
    let picture = std::fs::read_to_string(plot).expect("it is there");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    let output = run("reduce_scatter_perf", "-np 2 -b 8 -e 8 -J /nonexistent/x.json", &[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn endless_tables_go_on_until_output_fails() {
    let mut command = crate::nccl_tests::program("all_reduce_perf");
    command.args(["-np", "2", "-b", "8", "-e", "16", "-f", "2", "-n", "1", "-N", "0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let rows = lines.map(|line| line.expect("text")).filter(|line| !line.starts_with('#'));
    let sizes: Vec<String> =
        rows.take(9).map(|row| row.split_whitespace().next().unwrap_or("").to_owned()).collect();
    assert_eq!(sizes, ["8", "16", "8", "16", "8", "16", "8", "16", "8"]);
    // The pipe is closed now, so the next line cannot be written, which ends the run.
    assert_eq!(child.wait().expect("it ends").code(), Some(2));
}

#[test]
fn cycles_are_repeated_for_each_type() {
    let table = table("all_reduce_perf", "-np 2 -d all -N 2 -b 8 -e 16 -f 2 -n 1", &[], 0);
    let mut rows = table.rows.iter().map(|row| (row.dtype.clone(), row.size));
    let first: Vec<_> = rows.by_ref().take(5).collect();
    let int8 = |size| ("int8".to_owned(), size);
    assert_eq!(first, [int8(8), int8(16), int8(8), int8(16), ("uint8".to_owned(), 8)]);
    assert_eq!(table.rows.len(), 12 * 2 * 2);
}

/// What nccl-tests 2.19.6 ends well with: it ignores or replaces what is wrong.
#[test]
fn command_lines_are_read_as_by_nccl_tests() {
    let sizes = |arguments: &str| -> Vec<u64> {
        let table = table("all_reduce_perf", &format!("-n 1 {arguments}"), &[], 0);
        table.rows.iter().map(|row| row.size).collect()
    };
    assert_eq!(sizes("-b 1MB -e 1M"), [1 << 20]);
    assert_eq!(sizes("--minb 64KiB --maxb 65536"), [64 << 10]);
    assert_eq!(sizes("-b 8 -e 24 -f 1 -i 8"), [8, 16, 24]);
    assert_eq!(sizes("-b 8 -e 8 -R 1"), [8]);
    assert_eq!(sizes("-b 8 -e 8 -R 2 -y 1 -x 1 -V 8"), [8]);
    assert_eq!(sizes("-b 0x10 -e 16"), [16]);
    let with_blank = crate::nccl_tests::program("all_reduce_perf")
        .args(["-n", "1", "-b", "64 K", "-e", "64K"])
        .output();
    assert_eq!(with_blank.expect("it runs").status.code(), Some(0));
    let rooted = table("broadcast_perf", "-np 3 -r -1 -b 8 -e 8 -n 1", &[], 0);
    assert_eq!(rooted.rows.iter().map(|row| row.root).collect::<Vec<_>>(), [0, 1, 2]);
    for (arguments, out, error) in [
        ("-d floaty", "invalid type floaty, defaulting to float .. \n", ""),
        ("-o mean", "invalid op mean, defaulting to sum .. \n", ""),
        ("-K 3", "", "-K has no effect"),
        ("-z 4", "", "-z 4 is ignored"),
        ("-a 7", "", "-a 7 is ignored"),
        ("more words", "", "'more' is ignored"),
        ("-I 2", "", ""),
        ("-n 0", "", ""),
        ("-m 0", "", ""),
        ("-n 0x2", "", ""),
    ] {
        let output = run("all_reduce_perf", &format!("-np 2 -b 8 -e 8 {arguments}"), &[]);
        let text = String::from_utf8(output.stdout).expect("text");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {text}{errors}");
        assert!(text.starts_with(out), "{arguments}: {text}");
        assert!(text.contains("# Out of bounds values : 0 OK\n"), "{arguments}: {text}");
        assert!(errors.contains(error), "{arguments}: {errors}");
        // One line for each wrong word.
        let lines = if error.is_empty() { 0 } else { arguments.split(' ').count() / 2 };
        let lines = if arguments == "more words" { 2 } else { lines };
        assert_eq!(errors.lines().count(), lines, "{arguments}: {errors}");
    }
    for arguments in ["-b 1x", "-e -8", "-b 2M -e 1M", "-D 1"] {
        let output = run("all_reduce_perf", arguments, &[]);
        assert_eq!(output.status.code(), Some(255), "{arguments}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments}");
    }
}

#[test]
fn devices_are_numbered_on_each_host() {
    let of = |arguments: &str, variables: &[(&str, &str)]| {
        table("all_reduce_perf", &format!("{arguments} -b 8 -e 8 -n 1"), variables, 0).devices
    };
    assert_eq!(of("-np 2 -t 2", &[]), [0, 1, 2, 3]);
    // As in nccl-tests, each process begins with the device of the variable.
    assert_eq!(of("-np 2 -t 2", &[("NCCL_TESTS_DEVICE", "5")]), [5, 6, 5, 6]);
}

#[test]
fn the_modes_of_blocking_and_single_iterations_are_in_the_header() {
    for (arguments, line) in [
        ("-z 1", "# Blocking Enabled: wait and barrier after each inner iteration (-m) "),
        ("-z 2", "# Blocking Enabled: wait after each inner iteration (-m), no barrier "),
        (
            "-z 3",
            "# Blocking Enabled: wait and barrier after each outer iteration (-n); time excludes \
             barrier ",
        ),
        (
            "--per_iter_timing 1 --per_iter_skip 1",
            "# Per-Iteration Report: host clock timing; i_* uses max over process rows; summary \
             skips first 1 iterations ",
        ),
    ] {
        let output = run("all_reduce_perf", &format!("-np 2 -b 8 -e 8 -n 3 {arguments}"), &[]);
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(0), "{arguments}");
        assert!(text.lines().any(|printed| printed == line), "{arguments}: {text}");
    }
}

#[test]
fn the_number_of_a_device_is_shown() {
    let output = run("all_reduce_perf", "-b 8 -e 8", &[("NCCL_TESTS_DEVICE", "3")]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains(" device  3 ["), "{text}");
    let output = run("all_reduce_perf", "-b 8 -e 8", &[("NCCL_TESTS_DEVICE", "x")]);
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn a_stopped_rank_ends_in_a_timeout() {
    let mut stopped = crate::nccl_tests::program("all_reduce_perf");
    stopped.args(["-np", "2", "-b", "8", "-e", "8", "-n", "1000000000", "-T", "1"]);
    // The run goes on as long as calls end. Then one rank is stopped.
    let child = stopped.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let second = second_rank(child.id());
    let status = std::process::Command::new("kill").args(["-STOP", &second.to_string()]).status();
    assert!(status.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("maypole: rank 0: no progress for 1 s (-T 1)"), "{errors}");
}

/// The test is the launcher here: it gives each process its rank and a socket.
#[test]
fn different_options_are_reported_once_and_all_processes_fail() {
    let mut processes = Vec::new();
    let mut sockets = Vec::new();
    for (rank, size) in ["8", "8", "16"].into_iter().enumerate() {
        let (mine, theirs) = UnixStream::pair().expect("a socket");
        let mut command = crate::nccl_tests::program("all_reduce_perf");
        command.args(["-b", size, "-e", "16"]).env("MAYPOLE_BENCH_PLACE", format!("{rank}/3"));
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        processes.push(command.spawn().expect("it starts"));
        sockets.push(mine);
    }
    // All processes compare the first message of each, and none goes on.
    let messages: Vec<Vec<u8>> = sockets
        .iter_mut()
        .map(|socket| {
            let mut len = [0; 4];
            socket.read_exact(&mut len).expect("a length");
            let mut message = vec![0; u32::from_le_bytes(len) as usize];
            socket.read_exact(&mut message).expect("a message");
            [&len[..], &message].concat()
        })
        .collect();
    for socket in &mut sockets {
        socket.write_all(&messages.concat()).expect("it is read");
    }
    let mut errors = String::new();
    for process in processes {
        let output = process.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(6));
        assert!(output.stdout.is_empty());
        errors.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("process 0 '-b 8 -e 16', process 2 '-b 16 -e 16'"), "{errors}");
}

/// The process of rank 1 of the benchmark under `timeout`, once its communicator exists.
fn second_rank(timeout: u32) -> u32 {
    let children = |pid: u32| -> Vec<u32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let watchdog = std::time::Instant::now() + std::time::Duration::from_secs(50);
    loop {
        assert!(std::time::Instant::now() < watchdog, "the ranks do not start");
        let ranks = children(timeout).first().map_or(Vec::new(), |&bench| children(bench));
        // The process of a rank has several threads when its communicator exists.
        let threads =
            |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        match ranks[..] {
            [_, second] if threads(second) > 3 => return second,
            _ => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}
