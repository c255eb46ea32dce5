"""A rubric's JSON schema in the dialect that each service takes.

Rubrics of this package are closed with every key required, which both services take as it is (apart from an added
key order for Gemini); the conversions are for users' own schemas. Replies are validated by the rubric, not by these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isr.errors import UsageError

__all__ = ["for_gemini", "for_openai"]

#: What Gemini's `responseJsonSchema` documents (API reference, GenerationConfig).
_GEMINI = frozenset(
    [
        "$id",
        "$defs",
        "$ref",
        "$anchor",
        "type",
        "format",
        "title",
        "description",
        "enum",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "anyOf",
        "oneOf",
        "properties",
        "additionalProperties",
        "required",
        "propertyOrdering",
    ]
)
#: What OpenAI's strict structured outputs document. String lengths are not among them.
_OPENAI = frozenset(
    [
        "$defs",
        "$ref",
        "type",
        "format",
        "title",
        "description",
        "enum",
        "const",
        "pattern",
        "items",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "anyOf",
        "properties",
        "additionalProperties",
        "required",
    ]
)
#: Keywords that decide what is valid, so that dropping them would ask for something else.
_UNTRANSLATABLE = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")


def _walk(schema: Any, path: str, service: str) -> dict[str, Any]:
    """Shared steps: `allOf` of one and `const` are rewritten, what cannot be expressed raises."""
    if not isinstance(schema, Mapping):
        raise UsageError(f"reply schema at {path}: expected an object, got {type(schema).__name__}")
    node = dict(schema)
    if "allOf" in node:
        parts = node.pop("allOf")
        if not isinstance(parts, list) or len(parts) != 1:
            raise UsageError(
                f"reply schema at {path}: {service} does not take 'allOf'; write the combined object instead"
            )
        node = {**parts[0], **node}
    for keyword in _UNTRANSLATABLE:
        if keyword in node:
            raise UsageError(
                f"reply schema at {path}: {service} does not take {keyword!r}; write the schema without it"
            )
    return node


def for_openai(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as strict structured output wants it: every object closed, every key required (optional ones become
    nullable), only the documented keywords.

    Raises:
        UsageError: the schema says something that strict mode cannot express (free-form objects, `not`, …).
    """
    root = _openai(schema, "$")
    if root.get("type") != "object":
        raise UsageError("reply schema: strict structured output wants an object at the top")
    return root


def _openai(schema: Any, path: str) -> dict[str, Any]:
    node = _walk(schema, path, "strict structured output")
    if "$ref" in node:
        kept: dict[str, Any] = {"$ref": node["$ref"]}
        if "$defs" in node:
            kept["$defs"] = {k: _openai(v, f"{path}.$defs.{k}") for k, v in node["$defs"].items()}
        return kept
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    out = {key: value for key, value in node.items() if key in _OPENAI}
    if "properties" in out or out.get("type") == "object":
        properties = out.get("properties") or {}
        if node.get("additionalProperties") not in (None, False) or not properties:
            raise UsageError(
                f"reply schema at {path}: strict structured output wants every key of an object named in 'properties'"
            )
        required = set(node.get("required", ()))
        out["properties"] = {
            key: _openai(value, f"{path}.{key}") if key in required else _nullable(_openai(value, f"{path}.{key}"))
            for key, value in properties.items()
        }
        out["required"] = list(properties)
        out["additionalProperties"] = False
    for key in ("anyOf",):
        if key in out:
            out[key] = [_openai(value, f"{path}.{key}[{i}]") for i, value in enumerate(out[key])]
    if "items" in out:
        out["items"] = _openai(out["items"], f"{path}.items")
    if "$defs" in out:
        out["$defs"] = {key: _openai(value, f"{path}.$defs.{key}") for key, value in out["$defs"].items()}
    return out


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    kind = node.get("type")
    if isinstance(kind, str) and "enum" not in node and "const" not in node:
        return node if kind == "null" else {**node, "type": [kind, "null"]}
    if isinstance(kind, list) and "null" in kind:
        return node
    return {"anyOf": [node, {"type": "null"}]}


def for_gemini(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with the keywords that Gemini documents, and `propertyOrdering` on every object, so that reasons are
    written before the answers.

    Raises:
        UsageError: the schema says something that Gemini's dialect cannot express.
    """
    return _gemini(schema, "$")


def _gemini(schema: Any, path: str) -> dict[str, Any]:
    node = _walk(schema, path, "Gemini")
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "$ref" in node:  # no other keyword may stand beside a reference
        node = {key: value for key, value in node.items() if key.startswith("$")}
    out = {key: value for key, value in node.items() if key in _GEMINI}
    for key in ("properties", "$defs"):
        if key in out:
            out[key] = {name: _gemini(value, f"{path}.{name}") for name, value in out[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in out:
            out[key] = [_gemini(value, f"{path}.{key}[{i}]") for i, value in enumerate(out[key])]
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), Mapping):
            out[key] = _gemini(out[key], f"{path}.{key}")
    if out.get("properties"):
        out.setdefault("propertyOrdering", list(out["properties"]))
    return out
