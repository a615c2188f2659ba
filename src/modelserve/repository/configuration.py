"""How a stored model is run: its own `config.pbtxt` over the repository's defaults."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from modelserve.errors import LoadError
from modelserve.repository.versions import VersionOptions
from modelserve.tensors import Signature, Tensor, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from modelserve.repository.triton_config import TritonConfig, Warmup

__all__ = ["configured"]

_log = logging.getLogger("modelserve.repository")

_PLATFORMS: Final = ("", "onnxruntime", "onnxruntime_onnx")


def configured(
    model: str, path: Path | None, defaults: VersionOptions
) -> tuple[VersionOptions, int | str | tuple[str, ...] | None]:
    """Return how a model is run, and which versions it keeps loaded where it says so.

    Args:
        model: Name of the model.
        path: Its `config.pbtxt`, or None.
        defaults: What holds where the file says nothing.

    Raises:
        LoadError: The file is malformed, or is for another model or runtime.
    """
    if path is None:
        return defaults, None
    # Imported here: most models have no such file, and its parser takes 3 ms to import.
    from modelserve.repository.triton_config import read_config

    try:
        config = read_config(path)
    except LoadError as error:
        raise LoadError(f'model "{model}": {error}') from error
    return applied(model, config, defaults, name="config.pbtxt", directory=path.parent)


def applied(
    model: str,
    config: TritonConfig,
    defaults: VersionOptions,
    *,
    name: str,
    directory: Path | None,
) -> tuple[VersionOptions, int | str | tuple[str, ...]]:
    """Return how a model is run by a configuration, and which versions it keeps loaded.

    Args:
        model: Name of the model.
        config: Its configuration.
        defaults: What holds where the configuration says nothing.
        name: What to call the configuration in errors and in the log.
        directory: The model's directory, for warm-up data and names of classes; None where there is
            none.

    Raises:
        LoadError: It is for another model or runtime, or names data that is not there.
    """
    _check(model, config, name)
    if config.ignored:
        _log.warning("model %s: %s: not used: %s", model, name, ", ".join(config.ignored))
    batching = config.dynamic_batching
    if batching is not None and batching.preferred_batch_size:
        _log.info(
            "model %s: %s: dynamic_batching.preferred_batch_size is not used: the sizes that "
            "serve best are measured",
            model,
            name,
        )
    instances = sum(group.count or 1 for group in config.instance_groups)
    options = replace(
        defaults,
        max_batch_size=config.max_batch_size,
        instances=instances or defaults.instances,
        max_queue_size=(batching.max_queue_size if batching else 0) or defaults.max_queue_size,
        max_queue_delay=batching.max_queue_delay if batching else defaults.max_queue_delay,
        warm_up_inputs=_warm_up(config, name, directory),
        declared=_declared(config),
        label_files=_label_files(config, directory),
        config=config.document,
    )
    policy = config.version_policy
    if policy.kind == "all":
        return options, "all"
    return options, policy.versions if policy.kind == "specific" else policy.latest


def _check(model: str, config: TritonConfig, name: str) -> None:
    if config.name and config.name != model:
        raise LoadError(
            f'model "{model}": {name} is for a model named "{config.name}"; its directory has to '
            "have that name"
        )
    for said in (config.platform, config.backend):
        if said not in _PLATFORMS:
            raise LoadError(
                f'model "{model}": {name} asks for "{said}"; a stored model is run by onnxruntime'
            )


def _declared(config: TritonConfig) -> Signature:
    """Return what the file promises; where it reshapes, which is not done here, without shapes."""

    def shapeless(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
        return [TensorSpec(spec.name, spec.datatype, None, spec.optional) for spec in specs]

    said = config.signature
    return Signature(
        shapeless(said.inputs) if "input.reshape" in config.ignored else said.inputs,
        shapeless(said.outputs) if "output.reshape" in config.ignored else said.outputs,
    )


def _warm_up(config: TritonConfig, name: str, directory: Path | None) -> dict[str, Tensor]:
    if not config.warmup:
        return {}
    data = None if directory is None else directory / "warmup"
    return _inputs(config.warmup[0], config.max_batch_size > 0, name, data)


def _label_files(config: TritonConfig, directory: Path | None) -> dict[str, Path]:
    if directory is None:
        return {}
    return {output: directory / file for output, file in config.label_files.items()}


def _inputs(warmup: Warmup, batched: bool, name: str, directory: Path | None) -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    inputs: dict[str, Tensor] = {}
    for item in warmup.inputs:
        shape = tuple(item.dims)
        if batched:
            shape = (warmup.batch_size or 1, *shape)
        dtype = numpy_dtype(item.datatype)
        if item.datatype == "BYTES":
            tensor = np.full(shape, b"", np.object_)
        elif item.data == "random":
            tensor = random.random(shape).astype(dtype)
        elif item.data == "file":
            tensor = _read(name, directory, item.file, shape, dtype)
        else:
            tensor = np.zeros(shape, dtype)
        inputs[item.name] = tensor
    return inputs


def _read(
    name: str,
    directory: Path | None,
    file: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> Tensor:
    try:
        if directory is None:
            raise FileNotFoundError(file)
        return np.fromfile(directory / file, dtype).reshape(shape)
    except (OSError, ValueError) as error:
        raise LoadError(
            f'{name}: warm-up data "{Path(file).name}" is missing or does not fill {shape}'
        ) from error
