"""What `same` answers of planted rows of a scan, in words and figures."""

from dataclasses import replace

import pytest

from shadow.checks.answer import Outcome
from shadow.checks.same import CHECK, Compared, judge
from shadow.run.scanned import Scanned, Unmatched
from shadow.templates import Reason

EQUAL = Scanned("p", "t", "t", ("F32", "F32"), 10, 0, base_energy=9.0, tuned_energy=9.0)
CAST = replace(EQUAL, formats=("BF16", "F32"))
MOVED = replace(EQUAL, tuned="m", changed=4, base_energy=7.0, delta_energy=0.04)
SHORT = replace(MOVED, tuned="s", entries=6, changed=2, base_energy=0.0, delta_energy=0.0)
BROKEN = replace(MOVED, tuned="x", changed=3, finite=False)
TURNED = replace(MOVED, relation=Reason("is_transposed"), remark="in parts")
TO_F16, TO_BF16 = (replace(MOVED, tuned=at, rounded=("tuned", at)) for at in ("F16", "BF16"))
OF_B = replace(MOVED, rounded=("base", "F16"))
ONLY_A, ONLY_B = (Unmatched(side, side, Reason("one_side")) for side in ("base", "tuned"))
SHARED = replace(ONLY_B, is_shared=True, why=Reason("said", text="in rows"))
UNREAD = Unmatched("u", "tuned", Reason("not_read"))
YES, NO, OPEN = Outcome
SAID = [  # evidence -> outcome, what is said, and what speaks against it
    (Compared([EQUAL, CAST]), YES,
     "both tensors are equal, after a cast BF16 -> F32 that is exact in every entry", ""),
    (Compared([EQUAL], unread=[UNREAD]), OPEN,
     "the only tensor is equal, but 1 tensor is not compared: the other side is not read",
     "u: the other side is not read"),
    (Compared(), OPEN, "there is nothing to compare", ""),
    (Compared([EQUAL, MOVED], shard="b.safetensors"), NO,
     "1 of 2 tensors differs, in 4 entries, by 5.0 % of the norm of all tensors; all that differ"
     " are in b.safetensors of B", "m: 4 of 10 entries differ"),
    (Compared([EQUAL, MOVED, SHORT], unread=[UNREAD]), NO,
     "2 of 3 tensors differ, in 6 entries; 1 tensor is not compared: the other side is not read",
     "s: 2 of 6 entries differ | m: 4 of 10 entries differ"),
    (Compared([EQUAL, BROKEN]), NO, "1 of 2 tensors differs, in 3 entries",
     "x: 3 of 10 entries differ; some are not finite"),
    (Compared([TURNED, TURNED, EQUAL, MOVED]), NO,
     "3 of 4 tensors differ, in 12 entries, by 6.3 % of the norm of all tensors; m: B is A"
     " transposed, and 1 more is so related",
     "m: B is A transposed; in parts | m: B is A transposed; in parts | m: 4 of 10 entries differ"),
    (Compared([EQUAL, OF_B]), NO,
     "A is B rounded to F16: 1 of 2 tensors differ, the error is 5.0 % of the norm of all tensors",
     "m: 4 of 10 entries differ"),
    (Compared([TO_F16, TO_BF16]), NO,
     "2 of 2 tensors differ, in 8 entries, by 7.6 % of the norm of all tensors",
     "BF16: 4 of 10 entries differ | F16: 4 of 10 entries differ"),
    (Compared([EQUAL], {"q": (2.0, 0.5)}, "B", unmatched=[ONLY_A, ONLY_B, ONLY_B, SHARED]), NO,
     "the only tensor that both have is equal; the adapters scale 1 update differently; only B is a"
     " DoRA adapter; 1 tensor only in A; 2 tensors only in B; in rows, of 1 tensor",
     "adapter_config.json: use_dora only in B | base: on one side only | q: its update is scaled by"
     " 2 in A, 0.5 in B | tuned: on one side only | tuned: on one side only | tuned: in rows"),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "outcome", "reasons", "against"), SAID)
def test_every_word_of_an_answer(evidence, outcome, reasons, against):
    answer = judge(evidence)
    assert (answer.outcome, CHECK.say_all(answer.reasons)) == (outcome, reasons)
    shown = [f"{one.name}: {CHECK.say(one.why)}" for one in answer.against]
    assert " | ".join(shown) == against


def test_every_figure_of_an_answer():
    """A tensor that both have in other rows is in neither alone; no norm of it all is known."""
    apart = [ONLY_A, ONLY_B, ONLY_B, SHARED]
    assert judge(Compared([EQUAL, MOVED, SHORT], unmatched=apart, unread=[UNREAD])).figures == {
        "tensors": 3, "tensors_differ": 2, "tensors_only_in_a": 1, "tensors_only_in_b": 2,
        "tensors_not_read": 1, "entries": 26, "entries_differ": 6,
    }  # fmt: skip
