"""The JSON Schemas of family files and of lists, for editors, from the models that the readers
check with.

They never refuse what the readers take. The readers refuse more: what a file refers to (stages in
`pairs`, folders).
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from shadow.targets.forms import FamiliesForm, ListForm

Schema = dict[str, Any]


class _Draft7(GenerateJsonSchema):
    """As an editor reads YAML: 1.10 and `yes` are a number and a boolean there, which the readers
    take for the text that they are; null is what no file says.
    """

    schema_dialect = "http://json-schema.org/draft-07/schema#"

    def str_schema(self, schema: Any) -> Schema:
        text = super().str_schema(schema)
        if "pattern" in text:
            return {"anyOf": [text, {"type": ["number", "boolean"]}]}
        return {"type": ["string", "number", "boolean", "null"]}

    def nullable_schema(self, schema: Any) -> Schema:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Schema:
        described = super().default_schema(schema)
        if not described.get("default"):
            described.pop("default", None)
        return described

    def model_schema(self, schema: Any) -> Schema:
        self._form: type[BaseModel] = schema["cls"]
        return super().model_schema(schema)

    def model_fields_schema(self, schema: Any) -> Schema:
        form = self._form  # a model within it is another
        made = super().model_fields_schema(schema)
        for field, text in _described(form).items():
            made["properties"][form.model_fields[field].alias or field]["description"] = text
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def family_schema() -> Schema:
    """JSON Schema, draft 7, which every editor knows."""
    return _schema(FamiliesForm)


def list_schema() -> Schema:
    """JSON Schema, draft 7, of the file that `--list` takes."""
    return _schema(ListForm)


def _schema(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(ref_template="#/definitions/{model}", schema_generator=_Draft7)
    definitions = schema.pop("$defs")
    kinds = [schema.pop("type"), "null"]  # a file may be empty
    return {"$schema": _Draft7.schema_dialect, **schema, "type": kinds, "definitions": definitions}


def _described(form: type[BaseModel]) -> dict[str, str]:
    """The texts below the fields of a model. pydantic would look for them at every import, among
    all modules that are loaded.
    """
    (body,) = ast.parse(inspect.getsource(form)).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
