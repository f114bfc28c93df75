"""Models in ONNX, read by onnxruntime: one thread, the processor's own kernels, no operators but ONNX's own.

onnxruntime's kernels look whether the places in a tree lead out of it. What they don't know is checked by `check_onnx`:
a file may name others, draw at random or loop without an end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

_DOMAINS = (b"", b"ai.onnx", b"ai.onnx.ml")
_RANDOM = (b"Bernoulli", b"Multinomial", b"RandomNormal", b"RandomNormalLike", b"RandomUniform", b"RandomUniformLike")
_NUMBERS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(double)": np.float64}
# Of onnx.proto what tells of operators and tensors: number, name and type of fields, * for a repeated one.
_MESSAGES = {
    "Model": "7 graph Graph, 20 training Training*, 25 functions Function*",
    "Training": "1 initialization Graph, 2 algorithm Graph",
    "Function": "7 node Node*, 11 attributes Attribute*",
    "Graph": "1 node Node*, 5 initializer Tensor*, 15 sparse_initializer Sparse*",
    "Node": "4 op_type bytes, 5 attribute Attribute*, 7 domain bytes",
    "Attribute": "5 t Tensor, 6 g Graph, 10 tensors Tensor*, 11 graphs Graph*, 22 sparse Sparse, 23 sparses Sparse*",
    "Sparse": "1 values Tensor, 2 indices Tensor",
    "Tensor": "13 external_data Entry*, 14 data_location int",
    "Entry": "",
}


class OnnxModel:
    """A session of onnxruntime's with the part of an xgboost.Booster's methods that scoring needs."""

    def __init__(self, content: bytes, names: Sequence[str] = ()) -> None:
        """Load a file, whose columns are called `names` where they have none; ValueError where it can't score.

        Its input is one float tensor [n, k], or for each feature one of that name, [n, 1]. Its output is one float
        tensor, [n] or [n, o]; labels beside it are not read.
        """
        import onnxruntime  # 73 MB, a tenth of a second

        onnxruntime.set_default_logger_severity(3)  # or it says on standard error which devices there are not
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        # Those that follow fit the graph to the processor.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._errors = _errors()
        try:
            self._session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise ValueError(_why(error)) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        for each in inputs:
            if each.type not in _NUMBERS:
                raise ValueError(f"its input {each.name} is {each.type}: export it with float tensors")
            if not each.shape or isinstance(each.shape[0], int):
                raise ValueError(f"its input {each.name} is {each.shape}: export it with a number of rows that is free")
        self._width = self._find_width(inputs)
        self.named = len(inputs) > 1  # whether the file says what its columns are called
        self.feature_names: list[str] | None = list(names) if len(names) == self._width else None
        if self.named and {*names} != {each.name for each in inputs}:
            self.feature_names = [each.name for each in inputs]
        place = {name: number for number, name in enumerate(self.feature_names or ())}
        self._inputs = [
            (each.name, _NUMBERS[each.type], slice(None) if not self.named else slice(n := place[each.name], n + 1))
            for each in inputs
        ]
        self._flat = {each.name for each in inputs if len(each.shape) == 1}
        if maps := [each.name for each in outputs if each.type.startswith("seq(map(")]:
            raise ValueError(
                f"its output {', '.join(maps)} is a list of maps, as ZipMap makes: convert it without, as by skl2onnx "
                "with options={'zipmap': False}"
            )
        numbers = [each.name for each in outputs if each.type in _NUMBERS]
        if len(numbers) != 1:
            kinds = ", ".join(f"{each.name} {each.type}" for each in outputs)
            raise ValueError(f"its outputs are {kinds}: one of float tensors is needed")
        self._output = numbers[0]
        self._labels = len(outputs) > 1

    @staticmethod
    def _find_width(inputs: Sequence[Any]) -> int:
        if len(inputs) == 1:
            shape = inputs[0].shape
            if len(shape) != 2 or not isinstance(shape[1], int):
                raise ValueError(f"its input {inputs[0].name} is {shape}, [n, k] is needed, with k features")
            return int(shape[1])
        for each in inputs:
            if each.shape[1:] not in ([], [1]):
                raise ValueError(f"its input {each.name} is {each.shape}, of several inputs each must be [n, 1]")
        return len(inputs)

    def num_features(self) -> int:
        """How many features it has."""
        return self._width

    def inplace_predict(self, features: npt.NDArray[np.float32], validate_features: bool = False) -> npt.NDArray[Any]:
        """Its output, [n] or [n, o]; beside labels, of two classes the second one's, [n]."""
        feed = {}
        for name, kind, columns in self._inputs:
            values = np.ascontiguousarray(features[:, columns], kind)
            feed[name] = values[:, 0] if name in self._flat else values
        try:
            found = np.asarray(self._session.run([self._output], feed)[0])
        except self._errors as error:
            raise ValueError(_why(error)) from error
        if found.ndim not in (1, 2) or len(found) != len(features):
            raise ValueError(f"its output {self._output} is {list(found.shape)} of {len(features)} rows")
        every = found.reshape(len(found), -1)
        if every.shape[1] == 2 and self._labels:
            return every[:, 1]
        return every[:, 0] if every.shape[1] == 1 else every


def check_onnx(content: bytes) -> None:
    """ValueError for a file that is none, names others, or has operators that are not ONNX's, random or without end."""
    model = _message_class()()
    try:
        model.ParseFromString(content)
    except message.DecodeError as error:
        raise ValueError("it is no ONNX file") from error
    for part in _walk(model):
        if part.DESCRIPTOR.name == "Tensor" and (part.external_data or part.data_location):
            raise ValueError("it has tensors in other files: save it as one file, without external data")
        if part.DESCRIPTOR.name != "Node":
            continue
        operator, domain = (text.decode(errors="replace") for text in (part.op_type, part.domain))
        if part.domain not in _DOMAINS:
            raise ValueError(f"it has {operator} of {domain}: operators of ai.onnx and ai.onnx.ml alone may score")
        if part.op_type in _RANDOM:
            raise ValueError(f"it has {operator}, which is random")
        if part.op_type == b"Loop":
            raise ValueError("it has Loop, which may have no end")


def _walk(part: Any) -> Iterator[Any]:
    yield part
    for field, value in part.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, message.Message) else value:
                yield from _walk(each)


@functools.cache
def _message_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="headrace/onnx.proto", package="headrace.onnx", syntax="proto2")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for number, field, kind in (text.split() for text in fields.split(", ") if text):
            made = described.field.add(name=field, number=int(number))
            made.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            made.type = {"bytes": kinds.TYPE_BYTES, "int": kinds.TYPE_INT32}.get(kind, kinds.TYPE_MESSAGE)
            if made.type == kinds.TYPE_MESSAGE:
                made.type_name = f".headrace.onnx.{kind.rstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("headrace.onnx.Model"))


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its classes derive from Exception and no other.

    Where another library of pybind11's was loaded after it, that one makes RuntimeErrors of them.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (RuntimeError, *found)


def _why(error: Exception) -> str:
    text, runtime = " ".join(str(error).split()), f"onnxruntime {version('onnxruntime')}"
    if found := re.search(r"IR version: (\d+), max supported IR version: (\d+)", text):
        return f"it is of IR version {found[1]}, and {runtime} knows up to {found[2]}: take an older one"
    if found := re.search(r"Opset (\d+) is under .* for domain (\S+) is till opset (\d+)", text):
        return f"it is of opset {found[1]}, and {runtime} knows up to {found[3]} of {found[2]}: take an older one"
    return text if len(text) <= 300 else f"… {text[-300:]}"
