"""What the claim `merged` answers of tensors beside the adapter."""

import pytest

from shadow.checks.merged import Merge, Module, merged
from shadow.run.scanned import Scanned

BEYOND = {1.0: 0, 0.0: 4, 0.5: 4, 2.0: 4}  # entries beyond the bound, by scale
FITS = Module(
    place="p", tensor="up", formats=("F32", "BF16"), entries=4, wide=BEYOND, narrow=BEYOND,
    update=1.0, residual=0.0, inner=1.0, rounding=0.0, visible=4, finite=True, onto_rounded=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "rounded", "outcome"),
    [
        (0, None, "holds"),
        (2, ("tuned", "BF16"), "holds"),  # the base's, cast to the format of the merged model
        (2, ("tuned", "F16"), "does_not_hold"),
        (2, ("base", "BF16"), "does_not_hold"),
        (2, None, "does_not_hold"),
    ],
)
def test_a_tensor_beside_the_adapter_is_the_bases_or_its_cast(changed, rounded, outcome):
    beside = Scanned("p", "norm", "norm", ("F32", "BF16"), 4, changed, rounded=rounded)
    answer, against, _ = merged(Merge([FITS], [beside], [], [], [], 1.0))
    assert answer.outcome == outcome, answer.reason
    assert answer.figures["tensors_beside_changed"] == len(against) == (outcome != "holds")
