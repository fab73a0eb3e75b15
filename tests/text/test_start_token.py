"""The token with which texts begin: the tokenizer's bos, else its eos, in every verb alike; and the tokens that end
them, of models that are upcycled."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from glassmoe import config as configuration
from glassmoe.cli.main import main
from glassmoe.coders.files import load_coder
from glassmoe.config import ModelConfig, RunConfig
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.readers import open_coders
from glassmoe.model.subject import Subject, load_subject
from glassmoe.training.resolve import model_settings
from text_files import jsonl, made_up_texts, prepared

GPT2_BOS = 50256
START, END = "<|endoftext|>", "<|im_end|>"
FIT = "--layer 1 --coders sae-topk --features 64 --k 2 --tokens 256 --batch-tokens 64 --context 16"
BRIEF = "--train.steps 2 --train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 8 --train.precision fp32"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE with two special tokens."""
    folder = tmp_path_factory.mktemp("tokenizer") / "data"
    prepared(folder, made_up_texts(100), tokenizer="train:300")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens([END])
    return made


def saved(folder: Path, tokenizer: Tokenizer, named: dict[str, str], extra: int = 0, **config: Any) -> Path:
    """A GPT-2 whose configuration says `config`, beside a tokenizer whose special tokens are `named`. `extra`: rows of
    the embedding beyond the tokenizer's ids."""
    torch.manual_seed(1)
    size = tokenizer.get_vocab_size() + extra
    settings = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=size, n_positions=40, initializer_range=0.3, **config
    )
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


LAYOUTS: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no-bos-config-says-another": ({"eos_token": END}, {"bos_token_id": 0, "eos_token_id": 300}, END),
    "no-bos-config-null": ({"eos_token": END}, {"bos_token_id": None, "eos_token_id": None}, END),
    "config-null": ({"bos_token": START, "eos_token": END}, {"bos_token_id": None, "eos_token_id": 300}, START),
    "config-outside": ({"bos_token": END, "eos_token": START}, {}, END),
    "usual": ({"bos_token": START, "eos_token": START}, {"bos_token_id": 0, "eos_token_id": 0}, START),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_verb_begins_texts_alike(
    layout: str, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, config, start = LAYOUTS[layout]
    model = saved(tmp_path / "model", tokenizer, named, **config)
    manifest = prepared(tmp_path / "data", made_up_texts(80), tokenizer=str(model), valid_share=0.3)
    assert manifest["tokenizer"]["separator"] == start
    subject = load_subject(str(model), "cpu")
    objects = Subject.from_objects(subject.model, PreTrainedTokenizerFast.from_pretrained(model))
    for kind in (subject.kind(), objects.kind()):
        assert kind.start_token == start and kind.encode("the cat").tolist()[0] == kind.start
        assert kind.encode("the cat").tolist().count(kind.start) == 1
    texts = tmp_path / "t.jsonl"
    texts.write_text(jsonl(made_up_texts(8, seed=9)))
    coder = tmp_path / "coder"
    verbs = (
        f"eval ppl {model} --on t={texts}",
        f"generate {model} --prompt cat --tokens 3",
        f"decompose {model} --data.path {tmp_path / 'data'} --out {coder} {FIT}",
        f"eval ppl {coder} --on t={texts}",
        f"eval fidelity {coder}",
        f"steer {coder} --feature 3 --add 5 --prompt dog --tokens 3",
    )
    for words in verbs:
        assert main(words.split()) == 0, (words, capsys.readouterr().err)
    (folder,) = coder.glob("1/*")
    assert load_coder(folder)[1].start_token == start
    opened, _ = open_coders(coder)
    assert opened.kind().start_token == start
    # The same command again is the same fit.
    assert main(verbs[2].split()) == 0


def test_a_coder_remembers_its_own_start(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Text that begins with another token than the tokenizer says now."""
    model = saved(tmp_path / "model", tokenizer, {"bos_token": START, "eos_token": END})
    other = saved(tmp_path / "other", tokenizer, {"bos_token": END})
    prepared(tmp_path / "data", made_up_texts(80), tokenizer=str(other), valid_share=0.3)
    coder = tmp_path / "coder"
    words = f"decompose {model} --data.path {tmp_path / 'data'} --out {coder} {FIT}"
    assert main(words.split()) == 0
    assert open_coders(coder)[0].kind().start_token == END
    assert load_subject(str(model)).kind().start_token == START
    # Configurations of earlier versions do not name it.
    for file in coder.rglob("config.yaml"):
        text = file.read_text()
        assert f"start_token: {END}" in text.replace("'", "")
        file.write_text("".join(line for line in text.splitlines(True) if not line.startswith("start_token")))
    assert open_coders(coder)[0].kind().start_token == START
    assert main(words.split()) == 0, "a fit of an earlier version resumes"


def test_what_cannot_begin_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    neither = saved(tmp_path / "neither", tokenizer, {})
    with pytest.raises(ValueError, match="no tokenizer beside its weights that names a bos or eos token"):
        load_subject(str(neither)).kind()
    model, fast = load_subject(str(neither)).model, PreTrainedTokenizerFast.from_pretrained(neither)
    with pytest.raises(ValueError, match="has neither a bos nor an eos token to begin texts with"):
        Subject.from_objects(model, fast).kind()
    beyond = saved(tmp_path / "beyond", tokenizer, {"bos_token": "<new>"})
    with pytest.raises(ValueError, match=r"begins texts with <new> \(id 301\), but the model reads ids below 301"):
        load_subject(str(beyond)).kind()


def upcycled(source: Path, recipe: str, tmp_path: Path, tokenizer: str | None = None) -> Path:
    prepared(tmp_path / "text", made_up_texts(100), tokenizer=str(tokenizer or source), valid_share=0.2)
    words = f"upcycle {source} --config {recipe} --data.path {tmp_path / 'text'} --out {tmp_path / 'run'} {BRIEF}"
    assert main(words.split()) == 0
    return tmp_path / "run"


def ends(folder: Path) -> list[Any]:
    return [
        json.loads((folder / f"{name}.json").read_text())["eos_token_id"] for name in ("config", "generation_config")
    ]


@pytest.mark.parametrize("eos", [GPT2_BOS, 305])
def test_an_end_that_the_tokenizer_lacks_is_left_out_before_the_first_step(
    eos: int, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default ids of GPT-2 beside a small tokenizer, and an id in rows that only fill the embedding."""
    source = saved(
        tmp_path / "source",
        tokenizer,
        {"bos_token": START, "eos_token": END},
        extra=8,
        bos_token_id=0,
        eos_token_id=eos,
    )
    run = upcycled(source, "moex-from-gpt2", tmp_path)
    assert f"eos_token_id {eos} of {source} is left out: its tokenizer has ids 0 to 300" in capsys.readouterr().err
    assert ends(run) == [0, 0]
    assert main(["generate", str(run), "--prompt", "the cat", "--tokens", "3"]) == 0


@pytest.mark.parametrize(("configured", "generating"), [([300, 5], None), (300, [300, 5])])
def test_a_list_of_ends_stays_a_list(configured: Any, generating: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tmp_path / "source"
    settings = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=44,
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, bos_token_id=0, eos_token_id=configured,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(settings)
    if generating is not None:
        model.generation_config.eos_token_id = generating
    model.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END).save_pretrained(source)
    run = upcycled(source, "moex-from-llama", tmp_path)
    assert ends(run) == [[300, 5], [300, 5]]
    assert configuration.load(run / "config.yaml").model.eos_token_id == [300, 5]
    assert PreTrainedTokenizerFast.from_pretrained(run).eos_token == END
    # The run is one: the same command, its own configuration, generation, export.
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(run)]) == 0
    assert main(["generate", str(run), "--prompt", "the cat", "--tokens", "3"]) == 0
    assert main(["hub", "export", str(run), "--out", str(tmp_path / "exported")]) == 0
    assert ends(tmp_path / "exported") == [[300, 5], [300, 5]]
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "exported").eos_token == END


def test_an_end_outside_the_tokenizer_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path / "data", made_up_texts(50))
    kind = Corpus.open(tmp_path / "data").kind
    for eos in (kind.size, [0, kind.size], -1):
        with pytest.raises(ValueError, match=r"model.eos_token_id is .*, but the tokenizer of the data has ids 0 to"):
            model_settings(RunConfig(model=ModelConfig(eos_token_id=eos)), 16, kind)
    assert model_settings(RunConfig(model=ModelConfig(eos_token_id=[0, 5])), 16, kind).eos_token_id == [0, 5]
