"""An exported model in lm-evaluation-harness and nnsight, where they are installed: the former's numbers are ours, the
latter sees and changes what ours see and change. `make test-peers` runs it, in an environment of its own."""

import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from glassmoe.hub.model import export_model
from glassmoe.inspect.readers import open_model
from glassmoe.measure.text_perplexity import evaluate_texts
from glassmoe.model.subject import load_subject
from glassmoe.text.evaluation import read_evaluation_texts
from text_files import made_up_texts, prepared, text_run

# What these packages and theirs warn of is theirs.
pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.filterwarnings("default")]

PASSAGES = ["the cat sees the dog", "a red house and the tree", "but the big dog runs", "42 trees over a house"]


@pytest.fixture(scope="module")
def lm_eval() -> ModuleType:
    return pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def nnsight() -> ModuleType:
    return pytest.importorskip("nnsight")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that has learned something, and its export."""
    place = tmp_path_factory.mktemp("peers")
    prepared(place / "corpus", made_up_texts(150), valid_share=0.2)
    run = text_run(place / "run", place / "corpus", "moe-x", steps=40, optimizer={"lr": 0.02})
    return run, export_model(str(run), place / "out")


def task(folder: Path, name: str, file: Path, **settings: object) -> None:
    """A task of lm-evaluation-harness on a local file."""
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **settings}))


def harness(lm_eval: ModuleType, model: Path, tasks: Path, name: str, window: int, start: bool) -> dict:
    """What it finds. `start`: whether contexts begin with the start of a document; rolling likelihood has it anyway,
    and would have it twice."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with torch.no_grad():
        reader = HFLM(
            pretrained=str(model), trust_remote_code=True, device="cpu", dtype="float32", max_length=window,
            batch_size=4, add_bos_token=start,
        )  # fmt: skip
        found = lm_eval.simple_evaluate(
            model=reader, tasks=[name], task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0
        )
    return found["results"][name]


def test_the_harness_measures_what_we_measure(
    lm_eval: ModuleType, exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rolling likelihood of documents, and LAMBADA's last word."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    run, out = exported
    texts = made_up_texts(6, seed=9)
    documents, passages = tmp_path / "documents.jsonl", tmp_path / "passages.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    passages.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    measures = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    task(tmp_path, "rolling_here", documents, **rolling, metric_list=measures)
    last = {"doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}", "doc_to_target": "{{' '+text.split(' ')[-1]}}"}
    wanted = [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc", "aggregation": "mean"}]
    task(tmp_path, "last_word_here", passages, output_type="loglikelihood", **last, metric_list=wanted)
    rolled = harness(lm_eval, out, tmp_path, "rolling_here", window=32, start=False)
    ends = harness(lm_eval, out, tmp_path, "last_word_here", window=32, start=True)
    read = read_evaluation_texts(f"{documents},lambada={passages}")
    for path in (run, out):
        ours, lambada = evaluate_texts(*open_model(path), read, window=32).texts
        assert ours.bits_per_byte == pytest.approx(rolled["bits_per_byte,none"], abs=1e-3)
        # Its words include an empty one where a text ends in white space.
        words = sum(len(re.split(r"\s+", text)) for text in texts)
        per_word = math.log(rolled["word_perplexity,none"]) * words / ours.words
        assert math.log(ours.word_perplexity) == pytest.approx(per_word, abs=1e-3)
        assert math.log(lambada.last_word.perplexity) == pytest.approx(math.log(ends["perplexity,none"]), abs=1e-3)
        assert lambada.last_word.accuracy == ends["acc,none"]


def test_nnsight_reads_and_changes_what_we_read_and_change(nnsight: ModuleType, exported: tuple[Path, Path]) -> None:
    """Its envoys on the exported model: the stream after a block, and an ablated feed-forward layer."""
    _, out = exported
    model = nnsight.TransformersModel(
        str(out), task="text-generation", trust_remote_code=True, device_map="cpu", dispatch=True
    )
    loaded = load_subject(str(out), "cpu", own=True)
    prompt = "the cat sees"
    ids = torch.tensor([loaded.kind().encode(prompt).tolist()[1:]])
    caught: list[torch.Tensor] = []
    layer = loaded.model.model.layers[0].ffn
    handle = layer.register_forward_hook(lambda _, __, output: caught.append(output[0]))
    with torch.no_grad():
        plain = loaded.model(input_ids=ids).logits
    handle.remove()
    with model.trace(prompt):
        read = model.model.layers[0].ffn.output[0].save()
        logits = model.lm_head.output.save()
    torch.testing.assert_close(read.detach(), caught[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.detach(), plain, rtol=1e-4, atol=1e-5)
    handle = layer.register_forward_hook(lambda _, __, output: (torch.zeros_like(output[0]), output[1]))
    with torch.no_grad():
        ablated = loaded.model(input_ids=ids).logits
    handle.remove()
    with model.trace(prompt):
        model.model.layers[0].ffn.output[0][:] = 0
        changed = model.lm_head.output.save()
    torch.testing.assert_close(changed.detach(), ablated, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, ablated, atol=1e-2)
