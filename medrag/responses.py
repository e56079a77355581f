"""One question's answer as the outside sees it: calibrated, grounded in its passages, shown or refused.

``ask``, batch inference, evaluation and a service all go through here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medrag import confidence, grounding, methods, safety, text
from medrag.generator import decoding, quantized
from medrag.generator.decoding import Decoding
from medrag.methods import Method
from medrag.retriever import Retriever
from medrag.types import Answer

LABEL = "AI 生成，仅供参考，不能替代医生诊断"
REFUSAL = "现有资料中没有找到足够可靠的依据，无法回答这个问题。请咨询医生；如情况紧急，请立即拨打120或前往急诊。"
NO_PRESCRIPTION = "这里不能开处方，也不能代替医生开药。处方药请由医生当面或通过正规互联网医院看过之后开具；如情况紧急，请立即拨打120或前往急诊。"
CHOSEN = -1.0
UNCALIBRATED = 0.15
"""the threshold of a method whose confidence is the bare probability of its tokens"""


@dataclass
class Config:
    """Who answers, and when an answer is withheld."""

    method: str = "dense"
    """the trained method whose answer is given"""
    beside: list[str] = field(default_factory=list)
    """other trained methods whose texts ``ask`` shows beside it, for what they are"""
    decoding: Decoding = field(default_factory=Decoding)
    precision: str = "auto"
    """arithmetic of the generator as it writes: fp32, bf16, or int8 on a CPU; auto: fp32"""
    refuse_below: float = CHOSEN
    """an answer whose confidence (0..1) is lower is refused; 0 refuses nothing, 1 nearly everything; -1: as chosen on development questions"""
    evidence: int = 3
    """passages cited with an answer; more where more support its sentences"""
    stream: bool = False
    """whether ``ask`` shows an answer sentence by sentence as it is written"""
    batch_questions: int = 16
    """questions answered at once"""
    window_rows: int = 512
    """rows read ahead, so that questions of like length can be answered together"""


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    decoding.check(config.decoding)
    quantized.check(config.precision)
    if config.refuse_below != CHOSEN and not 0 <= config.refuse_below <= 1:
        raise ValueError(f"answer.refuse_below={config.refuse_below}; allowed: 0 (refuse nothing) to 1, or -1 (as chosen on development questions)")
    for name in ("evidence", "batch_questions", "window_rows"):
        if getattr(config, name) < 1:
            raise ValueError(f"answer.{name}={getattr(config, name)}; it must be 1 or more")


def threshold(method: Method, config: Config) -> float:
    """The confidence below which this method's answers are refused: the one asked for, else the one chosen on development questions."""
    if config.refuse_below != CHOSEN:
        return config.refuse_below
    retriever = getattr(method, "retriever", None)
    calibrator = method.calibrator or (retriever.calibrator if isinstance(retriever, Retriever) else None)
    return UNCALIBRATED if calibrator is None else calibrator.refuse_below


def respond(question: str, answer: Answer, config: Config, method: str, refuse_below: float) -> dict[str, Any]:
    """An answer as the outside sees it: text or refusal with its reason, sentence by sentence what supports it, evidence, confidence, label.

    Reasons: ``no_answer`` (there is no text), ``unsupported_dose`` (no passage states a dose of it, and without that nothing is left, or
    there are no passages at all), ``weak_evidence`` (the confidence is below ``refuse_below``). A sentence with a dose that no passage
    supports is left out (``withheld`` says how many, and why). The passages that sentences rest on are all shown as evidence.
    """
    grounded = grounding.ground(answer.text, [hit.passage.text for hit in answer.hits])
    withheld = Counter(sentence.withheld for sentence in grounded.sentences if sentence.withheld)
    reason = ""
    if not answer.text.strip():
        reason = "no_answer"
    elif withheld and not (grounded.kept and answer.hits):
        reason = "unsupported_dose"
    elif answer.confidence < refuse_below:
        reason = "weak_evidence"
    shown = [] if reason else [sentence for sentence in grounded.sentences if not sentence.withheld]
    places = _evidence([sentence.passage for sentence in shown], len(answer.hits), config.evidence)
    hits = [answer.hits[place] for place in places]
    texts = _with_spaces(grounded.kept, [sentence.text for sentence in shown])
    return {
        "question": question,
        "answer": REFUSAL if reason else grounded.kept,
        "refused": bool(reason),
        "reason": reason,
        "confidence": round(answer.confidence, 4),
        "sentences": [
            {
                "text": text,
                "passage": None if sentence.passage is None else places.index(sentence.passage) + 1,
                "support": round(sentence.support, 4),
            }
            for sentence, text in zip(shown, texts, strict=True)
        ],
        "withheld": dict(withheld),
        "evidence": [
            {"id": hit.passage.id, "score": round(hit.score, 4), "source": hit.passage.source, "title": hit.passage.title, "text": hit.passage.text}
            for hit in hits
        ],
        "method": method,
        "emergency": "",
        "label": LABEL,
    }


def settled(question: str) -> dict[str, Any] | None:
    """What a rule answers, in the form of ``respond``, without a method: to an emergency what to do, to a wish for a prescription that there is none.

    None for all other questions.
    """
    nothing: dict[str, Any] = {"confidence": 0.0, "sentences": [], "withheld": {}, "evidence": [], "method": "", "label": LABEL}
    if found := safety.emergency(question):
        return {"question": question, "answer": found.advice, "refused": False, "reason": "", "emergency": found.kind} | nothing
    if safety.prescription(question):
        return {"question": question, "answer": NO_PRESCRIPTION, "refused": True, "reason": "prescription", "emergency": ""} | nothing
    return None


def _with_spaces(answer: str, sentences: Sequence[str]) -> list[str]:
    """Sentences with the white space that follows each in the answer, so that joined they are the answer."""
    begins, start = [], 0
    for sentence in sentences:
        begins.append(answer.index(sentence, start))
        start = begins[-1] + len(sentence)
    return [answer[begin:end] for begin, end in zip(begins, [*begins[1:], len(answer)], strict=False)]


def _evidence(supporting: Sequence[int | None], hits: int, limit: int) -> list[int]:
    """The places of the hits that are shown, in order: all that support a sentence, and the best of the others up to the limit."""
    cited = {place for place in supporting if place is not None}
    others = [place for place in range(hits) if place not in cited]
    return sorted([*cited, *others[: max(0, limit - len(cited))]])


def answer_in_batches(method: Method, questions: Sequence[str], batch_questions: int) -> Iterator[tuple[int, Answer]]:
    """``(place, answer)`` of every question, longest questions first, so that padding is small; confidences are calibrated."""
    order = sorted(range(len(questions)), key=lambda place: -len(questions[place]))
    for start in range(0, len(order), batch_questions):
        places = order[start : start + batch_questions]
        for place, answer in zip(places, method.answer([questions[place] for place in places]), strict=True):
            yield place, _calibrated(method, answer)


def answered(method: Method, question: str, config: Config) -> dict[str, Any]:
    """``respond`` to one question, or at once where a rule answers."""
    if (response := settled(question)) is not None:
        return response
    ((_, answer),) = answer_in_batches(method, [question], 1)
    return respond(question, answer, config, methods.name_of(method), threshold(method, config))


def stream(method: Method, question: str, config: Config) -> Iterator[str | dict[str, Any]]:
    """Whole sentences of an answer as soon as they are certain, and last what ``respond`` makes of it.

    What passages say is known at the end only: from the first sentence on that holds a number, none is given out before it has been checked,
    nor is any where the retriever doubts that the question can be answered. The response may still be a refusal: it stands, not the pieces.
    Where a rule answers there is the response alone.
    """
    if (response := settled(question)) is not None:
        yield response
        return
    written, checked, told, held = "", 0, "", _doubtful(method, question, config)
    for piece in method.stream(question):
        if isinstance(piece, Answer):
            answer = _calibrated(method, piece)
            response = respond(question, answer, config, methods.name_of(method), threshold(method, config))
            if not response["refused"] and (rest := response["answer"][len(told) :]):
                yield rest
            yield response
            return
        written += piece
        while not held and (sentence := _whole_sentence(written[checked:])):
            held = grounding.has_number(sentence)
            if not held:
                checked += len(sentence)
                sentence = sentence if told else sentence.lstrip()
                told += sentence
                yield sentence


def seen(answer: Answer) -> list[float]:
    """What the calibrator of a method that writes looks at, in the order of ``confidence.GENERATION``."""
    grounded = grounding.ground(answer.text, [hit.passage.text for hit in answer.hits])
    nats = answer.logprob / max(answer.tokens, 1)
    return confidence.generation(nats, grounded.support, grounded.copied, len(answer.text), answer.confidence)


def _calibrated(method: Method, answer: Answer) -> Answer:
    return answer if method.calibrator is None or not answer.text.strip() else replace(answer, confidence=method.calibrator(seen(answer)))


def _doubtful(method: Method, question: str, config: Config) -> bool:
    """Whether the retriever's own confidence, where there is one, is too low to begin with."""
    retriever = getattr(method, "retriever", None)
    if not isinstance(retriever, Retriever):
        return False
    (hits,) = retriever.retrieve([question], 1)
    least = retriever.calibrator.refuse_below if config.refuse_below == CHOSEN else config.refuse_below
    return retriever.confidence(question, hits) < least


def _whole_sentence(written: str) -> str:
    """The first sentence of a text, with the white space around it, where the next has begun; empty where it may go on."""
    pieces = text.sentences(written)
    return written[: written.index(pieces[1], written.index(pieces[0]) + len(pieces[0]))] if len(pieces) > 1 else ""
