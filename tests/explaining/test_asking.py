"""What a language model is asked, how its answers are read, and models on this machine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.explaining import embedding, prompts
from glassmoe.explaining.asking import chat_judge, file_name
from glassmoe.explaining.chat import Answers
from glassmoe.explaining.embedding import Embed
from glassmoe.explaining.explained import explain_features
from glassmoe.explaining.local import LocalChat
from glassmoe.explaining.offline import embedding_judge
from glassmoe.explaining.prompts import parse_answers, parse_explanation
from glassmoe.explaining.trials import ExplanationProtocol, trial
from glassmoe.explaining.windows import TokenText
from planted_stores import planted, words_kind
from text_files import made_up_texts, prepared, random_gpt2

HARD = [" \U0001f642", " \u05e9\u05dc\u05d5\u05dd", " <b>", " >>", "\x00", '"', "\n", "{0}"]
VOCABULARY = [" the", " cat", " dog", *HARD]


@pytest.mark.parametrize(
    "answer, expected",
    [
        ('{"explanation": "names of colours"}', "names of colours"),
        (
            '<think>{"explanation": "no"}</think>\n```json\n{"explanation": " names\\n of  colours "}\n```',
            "names of colours",
        ),
        ("It is so.\nExplanation: **names of colours**", "names of colours"),
        ("**explanation**: names of colours", "names of colours"),
        ('{"explanation": "names of colours', "names of colours"),
        ('{"explanation": ["a"]}', None),
        ('{"explanation": ""}', None),
        ("names of colours", None),
        ("", None),
    ],
)
def test_explanations_are_read(answer: str, expected: str | None) -> None:
    assert parse_explanation(answer) == expected


@pytest.mark.parametrize(
    "answer, expected",
    [
        ('{"answers": [1, 0, 1]}', [1, 0, 1]),
        ('Sure: {"answers": ["1", "no", true]} there.', [1, 0, 1]),
        ("[1,0,0] or rather [1, 0, 1]", [1, 0, 1]),
        ("[True, False, Yes]", None),
        ('["Yes", "No", "yes"]', [1, 0, 1]),
        ("</think>[1, 1, 1", None),
        ('{"answers": [1, 0]}', None),
        ('{"answers": [1, 0, 1, 1]}', None),
        ('{"answers": [1, 0, 2]}', None),
        ('{"answers": 101}', None),
        ('{"answers": [1, 0, null]}', None),
        ("1 0 1", None),
        ("", None),
    ],
)
def test_answers_are_read(answer: str, expected: list[int] | None) -> None:
    assert parse_answers(answer, 3) == expected


@pytest.fixture(scope="module")
def shown():
    store = planted(VOCABULARY, [lambda text, at: 2.0 * (text[at] == " cat") + (text[at] == " \U0001f642")])
    return trial(TokenText(store, words_kind(VOCABULARY)), 0, ExplanationProtocol(2, 10))


def test_questions_show_what_they_should(shown) -> None:
    question = prompts.to_explain(shown)[-1]["content"]
    assert "40 excerpts" in question and '(" cat" 10' in question and '" \U0001f642" 5' in question
    assert "<< cat>>" in question
    lines = [line for line in question.splitlines() if line[:1].isdigit()]
    assert len(lines) == 40 and all('"' in line for line in lines)
    detect = prompts.to_detect("cats", shown.scoring[:5], "character")[-1]["content"]
    assert "5 excerpts of chess games" in detect and "<<" not in detect and '"cats"' in detect
    fuzz = prompts.to_fuzz("cats", shown.scoring[:5], shown.marked_EL[:5], "token")[-1]["content"]
    assert "5 excerpts of text" in fuzz and fuzz.count("<<") > 5
    # One line a text, whatever is in it.
    assert [line[0] for line in fuzz.splitlines() if line[:1].isdigit()] == list("12345") and "\x00" not in fuzz


def test_a_local_model_judges(tmp_path: Path) -> None:
    """A random GPT-2 talks nonsense, which is counted; a second time it is not asked again. Its context of 40 tokens
    is shorter than any question, which is told, too."""
    prepared(tmp_path / "text", made_up_texts(60))
    folder = random_gpt2(tmp_path / "gpt2", tmp_path / "text", layers=1)
    chat = LocalChat(folder, Answers(tmp_path / "answers.jsonl"), "cpu")
    question = [{"role": "user", "content": "the cat"}]
    (answer,) = chat.ask([question])
    assert answer is not None and (chat.counts.asked, chat.counts.answered, chat.counts.calls) == (1, 1, 1)
    again = LocalChat(folder, Answers(tmp_path / "answers.jsonl"), "cpu")
    assert again.ask([question]) == [answer] and (again.counts.cached, again.counts.calls) == (1, 0)

    store = planted([" the", " cat"], [lambda text, at: text[at] == " cat"])
    found = explain_features(
        store,
        words_kind([" the", " cat"]),
        chat_judge(again),
        [0],
        tmp_path / "out",
        protocol=ExplanationProtocol(2, 5),
    )
    assert found.unexplained == 1 and found.questions.failed == {"a question longer than the model's context": 1}
    assert found.judge == "gpt2"


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_model(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="folder of transformers files"):
        LocalChat(tmp_path / "x")


def test_names_of_files() -> None:
    assert file_name("org/Model 7B:free") == "org-Model-7B-free" and file_name("///") == "judge"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "the", "cat", "dog", "fires", "on", "in", "texts", "with", "words", "such", "as"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**shape, max_position_embeddings=160)).save_pretrained(folder)
    return folder


def test_embeddings_in_batches_are_those_one_by_one(encoder: Path) -> None:
    embed = Embed(encoder)
    texts = ["the cat", "dog", "the cat fires on the dog", "", "\U0001f642 the", "cat " * 300]
    together, alone = embed(texts), np.concatenate([embed([text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5) and embed([]).shape == (0, 16)
    hidden = embed._model(**embed._tokenizer(["the cat"], return_tensors="pt")).last_hidden_state[0].detach().numpy()
    mean = hidden.mean(0)
    assert together[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_judge_by_embeddings(encoder: Path, tmp_path: Path) -> None:
    """Windows of cats against windows without: the words tell, and the vectors, too."""
    vocabulary = [" the", " dog", " on", " in", " with"]
    rows = planted(vocabulary, [lambda *_: 0.0], rows=160).rows_RN
    vocabulary = [*vocabulary, " cat"]
    rows[::4] = rows[3::4] = 5
    from planted_stores import PlantedStore

    store = PlantedStore(rows, (rows == 5)[..., None].astype(float), 8)
    found = explain_features(
        store,
        words_kind(vocabulary),
        embedding_judge(Embed(encoder)),
        [0],
        tmp_path,
        protocol=ExplanationProtocol(2, 10),
    )
    assert found.scores["embedding"].auc.mean in (0.0, 1.0)  # a random model may put them the other way round
    assert found.scores["detection"].balanced_accuracy.mean in (0.5, 1.0)
    assert '"explanation": "fires in texts with words such as cat"' in (tmp_path / "embedding.jsonl").read_text()


def test_one_judge_by_embeddings_tells_features_of_two_layers_apart(encoder: Path) -> None:
    vocabulary, protocol = [" the", " on", " in", " cat", " dog"], ExplanationProtocol(2, 10)
    layers = [
        trial(TokenText(planted(vocabulary, [detect], rows=160), words_kind(vocabulary)), 0, protocol)
        for detect in (lambda text, at: text[at] == " cat", lambda text, at: text[at] == " dog")
    ]
    judge, text = embedding_judge(Embed(encoder)), "fires in texts with words such as cat"
    for name, scorer in judge.scorers.items():
        together = [scorer([(text, one)])[0] for one in layers]
        alone = [embedding_judge(Embed(encoder)).scorers[name]([(text, one)])[0] for one in layers]
        assert together == alone and together[0] != together[1], name


def test_without_the_package_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"glassmoe\[explain\]"):
        Embed()
    with pytest.raises(ValueError, match="no sentence model"):
        Embed(tmp_path)
