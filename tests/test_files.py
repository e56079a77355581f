"""An artifact is whole or refused, and publishing it is all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medrag import files
from medrag.files import Artifact


def _publish(store: Path, kind: str = "corpus", text: str = "头痛", key: str = "k", parents: tuple[Artifact, ...] = ()) -> Artifact:
    with files.publish(store, kind, key=key, parents=parents, config={"seed": 0}) as folder:
        (folder / "deep").mkdir()
        (folder / "a.txt").write_text(text, "utf-8")
        (folder / "deep" / "b.bin").write_bytes(bytes(range(256)))
    return files.current(store, kind)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_a_published_artifact_opens_again(tmp_path: Path) -> None:
    made = _publish(tmp_path)
    assert files.open_artifact(made.path) == made
    assert made.kind == "corpus" and made.path.name == f"v000001-{made.hash[:8]}"
    assert set(made.manifest["files"]) == {"a.txt", "deep/b.bin"}
    assert made.manifest["files"]["a.txt"]["bytes"] == 6
    assert made.manifest["config"] == {"seed": 0}
    assert "numpy" in made.manifest["versions"]
    assert (tmp_path / "corpus" / files.CURRENT).read_text() == made.path.name + "\n"


def test_current_is_the_newest_and_older_ones_stay(tmp_path: Path) -> None:
    first = _publish(tmp_path, text="一")
    second = _publish(tmp_path, text="二")
    assert second.path.name.startswith("v000002-")
    assert files.current(tmp_path, "corpus") == second
    assert files.open_artifact(first.path) == first
    files.set_current(tmp_path, "corpus", first.path)
    assert files.current(tmp_path, "corpus") == first


def test_equal_contents_have_equal_hashes(tmp_path: Path) -> None:
    assert _publish(tmp_path / "x").hash == _publish(tmp_path / "y").hash
    assert _publish(tmp_path / "x").hash != _publish(tmp_path / "z", text="别的").hash
    assert _publish(tmp_path / "x").hash != _publish(tmp_path / "w", key="other").hash


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], id="one bit altered"),
        pytest.param(lambda data: data[:-1], id="truncated"),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: b"", id="emptied"),
    ],
)
def test_an_altered_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    made = _publish(tmp_path)
    _rewrite(made.path / "deep" / "b.bin", damage)
    with pytest.raises(ValueError, match=r"deep/b\.bin: altered"):
        files.open_artifact(made.path)


def test_an_added_file_is_named(tmp_path: Path) -> None:
    made = _publish(tmp_path)
    (made.path / "deep" / "extra.txt").write_text("")
    with pytest.raises(ValueError, match=r"added: \['deep/extra\.txt'\]"):
        files.open_artifact(made.path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = _publish(tmp_path)
    (made.path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"missing: \['a\.txt'\]"):
        files.open_artifact(made.path)


@pytest.mark.parametrize(
    ("old", "new"), [('"seed": 0', '"seed": 1'), ('"key": "k"', '"key": "j"'), ('"a.txt"', '"c.txt"'), ('"kind": "corpus"', '"kind": "index"')]
)
def test_an_edited_manifest_is_refused(tmp_path: Path, old: str, new: str) -> None:
    made = _publish(tmp_path)
    manifest = made.path / files.MANIFEST
    text = manifest.read_text("utf-8")
    assert old in text
    manifest.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=r"MANIFEST\.json: altered"):
        files.open_artifact(made.path)


def test_a_file_and_its_manifest_entry_changed_together_are_refused(tmp_path: Path) -> None:
    made = _publish(tmp_path)
    (made.path / "a.txt").write_text("头疼", "utf-8")
    manifest = json.loads((made.path / files.MANIFEST).read_text("utf-8"))
    manifest["files"]["a.txt"]["sha256"] = files.sha256(made.path / "a.txt")
    (made.path / files.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ValueError, match=r"MANIFEST\.json: altered"):
        files.open_artifact(made.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": []}', '{"files": {"a": {}}}', "\udcff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    made = _publish(tmp_path)
    (made.path / files.MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"MANIFEST\.json: damaged"):
        files.open_artifact(made.path)
    with pytest.raises(ValueError, match=r"MANIFEST\.json: damaged"):
        files.find(tmp_path, "corpus", "k")


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "plain.txt"):
        with pytest.raises(ValueError, match="not an artifact"):
            files.open_artifact(path)


def test_an_empty_store_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no corpus yet \(it holds: nothing\).*medrag prepare"):
        files.current(tmp_path, "corpus")
    _publish(tmp_path)
    with pytest.raises(ValueError, match=r"holds no dense yet \(it holds: corpus\).*medrag train task=dense"):
        files.current(tmp_path, "dense")


def test_find_by_key(tmp_path: Path) -> None:
    assert files.find(tmp_path, "corpus", "k") is None
    first, second = _publish(tmp_path, key="k"), _publish(tmp_path, key="l")
    assert files.find(tmp_path, "corpus", "k") == first
    assert files.find(tmp_path, "corpus", "l") == second
    assert files.find(tmp_path, "corpus", "m") is None
    (first.path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"missing: \['a\.txt'\]"):
        files.find(tmp_path, "corpus", "k")


def test_parent(tmp_path: Path) -> None:
    corpus = _publish(tmp_path)
    child = _publish(tmp_path, "index", parents=(corpus,))
    _publish(tmp_path, text="更新")
    assert child.parent("corpus") == corpus
    with pytest.raises(ValueError, match=r"made from no dense; its parents are \['corpus'\]"):
        child.parent("dense")


def test_a_changed_parent_is_refused(tmp_path: Path) -> None:
    corpus = _publish(tmp_path)
    child = _publish(tmp_path, "index", parents=(corpus,))
    other = _publish(tmp_path / "elsewhere", text="别的")
    kept = corpus.path.rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=f"{corpus.path.name}: no MANIFEST"):
        child.parent("corpus")
    other.path.rename(corpus.path)
    with pytest.raises(ValueError, match=f"is stale: it was made from corpus {corpus.hash[:8]}, .* is {other.hash[:8]}"):
        child.parent("corpus")
    corpus.path.rename(tmp_path / "gone")
    kept.rename(corpus.path)
    _rewrite(corpus.path / "a.txt", lambda data: data[::-1])
    with pytest.raises(ValueError, match=r"a\.txt: altered"):
        child.parent("corpus")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with files.publish(tmp_path, "corpus", key="l") as folder:
            (folder / "half.txt").write_text("半")
            raise error

    first = _publish(tmp_path)
    with pytest.raises(error):
        fail()
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {first.path.name, files.CURRENT}
    assert files.current(tmp_path, "corpus") == first


@pytest.mark.parametrize("first", [False, True])
def test_a_failure_before_the_rename_leaves_current_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    old = None if first else _publish(tmp_path)

    def refuse(source: Path, target: Path) -> None:
        assert (source / files.MANIFEST).is_file()
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="no space left"):
            _publish(tmp_path, text="新", key="l")
    assert files.find(tmp_path, "corpus", "l") is None
    if old is None:
        assert list((tmp_path / "corpus").iterdir()) == []
    else:
        assert files.current(tmp_path, "corpus") == old
    assert _publish(tmp_path, text="新", key="l").manifest["key"] == "l"


def test_a_kill_between_the_rename_and_current_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _publish(tmp_path)

    def killed(store: Path, kind: str, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "set_current", killed)
        with pytest.raises(KeyboardInterrupt):
            _publish(tmp_path, text="新", key="l")
    assert files.current(tmp_path, "corpus") == old
    found = files.find(tmp_path, "corpus", "l")
    assert found is not None and (found.path / "a.txt").read_text("utf-8") == "新"


def test_a_staging_folder_left_by_a_kill_is_no_artifact(tmp_path: Path) -> None:
    _publish(tmp_path)
    (tmp_path / "corpus" / ".staging-dead").mkdir()
    (tmp_path / "corpus" / ".staging-dead" / "a.txt").write_text("半")
    assert files.find(tmp_path, "corpus", "other") is None
    assert _publish(tmp_path, text="新").path.name.startswith("v000002-")


def test_a_failed_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"数": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"数": object()})

    def refuse(source: Path, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        files.write_json(path, {"数": 2})
    assert json.loads(path.read_text("utf-8")) == {"数": 1}


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"问": "头痛\n怎么办"}, {"n": [1, 2.5, None]}]
    assert files.write_jsonl(path, rows) == 2
    assert list(files.read_jsonl(path)) == rows
    path.write_bytes(path.read_bytes() + b'{"a":')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: not JSON"):
        list(files.read_jsonl(path))
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        list(files.read_jsonl(path))


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert files.fingerprint({"a": 1, "b": [1, 2]}) == files.fingerprint({"b": [1, 2], "a": 1})
    assert files.fingerprint({"a": 1, "b": [1, 2]}) != files.fingerprint({"a": 1, "b": [2, 1]})


def test_a_version_is_opened_by_its_name(tmp_path: Path) -> None:
    first, second = _publish(tmp_path, text="one"), _publish(tmp_path, text="two")
    assert files.current(tmp_path, "corpus@v000001") == first == files.current(tmp_path, f"corpus@{first.path.name}")
    assert files.current(tmp_path, "corpus@v000002") == second
    for wrong in ("v00000", "v000003", "two"):
        with pytest.raises(ValueError, match=rf"corpus@{wrong}: there is no such version .*allowed: corpus@v000001-\w+, corpus@v000002-\w+"):
            files.current(tmp_path, f"corpus@{wrong}")


def test_a_file_is_replaced_whole_or_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def broken_off() -> None:
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_number_too_large_in_a_manifest_is_damage(tmp_path: Path) -> None:
    made = _publish(tmp_path)
    _rewrite(made.path / files.MANIFEST, lambda data: data.replace(b'"bytes": 6', b'"bytes": 6e999'))
    with pytest.raises(ValueError, match="damaged"):
        files.open_artifact(made.path)
