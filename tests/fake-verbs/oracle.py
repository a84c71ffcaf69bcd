"""Compares the results of pyverbs with those on the kernel's software device."""

import re
import sys

# Tests whose result differs, the result on the fake, and why it is right.
DIFFERENT = {
    # The kernel's device has no clock that a completion could carry; the fake has one.
    "tests.test_mlx5_timestamp.TimeStampTest.test_timestamp_real_time_rc_traffic": "ok",
    # The provider of rxe announces atomic writes, which its kernel of 6.1 does not have, so that
    # the test fails there. The fake does not announce them.
    "tests.test_qpex.QpExTestCase.test_qp_ex_rc_atomic_write": "skipped",
}


def expected(path):
    """The result of each test, without the reason of a skip."""
    with open(path, encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines if not line.startswith("#")]
    return {name: result.split(" ")[0] for name, result in rows}


def found(path):
    """The same, from the output of unittest."""
    results, name = {}, None
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            start = re.match(r"^(\w+) \((tests\.[\w.]+)\)", line)
            if start:
                method, where = start.groups()
                name = where if where.endswith("." + method) else f"{where}.{method}"
            end = re.search(r"\.\.\. (ok|ERROR|FAIL|skipped)\b", line)
            if end and name:
                results[name], name = end.group(1), None
    return results


def main():
    """Prints each difference that is not argued, and fails if there is one."""
    wanted, got = expected(sys.argv[1]), found(sys.argv[2])
    wrong = 0
    for name, result in wanted.items():
        want = DIFFERENT.get(name, result)
        if got.get(name) != want:
            wrong += 1
            print(f"{name}: {got.get(name)}, not {want}")
    passed = sum(result == "ok" for result in got.values())
    print(f"{len(got)} tests, {passed} passed, {wrong} results differ")
    return 1 if wrong or len(got) < len(wanted) else 0


sys.exit(main())
