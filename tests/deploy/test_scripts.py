"""The scripts that hand over an index, answer in batches and launch training. Where only their decisions are of interest, programs that say what
they were called with stand in for the real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from commands import DENSE, ROOT, TINY, copy_of, medrag

from medrag import assemble, config, files, infer
from medrag.assemble import indexes, trained

SEARCH = ["index.kind=flat", "index.questions=false"]


def start(
    name: str, *arguments: str | Path, root: Path = ROOT, cwd: Path | None = None, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A script of ``root``'s deploy folder, with this Python's programs behind those of ``root``."""
    unset = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DEVICES", "HOSTFILE", "FORCE", "METHODS")
    environment = {key: value for key, value in os.environ.items() if key not in unset and not key.startswith("SLURM_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **(more or {})}
    command = [str(root / "deploy" / name), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd or root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def script(
    name: str, *arguments: str | Path, root: Path = ROOT, cwd: Path | None = None, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return ended(start(name, *arguments, root=root, cwd=cwd, more=more))


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program of the project's environment in ``folder``: it adds its arguments to ``calls``, then does ``body``."""
    program = folder / ".venv" / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{folder}/calls"\n{body}\n', "utf-8")
    program.chmod(0o755)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text("utf-8").splitlines() if (folder / "calls").exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts in a project without medrag: a test puts its own there."""
    shutil.copytree(ROOT / "deploy", tmp_path / "project" / "deploy")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dense method of random weights and its index."""
    made = copy_of(corpus, tmp_path_factory.mktemp("made") / "store")
    run = config.compose([f"store={made}", *TINY, *DENSE, *SEARCH])
    built = assemble.fresh(run, assemble.corpus(run))
    with files.publish(made, "dense", key="random", parents=built.parents) as folder:
        trained.save(built, folder)
    indexes.build(run)
    return made


@pytest.fixture(scope="module")
def serving(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that ``store`` was published to, after a run that was killed in the middle of it."""
    target = tmp_path_factory.mktemp("target") / "serving"
    half = target / "index" / f".incoming-{files.current(store, 'index').path.name}"
    half.mkdir(parents=True)
    (half / "MANIFEST.json").write_text("{")
    done = script("publish.sh", target, f"store={store}")
    assert done.returncode == 0, done.stderr
    assert "medrag index verify" in done.stdout and "medrag train" not in done.stdout and "medrag index build" not in done.stdout
    return target


def test_a_published_copy_answers(store: Path, serving: Path) -> None:
    assert {path.name for path in serving.iterdir()} == {"corpus", "dense", "index"}  # nothing else is opened
    assert all(files.current(serving, kind).hash == files.current(store, kind).hash for kind in ("corpus", "dense", "index"))
    assert not list(serving.glob("*/.incoming-*"))
    answered = medrag("ask", "孕期可以喝咖啡吗？", f"store={serving}", "answer.refuse_below=0")
    assert answered.returncode == 0 and "[1]" in answered.stdout, answered.stderr


def test_another_machine_gets_what_it_lacks(store: Path, serving: Path, project: Path) -> None:
    """rsync and ssh as they are called, with an ssh that stays on this machine."""
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    stand_in(project, "medrag", "")
    stand_in(project, "ssh", 'while [[ $1 == -* ]]; do [[ $1 == -[ol] ]] && shift; shift; done\nshift\nexec sh -c "$*"')
    target = project / "it's the other"
    shutil.copytree(serving, target)
    index = files.current(target, "index").path
    shutil.rmtree(index)
    (target / "index" / "CURRENT").write_text("v000000-before\n")
    done = script("publish.sh", f"far:{target}", f"store={store}", root=project)
    assert done.returncode == 0, done.stderr
    assert f"handed over: index/{index.name}" in done.stdout and "there already: corpus/" in done.stdout
    assert files.current(target, "index").hash == files.current(store, "index").hash


def test_what_is_missing_is_made_first(store: Path, corpus: Path, project: Path, tmp_path: Path) -> None:
    stand_in(project, "medrag", '[[ "$1" == prepare ]]')  # all else fails, and ends the script
    bare = copy_of(corpus, tmp_path / "bare")
    done = script("publish.sh", tmp_path / "serving", "new.csv", f"store={bare}", "task.epochs=1", root=project)
    assert done.returncode == 1 and not (tmp_path / "serving").exists()
    assert calls(project) == [f"medrag prepare new.csv store={bare} task.epochs=1", f"medrag train task=dense store={bare} task.epochs=1"]
    (project / "calls").unlink()
    shutil.copytree(store / "dense", bare / "dense")
    assert script("publish.sh", tmp_path / "serving", f"store={bare}", root=project).returncode == 1
    assert calls(project) == [f"medrag index build store={bare}"]


def test_what_does_not_belong_together_is_refused(store: Path, project: Path, tmp_path: Path) -> None:
    stand_in(project, "medrag", "")  # an index build that does nothing
    stale = tmp_path / "stale"
    shutil.copytree(store, stale)
    with files.publish(stale, "corpus", key="another") as folder:
        (folder / "passages.jsonl").write_text("")
    done = script("publish.sh", tmp_path / "serving", f"store={stale}", root=project)
    assert done.returncode == 1 and "is stale" in done.stderr and not (tmp_path / "serving").exists()


def questions(folder: Path) -> Path:
    """Rows of each sort: with an id, broken, blank, an emergency, without a question."""
    rows = [json.dumps({"id": number, "question": f"孕妇感冒了能不能吃药，第{number}次问"}, ensure_ascii=False) for number in range(5)]
    rows[2:2] = ["not json", "", json.dumps({"question": "老人突然胸口压榨样疼痛，出冷汗，喘不上气"}, ensure_ascii=False), "{}"]
    (folder / "questions.jsonl").write_text("\n".join(rows), "utf-8")
    return folder / "questions.jsonl"


def task(number: int, count: int) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    told = {"JOB_ID": 11, "ARRAY_JOB_ID": 10, "ARRAY_TASK_ID": number, "ARRAY_TASK_COUNT": count, "ARRAY_TASK_MIN": 0, "ARRAY_TASK_MAX": count - 1}
    return {f"SLURM_{name}": str(value) for name, value in told.items()} | {"SLURM_SUBMIT_DIR": str(ROOT)}


def whole(store: Path, source: Path) -> bytes:
    """What one run answers."""
    run, target = config.compose([f"store={store}"]), source.with_name("whole.jsonl")
    infer.infer(trained.load(run, "dense"), run.answer, source, target, "", progress=False)
    return target.read_bytes()


def test_an_array_writes_what_one_run_writes(store: Path, tmp_path: Path) -> None:
    source = questions(tmp_path)
    done = script("infer.sh", source, "answers.jsonl", f"store={store}", cwd=tmp_path, more=task(0, 1))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers.jsonl").read_bytes() == whole(store, source)


COUNTING = """
number=0
while read -r _; do number=$((number + 1)); printf '{"row": %d}\\n' "$number"; done <"$2" >"$3"
"""
"""an inference that says no more than the numbers of its input's lines"""


def test_parts_of_tables_and_more_parts_than_rows(project: Path) -> None:
    stand_in(project, "medrag", COUNTING)
    (project / "store" / "index").mkdir(parents=True)
    (project / "store" / "index" / "CURRENT").write_text("v1\n")
    (project / "q.csv").write_bytes('\ufeffid,question\r\n1,"一\n二"\r\n\r\n2,三\r\n3,"四"'.encode() + b"\xff\r\n")
    for number in range(5):
        more = task(number, 5) | {"SLURM_SUBMIT_DIR": str(project)}
        assert script("infer.sh", "q.csv", "a.jsonl", root=project, more=more).returncode == 0
    parts = [(project / "a.jsonl.parts" / f"{number}.csv").read_bytes() for number in range(5)]
    head = "\ufeffid,question\r\n".encode()
    rows = [b"", '1,"一\n二"\r\n'.encode(), b"", "2,三\r\n".encode(), "3,四".encode() + b"\xff\r\n"]
    assert parts == [head + row for row in rows]
    lines = [json.loads(line) for line in (project / "a.jsonl").read_text("utf-8").splitlines()]
    assert [line["row"] for line in lines] == list(range(1, len(lines) + 1))
    there = script("infer.sh", "q.csv", "a.jsonl", root=project, more=task(0, 5))
    assert there.returncode == 2 and "already there" in there.stderr


def test_parts_are_of_one_input_and_one_state_of_the_store(project: Path) -> None:
    stand_in(project, "medrag", COUNTING)
    (project / "store" / "index").mkdir(parents=True)
    pointer = project / "store" / "index" / "CURRENT"
    pointer.write_text("v1\n")
    (project / "q.jsonl").write_text("{}\n{}\n")
    first, second = (task(number, 2) | {"SLURM_SUBMIT_DIR": str(project)} for number in (0, 1))
    assert script("infer.sh", "q.jsonl", "a.jsonl", root=project, more=first).returncode == 0
    pointer.write_text("v2\n")  # published meanwhile
    mixed = script("infer.sh", "q.jsonl", "a.jsonl", root=project, more=second)
    assert mixed.returncode == 2 and "another state" in mixed.stderr and not (project / "a.jsonl").exists()
    pointer.write_text("v1\n")
    assert script("infer.sh", "q.jsonl", "a.jsonl", "answer.batch_questions=2", root=project, more=second).returncode == 2
    assert script("infer.sh", "q.jsonl", "a.jsonl", root=project, more=second).returncode == 0 and (project / "a.jsonl").exists()


def test_a_task_that_is_told_to_stop_goes_back_into_the_queue(project: Path) -> None:
    stand_in(project, "medrag", 'trap "echo stopping >>calls; exit 130" TERM\ntouch began\nfor _ in {1..200}; do sleep 0.05; done')
    stand_in(project, "scontrol", "")
    (project / "store" / "index").mkdir(parents=True)
    (project / "store" / "index" / "CURRENT").write_text("v1\n")
    (project / "q.jsonl").write_text("{}\n{}\n")
    more = task(1, 2) | {"SLURM_SUBMIT_DIR": str(project), "SLURM_CPUS_PER_TASK": "3"}
    process = start("infer.sh", "q.jsonl", "a.jsonl", root=project, more=more)
    for _ in range(400):
        if (project / "began").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert ended(process).returncode == 130
    assert calls(project) == [
        "medrag infer a.jsonl.parts/1.jsonl a.jsonl.parts/1.answers.jsonl hardware.threads=3",
        "stopping",
        "scontrol requeue 10_1",
    ]


def test_inference_without_slurm_is_the_command_itself(project: Path) -> None:
    stand_in(project, "medrag", "exit 2")
    assert script("infer.sh", "q.jsonl", "a.jsonl", "answer.method=fid", root=project).returncode == 2
    assert calls(project) == ["medrag infer q.jsonl a.jsonl answer.method=fid"]


PLANNED = """
devices=1
for word; do case $word in hardware=2080ti) devices=2 ;; hardware.devices=*) devices=${word#*=} ;; esac; done
case $1 in config) printf 'store: store\\nhardware:\\n  device: cuda\\n  devices: %s\\n' "$devices" ;; plan) exit "${PLAN-0}" ;; esac
"""
"""presets as ``medrag config`` shows them, and a plan that fits unless told otherwise"""


def test_presets_are_listed_and_others_refused() -> None:
    listed = script("train.sh", "--list")
    rows = listed.stdout.splitlines()
    assert listed.returncode == 0 and len(rows) == 1 + len(config.presets("hardware"))
    (row,) = [row for row in rows if row.startswith("2080ti ")]
    assert "RTX 2080 Ti, 11 GB (Turing)" in row and row.split()[7:9] == ["2", "fp16"] and "rag_token 8" in row
    unknown = script("train.sh", "2090ti", "rag_token")
    assert unknown.returncode == 2 and "allowed: 1080ti, 2080ti" in unknown.stderr
    assert script("train.sh", "2080ti").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "launched"),
    [
        (["2080ti", "rag_token"], {}, ["deepspeed --num_gpus 2 --module medrag train hardware=2080ti task=rag_token"]),
        (["3090", "dense", "seed=3"], {}, ["medrag train hardware=3090 task=dense seed=3"]),
        (["3090", "dense"], {"DEVICES": "4"}, ["deepspeed --num_gpus 4 --module medrag train hardware=3090 task=dense hardware.devices=4"]),
        (["3090", "dense"], {"HOSTFILE": "hosts"}, ["deepspeed --hostfile hosts --module medrag train hardware=3090 task=dense hardware.devices=5"]),
        (["3090", "dense"], {"PLAN": "1"}, []),
        (["3090", "dense"], {"PLAN": "1", "FORCE": "1"}, ["medrag train hardware=3090 task=dense"]),
        (["3090", "dense"], {"PLAN": "2", "FORCE": "1"}, []),
    ],
)
def test_what_is_launched(project: Path, arguments: Sequence[str], environment: dict[str, str], launched: Sequence[str]) -> None:
    stand_in(project, "medrag", PLANNED)
    stand_in(project, "deepspeed", "")
    (project / "hosts").write_text("# two machines\ngpu-a slots=4\n\ngpu-b slots=1\n")
    done = script("train.sh", *arguments, root=project, more=environment)
    assert done.returncode == (0 if launched else int(environment["PLAN"])), done.stderr
    made = calls(project)
    assert [line.split()[1] for line in made[:2]] == ["config", "plan"] and made[2:] == list(launched)


@pytest.mark.slow
def test_from_records_to_a_copy_that_answers(tmp_path: Path) -> None:
    """Nothing stands in for anything: prepared, trained by deepspeed in two processes, indexed, verified, handed over, asked."""
    records = tmp_path / "some.jsonl"
    records.write_text("\n".join((ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:96]), "utf-8")
    store, settings = tmp_path / "store", [*TINY, *DENSE[1:], "task.epochs=0.1", "task.global_batch=16", *SEARCH]
    prepared = medrag("prepare", str(records), f"store={store}", "prepare.dev_share=0.1", "prepare.test_share=0.05")
    assert prepared.returncode == 0, prepared.stderr
    launched = script("train.sh", "cpu", "dense", f"store={store}", *settings)
    assert launched.returncode == 0 and "deepspeed --num_gpus 2" in launched.stdout, launched.stderr
    serving = tmp_path / "serving"
    done = script("publish.sh", serving, f"store={store}", *settings, "hardware.devices=1")
    assert done.returncode == 0 and "medrag index build" in done.stdout and "medrag train" not in done.stdout, done.stderr
    answered = medrag("ask", "孕期可以喝咖啡吗？", f"store={serving}", "answer.refuse_below=0")
    assert answered.returncode == 0 and "[1]" in answered.stdout, answered.stderr
    source = questions(tmp_path)
    for process in [start("infer.sh", source, "answers.jsonl", f"store={serving}", cwd=tmp_path, more=task(number, 2)) for number in (1, 0)]:
        assert (done := ended(process)).returncode == 0, done.stderr
    assert (tmp_path / "answers.jsonl").read_bytes() == whole(serving, source)
    pointer = serving / "index" / "CURRENT"
    pointer.write_text("v000000-before\n")
    weights = files.current(serving, "dense").path / "weights.safetensors"
    weights.write_bytes(b"damaged")
    damaged = script("publish.sh", serving, f"store={store}", *settings, "hardware.devices=1")
    assert damaged.returncode == 1 and f"{weights.parent} is not what it was" in damaged.stderr
    assert pointer.read_text() == "v000000-before\n"  # nothing is pointed at before all of it is right
