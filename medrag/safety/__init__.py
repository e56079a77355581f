"""What must not wait for a model: emergencies in what people ask in everyday Chinese, and what asks a machine to write a prescription.

Emergencies are looked for by ``rules``, which name what they find, and by a ``classifier`` for what is said in words that no rule has thought of.
Both miss some (``tests/test_safety.py`` and ``tests/benchmarks/emergencies.py`` say how many): they are no triage.
"""

from __future__ import annotations

from dataclasses import dataclass

from medrag.safety import classifier, prescriptions, rules

__all__ = ["NOTE", "OTHER", "TRUSTED", "Emergency", "emergency", "kinds", "prescription"]
NOTE = "（这是系统自动识别后给出的提示，没有医生看过你的情况，不能代替急救人员和医生的判断。）"
OTHER = "other"
"""the kind of what the classifier takes for an emergency without being sure of which"""
TRUSTED = -4.0
"""the classifier's score from which a rule that matches is believed"""
_FEWEST = 4
"""characters that say enough for the classifier: 累死了 is no emergency"""
_SURE = 0.8
"""share of the likeliest kind from which its advice is given, rather than that of the rule that matches or the general one"""


@dataclass(frozen=True, slots=True)
class Emergency:
    """What somebody seems to need help with now."""

    kind: str
    """one of ``kinds()``"""
    advice: str
    """what to do until help comes, and that a machine says so"""


def kinds() -> tuple[str, ...]:
    """The kinds that are told apart, ``OTHER`` last."""
    return tuple(rules.advice())


def emergency(question: str) -> Emergency | None:
    """What kind of emergency a question tells of, with advice; None where there seems to be none. The question is cleaned here.

    A rule that matches counts for the classifier like a word; alone it is believed unless the classifier is sure of the contrary.
    """
    asked = rules.read(question)
    found = rules.matching(asked)
    models = classifier.models()
    classed = classifier.classed(asked)
    looked_at = classifier.features(classed, found)
    score = models.score(classed, looked_at)
    if score <= (TRUSTED if found else 0) or (len(asked) < _FEWEST and not found):
        return None
    kind, share = models.name(looked_at)
    if share < _SURE:
        kind = found[0] if found else OTHER
    return Emergency(kind, rules.advice()[kind] + NOTE)


def prescription(question: str) -> bool:
    """Whether a question asks the machine to write a prescription or to prescribe a medicine. The question is cleaned here."""
    return prescriptions.asked_for(rules.read(question))
