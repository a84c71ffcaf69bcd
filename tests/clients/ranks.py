"""Ranks as processes, for the Python clients: each rank is the client's program again, with its number and the unique id."""

import os
import subprocess
import sys

NRANKS = 4


def main(unique_id, rank_program):
    """`unique_id()` is 128 bytes, made here; `rank_program(rank, id)` is what each of the processes runs."""
    if len(sys.argv) == 3:
        rank_program(int(sys.argv[1]), bytes.fromhex(sys.argv[2]))
        only_our_library_is_loaded()
        return
    identity = unique_id()
    assert len(identity) == 128 and any(identity), identity
    program = [sys.executable, sys.argv[0]]
    ranks = [subprocess.Popen([*program, str(rank), identity.hex()]) for rank in range(NRANKS)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")
    only_our_library_is_loaded()


def only_our_library_is_loaded():
    """Fails unless our library, and no other libnccl, is mapped into this process."""
    with open("/proc/self/maps") as maps:
        files = {line.split(None, 5)[5].strip() for line in maps if "/libnccl" in line}
    assert files == {os.environ["MAYPOLE_CLIENTS_LIBRARY"]}, files
