"""KServe's server with a model of XGBoost's alone, in KServe's environment: kserve_model.py MODEL PORT WORKERS."""

import logging
import pathlib
import sys

import xgboost
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OneModel(Model):
    """A booster, by the Open Inference Protocol."""

    def __init__(self, path: str) -> None:
        super().__init__("model")
        self._booster = xgboost.Booster({"nthread": 1}, model_file=path)
        self.ready = True

    def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> InferResponse:
        """The score of each row of the one tensor that comes."""
        scores = self._booster.inplace_predict(payload.inputs[0].as_numpy(), validate_features=False)
        output = InferOutput("score", list(scores.shape), "FP32", scores.tolist())
        return InferResponse(payload.id or "1", self.name, [output])


if __name__ == "__main__":
    path, port, workers = sys.argv[1:]
    logging.disable(logging.INFO)
    server = ModelServer(
        http_port=int(port),
        workers=int(workers),
        enable_grpc=False,
        enable_latency_logging=False,
        access_log_format=None,
    )
    assert pathlib.Path(path).is_file()
    server.start([OneModel(path)])
