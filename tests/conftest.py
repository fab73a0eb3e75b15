"""Small real things that many tests share."""

import atexit
import gc
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

MEMORY, ROOM = Path("/dev/shm"), 4 << 30
KEPT = "PYTEST_DEBUG_TEMPROOT"
if KEPT not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM:
    # The files of tests lie in memory, where renaming and deleting one takes a tenth of the time. They are deleted at
    # the end; set the variable to a folder to keep them.
    os.environ[KEPT] = tempfile.mkdtemp(prefix="glassmoe-tests-", dir=MEMORY)
    atexit.register(shutil.rmtree, os.environ[KEPT], ignore_errors=True)
gc.disable()  # until the tests are collected: what collecting makes stays, and walking it took a third of the time
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GLASSMOE_CACHE"] = tempfile.mkdtemp(prefix="glassmoe-tests-")
atexit.register(shutil.rmtree, os.environ["GLASSMOE_CACHE"], ignore_errors=True)


QUICK = [
    *("test_examples", "test_results", "test_architecture"),
    "api/test_public",
    "cli/test_errors",
    *("explaining/test_scoring", "explaining/test_rules", "explaining/test_windows"),
    *("coders/test_thresholds", "coders/test_sweep", "coders/test_transcoder"),
    *("layers/test_sparse_ops", "layers/test_top", "layers/test_routers", "layers/test_any_shape"),
    "model/test_upcycle",
    *("data/test_origins", "data/test_corpus", "data/test_sources"),
    *("chess/test_characters", "chess/test_moves", "chess/test_boards", "chess/test_board_properties"),
    *("chess/test_board_features", "chess/test_board_labels"),
    *("measure/test_fidelity", "measure/test_routing"),
    "inspect/test_harvest",
    "training/test_optimizer",
    "pages/test_words",
]
"""Test files that together take under a minute on two cores: `make test-quick`."""


LONG = [
    *("papers/test_suite", "training/test_loop", "coders/test_fit", "test_readme", "benchmarks/test_benchmarks"),
    *("hub/test_export", "training/test_in_place", "cli/test_explain", "papers/test_figures", "measure/test_traces"),
    *("coders/test_divided", "training/test_simulated_device", "papers/test_probe_and_steering", "coders/test_formats"),
    *(
        "training/test_sharded_upcycling",
        "api/test_tour",
        "chess/test_pgn",
        "inspect/test_rows",
        "training/test_dry_run",
    ),
    *("coders/test_decompose", "layers/test_feed_forward", "papers/test_own_rows", "explaining/test_hostile_judges"),
    *("layers/test_peer", "training/test_foreign_start", "papers/test_frontier", "training/test_sharded"),
]
"""Test files of more than five seconds of CPU time, longest first. They run first, so that no process waits for the
last one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    names = {item.path: str(item.path.relative_to(root).with_suffix("")) for item in items}
    for item in items:
        if names[item.path] in QUICK:
            item.add_marker(pytest.mark.quick)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(names[item.path], len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    """The process that only hands out tests to others does not import torch."""
    import torch

    torch.set_num_threads(int(os.environ.get("GLASSMOE_TEST_THREADS", "1")))
    gc.collect()
    gc.freeze()  # the garbage collector need not walk modules and collected tests again and again
    gc.enable()
    os.fsync = lambda _: None  # no test loses power; waiting for the disk took a quarter of the time


@pytest.fixture(scope="session")
def noise_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared "games" of random characters: for tests that need rows, not chess."""
    from glassmoe.chess.tokens import CHARACTERS, pack_games
    from glassmoe.data.writer import CorpusWriter

    rng = random.Random(0)
    texts = [
        (";1." + "".join(rng.choices("abcdefgh12345678 NBRQ", k=rng.randint(20, 90)))).encode() for _ in range(400)
    ]
    out = tmp_path_factory.mktemp("noise") / "games"
    with CorpusWriter(out, CHARACTERS, valid_share=0.1) as writer:
        writer.add(pack_games(texts))
        writer.finish({"synthetic": True})
    return out
