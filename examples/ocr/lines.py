"""Lines of text as images, and the models that read them.

The network is PP-OCRv6's recogniser by the PaddleOCR authors, as the package `rapidocr` carries it
(both Apache-2.0). The characters it knows stand in the file's own metadata.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import modelserve as ms

HEIGHT = 48
NARROWEST = 320


def model_file() -> Path:
    """Return the network's ONNX file in the installed package, without importing that."""
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ImportError("the model comes with a package: pip install rapidocr")
    (found,) = Path(spec.origin).parent.glob("models/PP-OCR*_rec_*.onnx")
    return found


def draw(text: str) -> np.ndarray[Any, Any]:
    """Draw a line of text, black on white; returns bytes of brightness, 48 rows of them."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=32)
    image = Image.new("L", (int(font.getlength(text)) + 24, HEIGHT), 255)
    ImageDraw.Draw(image).text((12, HEIGHT // 2), text, fill=0, font=font, anchor="lm")
    return np.asarray(image)


def pixels(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Make the network's input: three equal channels of -1 to 1, a short line filled with grey."""
    row = np.zeros((1, 3, HEIGHT, max(NARROWEST, image.shape[1])), np.float32)
    row[..., : image.shape[1]] = image / np.float32(127.5) - 1
    return row


def spell(scores: np.ndarray[Any, Any], characters: list[str]) -> str:
    """Read the best character of each column; what repeats was one, and 0 stands between two."""
    best = scores.argmax(axis=1)
    new = np.append(True, best[1:] != best[:-1])
    return "".join(characters[index] for index in best[new & (best != 0)])


def serve_lines(repository: ms.ModelRepository) -> None:
    """Add the network, and the model `read_line` in front of it: image to text.

    A line's scores are megabytes (a number for each column and character), so they are turned into
    text where they arise and only that is sent. Each line runs alone: the network takes as long for
    a line beside others, and would hold the scores of all of them.
    """
    session = ms.InferenceSession(model_file())
    characters = ["", *session.metadata["character"].split("\n"), " "]
    repository.add("recogniser", session, max_batch_size=0)

    @ms.model(
        inputs=[ms.TensorSpec("image", "UINT8", (HEIGHT, -1))],
        outputs=[ms.TensorSpec("text", "BYTES", (1,))],
    )
    async def read_line(image: np.ndarray[Any, Any]) -> dict[str, Any]:
        asked = ms.InferRequest("recogniser", {"x": pixels(image)})
        (scores,) = (await repository.infer(asked)).outputs.values()
        return {"text": [spell(scores[0], characters)]}

    repository.add(read_line)
