"""Two processes write one folder: the second is refused with the name of the first, and works once that is dead."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fault_driver import Counts, held
from faults_made import Made, coder_config, explained
from glassmoe.chess.selfplay import generate
from glassmoe.coders.fit import fit
from glassmoe.coders.formats import export_coders, import_coder
from glassmoe.config import StartConfig
from glassmoe.hub.model import export_model
from glassmoe.locks import LOCK, Locked
from glassmoe.pages.explore.site import build_site
from glassmoe.training.language import train
from tiny_runs import tiny

pytestmark = pytest.mark.faults


def works(made: Made, folder: Path) -> dict[str, tuple[Callable[[], object], Path, Path]]:
    """Verb -> what it does, the folder that it writes, its lock."""
    run, saelens = folder / "copy", folder / "saelens"
    export_coders(made.coder, saelens, "saelens")
    shutil.copytree(made.run, run)
    for part in ("features", "measures"):
        shutil.rmtree(run / part)
    upcycled = tiny(made.games, steps=2)
    upcycled.start = StartConfig(source=str(made.run))
    explanations, out = run / "explanations/1-moe-x", {name: folder / name for name in ("run", "up", "coder", "games")}
    return {
        "train": (lambda: train(tiny(made.games, steps=2), out["run"]), out["run"], out["run"] / LOCK),
        "upcycle": (lambda: train(upcycled, out["up"]), out["up"], out["up"] / LOCK),
        "decompose": (lambda: fit(coder_config(made.run, made.games), out["coder"]), out["coder"], out["coder"] / LOCK),
        "data": (
            lambda: generate(out["games"], games=6, max_chars=60, overwrite=True, progress=False),
            out["games"],
            out["games"] / LOCK,
        ),
        "explain": (lambda: explained(run, again=True), run, explanations / LOCK),
        "hub export": (
            lambda: export_model(str(run), folder / "exported"),
            folder / "exported",
            folder / ".exported.lock",
        ),
        "hub import": (
            lambda: import_coder(saelens, str(made.run), None, folder / "imported"),
            folder / "imported",
            folder / "imported" / LOCK,
        ),
        "explore": (lambda: build_site([made.run], folder / "site"), folder / ".site", folder / ".site.lock"),
    }


VERBS = ["train", "upcycle", "decompose", "data", "explain", "hub export", "hub import", "explore"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_is_refused_until_the_first_is_dead(verb: str, made: Made, tmp_path: Path, counts: Counts) -> None:
    work, folder, lock = works(made, tmp_path)[verb]
    rng = random.Random(verb)
    child = held(work, folder, lock)
    for _ in range(rng.randrange(1, 3)):
        with pytest.raises(
            Locked, match=rf"is being written by process {child.pid} on .*; wait until it ends"
        ) as refused:
            work()
        assert "\n" not in str(refused.value)
        counts.add("Two processes, one folder", verb, "the second refused")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    work()
    assert not lock.exists()
    counts.add("Two processes, one folder", verb, "works after the first was killed")
