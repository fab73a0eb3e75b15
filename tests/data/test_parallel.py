"""Work spread over processes: in order, bounded, with errors that reach the caller."""

import itertools
import math
import os
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


SCRIPT = """
import sys
from glassmoe.chess.selfplay import generate
print("started")
corpus = generate("games", games=120, seed=3, max_chars=20, workers=2, progress=False)
print(sum(corpus.sequences.values()) + corpus.duplicates, __name__, __spec__)
"""


@pytest.mark.parametrize("way", ["script", "stdin", "command", "module"])
def test_a_script_without_a_guard_prepares_with_several_workers(tmp_path, way):
    """Workers do not run the caller's script again, wherever it comes from."""
    pytest.importorskip("chess")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = {"script": ["script.py"], "stdin": ["-"], "command": ["-c", SCRIPT], "module": ["-m", "script"]}[way]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        input=SCRIPT if way == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "started" and last.startswith("120 __main__ ") and ("ModuleSpec" in last) == (way == "module")


def test_a_killed_worker_is_one_clear_error():
    with pytest.raises(ValueError, match=r"a worker process was killed .* use fewer workers"):
        list(ordered_map(os._exit, iter([1, 1, 1]), 2))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process lives")
def test_workers_end_with_a_killed_parent(tmp_path):
    """A parent that is killed cannot tell its workers anything."""
    script = tmp_path / "script.py"
    script.write_text(
        "import worker\n"
        "from glassmoe.data.parallel import ordered_map\n"
        "list(ordered_map(worker.work, iter(range(1000)), 2))\n"
    )
    (tmp_path / "worker.py").write_text(
        "import os, time\ndef work(_):\n    print(os.getpid(), flush=True)\n    time.sleep(1)\n"
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
