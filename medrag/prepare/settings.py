"""How raw rows become examples."""

from __future__ import annotations

from dataclasses import dataclass, field

from medrag import cleaning


@dataclass
class Config:
    """Rules, thresholds and shares of ``medrag prepare``; every rule can be switched off."""

    dictionary: str = "corpora/medical_words.txt"
    """medical words for jieba, one a line, optionally with a tab and a frequency"""
    titles: bool = False
    """keep each record's question as the title of its passage. Right where the test questions are others than the records' own
    (the shipped corpora); with test questions taken from the records it would be reading the answer sheet"""
    clean: cleaning.Config = field(default_factory=cleaning.Config)
    privacy: bool = True
    """replace personal data by typed placeholders"""
    question_characters_min: int = 4
    question_characters_max: int = 2000
    answer_characters_min: int = 8
    answer_characters_max: int = 8000
    """letters, digits and Chinese characters; 0 switches a limit off"""
    echoes: bool = True
    """drop records whose answer repeats the question"""
    duplicate_pairs: bool = True
    """drop records whose question and answer are both equal, or nearly equal, to those of an earlier one"""
    near_similarity: float = 0.8
    """Jaccard similarity of character pairs from which two texts are near duplicates; 0: only equal texts are duplicates"""
    dev_share: float = 0.05
    test_share: float = 0.05
    """shares of the groups of records held out, beside the rows whose source declares their split"""
    negatives: int = 4
    """BM25 hard negatives kept for each training example"""
    negatives_depth: int = 50
    """passages that hard negatives are drawn from"""
    negatives_pool: int = 25_000
    """passages among which those are looked for: one BM25 index at a time in memory, whatever the size of the corpus"""
    seed: int = 0


def check(config: Config) -> None:
    """Raise ValueError that names a value out of range and the allowed ones."""
    for name in ("dev_share", "test_share"):
        if not 0 <= getattr(config, name) < 0.5:
            raise ValueError(f"prepare.{name}={getattr(config, name)}; allowed: 0 to 0.5")
    if not 0 <= config.near_similarity <= 1:
        raise ValueError(f"prepare.near_similarity={config.near_similarity}; allowed: 0 to 1")
    if 0 < config.near_similarity < 0.5:
        raise ValueError(f"prepare.near_similarity={config.near_similarity}; allowed: 0 (off), or 0.5 to 1: below, the bands miss most pairs")
    for name in ("negatives", "question_characters_min", "question_characters_max", "answer_characters_min", "answer_characters_max"):
        if getattr(config, name) < 0:
            raise ValueError(f"prepare.{name}={getattr(config, name)}; allowed: 0 or more")
    for name in ("negatives_depth", "negatives_pool"):
        if getattr(config, name) < max(1, config.negatives):
            raise ValueError(f"prepare.{name}={getattr(config, name)}; allowed: prepare.negatives={config.negatives} or more")
