"""PyTorch's own tests of backends (``distributed_test.py`` of the wheel of torch), over Maypole.

    python pytorch_suite.py [--as-gloo] [--ranks N] [NAME...]

Without names it runs every test; a name may have ``*``, and ``selection`` stands for a choice that
takes a minute. ``--as-gloo`` runs the tests of Gloo with Maypole under that name. The ranks are
forked, so a test takes a second and not ten.
"""

import argparse
import faulthandler
import fnmatch
import os
import sys
import tempfile
import unittest
from typing import Any

# Long enough for any machine; a test that hangs ends by it.
WATCHDOG_SECONDS = 300
# Tests that no backend outside of PyTorch can pass, and why.
IMPOSSIBLE = {
    "test_ddp_logging_data_cpu": "PyTorch calls the backends of others 'custom' in DDP's log",
}
SELECTION = [
    "test_all_gather_coalesced_simple", "test_all_gather_object_subgroup", "test_all_reduce_sum",
    "test_all_reduce_coalesced_sum", "test_all_reduce_sum_complex", "test_all_to_all_single_*",
    "test_average_parameters", "test_barrier_full_group", "test_batch_isend_irecv_gloo",
    "test_broadcast_object_list", "test_DistributedDataParallelCPU_grad_is_view", "test_gather",
    "test_irecv", "test_isend", "test_monitored_barrier_gloo_rank_0_timeout", "test_reduce_product",
    "test_scatter", "test_scatter_object_list", "test_send_recv_any_source",
    "test_send_recv_with_tag", "test_sparse_all_reduce_sum", "test_all_reduce_result_cpu",
]


def tests(backend: str, ranks: int, folder: str) -> Any:
    """The class with the tests. Its module reads the environment when it is imported."""
    os.environ.update(
        BACKEND=backend, WORLD_SIZE=str(ranks), TEMP_DIR=folder, OMP_NUM_THREADS="1",
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(WATCHDOG_SECONDS))
    for name in ("barrier", "test_dir", "init_dir"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    import torch
    from torch.testing._internal import common_distributed

    import maypole.torch

    if backend == "gloo":
        os.environ["MAYPOLE_AS_GLOO"] = "1"
        maypole.torch.replace_gloo()
    else:
        maypole.torch.register()
        for feature in ("ddp", "subgroup", "plugin"):
            common_distributed.DistTestCases.backend_feature[feature].add(backend)
    from torch.testing._internal.distributed import distributed_test

    # The ranks of a busy machine need not reach the barrier of files within 10 seconds.
    distributed_test.Barrier.sync.__func__.__defaults__ = (None, WATCHDOG_SECONDS)
    distributed_test.default_pg_timeout = WATCHDOG_SECONDS
    # The profiler's events of a backend come from the constructor of its works in C++, which a
    # backend in Python has not. With the name they are expected; the results are compared anyway.
    for supported in (distributed_test.PROFILING_SUPPORTED_BACKENDS,
                      distributed_test.SEND_RECV_PROFILING_SUPPORTED_BACKENDS):
        if backend in supported:
            supported.remove(backend)

    for name in IMPOSSIBLE:
        setattr(distributed_test.DistributedTest._DistTestBase, name, None)

    class PyTorchTest(distributed_test.TestDistBackend,  # type: ignore[misc, name-defined]
                      distributed_test.DistributedTest._DistTestBase):
        def setUp(self) -> None:
            super().setUp()
            self._start_processes(torch.multiprocessing.get_context("fork").Process)

        @classmethod
        def _run(cls, rank: int, *arguments: Any, **named: Any) -> None:
            faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
            super()._run(rank, *arguments, **named)

    return PyTorchTest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--as-gloo", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("names", nargs="*", default=["test_*"])
    options = parser.parse_args()
    patterns = SELECTION if options.names == ["selection"] else options.names
    with tempfile.TemporaryDirectory() as folder:
        backend = "gloo" if options.as_gloo else "maypole"
        all_tests = tests(backend, options.ranks, folder)
        suite = unittest.TestSuite(
            all_tests(name) for name in unittest.TestLoader().getTestCaseNames(all_tests)
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns))
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        ran = result.testsRun - len(result.skipped)
        for name, reason in IMPOSSIBLE.items():
            print(f"left out: {name}: {reason}")
        print(f"{ran} ran, {len(result.failures) + len(result.errors)} failed, "
              f"{len(result.skipped)} were skipped")
        return 0 if result.wasSuccessful() and ran > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
