"""A tiny world for the tests: thirty questions, and real models with random weights, fixed seeds, no dropout and no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import ROOT, medrag
from torch import nn

from medrag import encoder, generator, search
from medrag.encoder import Encoder
from medrag.generator import Generator
from medrag.retriever import Retriever
from medrag.search import Search
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.vocabulary import Sentencepiece, Wordpiece

QUESTIONS_AND_ANSWERS = (
    ("孕期可以喝咖啡吗？", "可以少喝，每天不超过一小杯。"),
    ("叶酸什么时候开始吃？", "怀孕前三个月开始吃，每天一片。"),
    ("孕妇感冒了能吃药吗？", "不要自己吃药，先去医院看医生。"),
    ("宝宝发烧怎么办？", "多喝水，超过三十八度五吃退烧药。"),
    ("宝宝几个月可以吃辅食？", "满六个月可以开始吃辅食。"),
    ("新生儿黄疸要紧吗？", "多数两周内消退，加重要去医院。"),
    ("产后多久可以运动？", "顺产六周后可以开始轻的运动。"),
    ("母乳不够怎么办？", "让宝宝多吸，妈妈多喝水多休息。"),
    ("怀孕了可以坐飞机吗？", "三十六周前一般可以，先问医生。"),
    ("孕期血糖高怎么办？", "少吃甜食，饭后走路，按时测血糖。"),
    ("孕吐很重怎么办？", "少吃多餐，吃不下水要去医院。"),
    ("月子里可以洗头吗？", "可以，水要热，洗后吹干。"),
    ("糖尿病能吃水果吗？", "血糖稳时可以少吃，饭后两小时吃。"),
    ("糖尿病怎么办？", "按时吃药，少吃甜食，每周测血糖。"),
    ("血压高能停药吗？", "不能自己停药，停药血压会回升。"),
    ("血压多少算高？", "在家测超过一三五就算高。"),
    ("降压药什么时候吃？", "多数早上吃，按医生说的时间吃。"),
    ("头痛怎么办？", "先休息，头痛很重要马上去医院。"),
    ("头晕是什么原因？", "血压、血糖和颈椎都会引起头晕。"),
    ("咳嗽两周了怎么办？", "超过两周要去医院拍片检查。"),
    ("感冒要吃消炎药吗？", "多数感冒是病毒引起，不要吃消炎药。"),
    ("胃痛能喝牛奶吗？", "胃痛时不要喝牛奶，喝热水休息。"),
    ("拉肚子吃什么药？", "先喝盐水，拉血要去医院。"),
    ("便秘怎么办？", "多喝水，多吃菜和水果，多运动。"),
    ("失眠怎么办？", "睡前不看手机，早上按时起床。"),
    ("腰痛可以运动吗？", "急性期要休息，好了再慢慢运动。"),
    ("痛风能吃海鲜吗？", "发作时不能吃海鲜，也不能喝酒。"),
    ("过敏了吃什么药？", "可以吃抗过敏药，呼吸难马上去医院。"),
    ("胸口痛要紧吗？", "胸口痛超过十分钟马上打急救电话。"),
    ("体检要空腹吗？", "抽血要空腹，前一天不要喝酒。"),
)


ASKED = [
    (0, "孕妇能不能喝咖啡"),
    (3, "孩子发烧了怎么办"),
    (3, "发烧三十九度吃什么药"),
    (13, "血糖高了怎么办"),
    (2, "怀孕感冒吃药"),
    (0, "咖啡和茶能喝吗"),
]
"""questions after the rows of the passages that answer them, in no order"""


@dataclass(frozen=True)
class Tiny:
    """The corpus, its vocabularies, and builders of models; the same seed gives the same weights."""

    passages: list[Passage]
    examples: list[Example]
    wordpiece: Wordpiece
    sentencepiece: Sentencepiece
    segmenter: Segmenter

    @property
    def library(self) -> dict[str, Passage]:
        return {passage.id: passage for passage in self.passages}

    @property
    def questions(self) -> list[str]:
        return [example.question for example in self.examples]

    def texts(self) -> list[str]:
        return [text for pair in QUESTIONS_AND_ANSWERS for text in pair]

    def encoder(self, seed: int = 0, pooling: str = "cls", similarity: str = "dot") -> Encoder:
        """Weights are drawn 25 times wider than ALBERT's: at its own 0.02 a random encoder gives every text the same vector."""
        torch.manual_seed(seed)
        config = encoder.Config(
            embedding=16, width=32, layers=2, heads=4, feed_forward=48, dropout=0.0, positions_tokens=64, pooling=pooling, similarity=similarity
        )
        made = encoder.build(config, self.wordpiece)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5)
        return made.eval()

    def generator(self, seed: int = 0) -> Generator:
        torch.manual_seed(seed)
        config = generator.Config(width=32, head_width=8, heads=4, layers=2, feed_forward=48, dropout=0.0)
        return generator.build(config, self.sentencepiece).eval()

    def retriever(
        self,
        seed: int = 0,
        remember: bool = True,
        lexical: bool = False,
        candidates: int = 200,
        fixed: bool = False,
        asked: Sequence[tuple[int, str]] = (),
    ) -> Retriever:
        """``remember``: all passages are indexed; ``fixed``: there is no passage encoder, as in joint training; ``asked``: questions, each
        after the row of its passage, that passages are found through."""
        made = Retriever(
            search.Config(question_tokens=32, passage_tokens=48),
            Search(kind="flat", candidates=candidates, lexical=["words", "characters"], questions=bool(asked), synonyms=""),
            self.wordpiece,
            self.encoder(seed),
            self.encoder(seed + 100),
            self.segmenter,
        ).eval()
        if remember:
            made.remember(self.passages, lexical=lexical, questions=asked)
        if fixed:
            made.context_encoder = None
        return made


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Every fifth passage has a title; an example's hard negative is the next passage. WordPiece drops what it sees once: it sees all twice."""
    count = len(QUESTIONS_AND_ANSWERS)
    passages = [
        Passage(f"p{number}", answer, "test", title=f"第{number}条" if number % 5 == 0 else "")
        for number, (_, answer) in enumerate(QUESTIONS_AND_ANSWERS)
    ]
    examples = [
        Example(f"e{number}", question, (answer,), (f"p{number}",), (f"p{(number + 1) % count}",), "maternal" if number < 12 else "consultation")
        for number, (question, answer) in enumerate(QUESTIONS_AND_ANSWERS)
    ]
    texts = [text for pair in QUESTIONS_AND_ANSWERS for text in pair]
    return Tiny(passages, examples, Wordpiece.build(texts * 2, 400), Sentencepiece.build(texts, 640), Segmenter())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a prepared corpus of 96 records, which training runs start from: each from a ``commands.copy_of`` its own."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:96]
    (folder / "some.jsonl").write_text("\n".join(lines), "utf-8")
    done = medrag("prepare", str(folder / "some.jsonl"), f"store={folder / 'store'}", "prepare.dev_share=0.1", "prepare.test_share=0.05")
    assert done.returncode == 0, done.stderr
    return folder / "store"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draws within a test do not depend on the tests before it; threads would only stand in each other's way on models this small."""
    torch.set_num_threads(1)
    torch.manual_seed(20)
