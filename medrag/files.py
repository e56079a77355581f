"""JSONL streams, and artifacts: immutable folders with hashes, published atomically.

An artifact lives in ``STORE/KIND/v000007-<hash8>/`` beside a ``MANIFEST.json`` that names every file's size and SHA-256, the
artifacts it was made from, the configuration that made it and the versions of the libraries. ``STORE/KIND/CURRENT`` names the
newest one. Nothing is read from an artifact before its hashes are checked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
CURRENT = "CURRENT"
LIBRARIES = ("medrag", "torch", "transformers", "faiss-cpu", "deepspeed", "tokenizers", "sentencepiece", "jieba", "numpy")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file that medrag wrote. Raises ValueError with file and line on a bad row."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines and return how many there were."""
    count = 0
    with open(path, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically with ``value`` as indented JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically: a reader sees the old text or the new, never a part."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what stands there replaces ``path`` atomically when the block ends without an error, and goes where it does not."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder whose hashes have been checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    @property
    def reference(self) -> dict[str, str]:
        """How a child's manifest names this artifact: its version (folder name) and its hash."""
        return {"version": self.path.name, "hash": self.hash}

    def parent(self, kind: str) -> Artifact:
        """Open the artifact of ``kind`` that this one was made from. Raises ValueError where it is gone or is another one."""
        reference = self.manifest["parents"].get(kind)
        if reference is None:
            raise ValueError(f"{self.path}: made from no {kind}; its parents are {sorted(self.manifest['parents'])}")
        parent = open_artifact(self.path.parent.parent / kind / reference["version"])
        if parent.hash != reference["hash"]:
            raise ValueError(f"{self.path} is stale: it was made from {kind} {reference['hash'][:8]}, but {parent.path} is {parent.hash[:8]}")
        return parent


def open_artifact(path: Path) -> Artifact:
    """Check every hash of the artifact at ``path`` and return it.

    Raises ValueError that names the file where one is missing, added, truncated or altered.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        stated = (manifest["kind"], manifest["hash"], manifest["parents"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no {MANIFEST} there, so it is not an artifact of medrag") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path / MANIFEST}: damaged ({error!r})") from error
    if stated[1] != _identity(manifest):
        raise ValueError(f"{path / MANIFEST}: altered after it was published (its hash does not match its contents)")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    if present != expected.keys():
        missing, added = sorted(expected.keys() - present), sorted(present - expected.keys())
        raise ValueError(f"{path}: altered after it was published (missing: {missing}; added: {added})")
    for name, (size_bytes, digest) in expected.items():
        file = path / name
        if file.stat().st_size != size_bytes or sha256(file) != digest:
            raise ValueError(f"{file}: altered after it was published (its SHA-256 is not the manifest's)")
    return Artifact(path, manifest)


def current(store: Path, name: str) -> Artifact:
    """Open the newest artifact of a kind (``fid``), or one of its versions (``fid@v000002``).

    Raises ValueError naming the command that makes one where there is none, and the versions there are where that one is not among them.
    """
    kind, _, version = name.partition("@")
    pointer = store / kind / CURRENT
    if not pointer.is_file():
        kinds = sorted(path.parent.name for path in store.glob(f"*/{CURRENT}"))
        maker = {"corpus": "medrag prepare SOURCE...", "index": "medrag index build"}.get(kind, f"medrag train task={kind}")
        raise ValueError(f"{store}: holds no {kind} yet (it holds: {', '.join(kinds) or 'nothing'}); make one with `{maker}`")
    if version:
        known = sorted(path.name for path in (store / kind).glob("v*-*"))
        if len(found := [path for path in known if version in (path, path.partition("-")[0])]) != 1:
            raise ValueError(f"{name}: there is no such version in {store}; allowed: {', '.join(f'{kind}@{path}' for path in known)}")
        return open_artifact(store / kind / found[0])
    return open_artifact(store / kind / pointer.read_text("utf-8").strip())


def find(store: Path, kind: str, key: str) -> Artifact | None:
    """The artifact of ``kind`` made with this key (the fingerprint of everything that determines it), if there is one."""
    for path in sorted((store / kind).glob("v*-*"), reverse=True):
        manifest = path / MANIFEST
        try:
            matches = manifest.is_file() and json.loads(manifest.read_text("utf-8"))["key"] == key
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest}: damaged ({error!r})") from error
        if matches:
            return open_artifact(path)
    return None


@contextmanager
def publish(store: Path, kind: str, *, key: str, parents: Iterable[Artifact] = (), config: Any = None) -> Iterator[Path]:
    """Give a staging folder to fill; publish it as the newest artifact of ``kind`` when the block ends without an error.

    The staging folder is on the same filesystem; files and folders are synchronised to disk before the rename, and CURRENT is
    replaced last, so that a kill at any moment leaves either the old state or the new.
    """
    home = store / kind
    home.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
    try:
        yield staging
        digest = seal(staging, kind, key=key, parents=parents, config=config)
        staging.chmod(0o755)
        number = 1 + max((int(path.name[1:7]) for path in home.glob("v[0-9]*-*")), default=0)
        final = home / f"v{number:06d}-{digest[:8]}"
        os.rename(staging, final)
        sync(home)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    set_current(store, kind, final)


def set_current(store: Path, kind: str, path: Path) -> None:
    """Make the artifact at ``path`` the one that CURRENT names."""
    pointer = store / kind / CURRENT
    if not pointer.is_file() or pointer.read_text("utf-8").strip() != path.name:
        write_text(pointer, path.name + "\n")


def seal(folder: Path, kind: str, *, key: str, parents: Iterable[Artifact] = (), config: Any = None) -> str:
    """Write the manifest of all that a folder holds, synchronise it to disk, and return its hash; ``open_artifact`` checks it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "kind": kind,
        "key": key,
        "parents": {parent.kind: parent.reference for parent in parents},
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names},
        "config": config,
        "versions": versions(),
    }
    manifest["hash"] = _identity(manifest)
    write_json(folder / MANIFEST, manifest)
    sync_tree(folder)
    return str(manifest["hash"])


def _identity(manifest: Mapping[str, Any]) -> str:
    return fingerprint({name: manifest.get(name) for name in ("kind", "key", "parents", "files", "config")})


def versions() -> dict[str, str]:
    """The installed versions of the libraries that matter."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def link_tree(source: Path, target: Path, names: Iterable[str]) -> None:
    """Put these files of one folder into another under the same names, in place of what is there: hard links, copies where none can be made."""
    for name in names:
        there = target / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        try:
            os.link(source / name, there)
        except OSError:
            shutil.copyfile(source / name, there)


def name_other_work(folder: Path) -> None:
    """Name on stderr the work folders beside this one: no run with the present settings finds them again."""
    for other in sorted(path for path in folder.parent.glob(".work-*") if path != folder):
        print(f"left by a run with other settings or sources that was stopped: {other}; delete it to free its disk", file=sys.stderr)


def sync_tree(folder: Path) -> None:
    """Synchronise a folder and all that is in it to disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Synchronise one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
