"""Pydantic models made from what a model takes and gives, whose fields are numpy arrays.

In JSON, and in an OpenAPI schema, a field is nested lists of the array's shape. What comes in is
as strict as in the Open Inference Protocol, and becomes an array in one step: no list of Python
numbers is walked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from math import prod
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from modelserve.codecs.arrays import JSONBytes, as_lists, decode_array, shown
from modelserve.errors import InvalidInput
from modelserve.tensors import Datatype, Signature, TensorSpec, as_tensor, numpy_dtype

try:
    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        GetJsonSchemaHandler,
        ModelWrapValidatorHandler,
        ValidationError,
        create_model,
        model_validator,
    )
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema
except ImportError as error:
    raise ImportError(
        'models of pydantic need pydantic: pip install "modelserve[fastapi]"'
    ) from error

__all__ = ["JSONTensor", "RequestModel", "ResponseModel", "request_model", "response_model"]

_MOST_ERRORS: Final = 20
_LONGEST_NAME: Final = 80
_MOST_SHOWN: Final = 64
"""Elements an example has at most; of a larger array a corner is shown."""

_INTEGERS: Final = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FORMATS: Final = {"INT32": "int32", "INT64": "int64", "FP32": "float", "FP64": "double"}


@dataclass(frozen=True, slots=True)
class JSONTensor:
    """Annotation of a pydantic field that is a numpy array, and nested lists in JSON.

    An array given from Python must have the datatype and shape, too. Arrays read from JSON are
    read-only.

    Args:
        datatype: One of `DATATYPES`. BF16 is read as FP32 and rounded.
        shape: Sizes per axis, -1 where any will do; None where even the number of axes is open;
            ``()`` for a single value.
        json_bytes: What a string is for BYTES: text, or base64.
        allow_nan: Whether null, NaN and infinities may stand in an array of floats.

    Raises:
        ValueError: The datatype or shape is none.

    Example:
        >>> class Query(BaseModel):
        ...     user: str
        ...     x: Annotated[np.ndarray, JSONTensor("FP32", (-1, 2))]
        >>> Query(user="me", x=[[1, 2]]).x
        array([[1., 2.]], dtype=float32)
    """

    datatype: Datatype
    shape: tuple[int, ...] | None = None
    json_bytes: JSONBytes = "utf8"
    allow_nan: bool = False

    def __post_init__(self) -> None:
        spec = TensorSpec("tensor", self.datatype, self.shape)
        object.__setattr__(self, "shape", spec.shape)
        if self.json_bytes not in ("utf8", "base64"):
            raise ValueError(f'json_bytes is "utf8" or "base64", got {self.json_bytes!r}')

    def decode(self, value: Any, *, finite: bool = False) -> NDArray[Any]:
        """Return the array of nested lists, or of an array.

        Args:
            value: Nested lists, or an array.
            finite: Whether there is no NaN and no infinity in the lists; they are not looked for.

        Raises:
            InvalidInput: It is none of this datatype and shape.
        """
        if isinstance(value, np.ndarray | np.generic):
            return self._checked(np.asarray(value))
        return decode_array(
            value,
            self.datatype,
            self.shape,
            json_bytes=self.json_bytes,
            allow_nan=self.allow_nan,
            finite=finite,
        )

    def _checked(self, array: NDArray[Any]) -> NDArray[Any]:
        spec = TensorSpec("tensor", self.datatype, self.shape)
        try:
            Signature([spec]).validate({"tensor": array}, batched=False)
            array = as_tensor(array, self.datatype)
        except InvalidInput as error:
            raise InvalidInput(str(error).removeprefix(f"{error.path}: ")) from None
        if array.dtype.kind == "f" and not self.allow_nan and not np.isfinite(array).all():
            raise InvalidInput("expected finite numbers")
        return array

    def _validate(self, value: Any) -> NDArray[Any]:
        try:
            return self.decode(value)
        except InvalidInput as error:
            index = tuple(int(position) for position in re.findall(r"\[(\d+)\]", error.path))
            text = str(error).removeprefix(f"{error.path}: ")
        for position in index:
            value = value[position]
        raise ValidationError.from_exception_data("tensor", [_detail("tensor", text, index, value)])

    def _serialize(self, array: NDArray[Any]) -> Any:
        return as_lists(array, json_bytes=self.json_bytes)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._serialize, when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        element = self._element()
        if self.shape is None:
            return {"anyOf": [element, {"type": "array", "items": {}}]}
        for size in reversed(self.shape):
            element = {"type": "array", "items": element}
            if size >= 0:
                element["minItems"] = element["maxItems"] = size
        return element

    def _element(self) -> JsonSchemaValue:
        datatype = self.datatype
        element: JsonSchemaValue
        if datatype == "BOOL":
            return {"type": "boolean"}
        if datatype == "BYTES":
            base64 = self.json_bytes == "base64"
            return {"type": "string", "contentEncoding": "base64"} if base64 else {"type": "string"}
        if datatype in _INTEGERS:
            limits = np.iinfo(numpy_dtype(datatype))
            element = {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
            if limits.bits == 64:  # FastAPI makes floats of the bounds, which are others then
                del element["maximum"]
                if limits.min:
                    del element["minimum"]
        elif datatype == "FP16":
            element = {"type": "number", "minimum": -65504, "maximum": 65504}
        else:
            element = {"type": "number"}
        if datatype in _FORMATS:
            element["format"] = _FORMATS[datatype]
        if self.allow_nan and element["type"] == "number":
            return {"anyOf": [element, {"type": "null"}]}
        return element

    def example(self) -> Any:
        """Return nested lists that fit; of a large array a corner, which does not."""
        sizes = [1 if size < 0 else size for size in self.shape or ()]
        if prod(sizes) > _MOST_SHOWN:
            sizes = [min(size, 2) for size in sizes[:6]] + [min(size, 1) for size in sizes[6:]]
        element: Any = 0 if self.datatype in _INTEGERS else 0.0
        if self.datatype == "BOOL":
            element = False
        elif self.datatype == "BYTES":
            element = "dGV4dA==" if self.json_bytes == "base64" else "text"
        for size in reversed(sizes):
            element = [element] * size
        return element


def _detail(kind: str, text: str, place: Sequence[int | str], value: Any) -> InitErrorDetails:
    """Describe what is wrong without showing more of it than a few words."""
    loc = tuple(
        one if isinstance(one, int) else one[:_LONGEST_NAME].encode(errors="replace").decode()
        for one in place
    )
    # Without a context the text is taken as it is, braces and all.
    return InitErrorDetails(type=PydanticCustomError(kind, text), loc=loc, input=shown(value))


class _TensorModel(BaseModel):
    """What the models of requests and responses have in common."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        protected_namespaces=(),
        serialize_by_alias=True,
    )

    _names: ClassVar[Mapping[str, str]] = {}
    """Names of the tensors by field."""
    _tensors: ClassVar[Mapping[str, JSONTensor]] = {}
    """What they are, by their names."""
    _per_row: ClassVar[bool] = False

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, field), getattr(other, field)) for field in self._names
        )

    __hash__ = None  # type: ignore[assignment]  # arrays change

    @model_validator(mode="wrap")
    @classmethod
    def _tell_briefly(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # What is wrong goes back to its sender: without the whole of it, which may be large, or
        # hold what no JSON can.
        try:
            return handler(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
        details = [
            _detail(one["type"], one["msg"], one["loc"], one["input"])
            for one in found[:_MOST_ERRORS]
        ]
        raise ValidationError.from_exception_data(cls.__name__, details)


_M = TypeVar("_M", bound=_TensorModel)


class RequestModel(_TensorModel):
    """The inputs of a model; made by `request_model`."""

    @classmethod
    def inputs_of(cls, document: Any) -> dict[str, NDArray[Any]]:
        """Return what `model_validate(document).to_inputs()` does, in half of the time.

        Args:
            document: A parsed JSON value without NaN and infinities.

        Raises:
            ValidationError: It does not fit.
        """
        if type(document) is dict and document.keys() == cls._tensors.keys():
            try:
                inputs = {
                    name: tensor.decode(document[name], finite=True)
                    for name, tensor in cls._tensors.items()
                }
            except InvalidInput:
                pass  # all that is wrong is told below
            else:
                if cls._per_row:
                    return {name: array[np.newaxis] for name, array in inputs.items()}
                return inputs
        return cls.model_validate(document).to_inputs()

    def to_inputs(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by the names of the inputs, as `infer` and `predict` take them.

        Inputs that were left out are not in it. Of a request for one row, that is axis 0.
        """
        values = self.__dict__
        if self._per_row:
            return {
                name: values[field][np.newaxis]
                for field, name in self._names.items()
                if values[field] is not None
            }
        return {
            name: values[field] for field, name in self._names.items() if values[field] is not None
        }


class ResponseModel(_TensorModel):
    """The outputs of a model; made by `response_model`."""

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, Any]) -> Self:
        """Return the response with these outputs.

        They are taken as they are: what a model gives is not checked again.

        Args:
            outputs: Arrays by name, as `predict` returns them. Others than the response has are
                left out.

        Raises:
            ValueError: An output is missing; or the response is for one row, and there are more.
        """
        values = {}
        for field, name in cls._names.items():
            if name not in outputs:
                raise ValueError(f'output "{name}" is missing; there are {sorted(outputs)}')
            values[field] = np.asarray(outputs[name])
        if cls._per_row:
            values = {field: _only_row(array, cls._names[field]) for field, array in values.items()}
        made = cls.model_construct()
        made.__dict__.update(values)
        made.__pydantic_fields_set__.update(values)
        return made


def _only_row(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.shape[:1] != (1,):
        raise ValueError(f'expected one row of output "{name}", got shape {array.shape}')
    row: NDArray[Any] = np.asarray(array[0])
    if row.ndim == 0 and array.dtype.kind == "O":
        row = array.reshape(())  # `array[0]` was the element itself
    return row


def request_model(
    signature: Signature,
    name: str = "InferRequest",
    *,
    per_row: bool = False,
    json_bytes: JSONBytes = "utf8",
    allow_nan: bool = False,
    examples: Mapping[str, Any] | None = None,
) -> type[RequestModel]:
    """Return a pydantic model of a request: a field for each input, nothing else.

    A field has the name of its input where Python allows it; in JSON it always has. To make a
    request in Python, use the names of the inputs: ``Model(**{"x.1": [[1.0]]})``.

    Args:
        signature: What the model takes.
        name: Name of the class, and in an OpenAPI document of the schema.
        per_row: A request is one row: the first axis is left out of every input, and put before
            it by `to_inputs`. An input of shape (-1,) is a single value then.
        json_bytes: What a string is for BYTES: text, or base64.
        allow_nan: Whether null, NaN and infinities may stand in arrays of floats.
        examples: Values for the documentation, by input; made up without.

    Raises:
        ValueError: An example is wrong, or of no input; or with `per_row` an input has no rows.

    Example:
        >>> signature = Signature([TensorSpec("x", "FP32", (-1, 2))])
        >>> request = request_model(signature)(x=[[1, 2], [3, 4]])
        >>> request.to_inputs()["x"].shape
        (2, 2)
    """
    return _made(
        RequestModel, name, signature.inputs, per_row, json_bytes, allow_nan, examples or {}
    )


def response_model(
    signature: Signature,
    name: str = "InferResponse",
    *,
    per_row: bool = False,
    json_bytes: JSONBytes = "utf8",
    allow_nan: bool = False,
    examples: Mapping[str, Any] | None = None,
) -> type[ResponseModel]:
    """Return a pydantic model of a response: a field for each output.

    Args:
        signature: What the model gives.
        name: Name of the class, and in an OpenAPI document of the schema.
        per_row: A response is one row, without the first axis.
        json_bytes: What BYTES are written as: text, or base64.
        allow_nan: Whether the schema says that null may stand in arrays of floats. It is written
            for NaN and infinities in any case.
        examples: Values for the documentation, by output; made up without.

    Raises:
        ValueError: The outputs are not known; an example is wrong; or an output has no rows.

    Example:
        >>> signature = Signature([], [TensorSpec("y", "FP32", (-1,))])
        >>> Answer = response_model(signature)
        >>> Answer.from_outputs({"y": np.array([0.5], np.float32)}).model_dump_json()
        '{"y":[0.5]}'
    """
    if not signature.outputs:
        raise ValueError("the outputs are not known: declare them, or give a signature")
    return _made(
        ResponseModel, name, signature.outputs, per_row, json_bytes, allow_nan, examples or {}
    )


def _made(
    base: type[_M],
    name: str,
    specs: Sequence[TensorSpec],
    per_row: bool,
    json_bytes: JSONBytes,
    allow_nan: bool,
    examples: Mapping[str, Any],
) -> type[_M]:
    unknown = sorted(set(examples) - {spec.name for spec in specs})
    if unknown:
        raise ValueError(f"examples of {unknown}; there are {[spec.name for spec in specs]}")
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    tensors: dict[str, JSONTensor] = {}
    shown_whole: dict[str, Any] = {}
    for spec in specs:
        tensor = JSONTensor(spec.datatype, _shape(spec, per_row), json_bytes, allow_nan)
        example = tensor.example()
        if spec.name in examples:
            example = examples[spec.name]
            try:
                tensor.decode(example)
            except InvalidInput as error:
                raise ValueError(f'the example of "{spec.name}": {error}') from None
        field = _field(spec.name, base, names)
        names[field] = spec.name
        tensors[spec.name] = tensor
        shown_whole[spec.name] = example
        fields[field] = _field_of(spec, tensor, field)
    model: type[_M] = create_model(name, __base__=base, __module__=__name__, **fields)
    model._names = names
    model._tensors = tensors
    model._per_row = per_row
    model.model_config["json_schema_extra"] = {"examples": [shown_whole]}
    model.model_rebuild(force=True)
    return model


def _shape(spec: TensorSpec, per_row: bool) -> tuple[int, ...] | None:
    if not per_row:
        return spec.shape
    if not spec.shape or spec.shape[0] != -1:
        raise ValueError(f'per_row: axis 0 of "{spec.name}" is no rows, its shape is {spec.shape}')
    return spec.shape[1:]


def _field_of(spec: TensorSpec, tensor: JSONTensor, field: str) -> tuple[Any, Any]:
    axes = "any shape" if tensor.shape is None else f"shape {list(tensor.shape)}"
    kind: Any = Annotated[np.ndarray, tensor]
    if spec.optional:
        kind = kind | None
    info = Field(
        None if spec.optional else ...,
        alias=None if field == spec.name else spec.name,
        title=spec.name,
        description=f"{spec.datatype}, {axes if tensor.shape != () else 'a single value'}",
    )
    return kind, info


def _field(name: str, base: type[BaseModel], taken: Mapping[str, str]) -> str:
    """Return a name for a field: that of the tensor, if it can be one."""
    field = re.sub(r"\W", "_", name)
    if not field.isidentifier() or field.startswith("_"):
        field = f"tensor_{field.lstrip('_')}"
    if iskeyword(field) or hasattr(base, field):
        field += "_"
    free, number = field, 1
    while free in taken:
        number += 1
        free = f"{field}_{number}"
    return free
