"""Several processes train as one: losses, gradient norms and weights agree to rounding, for every kind of layer; and a
run is resumed by any number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glassmoe
from glassmoe.config import RunConfig, load, recipes, to_yaml
from glassmoe.device import describe
from glassmoe.model import FEED_FORWARD
from glassmoe.training import checkpoint
from glassmoe.training.distributed import Processes, share_rows, split_dimension, split_part
from glassmoe.training.language import step_passes
from glassmoe.training.run import commit
from glassmoe.training.tracking import read_metrics
from tiny_runs import PROCESS, assert_same_bits, on_processes, tiny, weights

KINDS = list(FEED_FORWARD)
RESULTS = os.environ.get("SCALE", "")
"""Where the figures of the slow tests are written; nowhere without it."""
ROUNDING = {"fp32": (2e-6, 2e-6), "bf16": (2e-3, 2e-2)}
"""Largest difference of losses (nats) and of gradient norms (relative)."""


def five_steps(games: Path, ffn: str, optimizer: str, precision: str = "fp32", **settings: object) -> RunConfig:
    # The same passes on 1, 2, 3 and 4 processes: some losses are means over a pass.
    sizes = {"batch_rows": 24, "micro_rows": 2, "steps": 5, "eval_every": 5, "checkpoint_every": 5, "eval_rows": 10}
    return tiny(games, ffn, optimizer={"name": optimizer}, precision=precision, **{**sizes, **settings})


def assert_same_course(one: Path, other: Path, loss: float, norm: float, least: float | None = None) -> None:
    """`least`: largest difference of a weight, where weights are compared."""
    first, second = (read_metrics(run / "metrics.jsonl") for run in (one, other))
    assert len(first) == len(second) == 5
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=loss), (one.name, a["step"])
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=norm), (one.name, a["step"])
    assert first[-1]["valid_loss"] == pytest.approx(second[-1]["valid_loss"], abs=10 * loss)
    if least is not None:
        ours, theirs = weights(one), weights(other)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=least, msg=f"{one.name} {name}")


@pytest.mark.parametrize("rows", [1, 7, 16, 100, 320])
@pytest.mark.parametrize("most", [1, 4, 16, 100])
def test_every_row_is_in_one_pass_and_all_processes_have_as_many(rows: int, most: int) -> None:
    for count in (1, 2, 3, 4, 8, 16):
        shares = [share_rows(rows, most, Processes(rank, count)) for rank in range(count)]
        assert len({len(share) for share in shares}) == 1
        read = [row for share in shares for micro in share for row in range(micro.start, micro.stop)]
        assert read == list(range(rows))
        assert all(micro.stop - micro.start <= most for share in shares for micro in share)


def test_every_recipe_starts_on_any_number_of_processes_up_to_its_rows() -> None:
    for path in recipes().values():
        settings = load(path).train
        for count in (each for each in (1, 2, 3, 4, 8, 16) if each <= settings.batch_rows):
            passes = [step_passes(settings, Processes(rank, count)) for rank in range(count)]
            assert all(any(micro.stop > micro.start for micro in share) for share in passes)
    with pytest.raises(ValueError, match="batch_rows is 16, fewer than the 17 processes"):
        step_passes(load(recipes()["quickstart"]).train, Processes(0, 17))


@pytest.mark.parametrize("shape", [(8, 6, 4), (2, 6, 4), (5,), (3, 5), (7, 12)])
def test_parts_of_a_weight_make_it_whole(shape: tuple[int, ...]) -> None:
    for shards in (2, 3, 4, 6):
        dim = split_dimension(shape, shards)
        parts = [split_part(shape[dim], Processes(rank, shards)) for rank in range(shards)]
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(shape[dim]))


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest differences of losses (nats), gradient norms (relative) and final weights."""
    first, second = (read_metrics(run / "metrics.jsonl") for run in (one, other))
    ours, theirs = weights(one), weights(other)
    return {
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(first, second, strict=True)),
        "grad_norm": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(first, second, strict=True)),
        "weights": max(float((ours[name] - theirs[name]).abs().max()) for name in ours),
    }


def record(section: str, found: list[dict[str, Any]], *same: str) -> None:
    """Adds rows to a section of the results file `SCALE`, in place of those with equal values of `same`, and writes all
    sections as a page beside it."""
    path = Path(RESULTS)
    values = json.loads(path.read_text()) if path.exists() else {}
    kept = [row for row in values.get(section, []) if not any(all(row[n] == f[n] for n in same) for f in found)]
    values[section] = kept + found
    values |= {"command": "SCALE=results/scale-cpu.json make test-slow", "hardware": describe(torch.device("cpu"))}
    values["commits"] = {**values.get("commits", {}), section: commit()}
    path.write_text(json.dumps(values, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(values))


def page(values: dict[str, Any]) -> str:
    commits = ", ".join(f"{each} ({section})" for section, each in values["commits"].items())
    lines = [
        "# Several processes against one, on a CPU\n",
        f"`{values['command']}`, {values['hardware']}; commits {commits}. Five steps of 24 rows of 64 "
        "characters, two layers of width 16, gloo. Each row has the largest difference from one process: of the losses "
        "of the steps in nats, of the norms of the gradient (relative), and of the weights after the last step. Muon "
        "iterates in float32. Monet takes its cut-off from the tokens of a pass of all processes, so that its numbers "
        "depend on their number; the running statistics of PEER are updated once for a pass of all processes.\n",
        "| layer and optimizer | precision | processes | loss | gradient norm | weights |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['name']} | {row['precision']} | {row['processes']} | {row['loss']:.1e} | {row['grad_norm']:.1e} | "
            f"{row['weights']:.1e} |"
            for row in values.get("rows", [])
        ),
        "\n## Resumed by another number of processes\n",
        "A run of 40 steps on 3 processes (float32), and its continuation from step 5 on other numbers of processes: "
        "the largest difference of the loss in nats, within each five steps. Gradients are summed in another order, "
        "which changes their last digits. A dense layer stays within 1e-6. A mixture jumps by 1e-5 to 1e-4 in one "
        "step, which differs from run to run. The likely reason: in each step the scores of some token's second and "
        "third expert are within about 1e-6 of each other, and a token that changes its expert changes the loss (after "
        "the jump, some tokens have another expert). Only sums that have the same bits for any number of processes "
        "would avoid it.\n",
        "| layer and optimizer | processes | " + " | ".join(f"{n + 1}-{n + 5}" for n in range(5, 40, 5)) + " |",
        "| --- " * 9 + "|",
        *(
            f"| {row['name']} | {row['processes']} | " + " | ".join(f"{each:.1e}" for each in row["loss"]) + " |"
            for row in values.get("resumed", [])
        ),
        "\n## Memory of a process\n",
        "Two processes, each with its part of the model and its rows: six layers of width 256 with 1,024 active hidden "
        "units, 16 rows of 256 tokens in a pass, AdamW, float32, freed memory returned at once. `planned` is what "
        "`train --dry-run --processes 2` computes, `measured` the larger peak of the two above the memory of the "
        "process before the model was built, in MiB.\n",
        "| layer | recompute | planned | measured | planned / measured |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['name']} | {'yes' if row['recompute'] else 'no'} | {row['planned'] / 2**20:.0f} | "
            f"{row['measured'] / 2**20:.0f} | {row['planned'] / row['measured']:.2f} |"
            for row in values.get("memory", [])
        ),
    ]
    return "\n".join(lines) + "\n"


def without_newest(run: Path, copy: Path) -> None:
    """The copy of a run as it was before its newest checkpoint."""
    newest = checkpoint.latest(shutil.copytree(run, copy) / "state")
    assert newest is not None
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    assert checkpoint.latest_step(copy) == 4


def test_two_processes_train_as_one_and_each_resumes_the_other(noise_games: Path, tmp_path: Path) -> None:
    """The same number of processes resumes to the same bits."""
    kinds = (("moe-x", "muon"), ("swiglu", "adamw"))
    configs = {f"{f}-{o}": five_steps(noise_games, f, o, checkpoint_every=2) for f, o in kinds}
    one, two = (on_processes(count, tmp_path / str(count), configs) for count in (1, 2))
    assert all(checkpoint.latest(one / name / "state").is_file() for name in configs)
    assert all(checkpoint.latest(two / name / "state").is_dir() for name in configs)
    for name in configs:
        assert_same_course(one / name, two / name, *ROUNDING["fp32"], 1e-6)
        without_newest(two / name, one / f"{name}-of-two")
        without_newest(one / name, two / f"{name}-of-one")
        without_newest(two / name, two / f"{name}-again")
    on_processes(1, one, {f"{name}-of-two": config for name, config in configs.items()})
    on_processes(2, two, {f"{name}-{how}": c for name, c in configs.items() for how in ("of-one", "again")})
    for name in configs:
        assert_same_course(one / f"{name}-of-two", two / name, *ROUNDING["fp32"], 1e-6)
        assert_same_course(two / f"{name}-of-one", one / name, *ROUNDING["fp32"], 1e-6)
        assert_same_bits(two / f"{name}-again", two / name)


@pytest.mark.slow
def test_two_copies_on_two_processes_each_train_as_one_process(noise_games: Path, tmp_path: Path) -> None:
    """Also with a thread that writes; and a run with two copies goes on with one."""
    kinds = (("moe-x", "muon"), ("swiglu", "adamw"))
    configs = {f"{f}-{o}": five_steps(noise_games, f, o, checkpoint_every=2) for f, o in kinds}
    copies = {
        name: replace(config, train=replace(config.train, replicas=2, async_checkpoints=name.startswith("moe-x")))
        for name, config in configs.items()
    }
    one, four = on_processes(1, tmp_path / "1", configs), on_processes(4, tmp_path / "4", copies)
    for name in configs:
        assert_same_course(one / name, four / name, *ROUNDING["fp32"], 1e-6)
        newest = checkpoint.latest(four / name / "state")
        assert newest is not None
        # The second copy holds the same weights, which are written once.
        held = [
            len([key for key in load_file(path) if key.startswith("model/")]) for path in newest.glob("*.safetensors")
        ]
        assert len(held) == 4 and sorted(held)[:2] == [0, 0] and sorted(held)[2] > 0
        without_newest(four / name, four / f"{name}-again")
    on_processes(2, four, {f"{name}-again": config for name, config in configs.items()})
    for name in configs:
        assert_same_course(four / f"{name}-again", one / name, *ROUNDING["fp32"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_layer_learns_on_several_processes_as_on_one(
    precision: str, noise_games: Path, tmp_path: Path
) -> None:
    configs = {f"{f}-{o}": five_steps(noise_games, f, o, precision) for f in KINDS for o in ("adamw", "muon")}
    one = on_processes(1, tmp_path / "1", configs)
    for count in (2, 3, 4):
        several = on_processes(count, tmp_path / str(count), configs)
        if RESULTS:
            common = {"precision": precision, "processes": count}
            rows = [{"name": name, **common, **differences(one / name, several / name)} for name in configs]
            record("rows", rows, "precision", "processes")
        for name in configs:
            # Monet's cut-off comes from the tokens of a pass of all processes, which are more than those of one.
            loss, norm = (1e-3, 2e-2) if "monet" in name else ROUNDING[precision]
            least = 1e-6 if precision == "fp32" and "monet" not in name and "peer" not in name else None
            assert_same_course(one / name, several / name, loss, norm, least)


@pytest.mark.slow
def test_sigkill_of_any_process_loses_nothing(noise_games: Path, tmp_path: Path) -> None:
    settings = {"steps": 40, "checkpoint_every": 1, "eval_every": 20}
    configs = {"whole": five_steps(noise_games, "gelu", "adamw", **settings)}
    on_processes(3, tmp_path, configs)
    (tmp_path / "train.py").write_text(PROCESS)
    for victim in range(3):
        name = f"killed-{victim}"
        (tmp_path / f"{name}.yaml").write_text(to_yaml(configs["whole"]))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
        child = subprocess.Popen(
            [*launcher, str(tmp_path / "train.py"), str(tmp_path / f"{name}.yaml")],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while (checkpoint.latest_step(tmp_path / name) or 0) < 5 + 7 * victim and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        rank = {int(environment(pid)["RANK"]): int(pid) for pid in workers if "RANK" in environment(pid)}
        os.kill(rank[victim], signal.SIGKILL)
        assert child.wait(timeout=120) != 0
        assert checkpoint.latest_step(tmp_path / name) < 40
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-on-two")
        on_processes(3, tmp_path, {name: configs["whole"]})
        assert_same_bits(tmp_path / name, tmp_path / "whole")
        on_processes(2, tmp_path, {f"{name}-on-two": configs["whole"]})
        lines = [read_metrics(tmp_path / run / "metrics.jsonl") for run in (f"{name}-on-two", "whole")]
        assert len(lines[0]) == len(lines[1]) == 40
        for a, b in zip(*lines, strict=True):
            assert a.loss == pytest.approx(b.loss, abs=1e-6)


@pytest.mark.slow
def test_a_run_that_other_numbers_of_processes_resume_stays_close(noise_games: Path, tmp_path: Path) -> None:
    """Within 1e-6 without experts. With experts within 1e-6 until a token changes its expert, and then close."""
    settings: dict[str, Any] = {"steps": 40, "checkpoint_every": 5, "eval_every": 40, "keep": 99}
    kinds = (("gelu", "adamw"), ("gelu", "muon"), ("moe-x", "adamw"), ("moe-x", "muon"))
    configs = {f"{f}-{o}": five_steps(noise_games, f, o, **settings) for f, o in kinds}
    on_processes(3, tmp_path, configs)
    for count in (1, 2, 4):
        for name in configs:
            copy = shutil.copytree(tmp_path / name, tmp_path / f"{name}-{count}")
            for path in (copy / "state").glob("step-*"):
                if path.stem > "step-00000005":
                    shutil.rmtree(path)
        on_processes(count, tmp_path, {f"{name}-{count}": config for name, config in configs.items()})
        for name in configs:
            whole, resumed = (read_metrics(tmp_path / run / "metrics.jsonl") for run in (name, f"{name}-{count}"))
            apart = [abs(a.loss - b.loss) for a, b in zip(whole, resumed, strict=True)]
            assert len(apart) == 40 and max(apart[:10]) < 1e-6
            assert max(apart) < (1e-3 if name.startswith("moe-x") else 1e-6), name
            if RESULTS:
                row = {"name": name, "processes": count, "loss": [max(apart[n : n + 5]) for n in range(5, 40, 5)]}
                record("resumed", [row], "name", "processes")


MEASURED = """
import resource, sys
from pathlib import Path
import torch
import glassmoe.device
glassmoe.device._keep_freed_memory = lambda: None  # the process holds what its tensors need
from glassmoe.config import load
from glassmoe.training import loop
from glassmoe.training.language import train
torch.set_num_threads(1)
loop.fast_bf16 = lambda device: False
folder = Path(sys.argv[1])
train(load(folder / "small.yaml"), folder / "small")  # libraries that torch loads when they are first used
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
config = load(folder / "large.yaml")
save, loop._save = loop._save, lambda *_: None  # a checkpoint is gathered after the steps
train(config, folder / "large")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024 - before
(folder / f"peak-{torch.distributed.get_rank()}").write_text(str(peak))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("ffn", "recompute"), [("gelu", False), ("moe-x", False), ("moe-x", True)])
def test_the_peak_of_each_of_two_processes_is_that_of_the_dry_run(
    ffn: str, recompute: bool, noise_games: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "eval_every": 2, "eval_rows": 4, "precision": "fp32", "device": "cpu"}
    large = tiny(noise_games, ffn, batch_rows=64, micro_rows=16, recompute=recompute, **settings)
    large.optimizer.name, large.data.rows = "adamw", "games:257"
    large.model = replace(large.model, layers=6, heads=4, width=256, active_width=1024, num_experts=8)
    (tmp_path / "large.yaml").write_text(to_yaml(large))
    (tmp_path / "small.yaml").write_text(to_yaml(tiny(noise_games, ffn, recompute=recompute, **settings)))
    (tmp_path / "measure.py").write_text(MEASURED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # glibc returns freed memory at once.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "measure.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **allocator},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [int((tmp_path / f"peak-{rank}").read_text()) for rank in range(2)]
    planned = glassmoe.train(large, dry_run=True, processes=2).total
    if RESULTS:
        row = {"name": ffn, "recompute": recompute, "planned": planned, "measured": max(measured)}
        record("memory", [row], "name", "recompute")
    assert planned == pytest.approx(max(measured), rel=0.15)


def environment(pid: str) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
