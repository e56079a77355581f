"""The application: routes, their documents, and what they give where something goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

import medrag
from medrag.serve import errors, openai, shapes
from medrag.serve.asking import Asked, Desk, UnknownMethodError, screen
from medrag.serve.feedback import Feedback
from medrag.serve.measures import Measures
from medrag.serve.pool import Failed, Full, NotReady, Pool
from medrag.serve.process import Job
from medrag.serve.settings import Config
from medrag.serve.shield import Shield
from medrag.serve.streams import EVENTS, EVENTS_TOO, QUIET, Gone, event, unless_gone

WEB = Path(__file__).parent.parent / "web"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def application(config: Config, token: str, evidence: int, pool: Pool, measures: Measures, feedback: Feedback) -> Shield:
    """The ASGI application. ``evidence``: passages shown where a request does not say how many."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        screen(config.golden_question, (), {})  # reads dictionaries and rules now, not with the first question
        await pool.start()
        yield
        await pool.stop()
        feedback.close()

    app = FastAPI(
        title="medrag", version=medrag.__version__, description="中文医疗问答：回答、依据与置信度。AI 生成，仅供参考，不能替代医生诊断。",
        docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False,
    )  # fmt: skip
    desk = Desk(pool, measures, config.methods, evidence)
    handle_errors(app)

    @app.post("/v1/answers", response_model=shapes.Response, responses=EVENTS_TOO | errors.documented(*errors.ASKED, "unknown_method"))
    async def answers(request: Request, body: Annotated[shapes.AnswerRequest, Body()]) -> Response:
        """A question's answer with its evidence. With ``stream`` server-sent events: ``piece`` ..., then ``answer`` (or ``error``), which stands."""
        note = request.scope["medrag"]
        method = desk.method(body.method)
        asked = screen(body.question, [turn.content for turn in body.history if turn.role == "user"], note)
        if not body.stream:
            response = await unless_gone(request, desk.answer(asked, method, body.k, note))
            del response["usage"]
            return JSONResponse(response)
        return StreamingResponse(_events(desk, asked, desk.enter(asked, method, body.k), note), media_type="text/event-stream", headers=EVENTS)

    @app.post("/v1/feedback", status_code=204, responses=errors.documented("too_slow", "too_large", "not_json", "invalid", "feedback_failed"))
    async def verdict(body: Annotated[shapes.Verdict, Body()]) -> Response:
        """A verdict on an answer; a second one takes the place of the first."""
        try:
            await asyncio.to_thread(feedback.put, body.id, body.verdict, body.method, body.versions.model_dump())
        except OSError as error:
            pool.complain(str(error))
            return errors.answer("feedback_failed", {"Retry-After": "5"})
        return Response(status_code=204)

    @app.get("/healthz", response_model=shapes.Status, responses=errors.documented())
    async def healthz() -> Response:
        """Whether the process lives."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", response_model=shapes.Status, responses=errors.documented("not_ready"))
    async def readyz() -> Response:
        """Whether model and index are loaded and a golden question has been answered."""
        if pool.serving:
            return JSONResponse({"status": "ready"})
        return errors.answer("not_ready", {"Retry-After": "2"})

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text format"}
    }

    @app.get("/metrics", response_class=Response, responses=text | errors.documented())
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    openai.routes(app, desk, int(time.time()))

    files = {f"/web/{path.name}": path for path in sorted(WEB.iterdir()) if path.suffix in TYPES}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(WEB / "index.html")

    @app.get("/web/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        found = files.get(f"/web/{name}")
        return _file(found) if found else errors.answer("not_found")

    routes = {route.path: route.methods or () for route in app.routes if isinstance(route, Route)}
    return Shield(app, config, token, pool, measures, routes)


def _file(path: Path) -> Response:
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


async def _events(desk: Desk, asked: Asked, job: Job | None, note: dict[str, Any]) -> AsyncIterator[str]:
    try:
        async for piece in desk.stream(asked, job, note):
            if piece is None:
                yield QUIET
            elif isinstance(piece, str):
                yield event("piece", {"text": piece})
            else:
                del piece["usage"]
                yield event("answer", piece)
    except (Failed, TimeoutError) as error:
        yield event("error", errors.body("deadline" if isinstance(error, TimeoutError) else "failed"))


def handle_errors(app: FastAPI) -> None:
    """Every exception as a response of one form, which repeats nothing that was sent."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return errors.invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def _other(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "invalid")
        return errors.answer(code, error.headers)

    @app.exception_handler(UnknownMethodError)
    async def _unknown(_: Request, error: UnknownMethodError) -> Response:
        return errors.answer("unknown_method", param="model")

    @app.exception_handler(Full)
    async def _full(_: Request, error: Full) -> Response:
        return errors.answer("busy", {"Retry-After": str(error.seconds)})

    @app.exception_handler(NotReady)
    async def _not_ready(_: Request, error: NotReady) -> Response:
        return errors.answer("not_ready", {"Retry-After": "2"})

    @app.exception_handler(Failed)
    async def _failed(_: Request, error: Failed) -> Response:
        return errors.answer("failed", {"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def _deadline(_: Request, error: TimeoutError) -> Response:
        return errors.answer("deadline")

    @app.exception_handler(Exception)
    async def _unforeseen(_: Request, error: Exception) -> Response:
        return errors.answer("failed", {"Retry-After": "1"})

    @app.exception_handler(Gone)
    async def _left(_: Request, error: Gone) -> Response:
        return Response(status_code=499)
