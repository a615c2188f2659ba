"""MLServer's custom runtime over onnxruntime; `by_mlserver.py` writes the settings that name it."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from runtime import Session


class Onnx(MLModel):
    """An ONNX file."""

    async def load(self) -> bool:
        """Open the file."""
        self.session = Session(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch, as MLServer's own runtimes do: in the event loop."""
        feeds = {
            tensor.name: NumpyCodec.decode_input(tensor).astype(
                self.session.dtypes[tensor.name], copy=False
            )
            for tensor in payload.inputs
        }
        output = NumpyCodec.encode_output(self.session.output, self.session.run(feeds))
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])
