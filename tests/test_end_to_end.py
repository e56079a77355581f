"""The main job on a slice of the shipped corpora with a tiny model, through the commands that a user types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import DENSE, ROOT, TINY, medrag

from medrag.__main__ import main
from medrag.commands.answering import cited, streamed

LENGTHS = ["task.options.source_tokens=24", "task.options.answer_tokens=24"]
BRIEF = ["answer.decoding.answer_tokens=6", "answer.decoding.beams=2"]
FAST = ["task.global_batch=16", "task.epochs=1", "task.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything made once: corpus, dense, index, closed_book, rag_token, rag_sequence."""
    folder = tmp_path_factory.mktemp("whole")
    store = folder / "store"
    records = (ROOT / "corpora" / "consultation.jsonl").read_text("utf-8").splitlines()[:160]
    names = {json.loads(line)["id"] for line in records}
    asked = [json.loads(line) for line in (ROOT / "corpora" / "questions.jsonl").read_text("utf-8").splitlines()]
    mapped = [json.dumps(row, ensure_ascii=False) for row in asked if set(row["answer_ids"]) <= names]
    (folder / "records.jsonl").write_text("\n".join(records), "utf-8")
    (folder / "questions.jsonl").write_text("\n".join(mapped), "utf-8")
    files = [str(folder / "records.jsonl"), str(folder / "questions.jsonl"), str(ROOT / "corpora" / "unanswerable.jsonl")]
    assert main(["prepare", *files, f"store={store}", "prepare.titles=true", "prepare.dev_share=0", "prepare.test_share=0"]) == 0
    steps: list[list[str]] = [
        ["train", *DENSE, *FAST, "hardware.devices=2"],
        ["index", "build"],
        ["train", "task=closed_book", *FAST, *LENGTHS, "hardware.devices=1"],
        ["train", "task=rag_token", *FAST, *LENGTHS, "task.options.passages=2", "hardware.devices=2"],
        ["train", "task=rag_sequence", *FAST, *LENGTHS, "task.options.passages=2", "hardware.devices=1"],
    ]
    for step in steps:
        done = medrag(*step, f"store={store}", *TINY)
        assert done.returncode == 0, done.stderr
    return store


def test_evaluate_writes_a_table_json_and_a_page(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        f"store={store}",
        "evaluate.methods=[dense,closed_book,rag_token,rag_sequence]",
        "evaluate.questions=6",
        "evaluate.resamples=50",
        *BRIEF,
    ]
    assert main(["evaluate", *settings]) == 0
    first = capsys.readouterr().out
    assert "recall@10" in first and "rag_sequence, open" in first and "tok:zh" in first and "less dense" in first
    (report,) = store.glob("report/v*")
    result = json.loads((report / "evaluation.json").read_text("utf-8"))
    assert set(result["retrieval"]) == {"BM25, words", "BM25, characters and pairs", "dense", "fusion"}
    for row in result["retrieval"].values():
        assert 0 <= row["recall@1"]["mean"] <= row["recall@10"]["mean"] <= row["recall@100"]["mean"] <= 1
        assert row["recall@10"]["low"] <= row["recall@10"]["mean"] <= row["recall@10"]["high"]
    assert [(row["method"], row["pool"]) for row in result["methods"]] == [
        ("dense", "closed"),
        ("dense", "open"),
        ("closed_book", "none"),
        ("rag_token", "closed"),
        ("rag_token", "open"),
        ("rag_sequence", "closed"),
        ("rag_sequence", "open"),
    ]
    by_row = {(row["method"], row["pool"]): row["scores"]["character_f1"]["mean"] for row in result["methods"]}
    assert by_row["dense", "closed"] > by_row["dense", "open"]
    assert result["questions"]["unanswerable"] == sum(row["questions"] for row in result["methods"][0]["trust"]["refused_by_kind"].values())
    assert result["questions"]["unanswerable"] == 70 and len(result["differences"]) == 2 * 3
    assert len((report / "answers.jsonl").read_text("utf-8").splitlines()) == 7 * (6 + 70)
    page = (report / "report.html").read_text("utf-8")
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "") and "AI 生成" in page
    assert main(["evaluate", *settings]) == 0
    assert capsys.readouterr().out == first
    assert len(list(store.glob("report/v*"))) == 1


def test_ask_shows_evidence_confidence_and_who_wrote_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "高血压的人能不能喝咖啡？", f"store={store}", *BRIEF, "answer.beside=[rag_token,closed_book]", "answer.refuse_below=0"]) == 0
    out = capsys.readouterr().out
    assert "consultation-" in out and "置信度" in out and "方法 dense" in out and "rag_token" in out and "AI 生成，仅供参考" in out
    assert main(["ask", "高血压的人能不能喝咖啡？", f"store={store}", "answer.refuse_below=1"]) == 0
    assert "拒答原因 weak_evidence" in capsys.readouterr().out
    assert main(["ask", "高血压的人能不能喝咖啡？", f"store={store}", "answer.stream=true", "answer.refuse_below=0"]) == 0
    assert "逐句依据：[1]" in capsys.readouterr().out


def test_citations_follow_the_sentences_they_belong_to(capsys: pytest.CaptureFixture[str]) -> None:
    def sentence(text: str, passage: int | None) -> dict[str, object]:
        return {"text": text, "passage": passage, "support": 1.0}

    sentences = [sentence("多喝水。", 1), sentence("多休息。", 1), sentence("少看手机。", 2), sentence("祝您健康！", None)]
    assert cited(sentences) == "多喝水。多休息。[1]少看手机。[2]祝您健康！〔无依据〕" and cited([]) == ""
    response = {"refused": False, "emergency": "", "sentences": sentences}
    assert streamed(iter(["多喝水。", "多休息。少看手机。", "祝您健康！", response])) is response
    assert capsys.readouterr().out == "多喝水。多休息。少看手机。祝您健康！\n  逐句依据：[1][1][2]〔无依据〕\n"
    refused = {"refused": True, "emergency": "", "answer": "无法回答。", "sentences": []}
    streamed(iter(["多喝水。", refused]))
    assert capsys.readouterr().out == "多喝水。\n〔以上文字依据不足，不作为回答〕\n无法回答。\n"
    streamed(iter([refused]))
    assert capsys.readouterr().out == "无法回答。\n"


@pytest.mark.parametrize("method", ["dense", "rag_token", "rag_sequence", "closed_book"])
def test_infer_answers_every_row(store: Path, tmp_path: Path, method: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"question": f"咳嗽了{n}天怎么办"}, ensure_ascii=False) + "\n" for n in range(1, 6)) + "{\n", "utf-8")
    assert main(["infer", str(source), str(target), f"store={store}", f"answer.method={method}", *BRIEF, "answer.refuse_below=0"]) == 0
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert len(rows) == 6 and "error" in rows[-1]
    assert all(row["method"] == method and 0 <= row["confidence"] <= 1 for row in rows[:-1])
    assert all(bool(row["evidence"]) == (method != "closed_book") for row in rows[:-1])


def test_verify_and_stale_or_altered_artifacts(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "store"
    shutil.copytree(store, copied)
    assert main(["index", "verify", f"store={copied}"]) == 0
    vectors = next(copied.glob("index/v*/shards/00000.npy"))
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    capsys.readouterr()
    assert main(["ask", "头疼", f"store={copied}"]) == 2
    assert "00000.npy: altered" in capsys.readouterr().err
    vectors.write_bytes(whole)
    done = medrag("train", *DENSE, *FAST, "task.epochs=0.5", "hardware.devices=1", f"store={copied}", *TINY)
    assert done.returncode == 0, done.stderr
    assert main(["ask", "头疼怎么办", f"store={copied}"]) == 2
    stale = capsys.readouterr().err
    assert "stale" in stale and "medrag index build" in stale and stale.count("\n") == 1
    assert main(["ask", "头疼怎么办", f"store={copied}", "answer.method=rag_token", *BRIEF]) == 0
    shutil.rmtree(next(copied.glob("dense/v000001-*")))
    assert main(["ask", "头疼怎么办", f"store={copied}", "answer.method=rag_token", *BRIEF]) == 2


def test_passages_come_and_go_without_building_anew(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ask`` sees them at once, and so does a method that was trained with the index they were added to."""
    copied, new = tmp_path / "store", tmp_path / "new.jsonl"
    shutil.copytree(store, copied)
    row = {"id": "leaflet-1", "text": "紫斑狼尾草过敏的人不要吃酸枣糕。", "source": "leaflets", "title": "紫斑狼尾草"}
    new.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")

    def asked(method: str) -> str:
        capsys.readouterr()
        assert main(["ask", "紫斑狼尾草过敏能吃酸枣糕吗？", f"store={copied}", f"answer.method={method}", *BRIEF, "answer.refuse_below=0"]) == 0
        return capsys.readouterr().out

    assert "leaflet-1" not in asked("dense") + asked("rag_token")
    assert main(["index", "add", str(new), f"store={copied}"]) == 0
    assert "added: 1" in capsys.readouterr().err
    assert "[1] leaflet-1" in asked("dense") and "leaflet-1" in asked("rag_token") and "leaflet-1" in asked("rag_sequence")
    assert main(["index", "verify", f"store={copied}"]) == 0
    out = capsys.readouterr().out
    assert "encoded anew" in out and "recall@10" in out and "0 rows removed" in out
    assert main(["index", "build", f"store={copied}"]) == 0
    assert "leaflet-1" not in asked("dense"), "the index of the corpus alone is current again"
    assert main(["index", "add", str(new), f"store={copied}"]) == 0
    (tmp_path / "ids.txt").write_text("leaflet-1\n", "utf-8")
    assert main(["index", "remove", "--from", str(tmp_path / "ids.txt"), f"store={copied}"]) == 0
    assert "leaflet-1" not in asked("dense") + asked("rag_token")
    assert main(["index", "remove", "leaflet-1", f"store={copied}"]) == 2
    assert "has no passage 'leaflet-1'" in capsys.readouterr().err
    assert main(["index", "verify", f"store={copied}"]) == 0
    assert "1 rows removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "medrag prepare SOURCE"),
        (["fly"], "allowed: prepare, plan, train, index"),
        (["prepare"], "no source was named"),
        (["prepare", "nowhere.jsonl"], "no such file"),
        (["prepare", "corpora"], "a folder was given"),
        (["prepare", "magic:corpora/consultation.jsonl"], "is no kind of source; allowed: "),
        (["prepare", "corpora/consultation.jsonl", "prepare.test_share=2"], "allowed: 0 to 0.5"),
        (["prepare", "corpora/consultation.jsonl", "prepare.dictionary=none.txt"], "none.txt"),
        (["train", "task=dense"], "holds no corpus yet"),
        (["train", "task=rag_token", "hardware.devices=1"], "holds no corpus yet"),
        (["train", "task=rag_token", "hardware=2080ti"], "torch sees"),
        (["train", "task=closed_book", "hardware.devices=3"], "allowed devices"),
        (["train", "now"], "takes only key=value"),
        (["index"], "allowed: build, add FILE..., remove ID... (or --from FILE), verify"),
        (["index", "build", "corpora"], "allowed: build, add FILE"),
        (["index", "add"], "needs a file"),
        (["index", "add", "corpora/consultation.jsonl"], "holds no index yet"),
        (["index", "remove"], "needs ids, or --from FILE"),
        (["index", "remove", "a", "--from", "b"], "--from FILE stands alone"),
        (["index", "remove", "a"], "holds no index yet"),
        (["index", "verify"], "holds no index yet"),
        (["index", "build"], "holds no corpus yet"),
        (["ask"], "needs a question"),
        (["ask", "？"], "needs a question"),
        (["ask", "头疼", "answer.refuse_below=7"], "allowed: 0"),
        (["ask", "头疼", "answer.method=magic"], "allowed: closed_book, dense"),
        (["ask", "头疼"], "holds no dense yet"),
        (["infer", "one.jsonl"], "needs two files"),
        (["evaluate"], "holds no corpus yet"),
        (["doctor", "hardware=8080ti"], "allowed: 1080ti"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    store = tmp_path / "store"
    assert main([*arguments, f"store={store}"] if arguments else []) == 2
    caught = capsys.readouterr()
    assert words in caught.err + caught.out
    if arguments:
        assert caught.err.count("\n") == 1 and caught.err.startswith("medrag: ")
    assert not store.exists()


def test_doctor_and_config_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "2080ti" in out and "best here: hardware=cpu" in out and "torch" in out
    assert main(["config", "task=rag_sequence"]) == 0
    assert "rag_sequence: thorough" in capsys.readouterr().out
    assert main(["--help"]) == 0
    done = subprocess.run([sys.executable, "-m", "medrag", "doctor"], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr
