"""Ranks as processes for the Python clients: each runs the program of the client again, with its
rank and the unique id as arguments."""

import os
import subprocess
import sys

NRANKS = 4


def main(unique_id, rank_program):
    """`unique_id()` creates the id, 128 bytes; each process runs `rank_program(rank, id)`."""
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
    """Fails unless our library and no other libnccl is mapped into this process."""
    with open("/proc/self/maps") as maps:
        files = {line.split(None, 5)[5].strip() for line in maps if "/libnccl" in line}
    assert files == {os.environ["MAYPOLE_CLIENTS_LIBRARY"]}, files
