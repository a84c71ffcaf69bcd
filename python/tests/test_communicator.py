"""Communicators of processes, with NumPy arrays if there is NumPy, else with the array module."""

import array
import unittest

from maypole import Communicator, MaypoleError, launch, unique_id


def collectives(comm: Communicator) -> list[float]:
    n, rank = comm.nranks, comm.rank
    one = array.array("f", [rank + 1.0] * 3)
    total = array.array("f", [0.0] * 3)
    comm.all_reduce(one, total)
    gathered = array.array("f", [0.0] * 3 * n)
    comm.all_gather(one, gathered)
    block = array.array("f", [0.0] * 3)
    comm.reduce_scatter(gathered, block, "max")
    swapped = array.array("i", [0] * n)
    comm.all_to_all(array.array("i", range(10 * rank, 10 * rank + n)), swapped)
    text = bytearray(b"abc" if rank == 1 else b"...")
    comm.broadcast(text, root=1)
    least = array.array("d", [0.0])
    comm.reduce(array.array("d", [float(rank)]), least, root=0, operation="min")
    comm.barrier()
    if rank == 0:
        comm.send(one, 1)
    elif rank == 1:
        comm.receive(one, 0)
    return [total[0], gathered[-1], block[0], swapped[n - 1], text[0], one[0]]


def numpy_sum(comm: Communicator) -> float:
    import numpy

    values = numpy.arange(6, dtype=numpy.float64).reshape(2, 3)
    comm.all_reduce(values, values)
    with_gaps = numpy.zeros((4, 4))[:, 1]
    try:
        comm.all_reduce(with_gaps, with_gaps)
    except ValueError:
        return float(values.sum())
    raise AssertionError("an array with gaps was accepted")


def fail_on_rank_1(comm: Communicator) -> None:
    if comm.rank == 1:
        raise KeyError("rank 1 fails")
    comm.barrier()


class CommunicatorTest(unittest.TestCase):
    def test_collectives(self) -> None:
        for rank, values in enumerate(launch.run(collectives, 3)):
            expected = [6.0, 3.0, rank + 1.0, 20 + rank, ord("a"), [1.0, 1.0, 3.0][rank]]
            self.assertEqual(values, expected)

    def test_numpy(self) -> None:
        try:
            import numpy  # noqa: F401
        except ImportError:
            self.skipTest("numpy is not installed")
        self.assertEqual(launch.run(numpy_sum, 2), [30.0, 30.0])

    def test_a_failure_ends_all_ranks(self) -> None:
        with self.assertRaisesRegex(RuntimeError, "rank [01]: "):
            launch.run(fail_on_rank_1, 2)

    def test_wrong_arguments(self) -> None:
        with Communicator(0, 1, unique_id()) as comm:
            with self.assertRaisesRegex(ValueError, "elements"):
                comm.all_reduce(array.array("f", [1]), array.array("f", [1, 2]))
            with self.assertRaisesRegex(ValueError, "read-only"):
                comm.all_reduce(b"ab", b"ab")
            with self.assertRaisesRegex(ValueError, "operation"):
                comm.all_reduce(array.array("f", [1]), array.array("f", [1]), "median")
            with self.assertRaises(MaypoleError):
                comm.send(array.array("f", [1]), 7)
        with self.assertRaisesRegex(ValueError, "destroyed"):
            comm.barrier()


if __name__ == "__main__":
    unittest.main()
