"""The Open Inference Protocol for requests that name shared memory, in JSON or with binary tensors.

What the parameters mean is in `modelserve.codecs.shared_memory`. Nothing here is remembered from
one request for the next: the shorter ways of `modelserve.codecs.oip` learn only from bodies that
name no shared memory, so they never meet one that does.
"""

from __future__ import annotations

from modelserve.messages import InferRequest, InferResponse

from ._json import Buffer
from .oip import decode_plain, encode_plain
from .shared_memory import Placements

__all__ = ["decode_shared", "encode_shared"]


def decode_shared(
    body: Buffer,
    placements: Placements,
    *,
    model: str,
    version: str = "",
    header_length: int | str | None = None,
) -> InferRequest:
    """Return the request in a body that may name shared memory, as `oip.decode_request` would.

    Inputs that are there are read into copies, and `placements` knows where outputs are to go; the
    parameters that say so are none of the request's, so that requests share a batch whatever their
    regions.

    Args:
        body: The whole body, decompressed.
        placements: Reads inputs, and remembers outputs for `encode_shared`.
        model: Name of the model, from the path.
        version: Version number or label, from the path.
        header_length: As for `oip.decode_request`.

    Raises:
        InvalidInput: The body is not a request, or what it names is not there or does not fit.
        PayloadTooLarge: Its inputs in shared memory are over the limit.
        Overloaded: Too much is being read at once.
    """
    return decode_plain(body, model, version, header_length, placements)


def encode_shared(
    response: InferResponse, request: InferRequest, placements: Placements
) -> tuple[list[bytes | memoryview], int | None]:
    """Return a response's body as `oip.encode_response` does, and write what goes elsewhere.

    An output in shared memory has no data in the body, and says in its parameters where it is; the
    size is that of what was written. Nothing is written where an output has no room or no form.

    Args:
        response: Its outputs are arrays, or what `np.asarray` takes.
        request: What it answers, as `decode_shared` gave it.
        placements: What that call was given.

    Raises:
        InvalidInput: There is not enough room for an output, its memory is not there any more, or
            an output asked for in JSON has no such form.
        Overloaded: The machine has no memory left for it.
        BackendError: An output is not a tensor of the protocol.
    """
    return encode_plain(response, request.output_parameters, placements)
