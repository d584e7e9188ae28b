"""Contents of the files that people write, as pydantic models: families, lists and policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shadow.places.names import name_rules
from shadow.targets.checked import FaultError, Form, by
from shadow.targets.references import (
    MAX_ENTRIES,
    NAME,
    ComponentBase,
    Reference,
    one_target,
    pair_name,
    parse_checkpoint,
    parse_reference,
)
from shadow.text import VERY_LIKE, closest, nearest, short

if TYPE_CHECKING:
    Component = str
else:
    Component = Literal[name_rules().components]

Ref = Annotated[Reference, BeforeValidator(by(parse_reference))]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Word = Annotated[str, StringConstraints(min_length=1)]


def _one_word(text: str) -> str:
    if len(text.split()) != 1:
        raise FaultError(f"{short(text)} is more than one pattern", "write [layers.0-7, embed]")
    return text


Pattern = Annotated[str, AfterValidator(_one_word)]


def _once(items: list[Any]) -> list[Any]:
    names = [str(item) for item in items]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise FaultError(f"{short(name)} is listed twice", "take one out", at)
    return items


ONCE = AfterValidator(_once)


class NamedCheckpoint(Form):
    """A checkpoint: org/name on the Hub, or a folder as ./DIR, ../DIR, /DIR or ~/DIR, relative to
    this file.
    """

    CALLED = "a checkpoint"
    TEXT = "repo"
    WRITTEN = (
        "write `org/name` or {repo: org/name, revision: ..., subfolder: ...}; only `base` may have"
        " one for each component"
    )

    repo: Ref
    revision: str | None = None
    subfolder: str | None = None

    @field_validator("subfolder")
    @classmethod
    def _stays_inside(cls, subfolder: str | None) -> str | None:
        if subfolder and (subfolder.startswith("/") or ".." in Path(subfolder).parts):
            raise FaultError(f"subfolder {short(subfolder)} leaves the checkpoint")
        return subfolder

    @property
    def reference(self) -> Reference:
        name = self.repo.repo
        if self.repo.is_folder and self.subfolder:
            return Reference(str(Path(name) / self.subfolder), True)
        revision = self.revision
        if revision is None:
            revision = self.repo.revision
        return Reference(name, self.repo.is_folder, revision, self.subfolder)


def _kind_of_base(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return "(one)"
    if value.keys() & name_rules().components:
        return "(by component)"
    if value.keys() & NamedCheckpoint.known():
        return "(one)"
    return "(by component)"


def _only_components(parts: dict[str, Any]) -> dict[str, Any]:
    if "repo" in parts:
        hint = "write vision: {repo: org/name, revision: ...}"
        raise FaultError("a base has either `repo` or components", hint, "repo")
    return parts


ByComponent = Annotated[
    dict[Component, NamedCheckpoint], Field(min_length=1), BeforeValidator(_only_components)
]
Base = Annotated[
    Annotated[NamedCheckpoint, Tag("(one)")] | Annotated[ByComponent, Tag("(by component)")],
    Discriminator(_kind_of_base),
]


class PairForm(Form):
    """Two stages to compare."""

    CALLED = "a pair"
    WRITTEN = "write base..sft or {from: base, to: sft}"

    start: str = Field(alias="from")
    to: str
    relation: Literal["tuned", "sibling"] = "tuned"

    @classmethod
    def of_text(cls, text: str) -> object:
        start, _, to = text.partition("..")
        if text.count("..") == 1:
            return {"from": start, "to": to}
        return text

    def __str__(self) -> str:
        return f"{self.start}..{self.to}"


class FamilyForm(Form):
    """Named stages of one lineage, and the pairs of them that are worth comparing."""

    model_config = ConfigDict(extra="allow")
    CALLED = "a family"
    WRITTEN = "write `base: org/name` and one more stage below it"
    __pydantic_extra__: dict[str, NamedCheckpoint] = Field(init=False)

    base: Base | None = None
    pairs: Annotated[list[PairForm], ONCE] | None = None
    tags: Annotated[list[Name], ONCE] = Field([])
    source: str | None = None
    note: str | None = None

    @classmethod
    def check_key(cls, key: str) -> None:
        if key in cls.known():
            return
        if alike := closest(key.lower(), cls.known()[1:], VERY_LIKE):
            message = f"stage {key!r} looks like the reserved key {alike!r}"
            raise FaultError(message, f"did you mean {alike!r}?", key)
        is_free = key not in {*NamedCheckpoint.known(), *PairForm.known()} and ".." not in key
        if not is_free or not NAME.fullmatch(key):
            hint = "letters, digits, `_`, `-` and single dots; no key of a stage or a pair"
            raise FaultError(f"{short(key)} cannot name a stage", hint, key)

    @model_validator(mode="after")
    def _agrees(self) -> FamilyForm:
        stages = self.stages
        if self.base is None and self.pairs is None:
            hint = nearest("base", stages) or "add `base: org/name`, or `pairs` to compare"
            raise FaultError("it has no stage `base`", hint)
        if len(stages) < 2:
            raise FaultError(
                "it has fewer than two stages", "add one, such as `instruct: org/name`"
            )
        if self.pairs == [] and not self.note:
            hint = "say in `note` why there is nothing to compare, or leave `pairs` out"
            raise FaultError("`pairs` is empty and no `note` says why", hint, "pairs")
        for at, pair in enumerate(self.pairs or ()):
            for key, stage in (("from", pair.start), ("to", pair.to)):
                if stage not in stages:
                    hint = nearest(stage, stages) or f"stages: {', '.join(stages)}"
                    message = f"a pair names stage {short(stage)}, which is not there"
                    raise FaultError(message, hint, "pairs", at, key)
            if pair.start == pair.to:
                raise FaultError(f"a pair of {pair.to!r} with itself", pair.WRITTEN, "pairs", at)
            if isinstance(stages[pair.to], dict):
                message = f"`{pair.to}` is one per component and cannot be the tuned side"
                raise FaultError(message, f"write {pair.to}..{pair.start}", "pairs", at)
        return self

    @property
    def stages(self) -> dict[str, NamedCheckpoint | dict[str, NamedCheckpoint]]:
        """The stages by name, `base` first."""
        base = {} if self.base is None else {"base": self.base}
        return base | self.__pydantic_extra__


class FamiliesForm(RootModel[dict[Name, FamilyForm]]):
    """Each key is a family's name: what a person types after `shadow audit`."""


class TargetForm(Form):
    """A target of an audit, by its name."""

    CALLED = "an entry"
    TEXT = "target"
    WRITTEN = (
        "write a target alone, or base and tuned together, and a name if you like; options go with"
        " the command"
    )

    target: Annotated[str, BeforeValidator(by(lambda text, _: one_target(text)))]


class TwoCheckpointsForm(Form):
    """A pair that need not be in the registry."""

    CALLED = TargetForm.CALLED
    WRITTEN = TargetForm.WRITTEN
    ALSO = TargetForm.known()

    base: Ref
    tuned: Ref
    name: Annotated[str, BeforeValidator(by(lambda text, _: pair_name(text) and text))] | None = (
        None
    )


Entry = Annotated[
    Annotated[TargetForm, Tag("(target)")] | Annotated[TwoCheckpointsForm, Tag("(two)")],
    Discriminator(
        lambda value: "(two)" if isinstance(value, dict) and "target" not in value else "(target)"
    ),
]


class ListForm(RootModel[Annotated[list[Entry], Field(max_length=MAX_ENTRIES)]]):
    """Entries of `shadow audit --list`, in their order."""


class RuleForm(Form):
    """A condition on a figure; docs/ci.md says what each key is."""

    CALLED = "a rule"
    WRITTEN = "write `fail_on: language.mlp.up.concentration > 0.5` below it"

    fail_on: str | None = None
    moved: str | None = None
    severity: Literal["error", "warning"] = "error"
    message: str | None = None
    allow_missing: Literal["true", "false"] = "false"

    @model_validator(mode="after")
    def _has_one_condition(self) -> RuleForm:
        if (self.fail_on is None) == (self.moved is None):
            which = "both `fail_on` and"
            if self.moved is None:
                which = "neither `fail_on` nor"
            raise FaultError(f"it has {which} `moved`", "write one of them")
        return self


class PolicyForm(RootModel[Annotated[dict[Name, RuleForm], Field(min_length=1)]]):
    """Rules by their names."""


def _as_side(value: Any, info: ValidationInfo) -> Any:
    """Validate a checkpoint of a claim: a text, or a mapping of components to texts."""
    if isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
        value = ",".join(f"{component}={part}" for component, part in value.items())
    return by(parse_checkpoint)(value, info)


Side = Annotated[Reference | ComponentBase, BeforeValidator(_as_side)]


class ClaimForm(Form):
    """A claim for `shadow verify`; docs/verify.md says what each claim requires."""

    CALLED = "a claim"
    WRITTEN = "write `same ./a ./b`, or {claim: same, of: [./a, ./b]}"

    claim: Word
    of: list[Side] = Field(min_length=1, max_length=100)
    moved: list[Pattern] = Field(default=[])
    frozen: list[Pattern] = Field(default=[])
    base: Side | None = None
    headers: Annotated[bool, Field(strict=False)] = False  # `true` is a text here
    accept: dict[str, str] = Field(default={}, max_length=100)

    @classmethod
    def of_text(cls, text: str) -> object:
        claim, *of = text.split() or [""]
        if not of:
            raise FaultError(f"{short(text)} is not a claim about checkpoints", cls.WRITTEN)
        if any(word.startswith("--") for word in of):
            hint = f"write {{claim: {claim}, of: [./a, ./b], frozen: [embed]}}"
            raise FaultError(f"{short(text)}: a claim in one line has no options", hint)
        return {"claim": claim, "of": of}


class ClaimsForm(
    RootModel[Annotated[list[ClaimForm], Field(min_length=1, max_length=MAX_ENTRIES)]]
):
    """A list of claims."""


class CheckForm(Form):
    """A check for `shadow check`; docs/ci.md says what its sides are."""

    CALLED = "a check"
    TEXT = "model"
    WRITTEN = "write ./model, or {model: ./model, base: ./base}"

    model: Side
    base: Side | None = None
    adapter: Side | None = None
    full: Side | None = None
    headers: Annotated[bool, Field(strict=False)] = False
    drop_in: Annotated[bool, Field(strict=False)] = False
    accept: dict[str, str] = Field(default={}, max_length=100)


class ChecksForm(
    RootModel[Annotated[list[CheckForm], Field(min_length=1, max_length=MAX_ENTRIES)]]
):
    """A list of checks."""
