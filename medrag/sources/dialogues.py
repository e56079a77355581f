"""Dialogues of patients and doctors: one Record for each of the doctor's turns, with what the patient had said up to there.

Turns of one speaker that follow each other are one turn. The question is the patient's first account and the patient's latest turns, as many
as fit: a reader without the doctor's side sees what was told, not how it was asked for. The records of one dialogue share their beginning,
and so must share a split: the dialogue is their ``group``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from medrag import text
from medrag.sources import lines, values
from medrag.sources.fields import together
from medrag.sources.kinds import Kind
from medrag.sources.rows import Record, Reject, Row, Source

QUESTION_CHARACTERS = 300
"""what a question may hold; the first account takes half of it at most, and the newest turn always stands there, cut if need be"""
PATIENT = frozenset({"病人", "患者", "patient"})
DOCTOR = frozenset({"医生", "doctor"})
_SPEAKER = re.compile(r"(病人|患者|医生)\s*[:：]\s*(.*)", re.DOTALL)
_ID = re.compile(r"id\s*=\s*(\d+)")
_FIELD = re.compile(
    "(疾病|患病时长|内容|病情描述|曾经治疗情况和效果|化验、检查结果|最后一次就诊的医院|就诊医院科室|用药情况|过敏史|既往病史|怀孕情况|身高体重"
    "|想得到怎样的帮助|想获得的帮助|希望提供的帮助)(?:（[^）]{0,40}）)?[ ]*[：:]"
)
_SAID = frozenset({"内容", "病情描述", "想得到怎样的帮助", "想获得的帮助", "希望提供的帮助"})
_SUMMARY = re.compile("(?:病情摘要及初步印象|总结建议)[：:]")
_BLOCKS = ("Doctor faculty", "Description", "Dialogue", "Diagnosis and suggestions")


def records(turns: Iterable[tuple[str, str]], account: str = "", department: str = "") -> Iterator[Record]:
    """``(speaker, text)`` turns -> the records of one dialogue. ``account`` is what the patient wrote before the dialogue.

    Raises ValueError where a speaker is neither patient nor doctor, or no turn of a doctor follows anything that a patient said.
    """
    merged: list[tuple[bool, str]] = []
    for speaker, said in turns:
        if speaker not in PATIENT | DOCTOR:
            raise ValueError("a speaker who is neither patient nor doctor")
        if merged and merged[-1][0] == (speaker in DOCTOR):
            merged[-1] = (merged[-1][0], together([merged[-1][1], said]))
        elif said.strip():
            merged.append((speaker in DOCTOR, said.strip()))
    told, answered = [account.strip()] if account.strip() else [], False
    for is_doctor, said in merged:
        if not is_doctor:
            told.append(said)
        elif told:
            answered = True
            yield Record(question(told), said, department)
    if not answered:
        raise ValueError("a dialogue without a doctor's answer to a patient")


def question(told: list[str]) -> str:
    """The first account, then the latest of the others in their order: as many whole ones as ``QUESTION_CHARACTERS`` leave room for."""
    first, others = told[0], told[1:]
    if not others:
        return text.shorten(first, QUESTION_CHARACTERS)
    first = text.shorten(first, QUESTION_CHARACTERS // 2)
    kept = [text.shorten(others[-1], QUESTION_CHARACTERS - len(first))]
    for said in reversed(others[:-1]):
        if len(first) + sum(map(len, kept)) + len(said) > QUESTION_CHARACTERS:
            break
        kept.insert(0, said)
    return together([first, *(said for said in kept if said not in first)])


def from_utterances(utterances: Any) -> Iterator[Record]:
    """``["病人：...", "医生：...", ...]``, or an object with such a list as ``utterances``: MedDialog, processed.

    Source: UCSD-AI4H/Medical-Dialogue-System, bertGPT/preprocess.py: train_data.json, validate_data.json and test_data.json are arrays of
    such lists, each text with its speaker in its first three characters.
    """
    turns = []
    said_all = utterances["utterances"] if isinstance(utterances, dict) else utterances
    if not isinstance(said_all, list):
        raise ValueError(f"utterances must be a list, not {type(said_all).__name__}")
    for said in said_all:
        found = _SPEAKER.fullmatch(said) if isinstance(said, str) else None
        if found is None:
            raise ValueError("every utterance must be a text that begins with 病人： or 医生：")
        turns.append((found[1], found[2]))
    yield from records(turns)


def read_utterances(source: Source) -> Iterator[Row]:
    """See ``from_utterances``; the split is that of the file's name."""
    for which, (number, start, value) in enumerate(lines.objects(source.path, source.encoding), 1):
        if isinstance(value, Reject):
            yield value
        elif not isinstance(value, list):
            yield Reject(str(source.path), number, start, f"a JSON {type(value).__name__} stands where a list of utterances is needed")
        else:
            try:
                yield from placed(from_utterances(value), str(which), values.split_of(source.path))
            except ValueError as error:
                yield Reject(str(source.path), number, start, str(error))


def placed(found: Iterator[Record], group: str, split: str) -> Iterator[Record]:
    """The same records with the name of their dialogue within its source, and a split."""
    for record in found:
        yield replace(record, group=group, split=split)


def from_text(block: list[str]) -> Iterator[Record]:
    """The lines of one consultation: ``Doctor faculty``, ``Description``, ``Dialogue`` and perhaps ``Diagnosis and suggestions``.

    Description has fields such as ``病情描述（...）：`` and ``想得到怎样的帮助：``, in some years several on a line; what the patient tells and
    asks for in them is the first account. Dialogue has ``病人：`` and ``医生：`` with the words behind them or on the next lines. What is
    suggested at the end is the doctor's last turn. Source: the readers of UCSD-AI4H/Medical-Dialogue-System's raw files (MedDialog) in
    huggingface/datasets, datasets/medical_dialog, and other public ones.
    """
    part, department = "", ""
    description: list[str] = []
    turns: list[tuple[str, str]] = []
    for line in block:
        if line in _BLOCKS:
            part = line
            if part == _BLOCKS[-1]:
                turns.append(("医生", ""))
        elif part == "Doctor faculty":
            department = next((word for word in reversed(line.split()) if "科" in word), "")
        elif part == "Description":
            description.append(line)
        elif part and (found := _SPEAKER.fullmatch(line)):
            turns.append((found[1], found[2]))
        elif part and turns:
            turns[-1] = (turns[-1][0], together([turns[-1][1], _SUMMARY.sub("", line)]))
    pieces = _FIELD.split(" ".join(description))
    account = [pieces[0], *(said for name, said in zip(pieces[1::2], pieces[2::2], strict=True) if name in _SAID)]
    yield from records(turns, together(account), department)


def read_text(source: Source) -> Iterator[Row]:
    """Consultations that begin with ``id=NUMBER``: see ``from_text``. A line that cannot be read spoils its consultation alone."""
    path = str(source.path)
    held: list[str] | None = None
    name, place = "", (1, 0)

    def consultation() -> Iterator[Row]:
        if held is not None:
            try:
                yield from placed(from_text(held), name, values.split_of(source.path))
            except ValueError as error:
                yield Reject(path, *place, str(error))

    for number, start, line in lines.lines(source.path, source.encoding):
        if isinstance(line, Reject):
            yield line
            held = None
        elif found := _ID.fullmatch(line.strip()):
            yield from consultation()
            held, name, place = [], found[1], (number, start)
        elif held is not None and line.strip():
            held.append(line.strip())
    yield from consultation()


def read_imcs21(source: Source) -> Iterator[Row]:
    """One JSON object of ``id: {"diagnosis", "self_report", "dialogue": [{"speaker": "医生" or "患者", "sentence", ...}]}``.

    Source: lemuria-wchen/imcs21, task/DAC/BERT-DAC/preprocess.py and task/SLI/MLC-SLI/preprocess.py. The file is held in memory (4,116
    dialogues); a Reject names the dialogue by its number, counted from 1, as its line. Raises ValueError where the file is no JSON object.
    """
    whole = lines.document(source.path, source.encoding)
    if not isinstance(whole, dict):
        raise ValueError(f"source {source.path}: a JSON {type(whole).__name__} stands where an object of dialogues is needed")
    split = values.split_of(source.path)
    for number, (name, case) in enumerate(whole.items(), 1):
        try:
            if not isinstance(case, dict):
                raise ValueError(f"a JSON {type(case).__name__} stands where a dialogue is needed")
            turns = [(values.string(turn, "speaker"), values.string(turn, "sentence")) for turn in values.objects(case, "dialogue")]
            yield from placed(records(turns, values.optional(case, "self_report")), name, split)
        except ValueError as error:
            yield Reject(str(source.path), number, 0, f"dialogue {number}: {error}")


def _is_utterances(path: Path, head: str) -> bool:
    found = values.first(head)
    return bool(found) and all(isinstance(value, list) and bool(value) and _said(value[0]) for value in found)


def _said(value: Any) -> bool:
    return isinstance(value, str) and _SPEAKER.match(value) is not None


def _is_text(path: Path, head: str) -> bool:
    rows = [line.strip() for line in head.splitlines()]
    return bool(rows) and _ID.fullmatch(rows[0]) is not None and any(block in rows for block in _BLOCKS)


def _is_imcs21(path: Path, head: str) -> bool:
    return re.match(r'\{\s*"[^"]*"\s*:\s*\{', head) is not None and '"self_report"' in head and '"dialogue"' in head


KINDS = {
    "meddialog": Kind(read_utterances, _is_utterances, layout='[["病人：...", "医生：..."], ...]'),
    "meddialog_text": Kind(read_text, _is_text, layout="id=1, Doctor faculty, Description, Dialogue"),
    "imcs21": Kind(read_imcs21, _is_imcs21, layout='{"1": {"self_report", "dialogue": [...]}}'),
}
