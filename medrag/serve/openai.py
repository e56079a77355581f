"""Routes that OpenAI's clients know, and reranking as others know it."""

from __future__ import annotations

import base64
import json
import time
from array import array
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from medrag import privacy
from medrag.serve import errors, shapes
from medrag.serve.asking import Asked, Desk, UnknownMethodError, screen
from medrag.serve.pool import Failed, NotReady
from medrag.serve.process import Job
from medrag.serve.streams import EVENTS, EVENTS_TOO, QUIET, unless_gone


class BadMessagesError(ValueError):
    """The last message is not the user's, or holds no question."""


def routes(app: FastAPI, desk: Desk, created: int) -> None:
    """Add ``/v1/chat/completions``, ``/v1/embeddings``, ``/v1/models`` and ``/rerank`` to an application started at ``created`` (Unix time)."""
    asked_of_models = errors.documented(*errors.ASKED, "unknown_method")

    @app.exception_handler(BadMessagesError)
    async def _bad(_: Request, error: BadMessagesError) -> Response:
        return errors.answer("invalid", param="messages", message=f"最后一条消息必须来自 user，是不超过 {shapes.QUESTION_CHARACTERS} 字的问题。")

    @app.post("/v1/chat/completions", response_model=shapes.ChatResponse, responses=EVENTS_TOO | asked_of_models)
    async def chat(request: Request, body: Annotated[shapes.ChatRequest, Body()]) -> Response:
        """The last message is the question, the user's messages before it the dialogue; what a system message says is not followed.

        ``citations`` are the passages, ``medrag`` is the rest of what /v1/answers gives. Sampling settings are passed over.
        """
        note = request.scope["medrag"]
        method = desk.method(body.model)
        said = [message.content for message in body.messages if message.role == "user"]
        if body.messages[-1].role != "user" or not 0 < len(said[-1]) <= shapes.QUESTION_CHARACTERS or not said[-1].strip():
            raise BadMessagesError
        asked = screen(said[-1], said[:-1], note)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = _chunks(desk, asked, desk.enter(asked, method, None), method, usage, note)
            return StreamingResponse(events, media_type="text/event-stream", headers=EVENTS)
        found = await unless_gone(request, desk.answer(asked, method, None, note))
        return JSONResponse(
            {
                "id": _chat_id(found),
                "object": "chat.completion",
                "created": int(time.time()),
                "model": method,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": _labelled(found)}, "finish_reason": "stop"}],
                "usage": _usage(found),
                **_extra(found),
            }
        )

    @app.get("/v1/models", response_model=shapes.Models, responses=errors.documented())
    async def models() -> Response:
        """The methods that may be asked."""
        return JSONResponse({"object": "list", "data": [_model(name, created) for name in desk.methods]})

    @app.get("/v1/models/{name}", response_model=shapes.Model, responses=errors.documented("unknown_method", "invalid"))
    async def model(name: str) -> Response:
        """One of them."""
        return JSONResponse(_model(desk.method(name), created))

    @app.post("/v1/embeddings", response_model=shapes.EmbeddingsResponse, responses=asked_of_models)
    async def embeddings(request: Request, body: Annotated[shapes.EmbeddingsRequest, Body()]) -> Response:
        """Vectors of the retriever's encoders; their inner product is the dense score. Personal data are replaced first."""
        _need_vectors(desk, body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        job = {"do": "embed", "texts": [privacy.redact(text)[0] for text in texts], "passages": body.input_type == "passage"}
        found = await unless_gone(request, desk.pool.ask(job))
        vectors = [_base64(vector) if body.encoding_format == "base64" else vector for vector in found["vectors"]]
        data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors)]
        usage = {"prompt_tokens": found["tokens"], "completion_tokens": 0, "total_tokens": found["tokens"]}
        return JSONResponse({"object": "list", "model": body.model, "data": data, "usage": usage})

    @app.post("/rerank", response_model=shapes.RerankResponse, responses=asked_of_models)
    @app.post("/v1/rerank", response_model=shapes.RerankResponse, responses=asked_of_models, include_in_schema=False)
    async def rerank(request: Request, body: Annotated[shapes.RerankRequest, Body()]) -> Response:
        """Documents by the inner product of their vectors with the query's, best first."""
        name = _need_vectors(desk, body.model)
        documents = [privacy.redact(document)[0] for document in body.documents]
        found = await unless_gone(request, desk.pool.ask({"do": "rerank", "query": privacy.redact(body.query)[0], "documents": documents}))
        order = sorted(range(len(documents)), key=lambda place: -found["scores"][place])[: body.top_n]
        results = [
            {"index": place, "relevance_score": found["scores"][place]}
            | ({"document": {"text": body.documents[place]}} if body.return_documents else {})
            for place in order
        ]
        return JSONResponse({"model": name, "results": results, "versions": found["versions"]})


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "medrag"}


def _need_vectors(desk: Desk, name: str | None) -> str:
    """The method's name. Raises UnknownMethodError where it, or every method, cannot encode texts that stand in no index."""
    method = desk.method(name)
    if desk.pool.generation is None:
        raise NotReady
    if not desk.pool.generation.vectors:
        raise UnknownMethodError
    return method


def _labelled(found: Mapping[str, Any]) -> str:
    return f"{found['answer']}\n\n【{found['label']}】"


def _chat_id(found: Mapping[str, Any]) -> str:
    return f"chatcmpl-{found['id'].removeprefix('ans-')}"


def _usage(found: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the method's vocabulary; none where a rule has answered."""
    prompt, completion = found["usage"]["prompt"], found["usage"]["completion"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _extra(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"citations": found["passages"], "medrag": {name: value for name, value in found.items() if name != "usage"}}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


async def _chunks(desk: Desk, asked: Asked, job: Job | None, method: str, usage: bool, note: dict[str, Any]) -> AsyncIterator[str]:
    """OpenAI's chunks. What was said stands: where the response differs in the end, as a refusal does, that is said behind it."""
    base: dict[str, Any] = {"id": "", "object": "chat.completion.chunk", "created": int(time.time()), "model": method}
    base["id"] = f"chatcmpl-{time.time_ns():x}"

    def chunk(delta: dict[str, str], finish: str | None = None, **extra: Any) -> str:
        more = {"usage": None} if usage else {}
        return _data(base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more | extra)

    yield chunk({"role": "assistant", "content": ""})
    told = ""
    try:
        async for piece in desk.stream(asked, job, note):
            if piece is None:
                yield QUIET
            elif isinstance(piece, str):
                told += piece
                yield chunk({"content": piece})
            else:
                rest = _labelled(piece)
                if told and not rest.startswith(told):
                    rest = f"\n\n〔以上文字依据不足，不作为回答〕\n{rest}"
                yield chunk({"content": rest.removeprefix(told)})
                yield chunk({}, "stop", **_extra(piece))
                if usage:
                    yield _data(base | {"choices": [], "usage": _usage(piece)})
    except (Failed, TimeoutError) as error:
        yield _data(errors.body("deadline" if isinstance(error, TimeoutError) else "failed"))
    yield "data: [DONE]\n\n"


def _data(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
