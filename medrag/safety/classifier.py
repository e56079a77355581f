"""How likely a question is to tell of an emergency, and of which kind: for words that no rule has thought of.

Two linear models over characters, one for emergency or not, one for which kind; to the first a small convolution (``network``) is added.

A question is cut into clauses; single characters, pairs, triples and pairs of characters a little apart are counted as there or not there, after
words for people and numbers have been put into classes, and so are the rules that match. ``tests/benchmarks/emergencies.py`` fits the weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medrag.safety.network import WIDTHS, Network
from medrag.safety.rules import denied_left_out

_FILE = Path(__file__).with_name("weights.npz")
_READ_MAX = 600
"""characters of a question that are looked at from either end: what a question asks stands in its beginning or its end"""
_SURELY_NOT = -6.0
"""score of the linear model below which the convolution is not asked"""
_CLAUSES = re.compile(r"[，。；！？、…~,;!?\s]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_BUCKETS = ((3, "一"), (10, "三"), (28, "十"), (36, "卅"), (38, "度"), (43, "烧"), (90, "半"), (140, "百"), (10**9, "高"))
_GROWN = (
    "爸爸 妈妈 我爸 我妈 爸 妈 爷爷 奶奶 爷 奶 姥姥 姥爷 外公 外婆 公公 婆婆 老公 老婆 丈夫 妻子 媳妇 老伴 老头子 老头儿 老头 老爷子 "
    "老太太 老太 父亲 母亲 俺爹 俺娘 爹 娘 大爷 大妈 大伯 大叔 大姐 大哥 叔叔 叔 伯伯 阿姨 婶 舅舅 舅 姑姑 姨 哥哥 哥 姐姐 姐 弟弟 弟 妹妹 妹 "
    "同事 室友 同学 朋友 邻居 工友 师傅 男朋友 女朋友 对象 老人家 老人 阿公 阿嫲 阿婆 老妈 老爸 爱人 二叔 岳父 岳母 丈母娘"
)
_YOUNG = (
    "孩子 小孩子 小孩 宝宝 宝贝 宝 娃娃 娃儿 娃 婴儿 新生儿 儿子 女儿 闺女 孙子 孙女 外孙 侄子 侄女 外甥 小朋友 小儿 崽 小宝 大宝 小家伙 毛毛 毛头"
)


def _any(words: str) -> re.Pattern[str]:
    return re.compile("|".join(sorted(words.split(), key=len, reverse=True)))


_PEOPLE, _CHILDREN = _any(_GROWN), _any(_YOUNG)


def classed(asked: str) -> str:
    """A cleaned question in lower case with words for people, numbers and what is denied put into classes; of a very long one both ends."""
    if len(asked) > 2 * _READ_MAX:
        asked = asked[:_READ_MAX] + "，" + asked[-_READ_MAX:]
    asked = denied_left_out(asked)
    return _NUMBER.sub(_bucket, _CHILDREN.sub("K", _PEOPLE.sub("P", asked)))


def features(text: str, rules: Iterable[str]) -> set[str]:
    """What the linear models look at in a ``classed`` question, of which ``rules`` are the kinds whose rules match."""
    found = {f"rule:{kind}" for kind in rules}
    if found:
        found.add("rule")
    for clause in _CLAUSES.split(text):
        found.update(_grams(f"^{clause}$"))
    return found


def _bucket(match: re.Match[str]) -> str:
    number = float(match[0][:9])
    return next((name for below, name in _BUCKETS if number < below), "高")


def _grams(clause: str) -> Iterator[str]:
    yield from clause
    yield from map("".join, pairwise(clause))
    yield from map("".join, zip(clause, clause[1:], clause[2:], strict=False))
    for apart in (2, 3, 4):
        yield from map("_".join, zip(clause, clause[apart:], strict=False))


@dataclass(frozen=True, slots=True)
class Models:
    """Weights of all models."""

    row: dict[str, int]
    """feature -> row"""
    alarm: dict[str, float]
    """feature -> weight of the model that tells emergencies from the rest"""
    bias: float
    threshold: float
    kinds: tuple[str, ...]
    kind: NDArray[np.float32]
    """(rows, kinds) of the model that tells kinds apart"""
    kind_bias: NDArray[np.float32]
    network: Network

    def score(self, text: str, found: set[str]) -> float:
        """Of a ``classed`` question with its features: above 0 where the models take it for an emergency."""
        alarm = self.alarm
        known = math.fsum([alarm[name] for name in found if name in alarm]) / math.sqrt(max(len(found), 1)) + self.bias - self.threshold
        return known + self.network.score(text) if known > _SURELY_NOT else known

    def name(self, found: set[str]) -> tuple[str, float]:
        """The likeliest kind, and its share."""
        rows = sorted(self.row[name] for name in found if name in self.row)
        logits = self.kind[rows].sum(0) / math.sqrt(max(len(found), 1)) + self.kind_bias
        shares = np.exp(logits - logits.max())
        best = int(shares.argmax())
        return self.kinds[best], float(shares[best] / shares.sum())


def write(models: Models, path: Path) -> None:
    """One file without pickled objects, the same bytes for the same weights: in half precision, those of kinds in 8 bits."""
    scale = float(np.abs(models.kind).max() / 127)
    network = models.network
    said = {
        "bias": models.bias,
        "threshold": models.threshold,
        "kinds": models.kinds,
        "kind_scale": scale,
        "kind_bias": models.kind_bias.tolist(),
        "names": list(models.row),
        "letters": network.row,
        "network_bias": network.bias,
    }
    np.savez_compressed(
        path,
        said=np.frombuffer(json.dumps(said, ensure_ascii=False).encode(), np.uint8),
        alarm=np.array(list(models.alarm.values()), np.float16),
        kind=np.round(models.kind / scale).astype(np.int8),
        vectors=network.vectors_VD.astype(np.float16),
        filters=np.concatenate(network.filters).astype(np.float16),
        biases=network.biases.astype(np.float16),
        out=network.out.astype(np.float16),
    )


def load(path: Path) -> Models:
    """What ``write`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        said = json.loads(bytes(file["said"]).decode())
        array = {name: file[name].astype(np.float32) for name in file.files if name != "said"}
    ends = np.cumsum([width * array["vectors"].shape[1] for width in WIDTHS])
    filters = tuple(np.split(array["filters"], ends[:-1]))
    names = said["names"]
    return Models(
        dict(zip(names, range(len(names)), strict=True)),
        dict(zip(names, array["alarm"].tolist(), strict=True)),
        said["bias"],
        said["threshold"],
        tuple(said["kinds"]),
        array["kind"] * np.float32(said["kind_scale"]),
        np.array(said["kind_bias"], np.float32),
        Network(said["letters"], array["vectors"], filters, array["biases"], array["out"], said["network_bias"]),
    )


@cache
def models() -> Models:
    """The shipped weights, read once."""
    return load(_FILE)
