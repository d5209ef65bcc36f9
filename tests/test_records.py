"""Every record goes to JSON and back as it was, with every field filled.

The values are made from the type hints, so that a new field is covered too.
"""

import dataclasses
import json
import types
import typing
from dataclasses import asdict

import pytest

from psr_nb import evaluate, records
from psr_nb.dashboard import audit
from psr_nb.datagen import annotate, card, eft, ift, scorers, trees
from psr_nb.records import InputError, as_record

MODULES = (records, evaluate, annotate, ift, scorers, trees, eft, card, audit)
UNIONS = (typing.Union, types.UnionType)


def kept(module) -> list:
    "A module's dataclasses that may be kept on disk: data all through, and no settings."

    def is_data(kind):
        if dataclasses.is_dataclass(kind):
            return all(is_data(hint) for hint in typing.get_type_hints(kind).values())
        if typing.get_args(kind):
            return all(part is ... or is_data(part) for part in typing.get_args(kind))
        return kind in (str, int, float, bool, list, dict, type(None))

    classes = [x for x in vars(module).values() if isinstance(x, type)]
    own = [x for x in classes if x.__module__ == module.__name__]
    found = [
        x for x in own if dataclasses.is_dataclass(x) and is_data(x) and not x.__name__.startswith("_")
    ]
    return [x for x in found if not x.__name__.endswith(("Settings", "Format"))]


RECORDS = [cls for module in MODULES for cls in kept(module)]


def filled(kind) -> list:
    "Values of a type, at least one for each thing it may be; nothing in them is left at its default."
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        columns = {f.name: filled(hints[f.name]) for f in dataclasses.fields(kind)}
        most = max(map(len, columns.values()))
        rows = [{name: values[i % len(values)] for name, values in columns.items()} for i in range(most)]
        return [kind(**row) for row in rows]
    if origin in UNIONS:
        return [value for option in args for value in filled(option)]
    if origin is list:
        return [filled(args[0]) * 2]
    if origin is tuple and args[1:] == (...,):
        return [tuple(filled(args[0]) * 2)]
    if origin is tuple:
        parts = [filled(part) for part in args]
        return [tuple(part[i % len(part)] for part in parts) for i in range(max(map(len, parts)))]
    values = {str: ["é\n"], int: [3], float: [-2.05, 1.0], bool: [True, False], type(None): [None]}
    return (values | {dict: [{"unit": "%", "of": [1, None]}], list: [["x", 1]]})[kind]


def test_all_kinds_are_found():
    names = {cls.__name__ for cls in RECORDS}
    loop = (
        "Problem IFTRow EFTRow Sampling Request Completion Candidate Judgement Step Trajectory StepPair"
    )
    others = "EvalRow JudgeRow Reply Siblings Tree Judged StepLabels Label"
    assert set(f"{loop} {others}".split()) <= names


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_there_and_back(cls):
    for record in filled(cls):
        assert as_record(cls, json.loads(json.dumps(asdict(record)))) == record


def wrong_for(value):
    "JSON of another sort."
    return [{"no": "such"}] if isinstance(value, dict) else {"no": "such"}


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_a_wrong_type_is_refused_by_name(cls):
    [record, *_] = filled(cls)
    row = json.loads(json.dumps(asdict(record)))
    for name in row:
        with pytest.raises(InputError, match=f"^x.jsonl:3: {name}: expected "):
            as_record(cls, row | {name: wrong_for(row[name])}, "x.jsonl:3")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logprobs": [-0.67, "x"]}, 'j: logprobs: expected float, found "x"'),
        ({"logprobs": -0.67}, "j: logprobs: expected list[float] | None, found -0.67"),
        ({"logprobs": [True]}, "j: logprobs: expected float, found true"),
        ({"a": True}, "j: a: expected int, found true"),
        ({"a": 1.5}, "j: a: expected int, found 1.5"),
        ({"verdict": 1}, "j: verdict: expected str | None, found 1"),
    ],
)
def test_what_a_refusal_says(change, message):
    row = {"a": 0, "b": 1, "verdict": "A", "text": "[[A]]"}
    with pytest.raises(InputError) as refusal:
        as_record(records.Judgement, row | change, "j")
    assert str(refusal.value) == message
