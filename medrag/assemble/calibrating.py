"""Confidence of methods that write answers: fitted at the end of training on what they answer to development questions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from medrag import confidence, evaluate, responses
from medrag.confidence import GENERATION, RIGHT_F1, Calibrator
from medrag.generator import Generator
from medrag.methods import Method
from medrag.metrics.texts import character_f1
from medrag.types import Example

FILE = "calibration.json"
QUESTIONS = 128
"""most development questions that are answered for it"""
UNANSWERABLE = QUESTIONS // 4
"""most of them that nothing answers"""


def calibrate(method: Method, dev: Sequence[Example], progress: bool = True) -> Calibrator | None:
    """The calibrator of a trained method, in evaluation mode; None where it writes no answers to questions, or there are none to learn from.

    Answers are written greedily, which takes a fraction of the time of the search that is used later, and are right where their character F1
    with a reference is at least RIGHT_F1.
    """
    pretraining = type(method).learns_from is not Method.learns_from
    if pretraining or not isinstance(getattr(method, "generator", None), Generator):
        return None
    unanswerable = evaluate.spread([example for example in dev if not example.positives], UNANSWERABLE)
    answerable = evaluate.spread([example for example in dev if example.positives], QUESTIONS - len(unanswerable))
    if not answerable:
        return None
    asked = [*answerable, *unanswerable]
    features, right = np.zeros((len(asked), len(GENERATION))), np.zeros(len(asked), bool)
    chosen, method.calibrator = method.decoding, None
    method.decoding = replace(chosen, beams=1, sample=False)
    try:
        answers = responses.answer_in_batches(method, [example.question for example in asked], responses.Config().batch_questions)
        for place, answer in tqdm(answers, total=len(asked), desc="calibrating", unit=" questions", disable=not progress, file=sys.stderr):
            features[place] = responses.seen(answer)
            right[place] = character_f1(answer.text, asked[place].answers) >= RIGHT_F1
    finally:
        method.decoding = chosen
    return confidence.fit(GENERATION, features, right, np.arange(len(asked)) < len(answerable))
