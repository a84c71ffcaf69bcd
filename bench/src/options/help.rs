//! The text of `maypole bench --help`.

/// The text.
pub(crate) const HELP: &str = "\
maypole bench COLLECTIVE [-np PROCESSES] [OPTIONS]
COLLECTIVE_perf [-np PROCESSES] [OPTIONS]

Measures a collective over host memory and prints what nccl-tests prints. COLLECTIVE is all_reduce, all_gather,
reduce_scatter, broadcast, reduce, alltoall, alltoallv, gather, scatter, sendrecv or hypercube.
Ranks = processes x threads x ranks per thread.

  -np, --processes N      start N processes on this host (none: this process, or those that a launcher started)
  -t, --nthreads N        threads per process (1)
  -g, --ngpus N           ranks per thread (1); each is a thread of its own here
  -b, --minbytes SIZE     smallest size; K, M or G may follow (32M)
  -e, --maxbytes SIZE     largest size (32M)
  -i, --stepbytes SIZE    from one size to the next (1M)
  -f, --stepfactor N      a factor instead; a size of 0 is followed by 8 bytes
  -n, --iters N           timed iterations (20)
  -m, --agg_iters N       calls in an iteration, one after the other (1)
  -w, --warmup_iters N    untimed iterations before them (1)
  -N, --run_cycles N      whole tables; 0 for ever (1)
  -p, --parallel_init 0|1 ranks are always made in threads of their own; only the line in the header differs (0)
  -c, --check N           checked calls; 0 for none (1)
  -o, --op OP             sum, prod, min, max, avg, mulsum or all (sum)
  -d, --datatype TYPE     int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, f8e4m3,
                          f8e5m2 or all (float)
  -r, --root RANK         the root, or all (0)
  -z, --blocking 0..3     1 for a barrier after each call, outside of the measured time; the others are the same,
                          since calls on host memory are over when they return (0)
  -u, --unalign N         buffers that begin N elements behind the start of a page (0)
  -a, --average 0|1|2|3   the time shown: rank 0's, the mean, the shortest, the longest (1)
  -T, --timeout SECONDS   of a rank without progress, after which all processes end; 0 for never (0)
  -C, --report_cputime 1  the processor time of the calling thread instead of the time; bandwidths stay those of the time (0)
  -S, --report_timestamps 1   the time of day at the end of each line (0)
  -J, --output_file FILE  results as JSON too; an existing file is left alone and FILE.0, FILE.1 ... taken
  -M, --memory_report 1   at the end, what memory the processes use (0)
  -I 1                    columns with the shortest, longest, 99th percentile and variation of iterations (0)
  -K N                    leaves the first N iterations out of them (0)
  -G, -R, -x, -D, -V, -y  of GPUs: accepted at their defaults

  --memory malloc|maypole where buffers come from: the allocator, or the library (ncclMemAlloc), whose memory other
                          processes of the host read in place (malloc)
  --fresh                 buffers are written anew before each call, outside of the measured time: what nobody has changed
                          may still lie in the caches of those who read it in the call before
  --percentiles           columns with the median and the 99th percentile of the iterations, in us
  --resources             columns with the processor time of all processes for the timed calls, and the largest
                          memory of a process, for the out-of-place calls
  --roof                  columns with the time in which all ranks at once read what they send and write what they
                          receive, without a collective, and how much of the measured time that is
  --plot FILE.svg         a picture of bandwidth and time by size

An iteration's time is that of its slowest rank. #wrong counts, over all ranks, the elements
that are not exactly as expected, the damaged bytes around the receive buffer, and elements of the send buffer that
were changed. In place there is no alltoall, alltoallv or sendrecv: N/A.

Environment:
  NCCL_TESTS_SPLIT          'AND 0x7', 'OR 1', 'MOD 2' or 'DIV 4' of a process' number: processes of equal result form
                            a group, and all groups run at once; figures are those of rank 0's group, times of all
  NCCL_TESTS_SPLIT_MASK     the same as AND, in hexadecimal; it comes first
  NCCL_TESTS_MIN_BW         GB/s: with less than 0.9 of it on average the run ends with 7
  NCCL_TESTS_DEVICE         the number shown as device; host memory has only one
  NCCL_TESTS_ALLTOALLV_SPREAD         0 to 1: from equal blocks to blocks that grow with the distance (1)
  NCCL_TESTS_ALLTOALLV_MATRIX_FILE    bytes from each rank (a row) to each rank (a column)
  NCCL_TESTS_ALLTOALLV_MATRIX_SCALE   a factor on them (1)
  NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY  1 for a line per rank after each row
  MAYPOLE_BENCH_CORRUPT=1   a self-test of the check: every rank inverts a byte of its result before it is checked,
                            so the run must report wrong values and exit with 7
  MAYPOLE_BENCH_UNBOUND=1   processes of -np are bound to the cores in turns unless this is set, or they have several ranks

Exit status: 0 all fine, 1 internal error, 2 the system failed, 3 the library failed, 4 time-out, 5 not possible on host
memory, 6 usage, 7 wrong values or too low bandwidth; that of a process that failed, or 128 plus the number of the
signal that ended it.
";
