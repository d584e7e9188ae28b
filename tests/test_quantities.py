"""A quantity reads the same wherever it stands."""

import math

import pytest

from shadow.quantities import FORMS, Quantity, bounds_text, portion_of, text_of

TEXTS = {
    "count": {0: "0", 1234: "1,234"},
    "share": {
        0.0: "0 %", 0.0795: "8.0 %", 0.0995: "10 %", 0.23: "23 %", 0.999: "100 %", 2.5: "250 %",
        6.39e37: "6.4e+39 %",
        0.00123: "0.12 %", 0.00004: "0.004 %",
    },
    "fraction": {
        0.0: "none", 9.9e-7: "none", 1e-6: "0.0001 %", 1.4e-6: "0.0001 %",
        0.0795: "8.0 %", 0.992: "99.2 %", 0.99988: "99.9 %", 1.0: "100 %"
    },
    "portion": {0.997: "99.7 %", 0.125: "12.5 %", 0.9998: "99.9 %", 1.0: "100.0 %"},
    "number": {
        0.0: "0", 12.0: "12", 2.5: "2.5", 0.123456: "0.123", 11.97: "12.0", 999.6: "1,000",
        1234.5: "1,234", 1e-5: "1.00e-05",
    },
    "score": {45.875: "45.88", 41.25: "41.25", 0.5: "0.5000", 0.6: "0.6000", 1.0: "1", 0.0: "0"},
    "about": {2.4: "2", 9.89: "10", 57.3: "57", 1234: "1,200"},
    "fixed": {0.125: "0.12", -0.001: "0.00", 1.0: "1.00"},
    "thousandths": {0.3333: "0.333", -0.0001: "0.000"},
    "ratio": {0.4: "0.40", 0.5: "0.50", 1.0: "1.0", 9.96: "10", 123.4: "123"},
    "difference": {0.0917: "+0.092", -0.1: "-0.100", -4e-4: "+0.000"},
    "log_ratio": {math.log(0.67): "x 0.67", math.log(0.061): "x 0.061", math.log(250): "x 250"},
    "gain": {
        0.316: "+0.316", -12.54: "-12.5", 0.0: "+0", 999.7: "+1,000", 1234.5: "+1,234",
    },
    "factor": {
        1.01: "1.010", 0.999: "0.9990", -1.0: "-1.000", 1.0: "1.000", 25.0: "25", 0.0: "0.0",
    },
    "correlation": {0.314: "+0.31", -1.0: "-1.00"},
    "seconds": {3.21: "3.2 s", 4000.0: "1:06:40"},
    "bytes": {14_000_000_000: "14.0 GB"},
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_every_kind_has_its_digits(kind):
    """As many as the figure is worth; null is a dash, and zero has no minus."""
    assert {value: text_of(value, kind) for value in TEXTS[kind]} == TEXTS[kind]
    assert text_of(None, kind) == "-"
    assert "-" not in text_of(-0.0, kind)


def test_an_interval_stands_in_brackets_where_it_has_a_width():
    """The sign of per cent once; of ratios the cross once."""
    assert str(Quantity(0.33, "fixed", 0.28, 0.36)) == "0.33 (0.28 to 0.36)"
    assert str(Quantity(0.33, "fixed", 0.331, 0.332)) == "0.33"
    assert str(Quantity(0.33, "fixed")) == "0.33"
    assert bounds_text((0.08, 0.12), "share") == "8.0 to 12 %"
    assert bounds_text((math.log(0.76), math.log(0.85)), "log_ratio") == "x 0.76 to 0.85"
    assert bounds_text((-0.1, 0.2), "difference") == "-0.100 to +0.200"


def test_a_portion_of_nothing_is_unknown():
    """There is no whole."""
    assert str(portion_of(1, 8)) == "12.5 %"
    assert str(portion_of(1, 0)) == "-"
