"""Make the models of this folder, in an environment of their own, as converters don't import beside TensorFlow:

uv venv build/onnx && uv pip install --python build/onnx skl2onnx==1.20.0 onnx==1.23.2 scikit-learn==1.9.1
build/onnx/bin/python tests/kit/onnx_models/make.py
"""

import pathlib

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

FOLDER = pathlib.Path(__file__).parent
NAMES = ["amount", "N_D", "MEAN_D", "code"]
OPSETS = {"": 17, "ai.onnx.ml": 3}
WIDE = [("rows", FloatTensorType([None, 4]))]
random = np.random.default_rng(0)
rows = random.gamma(2, 10, (400, 4)).astype(np.float32)
amount = rows[:, 0]


def save(name, model, inputs, **options):
    """Convert a pipeline, and write it."""
    made = convert_sklearn(model, initial_types=inputs, target_opset=OPSETS, options=options or None)
    (FOLDER / f"{name}.onnx").write_bytes(made.SerializeToString())


def trees(kind, label):
    """A small forest behind an imputer."""
    return make_pipeline(SimpleImputer(), kind(n_estimators=4, max_depth=2, random_state=0)).fit(rows, label)


binary = trees(GradientBoostingClassifier, amount > 20)
no_zipmap = {"zipmap": False}
save("binary", binary, WIDE, **no_zipmap)
save("zipmap", binary, WIDE)
save("columns", binary, [(name, FloatTensorType([None, 1])) for name in NAMES[::-1]], **no_zipmap)
save("grades", trees(GradientBoostingClassifier, 3 + np.digitize(amount, [10, 25])), WIDE, **no_zipmap)
save("regression", trees(GradientBoostingRegressor, amount * 3), WIDE)


def network(name, *centred):
    """A plain graph of one output, as PyTorch exports: two layers, missing values as zeros, and others before them."""
    first, last = (random.normal(size=size).astype(np.float32) / 30 for size in ((4, 97), (97, 1)))
    tensors = {"first": first, "last": last, "zero": np.zeros(1, np.float32)}
    nodes = [("IsNaN", ["rows"], "missing"), ("Where", ["missing", "zero", "rows"], "filled")]
    nodes += centred
    nodes += [("MatMul", [nodes[-1][-1], "first"], "before"), ("Tanh", ["before"], "hidden")]
    nodes += [("MatMul", ["hidden", "last"], "margin"), ("Sigmoid", ["margin"], "score")]
    graph = helper.make_graph(
        [
            helper.make_node(kind, of, [gives], **({"axes": [0]} if kind == "ReduceMean" else {}))
            for kind, of, gives in nodes
        ],
        "network",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (FOLDER / f"{name}.onnx").write_bytes(made.SerializeToString())


network("network")
# What no model should do: it looks at the mean of all rows that it is given.
network("centred", ("ReduceMean", ["filled"], "mean"), ("Sub", ["filled", "mean"], "centred"))
