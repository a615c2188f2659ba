"""Triton's configuration and its text format, held against protobuf's own reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from modelserve.errors import InvalidInput, LoadError
from modelserve.repository.text_proto import Message, Scalar, TextProto
from modelserve.repository.triton_config import (
    DynamicBatching,
    InstanceGroup,
    TritonConfig,
    VersionPolicy,
    Warmup,
    WarmupInput,
    read_config,
    read_json_config,
)
from modelserve.tensors import TensorSpec

FULL = """
# A configuration with everything that is read.
name: "resnet"
platform: 'onnxruntime_' "onnx"
backend: "onnxruntime"
max_batch_size: 32,
input [
  { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] },
  { name: "mode", data_type: TYPE_STRING, dims: 1; optional: true }
]
output { name: "scores" data_type: TYPE_FP16 dims: -1 dims: 1000 label_filename: "labels.txt" }
version_policy: { specific { versions: [1, 3] } }
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [0] } ]
dynamic_batching <
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  default_queue_policy { max_queue_size: 64 default_timeout_microseconds: 2500000 }
  priority_levels: 3
  default_priority_level: 2
  preserve_ordering: true
>
optimization { graph { level: 1 } }
parameters { key: "a" value { string_value: "b" } }
parameters { key: "c" value { string_value: "d" } }
model_warmup {
  name: "first"
  batch_size: 8
  inputs { key: "image" value { data_type: TYPE_FP32 dims: [3, 224, 224] random_data: true } }
  inputs { key: "mode" value: { data_type: TYPE_STRING dims: 1 input_data_file: "mode.bin" } }
  count: 3
}
"""


def test_everything_that_is_used_is_read() -> None:
    assert read_config(FULL) == TritonConfig(
        name="resnet",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=32,
        inputs=(
            TensorSpec("image", "FP32", (3, 224, 224)),
            TensorSpec("mode", "BYTES", (1,), optional=True),
        ),
        outputs=(TensorSpec("scores", "FP16", (-1, 1000)),),
        version_policy=VersionPolicy("specific", versions=("1", "3")),
        instance_groups=(InstanceGroup(2, "CPU"), InstanceGroup(0, "GPU")),
        dynamic_batching=DynamicBatching((4, 8), 0.0001, 64, 2.5, 3, 2),
        warmup=(
            Warmup(
                "first",
                8,
                (
                    WarmupInput("image", "FP32", (3, 224, 224), "random"),
                    WarmupInput("mode", "BYTES", (1,), "file", "mode.bin"),
                ),
                3,
            ),
        ),
        label_files={"scores": "labels.txt"},
        ignored=(
            "input.format",
            "instance_group.gpus",
            "dynamic_batching.preserve_ordering",
            "optimization",
            "parameters",
        ),
    )


def test_empty_text_is_the_default_configuration() -> None:
    assert read_config("") == TritonConfig()
    assert TritonConfig().version_policy == VersionPolicy("latest", 1)
    assert TritonConfig().dynamic_batching is None


def test_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b"\xef\xbb\xbfname: 'x'\n")
    assert read_config(path).name == "x"
    path.write_text("name: 'x'\nmax_batch_size: many\n")
    with pytest.raises(LoadError) as caught:
        read_config(path)
    assert str(caught.value) == (
        "config.pbtxt:2:17: max_batch_size: expected an integer, got the name many"
    )
    path.write_bytes(b"\xff")
    with pytest.raises(LoadError, match=r"config\.pbtxt: not UTF-8 at byte 0"):
        read_config(path)
    with pytest.raises(LoadError, match=r"^nothing: cannot be read"):
        read_config(tmp_path / "nothing")


def test_batch_axis_is_added_where_there_is_one() -> None:
    text = (
        'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_BOOL }'
    )
    assert read_config(text).signature.inputs[0].shape == (4,)
    batched = read_config(f"max_batch_size: 1 {text}")
    assert batched.inputs[0].shape == (4,)
    assert batched.signature.inputs[0].shape == (-1, 4)
    assert batched.signature.outputs[0].shape is None


def test_empty_dims_are_a_scalar_per_row() -> None:
    text = 'max_batch_size: 1 input { name: "x" data_type: TYPE_FP32 dims: [] }'
    assert read_config(text).signature.inputs[0].shape == (-1,)


@pytest.mark.parametrize(
    ("triton", "number", "datatype"),
    [
        ("TYPE_BOOL", 1, "BOOL"),
        ("TYPE_UINT8", 2, "UINT8"),
        ("TYPE_UINT16", 3, "UINT16"),
        ("TYPE_UINT32", 4, "UINT32"),
        ("TYPE_UINT64", 5, "UINT64"),
        ("TYPE_INT8", 6, "INT8"),
        ("TYPE_INT16", 7, "INT16"),
        ("TYPE_INT32", 8, "INT32"),
        ("TYPE_INT64", 9, "INT64"),
        ("TYPE_FP16", 10, "FP16"),
        ("TYPE_FP32", 11, "FP32"),
        ("TYPE_FP64", 12, "FP64"),
        ("TYPE_STRING", 13, "BYTES"),
        ("TYPE_BF16", 14, "BF16"),
    ],
)
def test_every_data_type_is_read_by_name_and_number(
    triton: str, number: int, datatype: str
) -> None:
    for written in (triton, number):
        config = read_config(f'input {{ name: "x" data_type: {written} }}')
        assert config.inputs[0].datatype == datatype


@pytest.mark.parametrize(
    ("text", "policy", "chosen"),
    [
        ("", VersionPolicy("latest", 1), ("10",)),
        ("version_policy { }", VersionPolicy("latest", 1), ("10",)),
        ("version_policy { latest { } }", VersionPolicy("latest", 1), ("10",)),
        ("version_policy { latest { num_versions: 2 } }", VersionPolicy("latest", 2), ("2", "10")),
        ("version_policy { all { } }", VersionPolicy("all"), ("1", "2", "10")),
        (
            "version_policy { specific { versions: 10, versions: 1 versions: 7 } }",
            VersionPolicy("specific", versions=("10", "1", "7")),
            ("1", "10"),
        ),
    ],
)
def test_version_policy_chooses(text: str, policy: VersionPolicy, chosen: tuple[str, ...]) -> None:
    assert read_config(text).version_policy == policy
    assert policy.choose(["1", "2", "10"]) == chosen


def test_dynamic_batching_may_be_asked_for_without_details() -> None:
    assert read_config("dynamic_batching { }").dynamic_batching == DynamicBatching()


def test_warm_up_with_zeros_is_run_once() -> None:
    entry = 'inputs { key: "x" value { data_type: TYPE_INT8 dims: 2 zero_data: true } }'
    config = read_config(f"model_warmup {{ {entry} }}")
    assert config.warmup == (Warmup("", 0, (WarmupInput("x", "INT8", (2,), "zero"),), 1),)


ENTRY = 'model_warmup { inputs { key: "x" value { data_type: TYPE_INT8 '


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size: -1", "1:17: max_batch_size: expected 0 to 2147483647, got -1"),
        ("max_batch_size: 2147483648", "1:17: max_batch_size: expected 0 to 2147483647"),
        ("max_batch_size: 8.0", "expected an integer, got the float 8.0"),
        ("max_batch_size: 1 max_batch_size: 2", "1:35: max_batch_size: given twice"),
        ("max_batch_size: [1]", "1:1: max_batch_size: expected one value, got a list"),
        ("max_batch_size { }", "1:16: max_batch_size: expected an integer, got a message"),
        ("name: x", "1:7: name: expected a string, got the name x"),
        ("name: '\\377'", "1:7: name: expected UTF-8"),
        ("dynamic_batching: 1", '1:19: dynamic_batching: expected "{", got the integer 1'),
        ("dynamic_batching {} dynamic_batching {}", "dynamic_batching: given twice"),
        ("input { data_type: TYPE_FP32 }", "1:7: input.name: expected a name, got none"),
        ("input { name: 'x' }", "1:7: input.data_type: expected a type such as TYPE_FP32"),
        ("input { name: 'x' data_type: TYPE_FP8 }", "1:30: input.data_type: expected one of TYPE"),
        ("input { name: 'x' data_type: 0 }", "got the integer 0"),
        ("input { name: 'x' data_type: 11 dims: -2 }", "1:39: input.dims: expected -1 to"),
        (
            "input [{ name: 'x' data_type: 11 }, { name: 'x' data_type: 11 }]",
            '1:37: input.name: two tensors are named "x"',
        ),
        (
            "input { name: 'x' data_type: 11 optional: 2 }",
            "expected true or false, got the integer",
        ),
        ("input { name: 'x' data_type: 11 optional: 'true' }", "expected true or false, got the s"),
        ("version_policy { latest { num_versions: 0 } }", "1:41: version_policy.latest.num_versi"),
        ("version_policy { all {} latest {} }", "1:16: version_policy: expected one policy, got l"),
        ("instance_group { kind: KIND_NPU }", "expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIN"),
        ("model_warmup { inputs { value { } } }", "1:23: model_warmup.inputs.key: expected a name"),
        ("model_warmup { inputs { key: 'x' } }", "expected a description of the input"),
        (ENTRY + "} } }", "1:40: model_warmup.inputs.value: expected one of zero_data, random_dat"),
        (ENTRY + "zero_data: true random_data: true } } }", "got zero_data and random_data"),
        (ENTRY + "input_data_file: '../x' } } }", "expected a relative file name"),
        (ENTRY + "dims: -1 zero_data: true } } }", "dims: expected 0 to"),
    ],
)
def test_unfit_value_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(LoadError) as caught:
        read_config(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", '1:2: expected ":" after a, got the end'),
        ("a: ", "1:4: expected a value, got the end"),
        ("a 1", '1:3: expected ":" after a, got "1"'),
        ("a [1]", '1:4: expected "{" (values that are no messages need a ":" before them)'),
        ("\n a {\n  b: 1\n", '4:1: expected a field name or "}", got the end'),
        ("a { b: 1 >", '1:10: expected a field name or "}", got ">"'),
        ("a < b: 1 }", '1:10: expected a field name or ">", got "}"'),
        ("a: 1 }", '1:6: expected a field name, got "}"'),
        ("a: [1 2]", '1:7: expected "," or "]", got "2"'),
        ("a: [1, 2,]", '1:10: expected a value, got "]"'),
        ("a: [[1]]", '1:5: expected a value, got "["'),
        ("a: 'x", "1:4: expected the string to end on its line"),
        ("a: 'x\n'", "1:4: expected the string to end on its line"),
        ("a: 'x\\", "1:4: expected the string to end on its line"),
        ("a: 'x\\q'", "1:6: unknown escape \\q"),
        ("a: '\\x'", "1:5: unknown escape \\x"),
        ("a: '\\u12'", "1:5: unknown escape \\u"),
        ("a: '\\400'", "1:5: expected at most \\377, got \\400"),
        ("a: '\\U00110000'", "1:5: there is no character 0x110000"),
        ("a: '\\ud800'", "1:5: expected Unicode text, got half a pair"),
        ("a: 'x\ud800'", "1:6: expected Unicode text, got half a pair"),
        ("a: 08", "1:4: 08 is not an octal number"),
        ("a: 1x", '1:5: expected a separator after 1, got "x"'),
        ("a: 1.2.3", '1:7: expected a separator after 1.2, got "."'),
        ("a: 0x", '1:5: expected a separator after 0, got "x"'),
        ("a: -x", "1:4: expected a number after the minus, got x"),
        ("a: --1", '1:5: expected a value, got "-"'),
        ("a: +1", '1:4: expected a value, got "+"'),
        ("a: 1,,", '1:6: expected a field name, got ","'),
        ("[a.b]: 1", '1:1: expected a field name, got "["'),
        ("ä: 1", '1:1: expected a field name, got "ä"'),
        ("\0", "1:1: expected a field name, got '\\x00'"),
        ("a: " + "9" * 65, "1:4: expected a number of 64 bits, got 65 digits"),
        ("a: " + "9" * 5000, "expected a number of 64 bits, got 5000 digits"),
        ("a{" * 100, "1:130: expected at most 64 messages in one another"),
    ],
)
def test_text_out_of_the_format_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(LoadError) as caught:
        TextProto(text, "f").read()
    assert str(caught.value).startswith("f:")
    assert said in str(caught.value)


# Against protobuf's own reader. A pool of its own: the public one may hold Triton's messages.

_TYPE = descriptor_pb2.FieldDescriptorProto
SCHEMA = {
    "text": _TYPE.TYPE_STRING,
    "raw": _TYPE.TYPE_BYTES,
    "i32": _TYPE.TYPE_INT32,
    "u64": _TYPE.TYPE_UINT64,
    "i64": _TYPE.TYPE_INT64,
    "real": _TYPE.TYPE_DOUBLE,
    "flag": _TYPE.TYPE_BOOL,
    "kind": _TYPE.TYPE_ENUM,
    "sub": _TYPE.TYPE_MESSAGE,
}
KINDS = {"KIND_ZERO": 0, "KIND_ONE": 1}
WORDS: dict[str, dict[Any, Any]] = {
    "kind": {**KINDS, 0: 0, 1: 1},
    "flag": {
        **dict.fromkeys(("true", "True", "t", 1), True),
        **dict.fromkeys(("false", "False", "f", 0), False),
    },
}
BOUNDS = {"i32": (-(2**31), 2**31 - 1), "i64": (-(2**63), 2**63 - 1), "u64": (0, 2**64 - 1)}


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto2")
    kind = file.enum_type.add(name="Kind")
    for name, number in KINDS.items():
        kind.value.add(name=name, number=number)
    message = file.message_type.add(name="M")
    for label, suffix in ((_TYPE.LABEL_OPTIONAL, ""), (_TYPE.LABEL_REPEATED, "s")):
        for name, kind_of in SCHEMA.items():
            item = message.field.add(
                name=name + suffix, number=len(message.field) + 1, type=kind_of, label=label
            )
            if name in ("kind", "sub"):
                item.type_name = ".t.Kind" if name == "kind" else ".t.M"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.M"))


M = _message_class()

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(max_size=8),
    "raw": st.binary(max_size=8),
    **{name: st.integers(*bounds) for name, bounds in BOUNDS.items()},
    "real": st.floats(),
    "flag": st.booleans(),
    "kind": st.sampled_from(sorted(KINDS.values())),
}


@st.composite
def messages(draw: st.DrawFn, depth: int = 2) -> Any:
    message = M()
    for name in draw(st.lists(st.sampled_from(sorted(SCHEMA)), unique=True, max_size=5)):
        repeated = draw(st.booleans())
        if name != "sub":
            if repeated:
                values = draw(st.lists(SCALARS[name], min_size=1, max_size=3))
                getattr(message, f"{name}s").extend(values)
            else:
                setattr(message, name, draw(SCALARS[name]))
        elif depth:
            child = draw(messages(depth - 1))
            (message.subs.add() if repeated else message.sub).MergeFrom(child)
            if not repeated:
                message.sub.SetInParent()
    return message


class Unfit(Exception):
    """The tree does not fit the schema."""


def built(tree: Message) -> Any:
    """Make the protobuf message a tree stands for, strictly."""
    message = M()
    seen: set[str] = set()
    for item in tree.fields:
        name = item.name.removesuffix("s") if item.name not in SCHEMA else item.name
        repeated = item.name != name
        if name not in SCHEMA or (not repeated and (item.listed or item.name in seen)):
            raise Unfit(item.name)
        seen.add(item.name)
        for value in item.values:
            if name == "sub":
                if not isinstance(value, Message):
                    raise Unfit(item.name)
                child = message.subs.add() if repeated else message.sub
                child.SetInParent()
                child.MergeFrom(built(value))
            elif isinstance(value, Scalar):
                converted = scalar(name, value)
                if repeated:
                    getattr(message, item.name).append(converted)
                else:
                    setattr(message, name, converted)
            else:
                raise Unfit(item.name)
    return message


def scalar(name: str, given: Scalar) -> Any:
    value = given.value
    if name == "raw" and isinstance(value, bytes):
        return value
    if name == "text" and isinstance(value, bytes):
        return value.decode()
    if name in BOUNDS and isinstance(value, int):
        if BOUNDS[name][0] <= value <= BOUNDS[name][1]:
            return value
    elif name == "real" and not isinstance(value, bytes):
        if not isinstance(value, str) or value.lower() in ("inf", "infinity", "nan"):
            return float(value)
    elif name in WORDS and not isinstance(value, float) and value in WORDS[name]:
        return WORDS[name][value]
    raise Unfit(name)


def same(left: Any, right: Any) -> bool:
    # Byte for byte, since NaN does not equal itself.
    return bool(
        left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)
    )


@settings(deadline=None)
@given(
    messages(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_protobuf_writes_is_read_back(
    message: Any, one_line: bool, short: bool, pointy: bool, utf8: bool
) -> None:
    text = text_format.MessageToString(
        message,
        as_one_line=one_line,
        use_short_repeated_primitives=short,
        pointy_brackets=pointy,
        as_utf8=utf8,
    )
    found = built(TextProto(text, "f").read())
    expected = text_format.Parse(text, M())
    assert same(found, expected)


TOKENS = [
    *("text", "raws", "i32", "i32s", "u64", "reals", "real", "flag", "kinds", "sub", "subs"),
    *(
        ":",
        ":",
        ":",
        "{",
        "}",
        "<",
        ">",
        "[",
        "]",
        ",",
        ";",
        "-",
        "'a'",
        '"\\n\\x41\\101"',
        "# c\n",
    ),
    *(
        "0",
        "7",
        "u64: 010",
        "i32s: 0x1F",
        "1.5",
        ".5",
        "1e3",
        "2.",
        "1f",
        "inf",
        "nan",
        "true",
        "f",
    ),
    *("KIND_ONE", "18446744073709551615"),
    *(
        "i32s: 1",
        "i32s: [2,",
        "3]",
        "text: 'x'",
        "raws:",
        "sub {",
        "subs [{",
        "subs <",
        "}]",
        "} ,",
    ),
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(TOKENS), max_size=14))
def test_any_order_of_tokens_is_taken_or_refused_as_by_protobuf(tokens: list[str]) -> None:
    text = " ".join(tokens)
    try:
        expected = text_format.Parse(text, M())
    except text_format.ParseError:
        expected = None
    try:
        found = built(TextProto(text, "f").read())
    except (LoadError, Unfit, UnicodeDecodeError):
        found = None
    assert (found is None) == (expected is None)
    assert found is None or same(found, expected)


WRITTEN = [
    'text: "a" \'b\'\n"c"',
    "raw: '\\a\\b\\f\\n\\r\\t\\v\\\\\\'\\\"\\0\\12\\1234\\x4\\x414'",
    "text: '\\u00e4\\U0001F600ä'",
    "text: 'a # no comment' # a comment",
    "i32s: 1 i32s: [2, 3], i32s: -4; i32s: []",
    "i32s: [0x10, 0X1f, 010, -0x1, 0, -0]",
    "reals: [1, 1., .5, 1e3, 1E-3, 1.5f, 2F, inf, -inf, nan, Infinity, -1, 0]",
    "flags: [true, false, True, False, t, f, 1, 0]",
    "kinds: [KIND_ONE, 0, 1]",
    "sub { } subs { i32: 1 } subs: { } subs < i32: 2 > subs [ { i32: 3 }, < > ] subs: [ ] subs [ ]",
    "sub{i32:1,i64:2;u64:3}",
    "#only a comment",
    "\ttext\n:\r\n'x'\n#\n",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_every_form_is_read_as_by_protobuf(text: str) -> None:
    assert same(built(TextProto(text, "f").read()), text_format.Parse(text, M()))


def test_special_floats_are_read_with_their_sign() -> None:
    found = TextProto("x: [-inf, -nan, - infinity]", "f").read().fields[0].values
    values = [value.value for value in found if isinstance(value, Scalar)]
    assert values[0] == values[2] == -math.inf
    assert isinstance(values[1], float)
    assert math.isnan(values[1])


def test_escaped_question_mark_is_one() -> None:
    # By the format's specification; protobuf's Python reader keeps the backslash.
    assert read_config(r"name: '\?'").name == "?"


def test_minus_may_stand_apart_from_its_number() -> None:
    # By the specification, as in C++; protobuf's Python reader refuses it.
    text = 'input { name: "x" data_type: TYPE_FP32 dims: - # why not\n 1 }'
    assert read_config(text).inputs[0].shape == (-1,)


# Fuzz


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from([*FULL.split(), *"{}[]<>:-'\"\\"])).map(" ".join),
    )
)
def test_any_text_gives_a_configuration_or_a_load_error(text: str) -> None:
    try:
        config = read_config(text)
    except LoadError:
        return
    assert isinstance(config, TritonConfig)
    assert len(set(config.ignored)) == len(config.ignored)
    assert len(config.signature.inputs) == len(config.inputs)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(FULL)), st.integers(0, 12), st.text(max_size=4))
def test_damaged_configuration_gives_a_configuration_or_a_load_error(
    at: int, cut: int, put: str
) -> None:
    try:
        config = read_config(FULL[:at] + put + FULL[at + cut :])
    except LoadError:
        return
    assert isinstance(config, TritonConfig)


@pytest.mark.parametrize(
    "text",
    [
        "a:'" + "\\\\" * 500_000,
        "a:[" + "1," * 300_000,
        "#" * 500_000 + "\n" * 500_000 + "!",
        "a:" + "1" * 1_000_000,
        "a:1" * 100_000,
    ],
)
def test_long_text_is_refused_in_time(text: str) -> None:
    with pytest.raises(LoadError, match="expected"):
        read_config(text)


TEXT = """
name: "m" backend: "onnxruntime" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] optional: true } ]
output { name: "y" data_type: 8 dims: 2 }
version_policy { specific { versions: [ 1, 3 ] } }
instance_group { count: 2 kind: KIND_GPU }
dynamic_batching { preferred_batch_size: 4 default_queue_policy { max_queue_size: 5 } }
model_warmup {
  name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "a" } }
}
parameters { key: "k" value { string_value: "v" } }
"""

JSON = {
    "name": "m",
    "backend": "onnxruntime",
    "maxBatchSize": 8,
    "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["-1", 4.0], "optional": True}],
    "output": [{"name": "y", "data_type": 8, "dims": [2]}],
    "versionPolicy": {"specific": {"versions": ["1", 3]}},
    "instance_group": [{"count": "2", "kind": "KIND_GPU", "gpus": None}],
    "dynamicBatching": {
        "preferredBatchSize": [4],
        "default_queue_policy": {"maxQueueSize": 5},
    },
    "modelWarmup": [
        {
            "name": "w",
            "batchSize": 1,
            "inputs": {"x": {"dataType": "TYPE_FP32", "dims": [4], "inputDataFile": "a"}},
        }
    ],
    "parameters": {"k": {"string_value": "v"}},
}


def test_json_says_the_same_as_text() -> None:
    assert read_json_config(JSON) == read_config(TEXT)
    assert read_json_config(json.dumps(JSON)) == read_config(TEXT)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*JSON, "dims", "name", "inputs", "key", "latest", "all"])
                | st.text(max_size=3),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read_or_refused_with_its_place(document: Any) -> None:
    refusal = "config"
    try:
        read_json_config(json.dumps(document))
    except InvalidInput as error:
        refusal = str(error)
    assert refusal.encode().startswith(b"config")


@pytest.mark.parametrize(
    "text", ['{"name": NaN}', '{"name": "\\ud800"}', '{"a": 1', "", "nul", "[" * 100_000]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="config: not valid JSON"):
        read_json_config(text)


def test_names_of_a_json_document_that_are_not_used_are_bounded() -> None:
    found = read_json_config({f"field_{n}": 1 for n in range(1000)} | {"x" * 1000: 1})
    assert len(found.ignored) == 100
    found = read_json_config({"x" * 1000: 1, "a\nb": 2})
    assert found.ignored == ("'" + "x" * 39 + "...", "'a\\nb'")
