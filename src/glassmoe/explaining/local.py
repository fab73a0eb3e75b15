"""A local language model that answers the same questions as an endpoint, or yes and no by their probabilities.

Legend: B questions, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from glassmoe.console import bar, say
from glassmoe.device import fast_bf16, pick_device
from glassmoe.model.families import context_of
from glassmoe.text.gguf import from_pretrained, gguf_of
from glassmoe.text.tokens import loading_failure

from .chat import Answers, Counts, Messages
from .results import Questions

LONGEST_ANSWER = 256
"""Tokens of an answer."""
TOKENS_TO_ANSWER, TOKENS_TO_READ = 16_384, 4096
"""Tokens of the questions in a batch that is answered in words, or by the probabilities of one token."""


class LocalChat:
    """Asks a causal model of transformers in a folder. It answers in words, greedily (`ask`), or by the probabilities
    of yes and no (`odds`). `counts` are the counts so far. Answers are stored on disk like those of an endpoint."""

    def __init__(self, folder: Path, answers: Answers | None = None, device: str = "auto"):
        """ValueError when the folder holds no causal language model."""
        if not folder.is_dir() and gguf_of(folder) is None:
            raise ValueError(
                f"there is no folder {folder}; give a local judge as local:PATH, a folder of transformers files"
            )
        on = pick_device(device)
        arguments = from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        verbosity = transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(**arguments)
            own: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if gguf_of(folder) else {}
            own |= {"dtype": torch.bfloat16} if own else {"dtype": "auto", "use_safetensors": True}
            if not fast_bf16(on):
                own["dtype"] = torch.float32  # half precision would be emulated, at a third of the speed
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
        self._model: Any = model.to(on).eval()
        self._words = _answer_tokens(self._tokenizer, folder)
        self._cache: Any = None
        self._cached: list[int] = []
        self._can_share: bool | None = None
        self.folder, self.answers, self.counts = folder, answers, Counts()
        file = gguf_of(folder) or folder / "config.json"
        self._identity = hashlib.sha256(file.read_bytes() + str(_weights(folder)).encode()).hexdigest()

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The answer to each conversation; None where it is longer than the model's context."""
        keys, known, rows = self._look_up(conversations)
        fitting = {key: row_N for key, row_N in rows.items() if self._room(len(row_N)) > 0}
        with bar(len(rows), self.folder.name, "answer", show=len(rows) > 1) as progress:
            for part in self._batches_to_answer(fitting):
                for key, answer in zip([key for key, _ in part], self._write([row for _, row in part]), strict=True):
                    known[key] = self._store(key, answer)
                    progress.update()
        self._count(keys, rows, fitting)
        return [known[key] for key in keys]

    def odds(self, conversations: Sequence[Messages]) -> list[float | None]:
        """ln P(yes) - ln P(no) of the next token after each conversation: positive where the model would rather answer
        yes. None where a conversation is longer than the model's context. What the conversations have in common at
        their beginning is computed once, also from one call to the next."""
        keys, known, rows = self._look_up(conversations, "odds")
        fitting = {key: row_N for key, row_N in rows.items() if self._room(len(row_N)) >= 0}
        shared = self._shared_beginning(list(fitting.values()))
        for part in _batches([(key, row_N[shared:]) for key, row_N in fitting.items()], TOKENS_TO_READ):
            for (key, _), odds in zip(part, self._odds([row for _, row in part], shared), strict=True):
                known[key] = self._store(key, f"{odds:.6g}")
        self._count(keys, rows, fitting)
        return [None if (value := known[key]) is None else float(value) for key in keys]

    def summary(self) -> Questions:
        """The counts so far; the settings identify the weights."""
        settings = {"weights": self._identity, "max_new_tokens": LONGEST_ANSWER}
        counts = {**vars(self.counts), "failed": dict(self.counts.failed)}
        return Questions(self.folder.name, settings, **counts)

    def _look_up(
        self, conversations: Sequence[Messages], *what: str
    ) -> tuple[list[str], dict[str, str | None], dict[str, list[int]]]:
        """Each conversation's key, key -> answer on disk, and key -> token ids of what has no answer there."""
        keys = [self._key(messages, *what) for messages in conversations]
        known = {key: self.answers.get(key) if self.answers else None for key in keys}
        self.counts.asked += len(keys)
        self.counts.cached += sum(known[key] is not None for key in keys)
        rows = {key: messages for key, messages in zip(keys, conversations, strict=True) if known[key] is None}
        return keys, known, {key: self._prompt(messages) for key, messages in rows.items()}

    def _key(self, messages: Messages, *what: str) -> str:
        """Names a question on disk. `what` is asked besides an answer in words."""
        question = json.dumps([self._identity, [dict(each) for each in messages], *what], sort_keys=True)
        return hashlib.sha256(question.encode()).hexdigest()

    def _store(self, key: str, answer: str) -> str:
        if self.answers:
            self.answers.add(key, answer)
        return answer

    def _count(self, keys: Sequence[str], rows: Mapping[str, Any], fitting: Mapping[str, Any]) -> None:
        """Counts new answers and questions without one. Equal questions are asked once and share the answer."""
        self.counts.calls += len(fitting)
        self.counts.answered += sum(key in fitting for key in keys)
        if failed := sum(key in rows and key not in fitting for key in keys):
            self.counts.failed["a question longer than the model's context"] += failed

    def _room(self, tokens: int) -> int:
        """Tokens of an answer to a question of so many; negative where the question is too long."""
        return min(LONGEST_ANSWER, context_of(self._model) - tokens)

    def _batches_to_answer(self, rows: Mapping[str, list[int]]) -> list[list[tuple[str, list[int]]]]:
        """Batches of questions. One near the end of the context is asked alone, since padding would shorten the answers
        of others."""
        alone = [(key, row) for key, row in rows.items() if self._room(len(row)) < LONGEST_ANSWER]
        others = [(key, row) for key, row in rows.items() if self._room(len(row)) == LONGEST_ANSWER]
        return [*_batches(others, TOKENS_TO_ANSWER), *([each] for each in alone)]

    def _prompt(self, messages: Messages) -> list[int]:
        """The N token ids of a conversation, up to where the model answers."""
        plain = [dict(each) for each in messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        else:
            text = "".join(f"{each['role'].title()}: {each['content']}\n\n" for each in plain) + "Assistant:"
        # Not verbose: the length is checked against the model's context, not the tokenizer's.
        ids: list[int] = self._tokenizer(text, add_special_tokens=not self._tokenizer.chat_template, verbose=False)[
            "input_ids"
        ]
        return ids

    @torch.no_grad()
    def _write(self, rows: Sequence[list[int]]) -> list[str]:
        """Greedy answers to several questions, which are padded on the left to one length."""
        length = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0
        tokens_BN = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
        mask_BN = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])

        # The object is the answer: small models write on behind it until there is no room.
        def is_whole(ids_BN: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            texts = self._tokenizer.batch_decode(ids_BN[:, length:], skip_special_tokens=True)
            return torch.tensor([_end_of_object(text) is not None for text in texts], device=ids_BN.device)

        from transformers import StoppingCriteriaList

        written_BN = self._model.generate(
            tokens_BN.to(self._model.device),
            attention_mask=mask_BN.to(self._model.device),
            max_new_tokens=self._room(length),
            do_sample=False,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([is_whole]),
        )
        texts = self._tokenizer.batch_decode(written_BN[:, length:], skip_special_tokens=True)
        return [text[: _end_of_object(text)] for text in texts]

    @torch.no_grad()
    def _shared_beginning(self, rows: Sequence[list[int]]) -> int:
        """Tokens at the beginning of all rows that `self._cache` then holds; 0 where the model's cache cannot be shared
        or where there is nothing to share."""
        if not rows:
            return 0
        # At least one token of each row is left to be read.
        shared = min(_common(rows[0], row) for row in rows) if len(rows) > 1 else len(rows[0])
        shared = min(shared, min(map(len, rows)) - 1)
        same = _common(self._cached, rows[0][:shared])
        if shared == 0 or self._can_share is False:
            return 0
        if self._cache is None or same == 0:
            self._cache, same = None, 0
        elif same < len(self._cached):
            self._cache.crop(same - len(self._cached))  # removes the last tokens
        if same < shared:
            ids_1N = torch.tensor([rows[0][same:shared]], device=self._model.device)
            self._cache = self._model.base_model(
                input_ids=ids_1N, past_key_values=self._cache, use_cache=True
            ).past_key_values
        self._cached = rows[0][:shared]
        if self._can_share is None:
            self._can_share = _is_plain(self._cache)
            if not self._can_share:
                self._cache, self._cached = None, []
                return 0
        return shared

    @torch.no_grad()
    def _odds(self, rows: Sequence[list[int]], shared: int) -> list[float]:
        """The odds after the `shared` first tokens and each row. Padding is on the right, where no token of a row
        reads it."""
        length = max(map(len, rows))
        tokens_BN = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self._model.device)
        cache = None
        if shared:
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(rows))
        states_BND = self._model.base_model(
            input_ids=tokens_BN, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        last_BD = states_BND[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])].float()
        yes_B, no_B = (self._logits(last_BD, self._words[word]).logsumexp(-1) for word in ("yes", "no"))
        odds: list[float] = (yes_B - no_B).tolist()
        return odds

    def _logits(self, states_BD: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """The logits of some tokens in float32: in bf16, logits near 20 differ by steps of 0.125."""
        head = self._model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        logits_BV: torch.Tensor = states_BD @ head.weight[tokens].float().T
        return logits_BV if bias is None else logits_BV + bias[tokens].float()


def _answer_tokens(tokenizer: Any, folder: Path) -> dict[str, list[int]]:
    """Tokens with which an answer of yes or no begins, in the usual spellings. ValueError where the tokenizer does not
    tell them apart."""
    first = {
        word: {
            ids[0]
            for spelled in (word, word.title(), word.upper())
            for text in (spelled, f" {spelled}")
            if (ids := tokenizer(text, add_special_tokens=False)["input_ids"])
        }
        for word in ("yes", "no")
    }
    both = first["yes"] & first["no"]  # a space of its own
    words = {word: sorted(ids - both) for word, ids in first.items()}
    if not all(words.values()):
        raise ValueError(
            f"{folder} cannot judge, because its tokenizer begins yes and no with the same token; give the folder of a "
            f"different language model"
        )
    return words


def _batches(rows: Sequence[tuple[str, list[int]]], tokens: int) -> list[list[tuple[str, list[int]]]]:
    """The rows in batches of at most so many tokens with padding, rows of similar length together."""
    batches: list[list[tuple[str, list[int]]]] = []
    for row in sorted(rows, key=lambda each: len(each[1])):
        if batches and (len(batches[-1]) + 1) * len(row[1]) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of equal tokens at the beginning of two rows."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _is_plain(cache: Any) -> bool:
    """Whether a cache holds keys and values of every token, so that it can be cut and repeated."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _end_of_object(answer: str) -> int | None:
    """Where the JSON object ends with which an answer begins; None without a whole one."""
    begin = len(answer) - len(answer.lstrip())
    if answer[begin : begin + 1] != "{":
        return None
    try:
        return json.JSONDecoder().raw_decode(answer, begin)[1]
    except (ValueError, RecursionError):
        return None


def _weights(folder: Path) -> list[tuple[str, int, str]]:
    """Name, size and digest of the first megabyte of each file of weights: they identify a model without reading all
    of it."""
    files = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            files.append((path.name, path.stat().st_size, hashlib.sha256(file.read(1 << 20)).hexdigest()))
    return files
