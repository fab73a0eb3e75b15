"""Small texts with structure enough for a tokenizer, and folders prepared from them."""

import json
import random
from pathlib import Path

from glassmoe.text.documents import prepare_text

WORDS = ["the", "a", "cat", "dog", "house", "tree", "runs", "sees", "under", "over", "big", "red", "and", "but"]
WORDS += ["na\u00efve", "\u6771\u4eac", "\U0001f642", ",", ".", "42"]


def made_up_texts(count: int, seed: int = 0, longest: int = 120) -> list[str]:
    """Different texts of words, lines and odd spaces."""
    rng = random.Random(seed)
    return [
        f"{number} "
        + "".join(rng.choice(WORDS) + rng.choice(["", " ", " ", "  ", "\n"]) for _ in range(rng.randint(1, longest)))
        for number in range(count)
    ]


def jsonl(texts: list[str], field: str = "text") -> str:
    return "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts))


def prepared(folder: Path, texts: list[str], tokenizer: str = "train:320", **options: object) -> dict:
    """The manifest of `folder`, prepared from texts in this process."""
    file = folder.with_name(folder.name + ".jsonl")
    file.write_text(jsonl(texts), encoding="utf-8")
    return prepare_text([file], folder, tokenizer=tokenizer, **{"workers": 1, "progress": False, **options}).manifest


def random_gpt2(folder: Path, corpus: Path, layers: int = 3) -> Path:
    """A GPT-2 of width 16 and context 40 with random weights, and with the tokenizer of a prepared text, as
    transformers' files in `folder`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from glassmoe.data.corpus import Corpus
    from glassmoe.training.run import tokenizer_of

    kind = Corpus.open(corpus).kind
    torch.manual_seed(1)
    config = GPT2Config(
        n_embd=16,
        n_layer=layers,
        n_head=2,
        vocab_size=kind.size,
        n_positions=40,
        initializer_range=0.3,
        bos_token_id=kind.start,
        eos_token_id=kind.start,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer_of(kind, 40).save_pretrained(folder)
    return folder


def random_llama(folder: Path, corpus: Path, layers: int = 3) -> Path:
    """The same as a Llama of context 140."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from glassmoe.data.corpus import Corpus
    from glassmoe.training.run import tokenizer_of

    kind = Corpus.open(corpus).kind
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        vocab_size=kind.size, max_position_embeddings=140, initializer_range=0.3, bos_token_id=kind.start,
        eos_token_id=kind.start,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of(kind, 140).save_pretrained(folder)
    return folder


def text_run(out: Path, corpus: Path, ffn: str = "gelu", **settings: object) -> Path:
    """A run of a few steps on a prepared text, rows of 33 tokens."""
    from glassmoe.config import DataConfig
    from glassmoe.training.language import train
    from tiny_runs import tiny

    config = tiny(corpus, ffn, **settings)
    config.data = DataConfig(path=str(corpus), rows="packed:33", tokens="text")
    return train(config, out)
