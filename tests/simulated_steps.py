"""Steps of training on a simulated device; a script whose output `test_simulated_device.py` reads."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glassmoe.coders.configuration import AUTOENCODERS, CoderConfig, FitConfig
from glassmoe.coders.kinds import CODERS
from glassmoe.coders.task import CoderTask
from glassmoe.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, StartConfig, TrainConfig
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.training.distributed import Processes
from glassmoe.training.inplace import InPlaceTask
from glassmoe.training.language import LanguageTask
from glassmoe.training.loop import Session, StepValues, _step
from glassmoe.training.optimizer import build_optimizers
from glassmoe.training.resolve import resolve
from simulated_device import SimulatedDevice, on_device
from tiny_runs import tiny

STEPS = 2
ALONE = Processes()


def counted(task: Any, config: Any, device: torch.device, out: Path) -> dict[str, Any]:
    """Steps of a task: what waited and what was copied in each, and the values to log."""
    if device.type != "cpu" and hasattr(task.module, "tie_weights"):
        task.module.tie_weights()  # a module that moves to this device gets new parameters
    optimizers = build_optimizers(task.module, config.optimizer)
    session = Session(task, config.train, config.optimizer, out, ALONE, device, optimizers, 0, 0.0)
    steps: list[dict[str, Any]] = []
    values: list[StepValues] = []
    for step in range(STEPS):
        with SimulatedDevice.current.counting() as counts:
            values.append(_step(session, step)[0])
            steps.append({"waits": dict(counts.waits), "transfers": dict(counts.transfers)})
    found: dict[str, Any] = {"steps": steps, "lines": [each.read() for each in values]}
    for name, act in (("statistics", lambda: task.statistics(0)), ("validation", task.validate)):
        with SimulatedDevice.current.counting() as counts:
            found[name] = {"values": act(), "waits": dict(counts.waits)}
    return found


def on_both(build: Callable[[torch.device], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The same on a CPU, whose values must be the same."""
    return {"device": build(device), "cpu": build(torch.device("cpu"))}


def language(games: Path, out: Path, ffn: str, optimizer: str, **settings: Any) -> Callable[[torch.device], Any]:
    def build(device: torch.device) -> dict[str, Any]:
        config = tiny(games, ffn, optimizer={"name": optimizer}, precision="fp32", eval_rows=8, **settings)
        resolved, _ = resolve(config, out, device, ALONE)
        return counted(LanguageTask(resolved, ALONE), config, device, out)

    return lambda device: on_both(build, device)


def in_place(source: Path, out: Path, objective: str) -> Callable[[torch.device], Any]:
    def build(device: torch.device) -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        config = RunConfig(
            data=DataConfig(path=str(source / "text"), rows="documents:33", tokens="text"),
            model=ModelConfig(ffn="moe-x", num_experts=4),
            start=StartConfig(source=str(source), objective=objective, replace_layers=[1]),
            optimizer=OptimizerConfig(warmup_steps=2),
            train=TrainConfig(batch_rows=4, micro_rows=2, eval_rows=4, precision="fp32"),
        )
        resolved, subject = resolve(config, out, device, ALONE)
        task = InPlaceTask(resolved, ALONE, subject)
        task.begin()
        return counted(task, resolved.config, device, out)

    return lambda device: on_both(build, device)


def coder(source: Path, games: Path, out: Path, kind: str) -> Callable[[torch.device], Any]:
    def build(device: torch.device) -> dict[str, Any]:
        out.mkdir(exist_ok=True)
        site = "stream" if kind in AUTOENCODERS else "mlp"
        shape = {"layer": 1, "features": 48, "k": 4, "anneal_start": 0.3, "anneal_updates": 2, "dead_tokens": 1}
        config = FitConfig(
            source=str(source),
            coder=CoderConfig(kind=kind, site=site, **shape),
            data=DataConfig(path=str(games), rows="games:64"),
            train=TrainConfig(steps=9, batch_rows=8, micro_rows=4, eval_rows=8, precision="fp32"),
        )
        task = CoderTask(config, out, device, ALONE)
        task.begin()
        return counted(task, replace(config, optimizer=replace(config.optimizer, clip=0.0)), device, out)

    return lambda device: on_both(build, device)


def main(games: Path, source: Path, out: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir()
    shape = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 64}
    torch.manual_seed(0)
    GlassForCausalLM(GlassConfig(ffn="relu", init_std=0.2, **shape)).save_pretrained(out / "model")
    cases = {f"{f}-{o}": language(games, out / "a", f, o) for f in FEED_FORWARD for o in ("adamw", "muon")}
    cases["recompute"] = language(games, out / "a", "moe-x", "adamw", recompute=True)
    cases |= {f"in place: {each}": in_place(source, out / "b", each) for each in ("next-token", "distill")}
    kinds = [*AUTOENCODERS, *(name for name in CODERS if not name.startswith("sae-") and "-" not in name), "moe-x"]
    cases |= {f"coder: {kind}": coder(out / "model", games, out / "c", kind) for kind in dict.fromkeys(kinds)}
    on_device(cases)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
