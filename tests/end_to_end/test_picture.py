"""README's picture of the graph names the steps that the graph has, in their order."""

import re

import apache_beam as beam

from pipelines.graph import GraphConfig, build
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.support import ROOT, card_fraud, read_files, tiny_scorer
from transforms.score import Score


def steps_of_the_graph(tmp_path):
    project, pipeline, found = card_fraud(), make_pipeline(DIRECT, []), []
    sink = WriteFiles(str(tmp_path), project.event.id, project.event.time)
    score = Score(project, tiny_scorer(project.model.inputs), "bundle")
    build(pipeline, GraphConfig(project, read_files(project, ["none.jsonl"]), score, sink))

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, applied):
            found.append(applied.full_label.split("/")[0])

    pipeline.visit(Visitor())
    return list(dict.fromkeys(found))


def test_the_readmes_picture_is_the_graph(tmp_path):
    picture = re.search(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    boxes = re.findall(r"│ +(\w+) +│", picture.splitlines()[1])
    steps = [step for step in steps_of_the_graph(tmp_path) if step in boxes]
    assert len(boxes) == 7
    assert steps == boxes


def test_the_architectures_chapters_are_its_steps(tmp_path):
    chapters = re.findall(r"(?m)^## [1-9]\. (\w+)$", (ROOT / "docs" / "architecture.md").read_text())
    steps = [step for step in steps_of_the_graph(tmp_path) if step in chapters]
    assert steps == [chapter for chapter in chapters if chapter in steps]
    assert set(steps) >= {"Read", "Decode", "Validate", "Deduplicate", "Features", "Score", "Write"}


def test_every_file_that_the_documents_name_is_there():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
        for path in re.findall(r"(?<![\w/.])((?:models|transforms|pipelines|tests)/[\w/]+\.py)", text):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
