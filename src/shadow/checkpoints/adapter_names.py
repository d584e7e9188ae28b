"""The modules of an adapter that have a name of its base: peft finds modules by name, not place.

Names in files are not always those of modules: transformers moves the language model of a wrapper,
and adds the first word of a model that was saved without its head.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from shadow.checkpoints.formats import owner_of
from shadow.checkpoints.safetensors_files import Tensors
from shadow.places.architecture import Place

MOVED = "model.language_model."  # where wrappers have their language model, since transformers 5
WITHIN = "language_model.model."  # where older files have it
WRAPPERS = ("_orig_mod", "language_model", "module")  # first words that no loader adds or drops
# files of Meta and Mistral, whose modules have other names in transformers
ORIGINAL = re.compile(r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.weight")
# modules that loaders rename or stack, and a head, which files lack where it is the embedding
CONVERTED = ("experts", "router", "shared", "head")


class BaseNames:
    """The names of a base's modules, as an adapter may have them."""

    def __init__(self, tensors: Tensors, components: Collection[str]) -> None:
        self._is_wrapped = len({*components} - {"other"}) > 1
        # of other programs, in whose files modules have other names
        self._is_foreign = any(
            ORIGINAL.fullmatch(name) or info.shard.endswith(".gguf")
            for name, info in tensors.items()
        )
        modules = {owner_of(name)[0] for name in tensors}
        self._forms = {form for module in modules for form in self._forms_of(module)}
        self._without_head = {form.partition(".")[2] for form in self._forms
                              if form.partition(".")[0] not in WRAPPERS}  # fmt: skip

    def _forms_of(self, module: str) -> Iterator[str]:
        """Yield the names of a module of a file when it is loaded."""
        yield module
        if module.startswith(WITHIN):
            yield MOVED + module.removeprefix(WITHIN)
        elif module.startswith(MOVED):
            yield WITHIN + module.removeprefix(MOVED)
        elif module.startswith("model.") and self._is_wrapped:
            yield MOVED + module.removeprefix("model.")

    def has(self, module: str, place: Place) -> bool:
        """Return whether a module of an adapter is one of the base. A place decides where names
        change between files and modules.
        """
        is_converted = place.module.partition(".")[0] in CONVERTED
        if place.component != "language" or is_converted or self._is_foreign:
            return True
        if module in self._forms or module in self._without_head:
            return True
        first, _, rest = module.partition(".")
        return first not in WRAPPERS and not rest.startswith(f"{first}.") and self._is_bare(rest)

    def _is_bare(self, module: str) -> bool:
        """Return whether a name is that of a model that was saved without its first word."""
        return module in self._forms and not module.startswith(("model.", "transformer."))
