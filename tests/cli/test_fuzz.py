"""Hostile input made by hypothesis: what the configuration and the checkpoint reader do with anything at all. (The fuzz
of game files is in data/test_pgn.py.)"""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glassmoe.config import ModelConfig, OptimizerConfig, RunConfig, from_dict, load, to_yaml
from glassmoe.training import checkpoint
from glassmoe.training.language import build_model
from glassmoe.training.optimizer import build_optimizers

FUZZ = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EXTRA = {"data": "0" * 8, "seconds": 1.5}

KEYS = [
    "seed",
    "schema_version",
    "data",
    "model",
    "optimizer",
    "train",
    "ffn",
    "layers",
    "lyers",
    "width",
    "lr",
    "betas",
]
KEYS += ["options", "steps", "batch_rows", "rows", "path", "bias", "router", "", "model.layers", "config", "name"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from(["gelu", "muon", "1e-3", "nan", "null", "a.yaml", "${HOME}", "cuda", "games:64"]),
    st.text(max_size=8),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)
sections = {
    "model": ["layers", "width", "heads", "active_width", "experts_per_token", "balance", "bias", "options", "lyers"],
    "optimizer": ["lr", "betas", "clip", "momentum", "name", "final_lr"],
    "train": ["steps", "batch_rows", "micro_rows", "precision", "compile"],
    "data": ["path", "rows", "synthetic_games"],
}
configurations = st.fixed_dictionaries(
    {},
    optional={
        "seed": scalars,
        "schema_version": st.integers(-1, 3) | scalars,
        **{name: st.dictionaries(st.sampled_from(keys), values, max_size=3) for name, keys in sections.items()},
    },
)


def assert_valid_or_explained(make: Any, tmp_path: Path) -> None:
    try:
        config = make()
    except ValueError as error:
        message = str(error)
        assert len(message) > 10 and "<class" not in message and "\n" not in message, message
    else:
        (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert isinstance(config, RunConfig) and load(tmp_path / "again.yaml") == config


@settings(FUZZ, max_examples=50)
@given(configurations | st.dictionaries(st.sampled_from(KEYS) | st.integers(0, 3), values, max_size=4))
def test_any_values_give_a_configuration_or_one_message(tmp_path: Path, found: dict[str, Any]) -> None:
    assert_valid_or_explained(lambda: from_dict(found), tmp_path)


yaml_text = st.one_of(
    st.binary(max_size=60),
    st.text("abel: {}[]&*!?|>'\"#-\n\t0.1~<=%@`", max_size=60).map(str.encode),
    configurations.map(lambda found: yaml.safe_dump(found).encode("utf-8", "replace")),
    st.tuples(configurations, st.integers(0, 200), st.binary(max_size=3)).map(
        lambda parts: (lambda text: text[: parts[1]] + parts[2] + text[parts[1] + 1 :])(
            yaml.safe_dump(parts[0]).encode("utf-8", "replace")
        )
    ),
)


@settings(FUZZ, max_examples=50)
@given(yaml_text)
def test_any_file_gives_a_configuration_or_a_message_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(content)
    try:
        load(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
    assert_valid_or_explained(lambda: load(path), tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with two good checkpoints, and the model and optimizers they fit."""
    torch.manual_seed(0)
    config = RunConfig(model=ModelConfig(layers=1, heads=1, width=8, active_width=16, num_experts=2))
    model = build_model(config, 8)
    optimizers = build_optimizers(model, OptimizerConfig())
    folder = tmp_path_factory.mktemp("state")
    for step in (1, 2):
        model(torch.arange(8)[None]).logits.square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        checkpoint.save(folder, step, model, optimizers, EXTRA)
    return folder, model, optimizers


def flip(content: bytes, rng: random.Random, where: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(min(where, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def edit_header(content: bytes, rng: random.Random) -> bytes:
    """Another header that is well-formed: values swapped, dropped and replaced."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(header))
        if name == "__metadata__":
            header[name][rng.choice(["step", "extra", "schema_version"])] = rng.choice(
                ["", "x", "{}", "[]", "-1", "1e9"]
            )
        elif rng.random() < 0.3:
            header[f"{name}x"] = header.pop(name)
        elif rng.random() < 0.5:
            header[name]["dtype"] = rng.choice(["I32", "F32", "F64", "U8", "BF16"])
        else:
            header[name]["shape"] = header[name]["shape"][::-1] or [1]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


DAMAGE = {
    "flipped": lambda content, rng: flip(content, rng, len(content)),
    "flipped header": lambda content, rng: flip(content, rng, 4000),
    "flipped length": lambda content, rng: flip(content, rng, 8),
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "grown": lambda content, rng: content + rng.randbytes(9),
    "inserted": lambda content, rng: content[: (at := rng.randrange(len(content)))] + b"{" + content[at:],
    "junk": lambda content, rng: rng.randbytes(rng.randrange(200)),  # noqa: ARG005
    "header": edit_header,
    # What a pickle reader would run.
    "pickle": lambda content, rng: b"cos\nsystem\n(S'exit 1'\ntR.",  # noqa: ARG005
}


@settings(FUZZ, max_examples=300)
@given(kind=st.sampled_from(sorted(DAMAGE)), seed=st.integers(0, 10**6), both=st.booleans())
def test_a_damaged_checkpoint_is_put_back_whole_or_not_at_all(
    trained: tuple[Path, Any, Any], tmp_path: Path, kind: str, seed: int, both: bool
) -> None:
    good, model, optimizers = trained
    rng = random.Random(seed)
    for path in checkpoint._all(good):
        content = path.read_bytes()
        damaged = both or path == checkpoint.latest(good)
        (tmp_path / path.name).write_bytes(DAMAGE[kind](content, rng) if damaged else content)

    def state() -> dict[str, torch.Tensor]:
        entries = checkpoint.named_state(model, optimizers)
        held = {name: torch.as_tensor(value).clone() for name, value in entries.items()}
        return {**{name: p.detach().clone() for name, p in model.named_parameters()}, **held}

    checkpoint.restore(good, model, optimizers, EXTRA)
    before, random_state = state(), torch.get_rng_state()
    try:
        step, extra = checkpoint.restore(tmp_path, model, optimizers, EXTRA) or (0, {})
    except ValueError as error:
        assert both or "update glassmoe" in str(error)
        assert "no checkpoint in" in str(error) or "update glassmoe" in str(error)
        after = state()
        assert before.keys() == after.keys()
        # NaN is not equal to itself, so bytes are compared.
        assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
        assert torch.equal(torch.get_rng_state(), random_state)
    else:
        assert step in (1, 2) and extra.keys() == EXTRA.keys()
        assert state().keys() == before.keys()
