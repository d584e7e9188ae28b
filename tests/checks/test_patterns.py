"""Places as people write them, and what patterns ask of a place."""

import pytest

from shadow.checks.patterns import Patterns, Should, parse_pattern, pattern_or_name
from shadow.errors import UsageError
from shadow.places.architecture import Place

Q, EMBED, TOWER = (
    Place("language", 3, "attn.q"), Place("language", None, "embed"), Place("vision", 3, "attn.q")
)  # fmt: skip
DOWN, STACK = Place("language", 3, "experts.down", 5), Place("language", 3, "experts.down")
QKV = Place("language", 3, "attn.qkv")
BIAS = Place("language", 3, "bias", slot="attn.q")


@pytest.mark.parametrize(("covered", "texts"), [
    ({Q, EMBED, TOWER}, ["*"]),
    ({Q, EMBED}, ["language"]),
    ({Q, TOWER}, ["layers.3", "layers.*", "layers", "layers.attn", "layer.3.attn.q",
                  "attn.q.layers.3", "attn.q"]),
    ({Q}, ["language.layers.0-3.attn.*", "language.layers", "language.attn.*.layers.2-3",
           "language.attn"]),
    ({TOWER}, ["vision.layers.3.attn.q"]),
    ({EMBED}, ["*.embed", "embed"]),
    (set(), ["layers.4-7", "attn.layers.4", "layers.mlp"]),
])  # fmt: skip
def test_component_layers_and_module_may_each_be_left_out(covered, texts):
    for text in texts:
        assert {*filter(parse_pattern(text).covers, (Q, EMBED, TOWER))} == covered, text


@pytest.mark.parametrize(("text", "of_down", "of_stack"), [
    ("experts.5", True, False), ("layers.3.experts.4-7", True, False),
    ("language.experts.down.5", True, False), ("experts.*.0-5", True, False),
    ("experts.*", True, True), ("experts.4", False, False), ("experts.up.5", False, False),
    ("layers.2.experts.5", False, False),
])  # fmt: skip
def test_experts_have_numbers(text, of_down, of_stack):
    pattern = parse_pattern(text)
    assert (pattern.covers(DOWN), pattern.covers(STACK)) == (of_down, of_stack)


@pytest.mark.parametrize("wrong", [
    "experts.7-3", "experts.foo.3", "mlp.up.3", "attn.qq", "langage.embed", "layers.7-3", "",
    "a b", "x" * 300, "layers.3.foo", "layers.3.attn.q.layers.3", "layers.3x", "layersattn",
    "att",
])  # fmt: skip
def test_a_word_that_no_model_has_is_refused_with_the_nearest(wrong):
    with pytest.raises(UsageError) as caught:
        parse_pattern(wrong)
    assert caught.value.hint


@pytest.mark.parametrize(("frozen", "moved", "place", "asked"), [
    ("", "attn", Q, "move"),
    ("attn", "", Q, "stay"),
    ("attn.q", "language", Q, "stay"),
    ("mlp", "embed", Q, "either"),
    ("", "attn.q", QKV, "move either"),  # of which k and v are parts
    ("attn.k", "attn.q", QKV, "move stay either"),
    ("attn.k", "language", QKV, "move stay"),
    ("experts.0-2", "experts.3", STACK, "move stay either"),  # it may have more
    ("experts.0-2 experts.4-6", "experts.0-6", STACK, "move stay either"),
    ("experts.0-2 experts.4", "experts", STACK, "move stay"),
    ("experts.down", "experts.3", STACK, "stay"),
    ("", "experts", STACK, "move"),
    ("attn.q", "", BIAS, "stay"),  # a module that is frozen has its bias frozen
    ("attn.k", "", BIAS, "either"),
    ("", "attn.q", BIAS, "either"),  # and of one that moves, a bias may stay
    ("attn.q", "bias", BIAS, "stay"),
    ("attn.k", "bias", BIAS, "move"),
])  # fmt: skip
def test_what_is_asked_of_all_that_lies_at_a_place(frozen, moved, place, asked):
    each = [(Should.STAY, text) for text in frozen.split()]
    each += [(Should.MOVE, text) for text in moved.split()]
    found = Patterns([(should, parse_pattern(text)) for should, text in each]).at(place)
    assert found == {*asked.split()}
    assert Should.first(found) == asked.split()[0]


def test_a_pattern_names_a_place_that_the_model_has():
    """Part of a fused module, and experts of a stack; others are refused with what there is."""
    names = {"a": {QKV}, "b": {STACK}, "c": {EMBED}}
    for text in ("attn.q", "experts.4"):
        Patterns([(Should.STAY, parse_pattern(text))]).of_model(names)
    for text in ("vision", "mlp", "layers.2-4", "language.layers.4-9", "layers.0-999999"):
        with pytest.raises(UsageError) as caught:
            Patterns([(Should.STAY, parse_pattern(text))]).of_model(names)
        assert "layers.3" in caught.value.hint
    names["d"] = {DOWN}
    Patterns([(Should.STAY, parse_pattern("experts.0-5"))]).of_model(names)
    with pytest.raises(UsageError, match=r"experts\.6-9"):
        Patterns([(Should.STAY, parse_pattern("experts.0-9"))]).of_model(names)


@pytest.mark.parametrize("text", ["vision_tower", "vision_tower.encoder", "vision_tower."])
def test_any_other_word_is_the_beginning_of_names(text):
    """Up to a point of the name; one that begins none is refused as a misspelt pattern is."""
    names = {"vision_tower.encoder.q.weight": {TOWER}, "vision_towers.q.weight": {Q}}
    patterns = Patterns([(Should.STAY, pattern_or_name(text))])
    found = patterns.of_model(names)
    assert (found.at(TOWER), found.at(Q)) == ({Should.STAY}, {Should.EITHER})
    with pytest.raises(UsageError) as caught:
        patterns.of_model({"embed.weight": {EMBED}})
    assert caught.value.hint
