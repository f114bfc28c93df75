"""KServe's Python client in an environment of its own, where `make kserve` has made it."""

import json
import pathlib
import subprocess

import pytest

ENVIRONMENT = pathlib.Path(__file__).parents[2] / "build" / "kserve"

needs_kserve = pytest.mark.skipif(
    not (ENVIRONMENT / "inputs").exists(), reason=f"no KServe client in {ENVIRONMENT}: run make kserve"
)

_ASK = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, model, rows = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]), np.float32)


async def ask():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    told = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
    }
    tensor = InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=False)
    request = InferRequest(model_name=model, infer_inputs=[tensor], request_id="mine")
    reply = await client.infer(url, request, model_name=model)
    told |= {"id": reply.id, "model": reply.model_name}
    told["outputs"] = {each.name: [each.datatype, each.shape, each.data] for each in reply.outputs}
    await client.close()
    return told


print(json.dumps(asyncio.run(ask())))
"""


def ask_kserve(url, model, rows):
    """What the client finds of a server and a model, and the outputs that it reads of rows."""
    command = [ENVIRONMENT / "bin" / "python", "-c", _ASK, url, model, json.dumps(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
