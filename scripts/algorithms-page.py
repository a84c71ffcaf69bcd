"""Writes docs/algorithms.md: every algorithm with what the head of its file says, and where it won in a run of `maypole compare`.

usage: algorithms-page.py RESULTS PAGE
"""

import pathlib
import re
import sys

SOURCE = pathlib.Path("algorithms/src/collective")
FOLDERS = ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all", "gather", "scatter"]
REDUCTIONS = ["all_reduce", "reduce_scatter", "reduce"]


def heads():
    """Per collective the algorithms of its table: name, and the items of the list in the head of the file."""
    for folder in FOLDERS:
        table = (SOURCE / folder / "mod.rs").read_text()
        entries = re.findall(r'Generator::new\(\s*"(\w+)",\s*"(\w+)",\s*\|.*?\|\s*([\w:]+)::schedule', table)
        for name, collective, module in entries:
            text = (SOURCE / folder / (module.split("::")[-1] + ".rs")).read_text()
            head = "\n".join(re.findall(r"^//! ?(.*)$", text, re.M))
            items = re.findall(r"^\* (\w[\w ]*?): (.*(?:\n  .*)*)", head, re.M)
            yield collective, name, {key: " ".join(value.split()) for key, value in items}


def measurements(path):
    """Rows of `maypole compare`: (collective, ranks, size) -> [(name, class, model, time)]."""
    rows = {}
    here = None
    for line in path.read_text().splitlines():
        if match := re.match(r"# (\d+) ranks, (\w+)$", line):
            here = (match[2], int(match[1]))
        elif not line.startswith("#"):
            size, name, kind, _, _, model, time, _ = line.split()
            rows.setdefault((*here, int(size)), []).append((name, kind, float(model), float(time)))
    return rows


def bytes_text(size):
    for unit, name in [(1 << 20, "MiB"), (1 << 10, "KiB")]:
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def cell(text):
    return text.replace("|", "\\|")


def where(rows, collective, name):
    """Where it was the fastest: sizes by rank count."""
    wins = {}
    for (kind, ranks, size), row in rows.items():
        if kind == collective and min(row, key=lambda r: r[3])[0] == name:
            wins.setdefault(ranks, []).append(size)
    return "; ".join(f"{ranks} ranks: {', '.join(map(bytes_text, sizes))}" for ranks, sizes in wins.items()) or "-"


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
                    best(row, column, True)[column] / best(row, column, False)[column] for column in (3, 2)
                )
                names = f"{best(row, 3, True)[0]}/{best(row, 3, False)[0]}"
                cells.append(f"{measured:.2f} ({expected:.2f}) {names}")
            yield f"| {collective} | {ranks} | " + " | ".join(cells) + " |"


def sizes(rows):
    return sorted({key[2] for key in rows})


def page(rows):
    yield "# Algorithms"
    yield ""
    yield "Written by `scripts/measure-algorithms` from the heads of the files in `algorithms/src/collective/` and from one run of `maypole compare`"
    yield "(`bench/results/compare.txt`). `n` ranks, vectors of `m` bytes (blocks of `m` bytes for the gathering, scattering and all-to-all kinds), `a` seconds per message,"
    yield "`b` per byte moved, `g` per byte reduced. Hierarchies are on the page on [schedules](schedule.md#hierarchies)."
    yield ""
    yield "*Where it won*: the fastest median of those measured in turns, float sums out of place, sizes as nccl-tests counts them, on a machine with two cores that"
    yield "it shares with others. With more than two ranks a core is shared, so what is measured there is also the scheduler: few messages win."
    yield ""
    yield "| collective | algorithm | cost | class | meant for | where it won |"
    yield "|---|---|---|---|---|---|"
    for collective, name, head in heads():
        cost, kind, meant = (cell(head[key]) for key in ("cost", "class", "wins"))
        kind = re.split(r"[.,:(]| at ", kind)[0].strip()
        yield f"| {collective} | `{name}` | {cost} | {kind} | {meant} | {where(rows, collective, name)} |"
    yield ""
    yield "## What the canonical class costs"
    yield ""
    yield "Time of the best canonical algorithm over the best of all, as measured and, in brackets, as the cost model expects; then the two algorithms that"
    yield "were measured to be the best. The model chooses among all, so a ratio of 1 means that nothing faster is given up for reproducible bits."
    yield ""
    yield from classes(rows)
    yield ""
    measured = sorted(
        best(row, 3, True)[3] / best(row, 3, False)[3] for key, row in rows.items() if key[0] in REDUCTIONS
    )
    free = sum(ratio <= 1.02 for ratio in measured)
    median, worst = measured[len(measured) // 2], measured[-1]
    yield f"Of {len(measured)} cells the canonical class is as fast as any (within 2 %) in {free}; the median ratio is {median:.2f}, the largest {worst:.2f}."
    yield "What it costs, it costs in long vectors, where a chain or a tree in rank order needs fewer copies than the balanced tree by parts."
    yield "Hence the default: **canonical**, the same bits whatever the size, the algorithm, the transport and the number of channels;"
    yield "`MAYPOLE_BITS=fast` allows the others."


def main():
    results, target = map(pathlib.Path, sys.argv[1:])
    target.write_text("\n".join(page(measurements(results))) + "\n")


main()
