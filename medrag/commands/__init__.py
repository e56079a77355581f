"""The commands, a module for each group of them. Nothing heavy is imported before a command is run."""

from __future__ import annotations

from collections.abc import Callable

from medrag.commands import answering, corpora, machine, training

VERBS: dict[str, Callable[[list[str], list[str]], int]] = {
    "prepare": corpora.prepare_command,
    "plan": training.plan_command,
    "train": training.train_command,
    "index": corpora.index_command,
    "cut": corpora.cut,
    "ask": answering.ask,
    "infer": answering.infer_command,
    "evaluate": answering.evaluate_command,
    "serve": answering.serve_command,
    "doctor": machine.doctor,
    "config": machine.config_command,
}
"""verb -> what takes its words and its ``key=value`` and gives the exit status"""
