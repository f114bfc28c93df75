"""Dataflow's request for a job, made and checked without a network: `headrace run … --runner DataflowRunner --dry-run`.

Beam itself turns the graph into the request. What is checked here is what Dataflow refuses, or runs otherwise than it
should, only after minutes: unknown transforms, state under keys without a deterministic encoding, things that would
have to be installed on workers, a pickled main module, names of steps that a line number is part of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.dataflow.internal import apiclient

from pipelines.runners.profile import SELF_CONTAINED, RunnerError
from pipelines.terminal import console, facts_table

_REQUIRED = ("project", "region", "temp_location", "sdk_container_image")
_PRIMITIVES = frozenset(
    {
        "beam:transform:impulse:v1",
        "beam:transform:pardo:v1",
        "beam:transform:group_by_key:v1",
        "beam:transform:flatten:v1",
        "beam:transform:window_into:v1",
        "beam:transform:pubsub_read:v1",
        "beam:transform:pubsub_write:v2",
        "beam:transform:combine_per_key_precombine:v1",
        "beam:transform:combine_per_key_merge_accumulators:v1",
        "beam:transform:combine_per_key_extract_outputs:v1",
    }
)
_DETERMINISTIC = frozenset(
    f"beam:coder:{kind}:v1"
    for kind in ("bytes", "string_utf8", "bool", "varint", "kv", "length_prefix", "global_window")
)
_REQUIREMENTS = frozenset(
    {
        common_urns.requirements.REQUIRES_STATEFUL_PROCESSING.urn,
        common_urns.requirements.REQUIRES_BUNDLE_FINALIZATION.urn,
        common_urns.requirements.REQUIRES_SPLITTABLE_DOFN.urn,
    }
)


class DataflowError(RunnerError):
    """A job that Dataflow would refuse, or a request for one that lacks something; the text lists all faults."""


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """What a job is, as far as it can be known before it is submitted. `steps` are those that an update goes by."""

    name: str
    streaming: bool
    image: str
    steps: tuple[str, ...]
    requirements: tuple[str, ...]
    capabilities: tuple[str, ...]
    graph_bytes: int
    request: str

    def facts(self) -> list[tuple[str, str]]:
        """Pairs for a table."""
        stateful = [step.split("\t")[0] for step in self.steps if "\tstate " in step]
        return [
            ("job", f"{self.name}, {'streaming' if self.streaming else 'batch'}"),
            ("image", self.image),
            ("steps", f"{len(self.steps)}, stateful: {', '.join(stateful)}"),
            ("requirements", ", ".join(self.requirements)),
            ("graph", f"{self.graph_bytes:,} bytes"),
        ]


def dry_run_options(beam_args: Sequence[str]) -> list[str]:
    """Beam's options for a dry run; DataflowError if one is missing without which Beam would ask Google."""
    options = PipelineOptions(list(beam_args))
    given: Mapping[str, Any] = options.get_all_options(drop_default=True)
    missing = [f"--{name}" for name in _REQUIRED if not given.get(name)]
    if missing:
        raise DataflowError(f"a job on Dataflow needs {', '.join(missing)}")
    return [*beam_args, *SELF_CONTAINED, "--dry_run=True"]


def dry_run(pipeline: beam.Pipeline) -> JobSummary:
    """Make the request for a pipeline that was made with `dry_run_options`; DataflowError names all faults of it."""
    job = pipeline.run().job
    graph: api.Pipeline = job.proto_pipeline
    faults = list(_faults(graph, job.options))
    if faults:
        raise DataflowError("\n".join(["Dataflow would not run this job:", *faults]))
    staged = job.options.view_as(GoogleCloudOptions).staging_location
    url = f"{staged}/{apiclient.shared_names.STAGED_PIPELINE_FILENAME}"
    job.proto.environment = apiclient.Environment([], job.options, "8", url, graph).proto
    environment = next(iter(graph.components.environments.values()))
    request = json.dumps(json.loads(job.json()), indent=2, sort_keys=True)
    if path := job.options.view_as(DebugOptions).dataflow_job_file:
        with open(path, "w") as file:
            file.write(request)
    return JobSummary(
        name=job.proto.name,
        streaming=job.options.view_as(StandardOptions).streaming is True,
        image=api.DockerPayload.FromString(environment.payload).container_image,
        steps=tuple(describe_steps(graph)),
        requirements=tuple(graph.requirements),
        capabilities=tuple(environment.capabilities),
        graph_bytes=graph.ByteSize(),
        request=request,
    )


def is_only_made(pipeline: beam.Pipeline) -> bool:
    """Whether the options ask for a dry run or a template: nothing is read or written then."""
    dry: bool = pipeline.options.view_as(TestOptions).dry_run
    return dry or bool(pipeline.options.view_as(GoogleCloudOptions).template_location)


def make(pipeline: beam.Pipeline) -> None:
    """Make a dry run and show it, or write a template, as the options ask for."""
    if pipeline.options.view_as(TestOptions).dry_run:
        console.print(facts_table(dry_run(pipeline).facts()))
    else:
        pipeline.run()


def describe_steps(graph: api.Pipeline) -> list[str]:
    """A line for each step that runs: its name, what it is, and its states and timers, by which an update knows it."""
    lines = []
    for transform in _leaves(graph):
        line = f"{transform.unique_name}\t{transform.spec.urn}"
        if kept := _states(transform):
            line += f"\tstate {' '.join(kept)}"
        lines.append(line)
    return sorted(lines)


def _leaves(graph: api.Pipeline) -> Iterator[api.PTransform]:
    """The transforms that do something: no composites, nor those of which nothing is left."""
    for transform in graph.components.transforms.values():
        outputs = set(transform.outputs.values())
        passes_on = bool(outputs) and outputs <= set(transform.inputs.values())
        if transform.spec.urn and not transform.subtransforms and not passes_on:
            yield transform


def _faults(graph: api.Pipeline, options: PipelineOptions) -> Iterator[str]:
    components = graph.components
    streaming = options.view_as(StandardOptions).streaming is True
    for transform in _leaves(graph):
        name, urn = transform.unique_name, transform.spec.urn
        if urn not in _PRIMITIVES:
            yield f"{name}: Dataflow has no transform {urn}"
        if streaming and "<lambda at" in name:
            yield f"{name}: its name has a line number, so an update would lose it: give it a label"
        if urn == "beam:transform:group_by_key:v1" or _states(transform):
            main = transform.inputs[_main_input(transform)]
            faulty = _unsafe_key(components, components.pcollections[main].coder_id)
            if faulty:
                yield f"{name}: its keys are encoded by {faulty}, which may encode equal keys otherwise"
    for requirement in graph.requirements:
        if requirement not in _REQUIREMENTS:
            yield f"the graph requires {requirement}, which is not known to run there"
    image = options.view_as(WorkerOptions).sdk_container_image
    for environment in components.environments.values():
        found = api.DockerPayload.FromString(environment.payload).container_image
        if environment.urn != common_urns.environments.DOCKER.urn or found != image:
            yield f"steps run in {environment.urn} {found}, not in the image {image}"
        for artifact in environment.dependencies:
            staged = api.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
            yield f"{staged} would be staged: the image is to hold all that a job needs"
        if not any(each.startswith("beam:version:sdk_base:") for each in environment.capabilities):
            yield "the environment does not say which version of Beam it has"


def _states(transform: api.PTransform) -> list[str]:
    """The states and timers of a step, by their names."""
    if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
        return []
    payload = api.ParDoPayload.FromString(transform.spec.payload)
    return [*sorted(payload.state_specs), *sorted(payload.timer_family_specs)]


def _main_input(transform: api.PTransform) -> str:
    tags: list[str] = list(transform.inputs)
    if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
        sides = api.ParDoPayload.FromString(transform.spec.payload).side_inputs
        tags = [tag for tag in tags if tag not in sides]
    return tags[0]


def _unsafe_key(components: Any, coder_id: str) -> str | None:
    """The coder of a key, or within it, that is not known to be deterministic; None if all are."""
    coder = components.coders[coder_id]
    if coder.spec.urn != common_urns.coders.KV.urn:
        return f"{coder.spec.urn}, no coder of keys and values"
    waiting = [coder.component_coder_ids[0]]
    while waiting:
        coder = components.coders[waiting.pop()]
        urn: str = coder.spec.urn
        if urn not in _DETERMINISTIC:
            return urn
        waiting += coder.component_coder_ids
    return None
