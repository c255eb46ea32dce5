"""Checks that both imitated services make on a request, and a reply that fits any JSON schema."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/webp": b"RIFF"}


class Rejected(Exception):  # noqa: N818 - an answer, not a failure of the server
    """The service would refuse this request."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Seen:
    """One request as the service understood it.

    Attributes:
        model: as asked for. system: the instructions. text: the user's text parts. pictures: decoded bytes, in order.
        settings: everything of the body besides messages, pictures and schema. schema: of the reply.
        key: whether a key came, and by which header; never the key. headers: the others. body_bytes: size of the body.
    """

    model: str
    path: str
    system: str
    text: list[str]
    pictures: list[bytes]
    schema: dict[str, Any]
    settings: dict[str, Any]
    key: str
    headers: dict[str, str]
    body_bytes: int
    raw: bytes = field(repr=False, default=b"")


Answer = Callable[[Seen], str]


def only(where: str, value: Any, allowed: Iterable[str], *, gemini: bool = False) -> dict[str, Any]:
    """`value` is an object with no other keys."""
    if not isinstance(value, dict):
        raise Rejected(400, f"Invalid value at '{where}': expected an object")
    for key in value:
        if key not in allowed:
            if gemini:
                raise Rejected(
                    400, f"Invalid JSON payload received. Unknown name \"{key}\" at '{where}': Cannot find field."
                )
            raise Rejected(400, f"Unrecognized request argument supplied: {key}", "unknown_parameter")
    return value


_STANDARD = str.maketrans("-_", "+/")


def decode_picture(data: Any, mime: Any, *, url_safe: bool = False) -> bytes:
    """Strict base64 of a picture whose first bytes fit its type.

    url_safe: take the URL-safe alphabet too, as proto3 JSON does (google-genai writes it).
    """
    if mime not in MAGIC:
        raise Rejected(400, f"Unsupported MIME type: {mime}")
    if not isinstance(data, str) or not data:
        raise Rejected(400, "picture data is missing")
    try:
        raw = base64.b64decode(data.translate(_STANDARD) if url_safe else data, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(400, "Base64 decoding failed") from None
    if not raw.startswith(MAGIC[mime]):
        raise Rejected(400, "Unable to process input image. Please retry or report", "invalid_image")
    return raw


def as_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Rejected(400, "Invalid JSON payload received.") from None
    if not isinstance(value, dict):
        raise Rejected(400, "Invalid JSON payload received. Expected an object.")
    return value


def hashed_answer(seen: Seen) -> str:
    """A reply that fits the schema; its booleans are bits of a hash of text and pictures, so equal questions get equal
    answers and different ones do not all agree."""
    digest = hashlib.sha256("\n".join(seen.text).encode())
    for picture in seen.pictures:
        digest.update(picture)
    return json.dumps(fill(seen.schema, digest.digest()), ensure_ascii=False)


def constant_answer(value: bool) -> Answer:
    """A reply that fits the schema with every boolean the same."""
    return lambda seen: json.dumps(fill(seen.schema, (b"\xff" if value else b"\x00") * 32))


def fill(schema: dict[str, Any], bits: bytes, path: str = "") -> Any:
    """The smallest value that fits a closed schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], bits, path)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {key: fill(value, bits, f"{path}.{key}") for key, value in schema["properties"].items()}
    if kind == "array":
        return [fill(schema["items"], bits, path) for _ in range(schema.get("minItems", 0))]
    if kind == "boolean":
        return bool(bits[sum(path.encode()) % len(bits)] & 1)
    if kind in ("number", "integer"):
        return schema.get("minimum", 0)
    return "seen by the loopback server"
