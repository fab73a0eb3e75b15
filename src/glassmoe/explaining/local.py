"""A local language model that answers the same questions as an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from glassmoe.console import bar, say
from glassmoe.device import pick_device
from glassmoe.text.gguf import from_pretrained, gguf_of
from glassmoe.text.tokens import loading_failure

from .chat import Answers, Counts, Messages
from .results import Questions

LONGEST_ANSWER = 256
"""Tokens of an answer."""


class LocalChat:
    """Asks a causal model of transformers in a folder, greedily, one question after another. `counts` are the counts so
    far. Answers are stored on disk like those of an endpoint."""

    def __init__(self, folder: Path, answers: Answers | None = None, device: str = "auto"):
        """ValueError when the folder holds no causal language model."""
        if not folder.is_dir() and gguf_of(folder) is None:
            raise ValueError(
                f"there is no folder {folder}; give a local judge as local:PATH, a folder of transformers files"
            )
        arguments = from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        verbosity = transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(**arguments)
            own: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if gguf_of(folder) else {}
            own |= {"dtype": torch.bfloat16} if own else {"dtype": "auto", "use_safetensors": True}
            model = AutoModelForCausalLM.from_pretrained(**arguments, **own)
        except Exception as error:  # what transformers raises depends on where it stumbles
            raise ValueError(
                f"{folder} holds no language model ({loading_failure(error)}); give a folder of transformers files"
            ) from None
        finally:
            transformers_logging.set_verbosity(verbosity)
        if not self._tokenizer.chat_template:
            say(
                f"{folder} has no chat template, as base models have none: it is asked in plain text; its shuffled "
                f"control shows whether it can judge"
            )
        self._model: Any = model.to(pick_device(device)).eval()
        self.folder, self.answers, self.counts = folder, answers, Counts()
        file = gguf_of(folder) or folder / "config.json"
        self._identity = hashlib.sha256(file.read_bytes() + str(_weights(folder)).encode()).hexdigest()

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The answer to each conversation; None where it is longer than the model's context."""
        answers: list[str | None] = []
        with bar(len(conversations), self.folder.name, "answer", show=len(conversations) > 1) as progress:
            for messages in conversations:
                answers.append(self._answered(messages))
                progress.update()
        return answers

    def summary(self) -> Questions:
        """The counts so far; the settings identify the weights."""
        settings = {"weights": self._identity, "max_new_tokens": LONGEST_ANSWER}
        counts = {**vars(self.counts), "failed": dict(self.counts.failed)}
        return Questions(self.folder.name, settings, **counts)

    def _answered(self, messages: Messages) -> str | None:
        self.counts.asked += 1
        question = json.dumps([self._identity, [dict(each) for each in messages]], sort_keys=True)
        key = hashlib.sha256(question.encode()).hexdigest()
        known = self.answers.get(key) if self.answers else None
        if known is not None:
            self.counts.cached += 1
            return known
        tokens_1N = self._prompt(messages).to(self._model.device)
        context = getattr(self._model.config, "max_position_embeddings", None)
        room = LONGEST_ANSWER if context is None else min(LONGEST_ANSWER, context - tokens_1N.shape[1])
        if room < 1:
            self.counts.failed["a question longer than the model's context"] += 1
            return None
        answer = self._written(tokens_1N, room)
        self.counts.calls += 1
        self.counts.answered += 1
        if self.answers:
            self.answers.add(key, answer)
        return answer

    def _prompt(self, messages: Messages) -> torch.Tensor:
        """(1, N) token ids."""
        plain = [dict(each) for each in messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        else:
            text = "".join(f"{each['role'].title()}: {each['content']}\n\n" for each in plain) + "Assistant:"
        ids: torch.Tensor = self._tokenizer(
            text, return_tensors="pt", add_special_tokens=not self._tokenizer.chat_template
        )["input_ids"]
        return ids

    @torch.no_grad()
    def _written(self, tokens_1N: torch.Tensor, room: int) -> str:
        tokens = self._model.generate(
            tokens_1N,
            attention_mask=torch.ones_like(tokens_1N),
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
        )
        return str(self._tokenizer.decode(tokens[0, tokens_1N.shape[1] :], skip_special_tokens=True))


def _weights(folder: Path) -> list[tuple[str, int, str]]:
    """Name, size and digest of the first megabyte of each file of weights: they identify a model without reading all
    of it."""
    files = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            files.append((path.name, path.stat().st_size, hashlib.sha256(file.read(1 << 20)).hexdigest()))
    return files
