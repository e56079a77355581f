"""Checkpoints: whole or passed over, through kills, damage and full disks, and read by any number of devices."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import DENSE, ROOT, TINY, copy_of, losses, medrag
from conftest import Tiny
from torch import Tensor

from medrag import files, weights
from medrag.schedule import Task
from medrag.train import checkpoints, progress
from medrag.train.checkpoints import State

HOME = "checkpoints"


@pytest.fixture(scope="module")
def shapes(tiny: Tiny) -> dict[str, torch.Size]:
    """What an engine's state holds for a tiny encoder: every weight, and its two moments."""
    named = dict(tiny.encoder().named_parameters())
    return {f"{kind}.{name}": parameter.shape for kind in ("weight", "first", "second") for name, parameter in named.items()}


def tensors_of(step: int, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors whose values tell the step and their place among the others."""
    return {name: torch.full(shape, step + place / 1024) for place, (name, shape) in enumerate(shapes.items())} | {"steps": torch.tensor(step)}


def assert_whole(found: tuple[Path, State, dict[str, Tensor]] | None, step: int, shapes: dict[str, torch.Size]) -> None:
    assert found is not None
    _, state, tensors = found
    expected = tensors_of(step, shapes)
    assert (state.step, state.best) == (step, -1.0 / step)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def save(folder: Path, step: int, shapes: dict[str, torch.Size]) -> Path:
    return checkpoints.save(folder, State(step=step, best=-1.0 / step), tensors_of(step, shapes))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / HOME).iterdir())


def test_what_is_saved_is_read_again_bit_by_bit(tmp_path: Path) -> None:
    tensors = {"weight.a": torch.randn(3, 5), "first.a": torch.randn(3, 5), "half": torch.randn(4).bfloat16(), "steps": torch.tensor(7)}
    state = State(7, -0.1234567890123456789, 5, 2, True, 1.25, [0.1, 1 / 3, math.inf, -math.inf, 1e-320], 3)
    path = checkpoints.save(tmp_path, state, tensors)
    assert path == tmp_path / HOME / "step-00000007" and kept(tmp_path) == ["step-00000007"]
    found = checkpoints.newest(tmp_path)
    assert found is not None and found[:2] == (path, state)
    assert all(torch.equal(found[2][name], tensor) and found[2][name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert found[2].keys() == tensors.keys()


def test_a_manifest_is_json_that_any_program_reads(tmp_path: Path) -> None:
    """JSON has neither infinities nor NaN, and a run that has not been validated yet has the best score of minus infinity."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    path = checkpoints.save(tmp_path, State(step=1, recent=[math.nan, math.inf]), {})
    json.loads((path / files.MANIFEST).read_text("utf-8"), parse_constant=refuse)
    found = checkpoints.newest(tmp_path)
    assert found is not None and found[1].best == -math.inf and math.isnan(found[1].recent[0]) and found[1].recent[1] == math.inf


def test_the_newest_two_stay(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.oldest_step(tmp_path) == 0
    for step in range(1, 6):
        save(tmp_path, step, shapes)
        assert kept(tmp_path) == [f"step-{at:08d}" for at in range(max(1, step - 1), step + 1)]
        assert_whole(checkpoints.newest(tmp_path), step, shapes)
        assert checkpoints.oldest_step(tmp_path) == (step - 1 if step > 1 else 0)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoints.save(tmp_path, State(step=step), {})
    found = checkpoints.newest(tmp_path)
    assert found is not None and found[1].step == 100_000_000
    assert checkpoints.oldest_step(tmp_path) == 99_999_999


def test_the_same_step_may_be_saved_again(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    """The one that stands there is not touched until the new one is whole; at no time there is none."""
    first, again = save(tmp_path, 4, shapes), None
    for attempt in (2, 3):
        again = checkpoints.save(tmp_path, State(step=4, best=attempt), tensors_of(attempt, shapes))
        assert again != first and kept(tmp_path) == [again.name]
        found = checkpoints.newest(tmp_path)
        assert found is not None and found[1].best == attempt and int(found[2]["steps"]) == attempt
    later = save(tmp_path, 5, shapes)
    assert again is not None and kept(tmp_path) == sorted([again.name, later.name])


def test_damaged_ones_do_not_count_among_the_newest_two(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    """A run that went back behind damaged checkpoints keeps the one it came from until there are two whole ones again."""
    for step in (5, 8):
        save(tmp_path, step, shapes)
    shutil.copytree(tmp_path / HOME / "step-00000008", tmp_path / HOME / "step-00000009")
    for name in ("step-00000008", "step-00000009"):
        (tmp_path / HOME / name / checkpoints.TENSORS).write_bytes(b"")
    assert_whole(checkpoints.newest(tmp_path, shown=False), 5, shapes)
    save(tmp_path, 6, shapes)
    assert kept(tmp_path) == ["step-00000005", "step-00000006"]


def test_any_damage_is_passed_over_with_a_word(tmp_path: Path, shapes: dict[str, torch.Size], capsys: pytest.CaptureFixture[str]) -> None:
    """Bits flipped, bytes cut off or added, anywhere in either file; files gone; folders in place of files: the one before is found."""
    small = dict(list(shapes.items())[:3])
    for step in (1, 2):
        path = save(tmp_path, step, small)
    assert_whole(checkpoints.newest(tmp_path), 2, small)
    assert capsys.readouterr().err == ""
    draw = random.Random(0)
    for name in (files.MANIFEST, checkpoints.TENSORS):
        whole = (path / name).read_bytes()
        damages = [whole[:-1], whole + b" x", b"", b"{}", b"null", b"[" * 100, *(whole[: draw.randrange(len(whole))] for _ in range(20))]
        for _ in range(200):
            at = draw.randrange(len(whole))
            damages.append(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        # the versions of libraries are told to a person, and nothing rests on them
        told = whole.find(b'"versions"') if name == files.MANIFEST else len(whole)
        for damage in damages:
            (path / name).write_bytes(damage)
            found = checkpoints.newest(tmp_path)
            words = capsys.readouterr().err
            if damage[:told] == whole[:told] and found is not None and found[1].step == 2:
                assert name == files.MANIFEST
                continue
            assert_whole(found, 1, small)
            assert words.count("\n") == 1 and words.startswith("passed over a checkpoint") and "step-00000002" in words
        (path / name).unlink()
        assert_whole(checkpoints.newest(tmp_path), 1, small)
        (path / name).mkdir()
        assert_whole(checkpoints.newest(tmp_path, shown=False), 1, small)
        assert capsys.readouterr().err.count("\n") == 1
        (path / name).rmdir()
        (path / name).write_bytes(whole)
    assert_whole(checkpoints.newest(tmp_path), 2, small)


def test_where_all_are_damaged_there_is_none(tmp_path: Path, shapes: dict[str, torch.Size], capsys: pytest.CaptureFixture[str]) -> None:
    for path in [save(tmp_path, step, shapes) for step in (1, 2)]:
        (path / files.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path) is None
    assert capsys.readouterr().err.count("passed over") == 2
    save(tmp_path, 1, shapes)
    assert_whole(checkpoints.newest(tmp_path), 1, shapes)
    assert kept(tmp_path) == ["step-00000001.2"]


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    for write in (lambda: save(tmp_path, 1, shapes), lambda: checkpoints.save_best(tmp_path, {"a": torch.zeros(1)})):
        for place in (tmp_path, tmp_path / HOME):
            (place / ".staging" / "deep").mkdir(parents=True)
            (place / ".staging" / "deep" / "part").write_bytes(b"x" * 100)
        write()
        assert not list(tmp_path.rglob(".staging"))
    assert kept(tmp_path) == ["step-00000001"] and sorted(path.name for path in tmp_path.iterdir()) == [checkpoints.BEST, HOME]


def test_a_whole_checkpoint_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    names = [*(f"{kind}.a" for kind in ("weight", "first", "second")), "frozen.b", "steps", "scaler"]
    good, own = {name: torch.zeros(2) for name in names}, {"a": True, "b": False}
    path = checkpoints.save(tmp_path, State(step=1), good)
    checkpoints.check(path, good, own)
    checkpoints.check(path, {name: good[name] for name in ("weight.a", "frozen.b", "steps")}, own)
    wrong: list[tuple[dict[str, Tensor], dict[str, bool], str]] = [
        (good, own | {"c": True}, r"missing: \['weight.c'\]; of no use: \[\]"),
        (good, {"a": True}, r"missing: \[\]; of no use: \['frozen.b'\]"),
        (good, {"a": True, "b": True}, r"missing: \['weight.b'\]; of no use: \['frozen.b'\]"),
        (good | {"momentum.a": torch.zeros(2)}, own, r"not AdamW: \['momentum.a'\]"),
        ({name: tensor for name, tensor in good.items() if name != "second.a"}, own, r"not AdamW: \['second.a'\]"),
    ]
    for tensors, parameters, words in wrong:
        with pytest.raises(ValueError, match=words) as raised:
            checkpoints.check(path, tensors, parameters)
        assert f"remove {tmp_path} " in str(raised.value) and "\n" not in str(raised.value)


def test_a_state_that_is_not_ours_is_refused_and_one_of_fewer_fields_filled_in(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, State(step=3), {})
    (path / files.MANIFEST).unlink()
    files.seal(path, "checkpoint", key="", config={"step": 3, "best": "-inf"})
    found = checkpoints.newest(tmp_path)
    assert found is not None and found[1] == State(step=3)
    (path / files.MANIFEST).unlink()
    files.seal(path, "checkpoint", key="", config={"step": 3, "temperature": 1.0})
    with pytest.raises(ValueError, match=rf"its state has temperature.*remove {tmp_path} "):
        checkpoints.newest(tmp_path)


def test_files_are_on_the_disk_before_they_count_and_old_ones_go_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what is done to the disk, which decides what a power cut leaves; each call is let through."""
    home, calls = tmp_path / HOME, []
    fsync, rename, rmtree = os.fsync, os.rename, shutil.rmtree

    def spy_fsync(descriptor: int) -> None:
        calls.append("sync " + str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        fsync(descriptor)

    def spy_rename(source: Path, target: Path) -> None:
        calls.append(f"rename {target.name}")
        rename(source, target)

    def spy_rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            calls.append(f"remove {path.name}")
        rmtree(path, ignore_errors)

    for step in (1, 2):
        checkpoints.save(tmp_path, State(step=step), {"a": torch.zeros(1)})
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    monkeypatch.setattr(shutil, "rmtree", spy_rmtree)
    checkpoints.save(tmp_path, State(step=3), {"a": torch.zeros(1)})
    published = calls.index("rename step-00000003")
    staged = f"sync {HOME}/{checkpoints._STAGING}"
    assert {staged, f"{staged}/{checkpoints.TENSORS}", f"{staged}/{files.MANIFEST}"} <= set(calls[:published])
    assert calls[published + 1 :] == [f"sync {home.name}", "remove step-00000001"]


def child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run ``work`` in a process of its own, forked, so that it costs no imports; its id, and where what it writes comes out."""
    out, into = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(out)
            work(into)
            os._exit(0)
        except BaseException as error:
            os.write(into, f"failed: {error!r}".encode())
        finally:
            os._exit(1)
    os.close(into)
    return process, out


DEALINGS = frozenset({"open", "os.mkdir", "os.chmod", "os.rename", "os.rmdir", "os.scandir", "shutil.rmtree"})
"""what Python reports of a process's dealings with the disk, with a path; with a name alone it is ``os.remove``"""


def saves(folder: Path, shapes: dict[str, torch.Size], moment: int) -> Callable[[int], None]:
    """Go on from the newest checkpoint, saving step after step: B before, E after each.

    At one ``moment`` within, counted in what is done to the disk, S is reported and the end awaited; at moment 0 there is no such stop.
    """

    def work(into: int) -> None:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event == "os.remove" or (event in DEALINGS and str(folder) in str(arguments[0])):
                count += 1
                if count == moment:
                    os.write(into, b"S")
                    signal.pause()

        found = checkpoints.newest(folder)
        step = found[1].step if found else 0
        if found:
            assert_whole(found, step, shapes)
        sys.addaudithook(hook)
        while True:
            step += 1
            os.write(into, b"B")
            save(folder, step, shapes)
            os.write(into, b"E")

    return work


def phase(folder: Path) -> str:
    """Where a save was when it ended, from what it left."""
    home = folder / HOME
    staging = home / checkpoints._STAGING
    names = [path.name for path in home.glob("step-*")] if home.exists() else []
    if staging.exists():
        if (staging / files.MANIFEST).exists():
            return "synchronising"
        return "writing the manifest" if (staging / checkpoints.TENSORS).exists() else "writing tensors" if any(staging.iterdir()) else "beginning"
    if len(names) < 3:
        return "between saves"
    return "renamed" if all(len(list((home / name).iterdir())) == 2 for name in names) else "clearing"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_hundred_kills_leave_a_whole_checkpoint(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    """SIGKILL, half the times between two dealings with the disk, each pair once, half the times at a random moment within a save.

    Each process goes on from what the one before it left. What was reported as saved is there, or its successor; never less.
    """
    draw = random.Random(7)
    shapes = shapes | {"weight.large": torch.Size([256, 1024])}
    started = time.monotonic()
    for step in (1, 2, 3):
        save(tmp_path, step, shapes)
    save_seconds = (time.monotonic() - started) / 3
    last, phases = 3, Counter[str]()
    moments = [*range(1, 51), *[0] * 50]
    draw.shuffle(moments)
    for moment in moments:
        process, out = child(saves(tmp_path, shapes, moment))
        told, wanted = b"", b"S" if moment else b"BE" * draw.randrange(3) + b"B"
        try:
            while not Counter(told) >= Counter(wanted):
                assert select.select([out], [], [], 30)[0], "the child hangs"
                told += (read := os.read(out, 1))
                assert read and read in b"BES", told + os.read(out, 1000)
            if not moment:
                time.sleep(draw.uniform(0, save_seconds))
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        told += os.read(out, 10_000)
        os.close(out)
        done, begun = last + told.count(b"E"), last + told.count(b"B")
        found = checkpoints.newest(tmp_path, shown=False)
        assert found is not None
        last = found[1].step
        assert done <= last <= begun
        assert_whole(found, last, shapes)
        phases[phase(tmp_path)] += 1
    assert last > 50
    assert phases.keys() >= {"beginning", "writing tensors", "writing the manifest", "synchronising", "renamed", "clearing"}, phases
    save(tmp_path, last + 1, shapes)
    assert kept(tmp_path) == [f"step-{step:08d}" for step in (last, last + 1)]
    assert_whole(checkpoints.newest(tmp_path), last + 1, shapes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB, made or resized at each call. Mounting asks for root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def sized(kib: int) -> Path:
        nonlocal mounted
        options = f"remount,size={kib}k" if mounted else f"size={kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False)
        if done.returncode and not mounted:
            pytest.skip(f"no file system can be mounted here, so no disk is full: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, free_bytes: int) -> None:
    """Leave so much room on a disk, in whole pages."""
    (disk / "other").unlink(missing_ok=True)
    with open(disk / "other", "wb") as stream:
        stream.write(bytes(shutil.disk_usage(disk).free - free_bytes))


def test_a_full_disk_is_told_in_one_line_and_costs_nothing(small_disk: Callable[[int], Path], shapes: dict[str, torch.Size]) -> None:
    """Whatever page is missing, the last included: what was there stays whole, nothing is left over, and with more room the same call succeeds."""
    disk = small_disk(8192)
    run = disk / "run"
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(1, shapes).values())
    for step in (1, 2):
        save(run, step, shapes)
    mib, refused, page = needed / 2**20, 0, os.sysconf("SC_PAGE_SIZE")
    rooms = [0, needed // 2, *range(needed // page * page, needed + 20 * page, page)]
    for room in rooms:
        fill(disk, room)
        free = shutil.disk_usage(disk).free
        assert abs(free - room) < page
        try:
            save(run, 3, shapes)
            break
        except OSError as error:
            words = str(error)
        refused += 1
        assert "\n" not in words
        assert words.startswith(f"the checkpoint of step 3 could not be written to {run / HOME} (No space left on device)")
        assert f"needs {mib:.1f} MiB, and {free / 2**20:.1f} MiB are free" in words
        assert "the checkpoint of step 2 is intact" in words and "free disk space, then run the same command again" in words
        assert kept(run) == ["step-00000001", "step-00000002"]
        assert_whole(checkpoints.newest(run), 2, shapes)
        assert shutil.disk_usage(disk).free == free
    assert len(rooms) > refused > 5, "the disk was either never full or never empty enough"
    assert kept(run) == ["step-00000002", "step-00000003"]
    assert_whole(checkpoints.newest(run), 3, shapes)


def test_the_best_weights_are_replaced_or_stay(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1024)
    old, new = {"a": torch.zeros(1000)}, {"a": torch.ones(100_000)}
    checkpoints.save_best(disk, old)
    for room in (0, 400_000 // 4096 * 4096 + 4096):
        fill(disk, room)
        with pytest.raises(OSError, match=r"best.safetensors, the best weights so far, could not be written .*; there is no checkpoint yet;"):
            checkpoints.save_best(disk, {"a": torch.ones(102_399 if room else 100_000)})
        assert sorted(path.name for path in disk.iterdir()) == [checkpoints.BEST, "other"]
        assert torch.equal(weights.read(disk / checkpoints.BEST)["a"], old["a"])
    fill(disk, 500_000)
    checkpoints.save_best(disk, new)
    assert torch.equal(weights.read(disk / checkpoints.BEST)["a"], new["a"])
    assert (disk / checkpoints.BEST).stat().st_mode & 0o777 == 0o644


def test_a_full_disk_cuts_no_row_of_the_log(small_disk: Callable[[int], Path]) -> None:
    """The row that there is no room for is told of; with room, a run goes on behind the rows before it."""
    run = small_disk(4096) / "run"
    checkpoints.save(run, State(step=2), {})
    state = State(step=3)
    with progress.Progress(run, Task(), state, 9, 9, torch.device("cpu"), shown=True) as log:
        log.write(loss=3.0)
        before = (run / progress.LOG).read_bytes()
        fill(run.parent, progress.ROOM_BYTES // 2)
        state.step = 4
        with pytest.raises(OSError, match=r"^log.jsonl could not be written .*No space left .* 1.0 MiB, and 0.5 MiB .* step 2 is intact; free disk"):
            log.write(loss=4.0)
    assert (run / progress.LOG).read_bytes() == before
    with pytest.raises(OSError, match=r"^log.jsonl could not be written .*No space left on device"):
        progress.Progress(run, Task(), state, 9, 9, torch.device("cpu"), shown=True)
    assert (run / progress.LOG).read_bytes() == before
    fill(run.parent, 2 * progress.ROOM_BYTES)
    with open(run / progress.LOG, "ab") as stream:
        stream.write(b'{"step": 4, "lo')
    with progress.Progress(run, Task(), state, 9, 9, torch.device("cpu"), shown=True) as log:
        log.write(loss=4.5)
    assert [(row["step"], row["loss"]) for row in files.read_jsonl(run / progress.LOG)] == [(3, 3.0), (4, 4.5)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_write_that_fails_midway_is_told_in_one_line(tmp_path: Path, shapes: dict[str, torch.Size]) -> None:
    """A limit on the size of files in place of a full disk, so that this runs without mounting one."""
    for step in (1, 2):
        save(tmp_path, step, shapes)

    def work(into: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        for write in (lambda: save(tmp_path, 3, shapes), lambda: checkpoints.save_best(tmp_path, tensors_of(3, shapes))):
            try:
                write()
            except OSError as error:
                os.write(into, f"{error}\n".encode())

    process, out = child(work)
    with open(out, encoding="utf-8") as stream:
        told = stream.read().splitlines()
    assert os.waitpid(process, 0)[1] == 0 and len(told) == 2, told
    for line, what in zip(told, ("the checkpoint of step 3", "best.safetensors, the best weights so far,"), strict=True):
        assert line.startswith(f"{what} could not be written to {tmp_path}") and "(File too large)" in line
        assert "the checkpoint of step 2 is intact; mend that, then run the same command again" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [HOME] and kept(tmp_path) == ["step-00000001", "step-00000002"]
    assert_whole(checkpoints.newest(tmp_path), 2, shapes)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / HOME).write_text("a file stands in the way")
    with pytest.raises(OSError, match=r"step 1 could not be written .*; there is no checkpoint yet; mend that") as raised:
        checkpoints.save(tmp_path, State(step=1), {"a": torch.zeros(1)})
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno in (errno.ENOTDIR, errno.EEXIST)


LARGER = [f"model.encoder.{name}=256" for name in ("width", "embedding", "feed_forward")]
RUN = ["task.global_batch=16", "task.epochs=1.5", "task.save_every_minutes=0", "task.options.negatives=0", *DENSE, *TINY, *LARGER]
TWO = ["hardware.devices=2", "hardware.zero_stage=2"]
ONE = ["hardware.devices=1", "hardware.zero_stage=0"]


def used_bytes(*paths: Path) -> int:
    """In whole pages, as on a disk."""
    sizes = [file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file()]
    return sum(-(-size // 4096) * 4096 for size in sizes)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store in which two processes under ZeRO 2 have trained, and a copy of it that was made meanwhile, as a power cut might leave it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store, copy = copy_of(corpus, folder / "whole"), folder / "copy"
    command = [sys.executable, "-m", "medrag", "train", f"store={store}", *RUN, *TWO]
    with open(folder / "told", "w") as told:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=told, stderr=told)
        found = None
        while process.poll() is None:
            if found is None and list(store.glob("runs/*/checkpoints/step-00000002")):
                shutil.rmtree(copy, ignore_errors=True)
                subprocess.run(["cp", "-r", str(store), str(copy)], check=False, capture_output=True)
                found = checkpoints.newest(next(copy.glob("runs/*")), shown=False)
            time.sleep(0.01)
    assert process.returncode == 0, (folder / "told").read_text()
    assert found is not None and 2 <= found[1].step < max(losses(store))
    return store, copy


def test_another_number_of_devices_and_another_stage_go_on_with_the_same_losses(undisturbed: tuple[Path, Path]) -> None:
    """From two processes under ZeRO 2 to one without. What is not of this method's weights is refused by the name of its folder."""
    whole, store = undisturbed
    (run,) = store.glob("runs/*")
    again = medrag("train", f"store={store}", *RUN, *ONE)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("going on from") == 1
    assert losses(store) == pytest.approx(losses(whole), abs=2e-4) and len(losses(whole)) >= 6
    assert losses(store, "validation") == pytest.approx(losses(whole, "validation"), abs=2e-4)

    found = checkpoints.newest(run)
    assert found is not None
    foreign = checkpoints.save(run, State(step=99), found[2] | {"weight.other": torch.zeros(1)})
    shutil.rmtree(store / "dense")
    refused = medrag("train", f"store={store}", *RUN, *ONE)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    (told,) = [line for line in refused.stderr.splitlines() if line.startswith("medrag:")]
    assert f"{foreign} was written by another version" in told and "['weight.other']" in told and f"remove {run} to begin anew" in told


def test_a_run_that_filled_the_disk_goes_on_with_more_room(
    corpus: Path, undisturbed: tuple[Path, Path], tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """Two processes end together with one line and the last checkpoint whole; with room the same command finishes with the same log.

    That checkpoint is damaged in between: the one before it does as well, and that is told once.
    """
    whole, _ = undisturbed
    last = max(whole.glob("runs/*/checkpoints/step-*"))
    others = used_bytes(whole) - used_bytes(whole / "dense", last.parent)
    room_kib = (others + used_bytes(last) * 5 // 2 + progress.ROOM_BYTES) // 1024
    disk = small_disk(room_kib)
    store = copy_of(corpus, disk / "store")
    full = medrag("train", f"store={store}", *RUN, *TWO)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    (told,) = [line for line in full.stderr.splitlines() if line.startswith("medrag:")]
    assert full.stderr.endswith(told + "\n")
    (run,) = store.glob("runs/*")
    words = f"the checkpoint of step 3 could not be written to {run / HOME} (No space left on device)"
    assert told.startswith(f"medrag: {words}") and "the checkpoint of step 2 is intact" in told
    assert kept(run) == ["step-00000001", "step-00000002"]
    found = checkpoints.newest(run)
    assert found is not None and found[1].step == 2

    damaged = run / HOME / "step-00000002" / checkpoints.TENSORS
    damaged.write_bytes(damaged.read_bytes()[:-1])
    small_disk(3 * room_kib)
    again = medrag("train", f"store={store}", *RUN, *TWO)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("passed over") == 1 and again.stderr.count(f"going on from {run / HOME / 'step-00000001'}") == 1
    assert losses(store) == losses(whole) and losses(store, "validation") == losses(whole, "validation")
