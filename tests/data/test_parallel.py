"""Work spread over processes: in order, bounded, with errors that reach the caller."""

import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glassmoe.data.parallel import default_workers, ordered_map


def test_order_and_values():
    numbers = [40000, 3, 20000, 5, 1, 8, 7] * 3
    expected = [math.factorial(number) % 1_000_003 for number in [3, 5, 1, 8, 7]]
    assert list(ordered_map(math.isqrt, iter(numbers), 2)) == [math.isqrt(number) for number in numbers]
    assert list(ordered_map(math.factorial, iter([3, 5, 1, 8, 7]), 1)) == expected
    assert list(ordered_map(math.isqrt, iter([9]), None)) == [3]
    assert list(ordered_map(math.isqrt, iter([]), 2)) == []
    assert default_workers() >= 1


@pytest.mark.parametrize("workers", [1, 2])
def test_endless_work_is_read_a_little_ahead_only(workers):
    read = itertools.count()
    results = ordered_map(math.isqrt, read, workers)
    assert [next(results) for _ in range(5)] == [0, 1, 1, 1, 2]
    results.close()
    assert next(read) <= 5 + 2 * workers + 2


def test_an_error_in_a_worker_is_the_callers():
    with pytest.raises(ValueError, match="nonnegative"):
        list(ordered_map(math.isqrt, iter([1, -1, 4]), 2))
    with pytest.raises(ValueError, match="workers is a number"):
        list(ordered_map(math.isqrt, iter([1]), 0))


def test_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\n"
        "from glassmoe.data.parallel import ordered_map\n"
        "print(list(ordered_map(math.isqrt, iter([1, 4, 9]), 2)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    # Python's resource tracker, a process of its own, may have the last word.
    said = [line for line in done.stderr.splitlines() if not line.lstrip().startswith(("warnings.warn(", "/"))]
    assert said[-1].startswith("ValueError: a worker process ended before")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process lives")
def test_workers_end_with_a_killed_parent(tmp_path):
    """A parent that is killed cannot tell its workers anything."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time, sys\n"
        "from glassmoe.data.parallel import ordered_map\n"
        "def work(_):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    list(ordered_map(work, iter(range(1000)), 2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()), int(parent.stdout.readline())}
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]
    parent.stdout.close()


def alive(pid):
    try:
        # A worker that nobody waits for any more stays in the table as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
