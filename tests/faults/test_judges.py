"""Judges that lie: whatever is no answer is counted or refused in one sentence, and what was paid for is kept."""

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

import glassmoe
from fault_driver import ENDS, Counts
from faults_made import Made
from glassmoe.explaining import judges
from glassmoe.explaining.chat import Endpoint
from glassmoe.explaining.explained import read_lines
from glassmoe.explaining.results import ExplanationsResult
from hostile_judges import HOSTILE, serving

pytestmark = pytest.mark.faults
LONGEST = 60
"""Seconds that one command may take."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(judges, "Endpoint", partial(Endpoint, timeout=0.7, tries=2, wait=0.01))


def explained(run: Path, url: str, folder: Path) -> ExplanationsResult:
    return glassmoe.explain(
        run, layer=1, judge=url, judge_model="judge", judge_cache=folder, features=2, tokens=3000, per_decile=1,
        silent=5, games=0, full=True, again=True, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_judge_is_never_silent(
    kind: str, made: Made, tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassmoe.inspect.gathering.SAVE_SECONDS", 60.0)
    run, draw, wrong = shutil.copytree(made.run, tmp_path / "run"), random.Random(kind), []
    with serving() as (server, url):
        whole = explained(run, url, tmp_path / "whole")
        assert whole.scored and whole.questions is not None and not whole.questions.failed
        expected = [line.to_dict() for line in whole.explanations]
        for name, write in HOSTILE[kind].items():
            for good in (0, draw.randint(2, 8)):
                answers = tmp_path / f"{name}-{good}"
                server.write, server.good, server.asked = write, good, 0
                before, start, unreadable = "", time.monotonic(), 0
                try:
                    questions = explained(run, url, answers).questions
                    assert questions is not None
                    told = sum(questions.failed.values()) + questions.malformed + questions.unmetered
                    unreadable, outcome = questions.malformed, "counted" if told else "silent"
                except ENDS as error:
                    before = str(error)
                    outcome = "refused in one sentence" if "\n" not in before else "traceback"
                except Exception as error:
                    before, outcome = repr(error), "traceback"
                if time.monotonic() - start > LONGEST:
                    outcome = "too slow"
                # A good judge goes on: what was answered before is not asked again, and nothing differs. An answer that
                # cannot be read is not asked for again either, so the good judge then begins anew.
                answers = tmp_path / f"{name}-{good}-anew" if unreadable else answers
                file = answers / "answers.jsonl"
                paid = len(file.read_text().splitlines()) if file.exists() else 0
                server.write, server.asked = None, 0
                try:
                    after = explained(run, url, answers)
                    kept = [line.to_dict() for line in after.explanations]
                    again = read_lines(run / "explanations/1-moe-x/judge.jsonl")
                    assert after.questions is not None
                    lost = kept != expected or [line.to_dict() for line in again] != expected
                    lost |= len(json.loads(f"[{','.join(file.read_text().split(chr(10))[:-1])}]")) < paid
                    lost |= paid > after.questions.cached + 1
                except Exception as error:
                    lost, before = True, repr(error)
                counts.add("Judges", kind, "lost" if lost and outcome != "silent" else outcome)
                if lost or outcome not in ("counted", "refused in one sentence"):
                    wrong.append((name, good, outcome, lost, before))
    assert not wrong
