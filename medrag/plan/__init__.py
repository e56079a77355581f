"""Will this run fit this card: predicted memory and time, part by part; what this machine has, and which presets fit it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Config:
    """What a run is planned for."""

    examples: int = 0
    """training examples of an epoch; 0: as many as the newest prepared corpus has, or where there is none the reference's 112,000"""
    passages: int = 0
    """passages of the index, which mlm and span_corruption read beside the questions; 0: as many as the newest prepared corpus has, or where there is
    none the reference's 120,000"""
