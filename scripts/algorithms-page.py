"""Writes docs/algorithms.md: every algorithm with the facts of its module documentation, and where
it was the fastest in a run of `maypole compare`.

usage: algorithms-page.py RESULTS PAGE
"""

import pathlib
import re
import sys

SOURCE = pathlib.Path("algorithms/src/collective")
FOLDERS = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "all_to_all",
    "gather",
    "scatter",
]
REDUCTIONS = ["all_reduce", "reduce_scatter", "reduce"]

INTRODUCTION = """# Algorithms

Written by `scripts/measure-algorithms` from the module documentation of the files in
`algorithms/src/collective/` and from one run of `maypole compare` (`bench/results/compare.txt`).
There are `n` ranks and vectors of `m` bytes (blocks of `m` bytes for gather, scatter and all-to-all
collectives); a message takes `a` seconds, a moved byte `b` seconds and a reduced byte `g` seconds.
Hierarchies are on the page on [schedules](schedule.md#hierarchies).

*Where it won* lists where its median was the smallest. The algorithms were measured in turns, with
float sums out of place and sizes as nccl-tests counts them, on a machine with two cores that other
programs use too. With more than two ranks several ranks share a core, so the results also depend on
the scheduler, and algorithms with few messages win.
"""

CLASSES = """## What the canonical class costs

Each cell has the time of the best canonical algorithm divided by the time of the best of all
algorithms: as measured and, in brackets, as the cost model expects. Then it names the best
canonical algorithm and the best of all, as measured. A ratio of 1 means that reproducible bits cost
nothing.
"""

CONCLUSION = """It is slower for long vectors, where a chain or a tree in rank order needs fewer
copies than the balanced tree by parts. Hence the default is **canonical**: the same bits for every
size, algorithm, transport and number of channels. `MAYPOLE_BITS=fast` allows the other class.
"""


def heads():
    """For each generator: collective, name, and the list items of its module documentation."""
    for folder in FOLDERS:
        table = (SOURCE / folder / "mod.rs").read_text()
        entry = r'Generator::new\(\s*"(\w+)",\s*"(\w+)",\s*\|.*?\|\s*([\w:]+)::schedule'
        entries = re.findall(entry, table)
        for name, collective, module in entries:
            text = (SOURCE / folder / (module.split("::")[-1] + ".rs")).read_text()
            head = "\n".join(re.findall(r"^//! ?(.*)$", text, re.M))
            items = re.findall(r"^\* (\w[\w ]*?): (.*(?:\n  .*)*)", head, re.M)
            yield collective, name, {key: " ".join(value.split()) for key, value in items}


def measurements(path):
    """Rows of `maypole compare`: (collective, ranks, size) -> [(name, class, model, time)]."""
    rows = {}
    section = None
    for line in path.read_text().splitlines():
        if match := re.match(r"# (\d+) ranks, (\w+)$", line):
            section = (match[2], int(match[1]))
        elif not line.startswith("#"):
            size, name, kind, _, _, model, time, _ = line.split()
            row = rows.setdefault((*section, int(size)), [])
            row.append((name, kind, float(model), float(time)))
    return rows


def bytes_text(size):
    for unit, name in [(1 << 20, "MiB"), (1 << 10, "KiB")]:
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def escaped(text):
    return text.replace("|", "\\|")


def where(rows, collective, name):
    """The rank counts and sizes at which it was the fastest."""
    wins = {}
    for (kind, ranks, size), row in rows.items():
        if kind == collective and min(row, key=lambda r: r[3])[0] == name:
            wins.setdefault(ranks, []).append(size)
    texts = (f"{ranks} ranks: {', '.join(map(bytes_text, sizes))}" for ranks, sizes in wins.items())
    return "; ".join(texts) or "-"


def best(row, column, canonical):
    allowed = [r for r in row if not canonical or r[1] == "canonical"]
    return min(allowed, key=lambda r: r[column])


def classes(rows):
    yield "| collective | ranks | " + " | ".join(map(bytes_text, sizes(rows))) + " |"
    yield "|---|---|" + "---|" * len(sizes(rows))
    for collective in REDUCTIONS:
        for ranks in sorted({key[1] for key in rows}):
            cells = []
            for size in sizes(rows):
                row = rows[(collective, ranks, size)]
                measured, expected = (
                    best(row, column, True)[column] / best(row, column, False)[column]
                    for column in (3, 2)
                )
                names = f"{best(row, 3, True)[0]}/{best(row, 3, False)[0]}"
                cells.append(f"{measured:.2f} ({expected:.2f}) {names}")
            yield f"| {collective} | {ranks} | " + " | ".join(cells) + " |"


def sizes(rows):
    return sorted({key[2] for key in rows})


def page(rows):
    yield from INTRODUCTION.splitlines()
    yield ""
    yield "| collective | algorithm | cost | class | meant for | where it won |"
    yield "|---|---|---|---|---|---|"
    for collective, name, head in heads():
        cost, kind, meant = (escaped(head[key]) for key in ("cost", "class", "wins"))
        kind = re.split(r"[.,:(]| at ", kind)[0].strip()
        won = where(rows, collective, name)
        yield f"| {collective} | `{name}` | {cost} | {kind} | {meant} | {won} |"
    yield ""
    yield from CLASSES.splitlines()
    yield ""
    yield from classes(rows)
    yield ""
    measured = sorted(
        best(row, 3, True)[3] / best(row, 3, False)[3]
        for key, row in rows.items()
        if key[0] in REDUCTIONS
    )
    free = sum(ratio <= 1.02 for ratio in measured)
    median, worst = measured[len(measured) // 2], measured[-1]
    cells = len(measured)
    yield f"In {free} of {cells} cells the canonical class is as fast as any other (within 2 %);"
    yield f"the median ratio is {median:.2f}, the largest {worst:.2f}."
    yield from CONCLUSION.splitlines()


def main():
    results, target = map(pathlib.Path, sys.argv[1:])
    target.write_text("\n".join(page(measurements(results))) + "\n")


main()
