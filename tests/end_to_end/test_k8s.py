"""The manifests: they fit their schemas, fit each other, and hold no secret."""

import pathlib
import re
import subprocess

import pytest
import yaml

from deploy.flink import cluster
from pipelines.runners import FLINK, Job
from pipelines.runners.flink import STREAM_OPTIONS, complete
from pipelines.runners.profile import SELF_CONTAINED
from tests.kit.support import ROOT

DEPLOY = ROOT / "deploy" / "k8s"
BUILT = ROOT / "build" / "k8s"
KUBECONFORM = BUILT / "kubeconform"

needs_kubeconform = pytest.mark.skipif(
    not KUBECONFORM.exists(), reason="no kubeconform in build/k8s: deploy/k8s/build.sh builds it with Go and Maven"
)


def manifests():
    return {
        (document["kind"], document["metadata"]["name"]): document
        for path in sorted(DEPLOY.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    }


def pods():
    """Pod specs by where they stand."""
    found = {}
    for (kind, name), document in manifests().items():
        if kind == "FlinkDeployment":
            found[f"{name} TaskManager"] = document["spec"]["taskManager"]["podTemplate"]["spec"]
        elif kind in ("Deployment", "Job"):
            found[name] = document["spec"]["template"]["spec"]
    return found


def container(pod, name):
    (found,) = [each for each in pods()[pod]["containers"] if each["name"] == name]
    return found


def options():
    """What the submitted command is told, by option."""
    return dict(arg[2:].split("=", 1) for arg in container("headrace-submit", "headrace")["args"] if "=" in arg)


def completed():
    """The same with what the engine's profile sets."""
    return complete(container("headrace-submit", "headrace")["args"], Job(streams=True, shards=16))


@needs_kubeconform
def test_every_manifest_fits_its_schema():
    schemas = f"{BUILT}/schemas/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"

    def check(text):
        command = [KUBECONFORM, "-strict", "-summary", "-schema-location", schemas]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    text = "\n---\n".join(path.read_text() for path in sorted(DEPLOY.glob("*.yaml")))
    done = check(text)
    assert done.returncode == 0, done.stdout
    assert f"Valid: {len(manifests())}, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout
    for right, wrong in (("v1_19", "v9"), ("podTemplate:", "podTemplat:"), ("containerPort: 8099", "containerPort: x")):
        assert right in text
        assert "Invalid: 1" in check(text.replace(right, wrong)).stdout, wrong


def test_addresses_meet():
    assert manifests()["FlinkDeployment", "headrace"]["spec"]["flinkVersion"] == "v1_19"
    # The operator names the service of the JobManager's interface so.
    assert "--flink-master=headrace-rest:8081" in container("headrace-job-server", "job-server")["args"]
    ports = {p["name"]: p["containerPort"] for p in container("headrace-job-server", "job-server")["ports"]}
    service = {p["targetPort"]: p["port"] for p in manifests()["Service", "headrace-job-server"]["spec"]["ports"]}
    assert ports == service
    assert options()["job_endpoint"] == f"headrace-job-server:{ports['jobs']}"
    assert options()["artifact_endpoint"] == f"headrace-job-server:{ports['artifacts']}"
    (workers,) = container("headrace TaskManager", "beam-workers")["ports"]
    assert options()["environment_config"] == f"localhost:{workers['containerPort']}"
    assert options()["environment_type"] == "EXTERNAL"
    policy = manifests()["NetworkPolicy", "headrace-job-server"]["spec"]
    assert sorted(port["port"] for port in policy["ingress"][0]["ports"]) == sorted(ports.values())
    labels = manifests()["Job", "headrace-submit"]["spec"]["template"]["metadata"]["labels"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels}}]


def test_who_submits_and_who_works_run_one_image():
    images = {
        container("headrace-submit", "headrace")["image"],
        container("headrace TaskManager", "beam-workers")["image"],
    }
    version = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())[1]
    assert images == {f"headrace:{version}"}


def test_nothing_is_staged_and_the_job_is_submitted_once():
    assert set(SELF_CONTAINED) < set(completed())
    job = manifests()["Job", "headrace-submit"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_stream_has_the_options_that_flink_needs():
    """A stream that is read as on another runner acknowledges too early; one without these hardly moves."""
    args = completed()
    given = {arg.split("=")[0] for arg in args}
    assert options()["runner"] == FLINK
    assert {option.split("=")[0] for option in STREAM_OPTIONS} < given
    assert {"--streaming", "--object_reuse", "--max_cache_memory_usage_mb"} < given
    assert "--flink_job_server_jar" not in given
    of_checkpoints = [arg for arg in args if arg.startswith("--checkpointing_interval")]
    assert of_checkpoints[-1] == "--checkpointing_interval=10000"  # what is given stands last, and counts
    dockerfile = (ROOT / "deploy" / "flink" / "Dockerfile").read_text()
    assert container("headrace-job-server", "job-server")["image"] in dockerfile
    assert cluster.JOB_SERVER.name in dockerfile


def test_state_is_kept_where_pods_come_and_go():
    settings = manifests()["FlinkDeployment", "headrace"]["spec"]["flinkConfiguration"]
    for key in ("state.checkpoints.dir", "state.savepoints.dir", "high-availability.storageDir"):
        assert re.match(r"(s3|gs|abfss)://", settings[key]), key
    assert settings["execution.checkpointing.externalized-checkpoint-retention"] == "RETAIN_ON_CANCELLATION"
    assert all(isinstance(value, str) for value in settings.values())  # the operator takes no other


def test_every_container_of_ours_says_what_it_needs_and_may():
    checked = 0
    for name, pod in pods().items():
        for each in pod["containers"]:
            if each["name"] == "flink-main-container":
                continue  # the operator sets it
            checked += 1
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert each["resources"]["limits"]["memory"] == each["resources"]["requests"]["memory"], name
            assert each["securityContext"]["allowPrivilegeEscalation"] is False, name
    assert checked == 3


def test_no_secret_is_written_down():
    assert not any(kind == "Secret" for kind, _ in manifests())
    for path in DEPLOY.glob("*.yaml"):
        for line in path.read_text().splitlines():
            assert not re.search(r"(?i)(password|token|secret|credential)\S*[:=] *[^ {#]*[A-Za-z0-9+/]{16,}", line), (
                line
            )
    for pod in pods().values():
        for each in pod["containers"]:
            for variable in each.get("env", ()):
                assert not re.search(r"(?i)password|token|key|secret", variable["name"])


def test_the_project_is_where_the_image_has_it():
    dockerfile = pathlib.Path(ROOT / "deploy" / "dataflow" / "Dockerfile").read_text()
    project = re.search(r"HEADRACE_PROJECT=(\S+)", dockerfile)[1]
    assert container("headrace-submit", "headrace")["args"][:2] == ["run", project]
