"""One bit flips in a file: what is read is the same, or a message says what is damaged. Nothing else."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fault_driver import ENDS, Counts
from faults_made import Made
from glassmoe.coders.files import load_coder
from glassmoe.data.corpus import Corpus
from glassmoe.explaining.explained import read_lines
from glassmoe.inspect.store import open_store
from glassmoe.measure.saved import read_measure
from glassmoe.model import GlassForCausalLM
from glassmoe.model.subject import load_subject, weights_digest
from glassmoe.pages.explore.explored import read_explanations
from glassmoe.training import checkpoint
from glassmoe.training.optimizer import build_optimizers
from glassmoe.training.records import read_environment
from glassmoe.training.tracking import read_metrics
from tiny_runs import tiny

pytestmark = pytest.mark.faults


def digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def restored(run: Path) -> str:
    model = GlassForCausalLM(load_subject(run, "cpu").model.config)
    optimizers = build_optimizers(model, tiny(run).optimizer, torch.bfloat16)
    step, _ = checkpoint.restore(run / "state", model, optimizers, {"data": "", "seconds": 0.0})
    state = [tensor for optimizer in optimizers for tensor in optimizer.state_dict()["state"].values()]
    return digest(step, weights_digest(model), str(state), torch.get_rng_state().numpy())


def store(run: Path) -> str:
    held = open_store(run / "features" / "1-moe-x")
    parts: list[object] = [held.rows_RN, held.lengths_R, held.counts_F, held.maxima_F, held.sums_F, held.histogram_FB]
    for feature in range(held.num_features):
        for examples in (held.top(feature), held.scoring(feature), held.explaining(feature), held.silent(feature, 5)):
            parts += [examples.rows_E, examples.starts_E, examples.strengths_EL]
    parts += [*held.block(0, held.num_features), sorted(held.manifest.items())]
    return digest(*parts)


def corpus(folder: Path) -> str:
    held = Corpus.open(folder)
    splits = [held.split(name) for name in ("train", "valid")]
    return digest(*[part for split in splits for part in (split.data, split.offsets)], sorted(held.manifest.items()))


READERS: dict[str, tuple[str, str, int, Callable[[Path], object]]] = {
    # what, its files in the run (or corpus), how many flips, how it is read
    "checkpoints": ("run", "state/step-*6.safetensors", 24, restored),
    "weights of models": ("run", "model.safetensors", 24, lambda run: weights_digest(load_subject(run, "cpu").model)),
    "weights of coders": ("coder", "coder.safetensors", 24, lambda path: weights_digest(load_coder(path, "cpu")[0])),
    "metrics": ("run", "metrics.jsonl", 60, lambda run: [line.entries for line in read_metrics(run / "metrics.jsonl")]),
    "environment": ("run", "environment.json", 40, lambda run: read_environment(run).to_dict()),
    "measures": ("run", "measures/ppl.json", 40, lambda run: read_measure(run, "ppl")),
    "explanations, read by explain": (
        "run",
        "explanations/1-moe-x/rules.jsonl",
        60,
        lambda run: [line.to_dict() for line in read_lines(run / "explanations/1-moe-x/rules.jsonl")],
    ),
    "explanations, read by explore": (
        "run",
        "explanations/1-moe-x/rules.jsonl",
        60,
        lambda run: read_explanations(run / "explanations/1-moe-x", {}),
    ),
    "stores of examples": ("run", "features/1-moe-x/*", 80, store),
    "corpora": ("games", "*", 60, corpus),
}


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_never_silent(
    name: str, made: Made, tmp_path: Path, counts: Counts, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, pattern, flips, read = READERS[name]
    folder = shutil.copytree(getattr(made, kind), tmp_path / kind)
    files, rng, silent = sorted(path for path in folder.glob(pattern) if path.is_file()), random.Random(name), []
    whole = read(folder)
    for number in range(flips):
        file = files[number % len(files)]
        data = file.read_bytes()
        # Half of them in the first kilobyte, where the headers are.
        bit = rng.randrange(8 * (min(len(data), 1024) if number % 2 else len(data)))
        file.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        capsys.readouterr()
        try:
            outcome = "the same" if read(folder) == whole else "silent"
            said = capsys.readouterr().err
            if outcome == "silent" and any(word in said for word in ("damaged", "cannot read", "left out")):
                outcome = "reported, the rest read"
        except ENDS as error:
            outcome = "refused in one sentence" if "\n" not in str(error) else "traceback"
        except Exception:
            outcome = "traceback"
        file.write_bytes(data)
        counts.add("Flipped bits", name, outcome)
        if outcome in ("silent", "traceback"):
            silent.append((outcome, file.name, bit // 8, bit % 8))
    assert not silent
