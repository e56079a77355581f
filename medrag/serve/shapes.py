"""The JSON that comes in and goes out, as OpenAPI tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

QUESTION_CHARACTERS = 2000
CONTENT_CHARACTERS = 8000
TURNS = 20
TEXTS = 64
DOCUMENTS = 100


def _joined(value: Any) -> Any:
    """The text of OpenAI's list of parts; what is no such list as it is."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return value


def _whole(value: Any) -> Any:
    """JSON knows no integers: 3.0 is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
Text = Annotated[str, Field(pattern=r"^[^\u0000]*$")]
Question = Annotated[
    str,
    Field(
        min_length=1,
        max_length=QUESTION_CHARACTERS,
        pattern=r"^[^\u0000]*[0-9A-Za-z\u4e00-\u9fff][^\u0000]*$",
        description="with at least one letter, digit or Chinese character, and no NUL",
    ),
]
Content = Annotated[Text, Field(max_length=CONTENT_CHARACTERS)]
Filled = Annotated[Text, Field(min_length=1, max_length=CONTENT_CHARACTERS)]
Name = Annotated[Text, Field(max_length=64)]


class Strict(BaseModel):
    """Ours: nothing but the fields that there are."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Lenient(BaseModel):
    """OpenAI's: fields that mean nothing here are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: Content


class AnswerRequest(Strict):
    question: Question
    history: list[Turn] = Field(default_factory=list, max_length=TURNS, description="earlier turns, oldest first, without the question")
    k: Annotated[int, Field(ge=1, le=20), Whole] | None = Field(None, description="passages shown; those that sentences rest on are always shown")
    method: Name | None = Field(None, description="one of /v1/models; the first where it is not said")
    stream: bool = False


class Sentence(BaseModel):
    text: str
    passage: int | None = Field(description="number of the passage that supports it, from 1; null: none does")
    support: float


class Passage(BaseModel):
    id: str
    score: float
    source: str
    title: str
    text: str


class Flags(BaseModel):
    emergency: str = Field(description="kind of the emergency that a rule has found; empty: none")
    redacted: dict[str, int] = Field(description="pieces of personal data that were replaced in the question, by placeholder")
    withheld: dict[str, int] = Field(description="sentences left out of the answer, by reason")
    follow_up: bool = Field(description="whether the question was read together with the one before it")


class Versions(Strict):
    medrag: Name
    model: Annotated[Text, Field(max_length=128)]
    index: Annotated[Text, Field(max_length=128)] = ""


class Response(BaseModel):
    id: str
    question: str
    answer: str
    refused: bool
    reason: str = Field(description="of a refusal: no_answer, unsupported_dose, weak_evidence, prescription")
    confidence: float
    certainty: str = Field(description="the confidence in words: 较高, 中等, 较低; empty for refusals and emergencies")
    sentences: list[Sentence]
    passages: list[Passage]
    flags: Flags
    method: str
    versions: Versions
    label: str


class Verdict(Strict):
    id: Annotated[str, Field(pattern=r"^ans-[0-9a-f]{32}$")]
    verdict: Literal["up", "down"]
    method: Name
    versions: Versions


class Part(Lenient):
    type: Literal["text"]
    text: Content


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Content, BeforeValidator(_joined, json_schema_input_type=Content | list[Part])]


class StreamOptions(Lenient):
    include_usage: bool = False


class ChatRequest(Lenient):
    model: Name
    messages: list[Message] = Field(min_length=1, max_length=2 * TURNS, description="the last one is the question, the user's")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1), Whole] | None = 1


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: ChatMessage
    finish_reason: Literal["stop"] = "stop"


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    citations: list[Passage]
    medrag: Response


class EmbeddingsRequest(Lenient):
    model: Name
    input: Filled | Annotated[list[Filled], Field(min_length=1, max_length=TEXTS)]
    encoding_format: Literal["float", "base64"] | None = "float"
    input_type: Literal["query", "passage"] | None = Field("query", description="which of the two encoders: of questions or of passages")


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class RerankRequest(Lenient):
    query: Question
    documents: list[Filled] = Field(min_length=1, max_length=DOCUMENTS)
    top_n: Annotated[int, Field(ge=1), Whole] | None = None
    model: Name | None = None
    return_documents: bool = False


class Document(BaseModel):
    text: str


class Ranked(BaseModel):
    index: int
    relevance_score: float = Field(description="the inner product of the encoders; only its order means something")
    document: Document | None = None


class RerankResponse(BaseModel):
    model: str
    results: list[Ranked]
    versions: Versions


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["medrag"] = "medrag"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    status: str


class Error(BaseModel):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorResponse(BaseModel):
    error: Error
