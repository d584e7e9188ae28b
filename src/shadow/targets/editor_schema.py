"""The JSON Schemas of family files and of lists, for editors: from the same constants that the
readers check with.

They never refuse what the readers take. The readers refuse more: what a file refers to (stages in
`pairs`, folders).
"""

from __future__ import annotations

from collections.abc import Mapping

from shadow.places.names import name_rules
from shadow.targets.families import NAME, PAIR_KEYS, REFERENCE_KEYS, RELATIONS, RESERVED
from shadow.targets.lists import ENTRY_KEYS, MAX_ENTRIES, MAX_TARGET

Schema = dict[str, object]  # a JSON Schema

# An editor takes 1.10 and `yes` for a number and a boolean; the reader takes them for the text that
# they are.
TEXT: Schema = {"type": ["string", "number", "boolean", "null"]}
WORD: Schema = {
    "anyOf": [{"type": "string", "pattern": f"^{NAME.pattern}$"}, {"type": ["number", "boolean"]}]
}
STAGE = f"^(?!.*\\.\\.){NAME.pattern}$"
FOLDER = r"^(\.{1,2}$|\.{1,2}/|/|~)"
ON_THE_HUB = r"^(?![^@]*\.\.)[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@|$)"


def family_schema() -> Schema:
    """JSON Schema, draft 7, which every editor knows."""
    components = name_rules().components
    reference: Schema = {"$ref": "#/definitions/reference"}
    by_component: Schema = {"$ref": "#/definitions/base_per_component"}
    base: Schema = {
        "description": "The base model; one for each component where the model was put together.",
        "anyOf": [reference, by_component],
    }
    parts: Schema = {
        "description": "Where each component came from; one that is not named has no base.",
        **_closed(dict.fromkeys(components, reference)),
        "minProperties": 1,
    }
    reserved = _described(
        RESERVED,
        pairs={"type": "array", "items": {"$ref": "#/definitions/pair"}, "uniqueItems": True},
        tags={"type": "array", "items": WORD, "uniqueItems": True},
        source=TEXT,
        note=TEXT,
    )
    properties: Schema = {"base": base, **reserved}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Families of a registry of shadow",
        "description": "Each key is a family's name: what a person types after `shadow audit`.",
        "type": ["object", "null"],
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": {"$ref": "#/definitions/family"},
        "definitions": {
            "family": {
                "description": (
                    "Named stages of one lineage, and the pairs of them that are worth comparing."
                ),
                "type": "object",
                "propertyNames": {"pattern": STAGE, "not": {"enum": [*REFERENCE_KEYS, *PAIR_KEYS]}},
                "properties": properties,
                "additionalProperties": reference,
                "anyOf": [{"required": ["base"]}, {"required": ["pairs"]}],
                "if": {"properties": {"pairs": {"maxItems": 0}}, "required": ["pairs"]},
                "then": {"required": ["note"]},
            },
            "reference": {
                "description": f"A checkpoint. {REFERENCE_KEYS['repo']}",
                "anyOf": [
                    {"$ref": "#/definitions/name"},
                    _closed(
                        _described(
                            REFERENCE_KEYS, repo=_ref("name"), revision=TEXT, subfolder=TEXT
                        ),
                        ["repo"],
                    ),
                ],
            },
            "name": {"type": "string", "anyOf": [{"pattern": FOLDER}, {"pattern": ON_THE_HUB}]},
            "base_per_component": parts,
            "pair": {
                "anyOf": [
                    {"type": "string", "pattern": r"^[A-Za-z0-9].*\.\."},
                    _closed(
                        _described(
                            PAIR_KEYS,
                            **{"from": WORD, "to": WORD},
                            relation={
                                "enum": list(RELATIONS),
                                "default": "tuned",
                                "description": _relations(),
                            },
                        ),
                        ["from", "to"],
                    ),
                ],
            },
        },
    }


def list_schema() -> Schema:
    """JSON Schema, draft 7, of the file that `--list` takes."""
    target: Schema = {"type": "string", "pattern": r"^\S+$", "maxLength": MAX_TARGET}
    checkpoint: Schema = {"type": ["string", "number"]}
    name: Schema = {"type": "string", "pattern": f"^{NAME.pattern}:{NAME.pattern}$"}
    keys = _described(ENTRY_KEYS, target=target, base=checkpoint, tuned=checkpoint, name=name)
    target_key = keys.pop("target")
    alone = _closed({"target": target_key}, ["target"])
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A list of targets of shadow",
        "description": "What `shadow audit --list` audits, one after another.",
        "type": ["array", "null"],
        "maxItems": MAX_ENTRIES,
        "items": {"anyOf": [target, alone, _closed(keys, ["base", "tuned"])]},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _described(texts: Mapping[str, str], **schemas: Schema) -> dict[str, Schema]:
    """Each key with its description; texts and schemas have to have the same keys."""
    assert list(texts) == list(schemas)
    return {key: {"description": text, **schemas[key]} for key, text in texts.items()}


def _closed(properties: Mapping[str, object], required: list[str] | None = None) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return schema


def _relations() -> str:
    return " ".join(f"{name}: {text}" for name, text in RELATIONS.items())
