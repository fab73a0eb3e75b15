"""Perplexity on texts, of a model of any family as it is and with each coder of a fit spliced in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from glassmoe.coders.files import coder_folders
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import Reader, open_coders
from glassmoe.model.subject import Subject, load_subject
from glassmoe.text.evaluation import EvaluationText

from .saved import save_measure
from .text_perplexity import text_perplexity

UNBOUNDED = 1024
"""Tokens of a window where a model does not say how many it can read."""


def evaluate_corpora(
    path: str,
    texts: Sequence[EvaluationText],
    *,
    window: int | None = None,
    stride: int | None = None,
    source: str | None = None,
    device: str = "auto",
    base: bool = True,
) -> list[dict[str, Any]]:
    """`text_perplexity` of whatever lies at `path` on each text: a model (a run, a folder of transformers files, a hub
    id), or the coders of a fit, with the model that they were fitted to (`source`: where it lies now) before them.

    Each entry has `what` (`model`, or a coder's name) and `on` beside the measure. `window`: tokens that are read at
    once, by default as many as the run trained on, or the model's whole context. `base`: of coders, also the model
    without them. Saved as the measure `ppl-TEXT` of the
    run or the coder. ValueError for what cannot be loaded, a window beyond the context, and a model of games.
    """
    folder = Path(path)
    if folder.is_dir() and coder_folders(folder, missing=True):
        subject, readers = open_coders(folder, source, device)
    else:
        subject, readers = load_subject(source or path, device), {}
    kind = subject.kind()
    if kind.tokenizer is None:
        raise ValueError(
            f"{subject.name} reads games as {kind.name}, not text; its loss is told by eval ppl without --on"
        )
    window = _window(subject, window)
    found = []
    own = folder if not readers and subject.config is not None else None
    for what, keep, splice in list(_forms(subject, readers, own))[0 if base or not readers else 1 :]:
        for text in texts:
            with splice():
                values = text_perplexity(subject.model, kind, text, window, stride)
            if keep is not None:
                save_measure(keep, f"ppl-{text.name}", values, text.sha256)
            found.append({"what": what, "on": text.name, **values})
    return found


def _forms(
    subject: Subject, readers: dict[str, Reader], own: Path | None
) -> Iterator[tuple[str, Path | None, Callable[[], AbstractContextManager[None]]]]:
    """The model as it is, then with each coder in its place: a name, where measures of it are kept, and what makes it
    so."""
    yield "model", own, nullcontext
    for name, reader in readers.items():
        yield name, reader.folder, partial(spliced, subject.model, reader.layer, reader.place)


def _window(subject: Subject, given: int | None) -> int:
    if given is not None:
        if given > subject.context:
            raise ValueError(f"--window {given} is more than the context of {subject.name}, {subject.context} tokens")
        return given
    if subject.config is not None:
        # A run's context is one position more than its training fed in.
        return min(subject.context, int(subject.config.data.rows.split(":")[1]) - 1)
    return subject.context if subject.context < 1 << 30 else UNBOUNDED
