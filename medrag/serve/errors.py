"""What goes wrong, in one form: OpenAI's, in Chinese, without a word of what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from medrag.serve import shapes

MESSAGES: dict[str, tuple[int, str, str]] = {
    "not_http": (400, "invalid_request_error", "收到的不是有效的 HTTP 请求。"),
    "unauthorized": (401, "authentication_error", "需要口令：请在 Authorization 中提供（Bearer 口令，或以口令为密码的 Basic）。"),
    "forbidden_host": (403, "permission_error", "只接受发往本机地址的请求。"),
    "not_found": (404, "invalid_request_error", "没有这个地址。"),
    "unknown_method": (404, "invalid_request_error", "没有这个方法或模型；可用的见 /v1/models。"),
    "method_not_allowed": (405, "invalid_request_error", "这个地址不接受这种请求方法。"),
    "too_slow": (408, "timeout_error", "请求发送得太慢，连接已关闭。"),
    "too_large": (413, "invalid_request_error", "请求体超过 256 KB。"),
    "not_json": (415, "invalid_request_error", "请求体必须是 application/json。"),
    "invalid": (422, "invalid_request_error", "请求的内容不符合要求。"),
    "headers_too_large": (431, "invalid_request_error", "请求头超过 64 KB。"),
    "busy": (429, "rate_limit_error", "现在提问的人太多，请稍后再试。如情况紧急，请立即拨打120或前往最近的急诊。"),
    "not_ready": (503, "server_error", "服务还没有准备好，请稍后再试。如情况紧急，请立即拨打120或前往最近的急诊。"),
    "failed": (503, "server_error", "回答时出了错，请重试。如情况紧急，请立即拨打120或前往最近的急诊。"),
    "feedback_failed": (503, "server_error", "评价没有保存成功，请稍后再试。"),
    "deadline": (504, "timeout_error", "回答超时，请稍后再试。如情况紧急，请立即拨打120或前往最近的急诊。"),
}
"""code -> status, type, message"""
BODY_BYTES = 256 * 1024
_SAID = {
    "missing": "缺少这一项",
    "extra_forbidden": "有不认识的项",
    "string_too_long": "太长",
    "string_too_short": "太短",
    "too_long": "太多",
    "too_short": "太少",
    "literal_error": "不是允许的值",
    "greater_than_equal": "太小",
    "less_than_equal": "太大",
    "string_pattern_mismatch": "含有不允许的字符，或没有文字",
    "json_invalid": "不是有效的 JSON",
}
_FIELDS = frozenset(name for kind in vars(shapes).values() if isinstance(kind, type) and issubclass(kind, BaseModel) for name in kind.model_fields)


def body(code: str, param: str | None = None, message: str = "") -> dict[str, Any]:
    """``{"error": {...}}`` of a code."""
    _, kind, words = MESSAGES[code]
    return {"error": {"message": message or words, "type": kind, "code": code, "param": param}}


def answer(code: str, headers: Mapping[str, str] | None = None, param: str | None = None, message: str = "") -> JSONResponse:
    """The response to a request that cannot be served."""
    return JSONResponse(body(code, param, message), MESSAGES[code][0], dict(headers or {}))


def invalid(errors: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """What is wrong with a request's body: which field, in which way; names that are not ours are not repeated."""
    found = []
    for error in errors[:5]:
        kind = str(error.get("type"))
        parts = () if kind == "json_invalid" else error.get("loc", ())[1:]
        place = ".".join(str(part) for part in parts if isinstance(part, int) or part in _FIELDS)
        found.append((place, _SAID.get(kind, "类型或取值不对")))
    words = "；".join(f"{place or '请求体'}：{said}" for place, said in dict(found).items())
    return answer("invalid", param=next((place for place, _ in found if place), None), message=f"请求的内容不符合要求：{words}。")


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` of a route: these codes and those of every route."""
    statuses = sorted({MESSAGES[code][0] for code in ("unauthorized", "forbidden_host", *codes)})
    found: dict[int | str, dict[str, Any]] = {status: {"model": shapes.ErrorResponse, "description": "an error"} for status in statuses}
    for status in (429, 503):
        if status in found:
            found[status] |= {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}}
    return found


ASKED = ("too_slow", "too_large", "not_json", "invalid", "busy", "not_ready", "deadline")
"""codes of every route with a body that a worker answers"""
