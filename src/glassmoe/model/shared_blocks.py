"""Passes of a model over the same rows of tokens that differ from one place on: the blocks before that place are
computed once, and a later pass starts from what they returned.

A block that is not computed again returns what the last block before the place returned in the first pass. That holds
for models whose blocks hand nothing but their output to later blocks. Every model is tried on a few tokens; one of
another kind is computed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .families import text_settings
from .modules import copied, stream_path
from .places import Place

TOLERANCE = 1e-4
"""Greatest relative difference of logits for which two passes are the same."""
TRIED = 8
"""Tokens of a row on which a model is tried."""


class SharedBlocks:
    """The blocks before some places of a model. `kept` is a context for one whole pass, `skipped` a context for passes
    over the same tokens in which only the output of one of the places may change."""

    def __init__(self, model: Any, places: Sequence[Place]):
        self.model = model
        self._blocks = _path_of_blocks(model)
        numbers = {place: self._before(place) for place in places}
        self._kept: dict[int, Any] = {}
        self._numbers = {place: number for place, number in numbers.items() if number is not None and number >= 0}
        usable = {number for number in set(self._numbers.values()) if self._agrees(number)}
        self._numbers = {place: number for place, number in self._numbers.items() if number in usable}
        self._kept.clear()

    def shares(self, place: Place) -> bool:
        """Whether passes that differ from this place on start there; they are whole passes otherwise."""
        return place in self._numbers

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it, a pass stores what the last block before each place returns."""
        self._kept.clear()
        with self._keeping(set(self._numbers.values())):
            yield

    @contextmanager
    def skipped(self, place: Place) -> Iterator[None]:
        """Within it, passes compute no block before the place; their tokens must be those of the last `kept` pass."""
        number = self._numbers.get(place)
        if number is None:
            yield
            return
        with self._skipping(number):
            yield

    def _before(self, place: Place) -> int | None:
        """Number of the last block that need not be computed again when the output at a place changes; -1 or None
        where there is no such block."""
        if self._blocks is None or not place.module.startswith(f"{self._blocks}."):
            return None
        number, _, inside = place.module[len(self._blocks) + 1 :].partition(".")
        if not number.isdecimal():
            return None
        # The output of a whole block is replaced after it.
        return int(number) - 1 if inside else int(number)

    @contextmanager
    def _keeping(self, numbers: set[int]) -> Iterator[None]:
        def keep(number: int) -> Callable[..., None]:
            def hook(_: Any, __: Any, out: Any) -> None:
                # A copy, as some blocks go on in place with what they were given.
                self._kept[number] = copied(out)

            return hook

        handles = [self._block(number).register_forward_hook(keep(number)) for number in numbers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _skipping(self, last: int) -> Iterator[None]:
        out = self._kept[last]

        def stored(*_: Any, **__: Any) -> Any:
            return copied(out)

        blocks = [self._block(number) for number in range(last + 1)]
        before = [vars(block).get("forward") for block in blocks]  # accelerate sets one for a device map
        for block in blocks:
            block.forward = stored
        try:
            yield
        finally:
            for block, forward in zip(blocks, before, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def _block(self, number: int) -> Any:
        return self.model.get_submodule(f"{self._blocks}.{number}")

    @torch.no_grad()
    def _agrees(self, number: int) -> bool:
        """Whether a pass without the blocks up to this one equals the whole pass, also after a pass over other
        tokens."""
        device, size = next(self.model.parameters()).device, text_settings(self.model).vocab_size
        tokens_BS = (torch.arange(1, 2 * TRIED + 1, device=device) % size).view(2, TRIED)
        try:
            with self._keeping({number}):
                whole = self._logits(tokens_BS)
            self._logits(tokens_BS.flip(1))
            with self._skipping(number):
                resumed = self._logits(tokens_BS)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            return False  # a block of this kind cannot be skipped
        return bool((resumed - whole).abs().max() <= TOLERANCE * whole.abs().max())

    def _logits(self, tokens_BS: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens_BS, use_cache=False).logits.float()
        return logits


def _path_of_blocks(model: Any) -> str | None:
    """Path of the list of blocks; None where it is not known."""
    path = stream_path(model, text_settings(model).num_hidden_layers)
    return None if path is None else path.removesuffix(".{}")
