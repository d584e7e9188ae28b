"""Files of scores -> rows: both formats, hostile text, and every fault one line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scores import harness, write

from shadow.comparing.scores import (
    COLUMNS,
    HARNESS,
    MAX_TEXT,
    Score,
    ScoreFile,
    ScoreFiles,
    read_scores,
)
from shadow.errors import ShadowError


def refused(tmp_path, content, name="scores.csv") -> ShadowError:
    with pytest.raises(ShadowError) as caught:
        read_scores([write(tmp_path / name, content)])
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    return caught.value


# CSV


def test_every_column_of_a_csv_is_read(tmp_path):
    """Names are stripped, units lowered, absent cells null, lines counted; a quoted cell may hold
    commas and lines.
    """
    text = (
        "Model, benchmark,score,group,stderr,metric,unit,higher_is_better\r\n"
        'org/base@v1.0,"a, b\n c",45.2,narrow,0.5,acc, Percent ,\r\n'
        "\r\n"
        "org/tuned,wiki,8.5e0,,,word_perplexity,,No\r\n"
    )
    file = write(tmp_path / "scores.csv", text)
    found = read_scores([file])
    one, two = "a, b\n c", "word_perplexity"
    assert found.rows == (
        Score("org/base@v1.0", one, "acc", 45.2, 0.5, "narrow", "percent", True, str(file), 3),
        Score("org/tuned", "wiki", two, 8.5, None, None, None, False, str(file), 5),
    )
    assert found.models == (("org/base@v1.0", None), ("org/tuned", None))
    assert found.groups == {}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_delimiters_and_a_byte_order_mark_change_nothing(tmp_path, delimiter, mark):
    """What spreadsheets write: semicolons, tabs, a BOM before the first name."""
    text = "model,benchmark,score\norg/x,mmlu,0.5\n".replace(",", delimiter)
    file = write(tmp_path / "scores.csv", mark + text.encode())
    one = Score("org/x", "mmlu", None, 0.5, None, None, None, True, str(file), 2)
    assert read_scores([file]).rows == (one,)


def test_a_csv_of_benchmarks_and_groups_gives_groups(tmp_path):
    """So results of the harness become narrow and held-out without being rewritten."""
    scores = write(tmp_path / "a.csv", "model,benchmark,score\nx/y,mmlu,0.5\n")
    groups = write(tmp_path / "groups.csv", "benchmark,group\nmmlu,held-out\ngsm8k,narrow\n")
    assert read_scores([scores, groups]).groups == {"mmlu": "held-out", "gsm8k": "narrow"}
    with pytest.raises(ShadowError, match="no scores in it"):
        read_scores([groups])
    again = write(tmp_path / "again.csv", "benchmark,group\nmmlu,narrow\n")
    with pytest.raises(ShadowError, match="'mmlu' is in the groups 'held-out' and 'narrow'"):
        read_scores([scores, groups, again])


HEAD = "model,benchmark,score\n"
FAULTS = {
    "empty": ("", "no column 'model'", "model, benchmark, score"),
    "no rows": (HEAD, "no scores in it", "columns"),
    "a typo in the header": ("model,benchmark,scroe\n", "unknown column 'scroe'", "'score'"),
    "the harness's word": ("model,task,score\n", "unknown column 'task'", "known are"),
    "a column too few": ("model,score\nx,1\n", "no column 'benchmark'", "the first line"),
    "a column twice": ("model,benchmark,score,score\n", "two columns 'score'", "take one out"),
    "a cell too few": (HEAD + "x,y\n", ":2: 2 cells, the header 3", "quotes"),
    "a cell too many": (HEAD + "x,y,1,2\n", ":2: 4 cells", "quotes"),
    "no model": (HEAD + " ,y,1\n", ":2: no model", "leave the row out"),
    "no benchmark": (HEAD + "x,,1\n", ":2: no benchmark", "leave the row out"),
    "no score": (HEAD + "x,y,\n", ":2: no score", "not measured"),
    "NaN": (HEAD + "x,y,nan\n", ":2: score 'nan' is not a number", "not measured"),
    "infinity": (HEAD + "x,y,-inf\n", "is not a number", "not measured"),
    "not available": (HEAD + "x,y,N/A\n", "is not a number", "not measured"),
    "a percent sign": (HEAD + "x,y,45.2%\n", "'45.2%' is not a number", "`unit`"),
    "a decimal comma": ("model;benchmark;score\nx;y;45,2\n", "'45,2' is not a number", "point"),
    "text": (HEAD + "x,y,good\n", "'good' is not a number", "such as 0.45"),
    "a digit of another script": (HEAD + "x,y,٣\n", "is not a number", "such as"),
    "an underscore": (HEAD + "x,y,1_0\n", "is not a number", "such as"),
    "a number beyond all": (HEAD + "x,y,1e999\n", "too large", "at most"),
    "too large": (HEAD + "x,y,1e13\n", "too large", "at most"),
    "a negative error": (HEAD[:-1] + ",stderr\nx,y,1,-0.1\n", "standard error below 0", "distance"),
    "an error that is none": (
        HEAD[:-1] + ",stderr\nx,y,1,±2\n", "stderr '±2' is not a number", "such as"),
    "neither true nor false": (
        HEAD[:-1] + ",higher_is_better\nx,y,1,perhaps\n", "'perhaps'", "true or false"),
    "a name without end": (
        HEAD + "x" * (MAX_TEXT + 1) + ",y,1\n", "a model of 301 characters", "at most"),
    "an open quote": (HEAD + 'x,"y,1\n', "not a CSV", "quote"),
    "a quote in the middle": (HEAD + 'x,"y"z,1\n', "not a CSV", "quote"),
    "a cell without end": (HEAD + "x," + "y" * 200_000 + ",1\n", "not a CSV", "quote"),
    "Latin-1": (HEAD.encode() + "x,é,1\n".encode("latin-1"), "not UTF-8 text", "save it"),
    "UTF-16": ((HEAD + "x,y,1\n").encode("utf-16"), "not UTF-8 text", "save it"),
    "a group twice": ("benchmark,group\nx,a\nx,b\n", ":3: 'x' is in the groups 'a' and 'b'", "one"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_csv_is_one_line_and_a_hint(tmp_path, fault):
    """The line says which file and which row, the hint what to do."""
    content, words, hint = FAULTS[fault]
    error = refused(tmp_path, content)
    assert words in error.message
    assert "scores.csv" in error.message
    assert hint in (error.hint or "")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and "\r" not in text
)
NUMBERS = st.floats(-1e9, 1e9)
ERRORS = st.none() | st.floats(0, 1e9)
ROW = st.tuples(TEXT, TEXT, NUMBERS, st.none() | TEXT, ERRORS, st.none() | TEXT, st.booleans())
CELLS = ["model", "benchmark", "score", "group", "stderr", "metric", "higher_is_better"]
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@ONE_FILE
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_a_csv_says_what_was_written(tmp_path, rows):
    """Whatever the names are, and to the last bit of the numbers."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(CELLS)
    for *cells, higher in rows:
        texts = [repr(cell) if isinstance(cell, float) else cell or "" for cell in cells]
        writer.writerow([*texts, str(higher)])
    found = read_scores([write(tmp_path / "scores.csv", out.getvalue().encode())]).rows
    assert [attrgetter(*CELLS)(one) for one in found] == rows


@ONE_FILE
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
)
def test_no_csv_ends_in_a_traceback(tmp_path, content):
    """Bytes of any kind are scores, all of them numbers, or one fault."""
    check(tmp_path / "scores.csv", b"model,benchmark,score,stderr\n" + content)
    check(tmp_path / "scores.csv", content)


def check(path: Path, content: bytes) -> ScoreFiles | None:
    """Read or refused; what is read is finite and named."""
    path.write_bytes(content)
    try:
        found = read_scores([path])
    except ShadowError:
        return None
    for row in found.rows:
        assert math.isfinite(row.score)
        assert row.stderr is None or (math.isfinite(row.stderr) and row.stderr >= 0)
        assert 0 < len(row.model) <= MAX_TEXT + 202  # and a revision
        assert 0 < len(row.benchmark) <= MAX_TEXT
    return found


# lm-evaluation-harness


def test_a_result_of_the_harness_is_read(tmp_path):
    """Every metric with its filter and error, the direction, what else decides a score; aliases and
    counts are none.
    """
    results = {
        "arc_easy": {
            "acc,none": 0.7, "acc_stderr,none": 0.01, "acc_norm,none": 0.65,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {
            "exact_match,strict-match": 0.4, "exact_match_stderr,strict-match": 0.02,
            "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": None,
        },
    }  # fmt: skip
    data = harness(
        "org/tuned",
        results,
        config={"model_args": {"pretrained": "org/tuned"}, "model_sha": "a" * 40},
    )
    found = read_scores([write(tmp_path / "results_2026.json", data)])
    told = [(row.benchmark, row.metric, row.score, row.stderr) for row in found.rows]
    assert told == [
        ("arc_easy", "acc", 0.7, 0.01),
        ("arc_easy", "acc_norm", 0.65, None),
        ("gsm8k", "exact_match,strict-match", 0.4, 0.02),
        ("gsm8k", "exact_match,flexible-extract", 0.5, None),
    ]
    assert {
        (row.model, row.commit, row.unit, row.higher_is_better, row.group) for row in found.rows
    } == {("org/tuned", "a" * 40, HARNESS, True, None)}
    expected = (("n-shot", "5"), ("version", "1.0"), ("questions", "100"), ("chat template", "no"))
    assert found.rows[0].conditions == expected
    assert found.notes == ()


def test_a_result_of_an_old_harness_is_read(tmp_path):
    """Version 0.3 has no filters, no directions and its arguments as text."""
    data = {
        "results": {
            "lambada": {"acc": 0.5, "acc_stderr": 0.01, "ppl": 12.0, "ppl_stderr": 0.2, "odd": 3.0}
        },
        "versions": {"lambada": 0},
        "config": {
            "model": "hf-causal",
            "model_args": "pretrained=org/tuned,revision=step1000,dtype=float16",
        },
    }
    found = read_scores([write(tmp_path / "old.json", data)])
    assert [(row.metric, row.score, row.stderr, row.higher_is_better) for row in found.rows] == [
        ("acc", 0.5, 0.01, True),
        ("ppl", 12.0, 0.2, False),
        ("odd", 3.0, None, None),
    ]
    assert found.models == (("org/tuned@step1000", None),)


@pytest.mark.parametrize(
    ("told", "model"),
    [
        ({"config": {"model_args": "pretrained=org/x,revision=main"}}, "org/x"),
        ({"config": {"model_args": "pretrained=org/x,revision=None"}}, "org/x"),
        ({"config": {"model_args": {"pretrained": "org/x", "revision": "v1.1"}}}, "org/x@v1.1"),
        ({"config": {"model_args": "pretrained=org/x,peft=org/adapter"}}, "org/adapter"),
        ({"config": {"model_args": {"pretrained": "org/x", "subfolder": "/final/",
        "revision": "r"}}}, "org/x/final@r"),
        ({"config": {"model_args": "model=org/served,base_url=http://localhost"}}, "org/served"),
        ({"config": {"model_args": None}, "model_name": "org/named"}, "org/named"),
        ({"config": {"model_args": ""}, "model_name": "org/named"}, "org/named"),
        ({"config": {"model_args": "pretrained=./out/tuned"}}, "./out/tuned"),
        ({"config": {"model_args": {"pretrained": "org/x", "revision": "\x1b[31m"}}}, "org/x"),
    ],
)  # fmt: skip
def test_the_model_is_that_of_the_arguments(tmp_path, told, model):
    """As the harness names it: an adapter before its base, arguments before the name; a revision
    follows after @.
    """
    (found,) = read_scores([write(tmp_path / "r.json", harness(**told))]).models
    assert found == (model, None)


def test_directions_are_the_harness_s_own(tmp_path):
    """false is kept; null (tasks that disagree) and metrics of which nobody knows stay open."""
    metrics = "x", "y", "acc", "bits_per_byte", "z"
    results = {"a": {f"{metric},none": 0.5 for metric in metrics}}
    data = harness(results=results, higher_is_better={"a": {"x": False, "y": None, "z": True}})
    rows = read_scores([write(tmp_path / "r.json", data)]).rows
    assert {row.metric: row.higher_is_better for row in rows} == {
        "x": False,
        "y": None,
        "acc": True,
        "bits_per_byte": False,
        "z": True,
    }


def test_subtasks_know_the_group_that_has_their_score(tmp_path):
    """The topmost group with a score of its own; one without (a mere list) is nobody's parent."""
    acc = {"acc,none": 0.5}
    scored = "mmlu", "mmlu_stem", "mmlu_algebra", "board_math", "alone"
    results = dict.fromkeys(scored, acc) | {"board": {" ": " "}}
    tree = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_algebra"], "board": ["board_math"]}
    tree |= {"loop": ["loop"], "alone": None}
    data = harness(results=results, group_subtasks=tree)
    found = read_scores([write(tmp_path / "r.json", data)]).rows
    assert {row.benchmark: row.parent for row in found} == {
        "mmlu": None, "mmlu_stem": "mmlu", "mmlu_algebra": "mmlu", "board_math": None,
        "alone": None,
    }  # fmt: skip
    loop = harness(results={"a": acc, "b": acc}, group_subtasks={"a": ["b"], "b": ["a"]})
    assert len(read_scores([write(tmp_path / "r.json", loop)]).rows) == 2


def test_a_metric_that_is_no_number_is_left_out_and_named(tmp_path):
    """The harness writes NaN where a metric is undefined; the others of the file still count."""
    results = {
        "cola": {"mcc,none": math.nan, "acc,none": 0.5},
        "x": {"acc,none": 10**400, "f1,none": True},
    }
    found = read_scores([write(tmp_path / "r.json", harness(results=results))])
    assert [(row.benchmark, row.metric) for row in found.rows] == [("cola", "acc")]
    assert len(found.notes) == 2
    assert "mcc,none of cola is nan: left out" in found.notes[0]
    assert max(map(len, found.notes)) < 400


JSON_FAULTS = {
    "not JSON": (b"{", "not JSON"),
    "cut": (json.dumps(harness()).encode()[:-5], "not JSON"),
    "not text": (b"\xff{}", "not UTF-8"),
    "too deep": (b"[" * 200_000, "not JSON"),
    "a number without end": (b'{"results": ' + b"1" * 10_000 + b"}", "not JSON"),
    "a list": ([harness()], "no `results`"),
    "results that are a list": ({"results": []}, "no `results`"),
    "no model": ({"results": {}, "config": {"model_args": "dtype=float16"}}, "names no model"),
    "a model that is a number": ({"results": {}, "model_name": 3}, "names no model"),
    "no task": (harness(results={}), "no scores in it"),
    "tasks that are text": ({"results": {"a": "x"}, "model_name": "x"}, "no scores in it"),
    "a task without a name": (harness(results={" ": {"acc,none": 0.5}}), "no task"),
}  # fmt: skip


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_a_faulty_json_is_one_line(tmp_path, fault):
    """Whatever is wrong with it, the file is named."""
    content, words = JSON_FAULTS[fault]
    error = refused(tmp_path, content, "results.json")
    assert words in error.message
    assert "results.json" in error.message
    assert error.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["acc,none", "acc_stderr,none", "acc", "acc_stderr", "exact_match,x", "sample_len", ","]
)
RESULT = st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=4)
RESULTS = st.dictionaries(st.text(max_size=5), RESULT | JSON, max_size=3)


@ONE_FILE
@given(
    results=RESULTS | JSON, rest=st.dictionaries(st.sampled_from(list(harness())), JSON, max_size=5)
)
def test_no_json_ends_in_a_traceback(tmp_path, results, rest):
    """Any value in any place of a result: scores that are numbers, or one fault."""
    check(tmp_path / "results.json", json.dumps({**harness(), **rest, "results": results}).encode())


@ONE_FILE
@given(value=JSON)
def test_any_json_is_scores_or_a_fault(tmp_path, value):
    """A JSON of something else is refused."""
    assert check(tmp_path / "results.json", json.dumps(value).encode()) is None


# Files and folders


def test_a_folder_stands_for_its_files(tmp_path):
    """The harness writes a folder a model and a file a run; hidden files and samples are passed
    over, others named.
    """
    for model in ("base", "tuned"):
        write(tmp_path / f"out/org__{model}/results_2026-01-01.json", harness(f"org/{model}"))
        write(tmp_path / f"out/org__{model}/samples_mmlu_2026-01-01.jsonl", "{}")
    write(tmp_path / "out/more.csv", "model,benchmark,score\norg/base,gsm8k,0.1\n")
    write(tmp_path / "out/.ipynb_checkpoints/old.csv", "nonsense")
    write(tmp_path / "out/config.json", {"a": 1})
    found = read_scores([tmp_path / "out"])
    assert [(row.model, row.benchmark) for row in found.rows] == [
        ("org/base", "gsm8k"), ("org/base", "mmlu"), ("org/tuned", "mmlu"),
    ]  # fmt: skip
    assert len(found.files) == 3
    assert [note for note in found.notes if "config.json is no result" in note] == list(found.notes)
    assert "more.csv and 2 more" in found.name
    (tmp_path / "none").mkdir()
    with pytest.raises(ShadowError, match=r"no \*\.csv and no \*\.json"):
        read_scores([tmp_path / "none"])


def test_what_is_no_file_of_scores_is_refused(tmp_path, monkeypatch):
    """Missing, of another kind, a FIFO (which would never end), too large, a name that is none."""
    with pytest.raises(ShadowError, match="no such file"):
        read_scores([tmp_path / "missing.csv"])
    with pytest.raises(ShadowError, match=r"\.csv and \.json"):
        read_scores([write(tmp_path / "scores.xlsx", "x")])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ShadowError, match="not a regular file"):
        read_scores([tmp_path / "pipe.csv"])
    for name in ("x" * 5000 + ".csv", "a\0b.csv"):
        with pytest.raises(ShadowError):
            read_scores([Path(name)])
    monkeypatch.setattr("shadow.comparing.scores.MAX_FILE", 100)
    with pytest.raises(ShadowError, match="larger than"):
        read_scores([write(tmp_path / "large.csv", HEAD + "x,y,1\n" * 100)])
    monkeypatch.setattr("shadow.comparing.scores.MAX_SCORES", 2)
    with pytest.raises(ShadowError, match="more than 2 scores"):
        read_scores([write(tmp_path / "many.csv", HEAD + "x,y,1\n" * 3)])


def test_the_digest_is_that_of_the_file(tmp_path):
    """So a report says which file its scores are of."""
    path = write(tmp_path / "scores.csv", HEAD + "x,y,1\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_scores([path]).files == (ScoreFile(str(path), digest),)


def test_the_needed_columns_are_known_columns():
    """The table of the README is made of COLUMNS."""
    assert set(HEAD.strip().split(",")) <= set(COLUMNS)
