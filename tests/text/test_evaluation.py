"""Texts that perplexity is measured on: what a name or file means, and that nothing in them is changed."""

import gzip
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from glassmoe.text.evaluation import OPENWEBTEXT_DOCUMENTS, read_evaluation_texts

WIKI = " \n = Robert = \n \n Robert , an <unk> actor @-@ writer . \r\n"


def test_a_file_is_one_document_and_nothing_in_it_changes(tmp_path: Path) -> None:
    plain, packed = tmp_path / "wiki.test.raw", tmp_path / "w.txt.zst"
    plain.write_bytes(WIKI.encode())
    packed.write_bytes(zstandard.compress(WIKI.encode()))
    (tmp_path / "w2.txt.gz").write_bytes(gzip.compress(WIKI.encode()))
    named, by_stem, gz = read_evaluation_texts(f"wikitext2={plain},{packed},{tmp_path / 'w2.txt.gz'}")
    assert [text.name for text in (named, by_stem, gz)] == ["wikitext2", "w", "w2"]
    assert named.texts == by_stem.texts == gz.texts == [WIKI.replace("\r\n", "\n")]
    assert by_stem.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert "not detokenised" in named.about and named.source == "wiki.test.raw"


def test_documents_passages_and_what_is_left_out(tmp_path: Path) -> None:
    lines, parts, passages = tmp_path / "d.jsonl", tmp_path / "parts.txt", tmp_path / "lambada.txt"
    lines.write_text(json.dumps({"text": " one \n"}) + "\n" + json.dumps({"body": "x"}) + "\n{\n" + '{"text": " "}\n')
    parts.write_bytes(b"first\n<|endoftext|>\n<|endoftext|>sec\xffond")
    passages.write_text("he said yes\nshe said no\n")
    a, b, c = read_evaluation_texts(f"{lines},{parts},lambada={passages}")
    assert a.texts == [" one \n"] and a.skipped == {"no field 'text'": 1, "not JSON": 1, "empty": 1}
    assert b.texts == ["first\n", "sec\ufffdond"] and b.skipped == {"empty": 1} and b.not_utf8 == 1
    assert c.passages and c.texts == ["he said yes", "she said no"] and not (a.passages or b.passages)


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("nowhere.txt", "there is no file nowhere.txt; pass a file, NAME=FILE, or one of wikitext2, wikitext103"),
        (" , ", "--on takes names"),
        ("{f},{f}", "--on names full twice; name each text differently"),
        ("a b={f}", "a name has letters"),
        ("{cut}", "truncated after .* pass the whole file"),
        ("{empty}", "holds no text to measure on"),
    ],
)
def test_mistakes(on: str, message: str, tmp_path: Path) -> None:
    files = {"f": tmp_path / "full.txt", "cut": tmp_path / "cut.txt.zst", "empty": tmp_path / "empty.jsonl"}
    files["f"].write_text("text")
    files["cut"].write_bytes(zstandard.compress(b"text " * 999)[:-4])
    files["empty"].write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=message):
        read_evaluation_texts(on.format(**files))


def test_a_name_alone_needs_the_package_and_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match="which is not installed: pip install datasets, or pass a file as lambada=FILE"
    ):
        read_evaluation_texts("lambada")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    with pytest.raises(ValueError, match=r"cannot read wikitext2 \(Salesforce/wikitext\): no route to host; check"):
        read_evaluation_texts("wikitext2")


def test_rows_of_datasets_become_the_original_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*where: object, **how: object) -> list[dict[str, str]]:
        asked.append((where, how))
        rows = ["", " = Robert = \n", "", " Robert . \n"] if "wikitext" in str(where[0]) else ["a", " "] * 900
        return [{"text": row} for row in rows]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    wiki, web = read_evaluation_texts("wikitext103,openwebtext")
    assert wiki.texts == [" \n = Robert = \n \n Robert . \n"]
    assert len(web.texts) == OPENWEBTEXT_DOCUMENTS / 2 and web.skipped == {"empty": OPENWEBTEXT_DOCUMENTS / 2}
    assert asked[0] == (("Salesforce/wikitext", "wikitext-103-raw-v1"), {"split": "test", "streaming": False})
    assert asked[1][1]["streaming"] and "the first 200 documents" in web.source
