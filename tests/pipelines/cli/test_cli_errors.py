"""Every command with wrong arguments: one clear line, at once, and never a secret."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from tests.kit.support import CARD_FRAUD, ROOT

pytestmark = pytest.mark.slow

# Runs commands in one process, and says of each: its exit code, what it printed, and what slow imports it needed.
RUN = """
import contextlib, io, json, sys, traceback
from pipelines.cli import main as cli
for argv in json.load(sys.stdin):
    sys.argv = ["headrace", *argv]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.main()
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = "crashed"
    slow = sorted({"mlflow", "apache_beam", "xgboost", "tensorflow"} & sys.modules.keys())
    print(json.dumps([code, out.getvalue(), slow]))
"""
PROJECT = str(CARD_FRAUD)
FILES = ["--source", "here.csv", "--sink", "out"]
TOPICS = ["--source", "pubsub://demo/events", "--sink", "pubsub://demo/scores"]
NO_MODEL = ["--registry", "sqlite:///none.db"]
HIDDEN = "hunter22"

AT_ONCE = [
    (["run", "nowhere", *FILES], "nowhere/project.yaml: cannot be read"),
    (["run", PROJECT, "--source", "none*.csv", "--sink", "out"], r"none\*.csv: no such file"),
    (["run", PROJECT, "--source", "", "--sink", "out"], "an empty path: no such file"),
    (["run", PROJECT, "--source", "here.csv", "--sink", ""], "--sink is empty"),
    (["run", PROJECT, *FILES], "no registry at .*card_fraud/.headrace/registry.db"),
    (["run", PROJECT, *FILES, *NO_MODEL], "no registry at .*none.db"),
    (["run", PROJECT, *FILES, "--registry", "broken.db"], "'broken.db': is no URI of one: write sqlite:///PATH"),
    (["run", PROJECT, *FILES, "--registry", "sqlite:///broken.db"], "broken.db: file is not a database"),
    (["run", PROJECT, *FILES, "--sink-format", "xml"], "--sink-format is parquet, jsonl or delta"),
    (["run", PROJECT, *FILES, "--source-format", "xml"], "--source-format is"),
    (["run", PROJECT, *FILES, "--runner", "Foo"], "--runner Foo is not known; there are: InProcessRunner, FnApiRunner"),
    (["run", PROJECT, *FILES, "--runner", "SparkRunner"], "--runner SparkRunner is not known"),
    (["run", PROJECT, *FILES, "--runner", "flink"], r"here.csv: Flink's workers .*\$PWD/here.csv"),
    (["run", PROJECT, *FILES, "--runner", "FLINKRUNNER"], r"\$PWD/here.csv"),
    (["run", PROJECT, *FILES, "--dry-run"], "--dry-run is for --runner DataflowRunner"),
    (["run", PROJECT, *FILES, "--order", "random"], "--order is event_time or arrival"),
    (["run", PROJECT, *FILES, "--history", "here.csv"], "--history is for streams"),
    (["run", PROJECT, *FILES, "--labels", "here.csv"], "--labels are for a project that declares label.events"),
    (["run", PROJECT, *TOPICS, "--allowance", "x"], "--allowance: 'x' is not a duration"),
    (["run", PROJECT, *TOPICS, "--lateness", "x"], "--lateness: 'x' is not a duration"),
    (["run", PROJECT, *TOPICS, "--files", "2"], "not for a stream"),
    (["run", PROJECT, *TOPICS, "--values", "avro:nope"], "--values avro:nope: no file nope"),
    (["run", PROJECT, *TOPICS, "--values", "xml"], "--values is json, avro:FILE.avsc"),
    (["run", PROJECT, *TOPICS, "--kafka-config", "nope"], "--kafka-config nope: no file"),
    (["run", PROJECT, *TOPICS, "--history", "none.csv"], "none.csv: no such file"),
    (["run", PROJECT, *TOPICS, "--runner", "flink", "--journal", "j"], "on Flink, checkpoints"),
    (["run", PROJECT, "--source", "pubsub://demo/events", "--sink", "out"], "a stream has one broker's --source"),
    (["train", PROJECT, "--source", "none.csv"], "none.csv: no such file"),
    (["train", PROJECT, "--source", "here.csv", "--runner", "x"], "--runner x is not known"),
    (
        ["train", PROJECT, "--source", "here.csv", "--registry", "sqlite:///here.csv/r.db"],
        "can't be made: .*here.csv is",
    ),
    (["train", PROJECT, "--source", "here.csv", "--registry", "sqlite:///broken.db"], "file is not a database"),
    (["models", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["models", PROJECT, *NO_MODEL], "no registry at"),
    (["promote", PROJECT, "2", *NO_MODEL], "no registry at"),
    (["release", PROJECT, "2", "--reason", "x", *NO_MODEL], "no registry at"),
    (["rollback", PROJECT, "--reason", "x", "--at", "soon", *NO_MODEL], "--at is a time such as 2018-06-08"),
    (["releases", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["releases", PROJECT, "--releases", "none.jsonl"], "none.jsonl: No such file"),
    (["releases", PROJECT, "--releases", "here.csv"], "release log here.csv: is not JSON"),
    (["releases", PROJECT, "--json", "--export", "x.jsonl"], "say --json or --export, not both"),
    (["releases", PROJECT, "--run", "x", "--export", "x.jsonl"], "no log that is exported has that"),
    (["baseline", PROJECT, "--source", "none.csv"], "none.csv: no such file"),
    (["baseline", PROJECT, "--source", "here.csv", *NO_MODEL], "no registry at"),
    (["parity", PROJECT, "--source", "none.csv"], "none.csv: no such file"),
    (["parity", PROJECT, "--source", "here.csv", "--allowance", "soon"], "--allowance: 'soon' is not"),
    (["parity", PROJECT, "--source", "here.csv", *NO_MODEL], "no registry at"),
    (["publish", PROJECT, "--source", "none.csv", "--to", "pubsub://demo/events"], "none.csv: no such file"),
    (["publish", PROJECT, "--source", "here.csv", "--to", "out.csv"], "--to is pubsub://PROJECT/TOPIC or kafka://"),
    (["publish", PROJECT, "--source", "here.csv", "--to", "pubsub://demo/events", "--key", "x"], "--key x is no field"),
    (
        ["publish", PROJECT, "--source", "here.csv", "--to", "pubsub://demo/events", "--speed-up", "inf"],
        "--speed-up is",
    ),
    (["pubsub", "--topic", "events"], "--topic is PROJECT/TOPIC or PROJECT/TOPIC:SUBSCRIPTION, not events"),
    (["pubsub", "--port", "{taken}"], "can't listen on port .*: it is taken, perhaps by another one; say .* --port"),
    (["check", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["init", "."], "is there and not empty"),
    (["init", "here.csv"], "here.csv: Not a directory"),
    (["init", "123"], "a project's name starts with a letter"),
    (["sample", "s", "--format", "xls"], "--format is parquet"),
    (["report", PROJECT, "--run", "nowhere"], "nowhere: no such folder"),
    (["report", PROJECT, "--run", "here.csv"], "here.csv: no such folder"),
    (["demo", "--project", PROJECT, "--data", "none.parquet"], "none.parquet: no such file"),
    (["demo", "--project", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["schema", "infer", PROJECT, "--source", "none.csv"], "none.csv: no such file"),
    (["schema", "infer", PROJECT, "--source", "here.csv", "--output", "here.csv"], "--force writes over it"),
    (["schema", "infer", "nowhere", "--source", "here.csv"], "nowhere/project.yaml: cannot be read"),
    (["schema", "register", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["schema", "list", "nowhere"], "nowhere/project.yaml: cannot be read"),
    (["quarantine", "out"], "say --release or --drop"),
    (["replay-dead-letters", "--source", "none.jsonl", "--to", "new.jsonl"], "none.jsonl: no such file"),
    (["quarantine", "x://out", "--drop"], "x://out: no file system x is known: name a path, or gs://"),
    (["report", PROJECT, "--run", "x://out", "--output", "r.html"], "x://out: no file system x is known"),
    (["run", PROJECT, "--source", "here.csv", "--sink", "x://out"], "x://out: no file system x is known"),
    (["run", PROJECT, "--source", "x://here.csv", "--sink", "out"], "x://here.csv: no file system x is known"),
    (["quarantine", "nowhere", "--drop"], "nowhere: has no _SUCCESS.json: it is not the folder of a finished run"),
    (["quarantine", "listed", "--drop"], "_SUCCESS.json is not what a run writes"),
    (["report", PROJECT, "--run", "listed"], "_SUCCESS.json is not what a run writes"),
    (["train", PROJECT, "--source", "here.csv", "--", "--runner=FlinkRunner"], "--runner stands before a --"),
    (
        ["train", PROJECT, "--source", "here.csv", "--sorce", "x"],
        "--sorce is none of headrace's options, and InProcessRunner .*: did you mean --source",
    ),
    (["train", PROJECT, "--source", "here.csv", "--num_workers=4"], "--num_workers is none of headrace's options, and"),
    (["train", PROJECT, "--source", "here.csv", "--start", "soon"], "--start is a time such as 2018-06-08"),
    (["run", PROJECT, *FILES, "--score-from", "soon"], "--score-from is a time such as 2018-06-08"),
    (["run", PROJECT, *FILES, "--sink", "foreign"], "foreign/scores/mine.txt: was not written by a run that is known"),
    (["run", PROJECT, *TOPICS, "--runner", "flink"], "FlinkRunner needs a cluster: --flink_master HOST:PORT"),
]
MANY = [
    *["run", PROJECT, "--source", "none.csv", "--sink", "out", "--sink-format", "xml", "--order", "random"],
    *["--score-from", "soon", "--allowance", "x", "--runner", "Foo"],
]
SLOWER = [
    (["replay-dead-letters", "--source", "here.csv", "--to", "new.jsonl"], "here.csv: holds what is no dead letter"),
    (["replay-dead-letters", "--source", "letters.jsonl", "--to", "n2.jsonl"], "holds what is no dead letter"),
    (["replay-dead-letters", "--source", "broken.parquet", "--to", "n3.jsonl"], "broken.parquet: can't be read"),
    (["replay-dead-letters", "--source", "here.csv", "--to", "here.csv"], "here.csv: is there already"),
    (["replay-dead-letters", "--source", "here.csv", "--to", "nowhere/n.jsonl"], "nowhere/n.jsonl: No such file"),
    (["publish", PROJECT, "--source", "here.csv", "--to", "pubsub://demo"], "'pubsub://demo' is not pubsub://PROJECT"),
    (["train", PROJECT, "--source", "noformat"], "noformat: its name does not tell its format"),
]
SECRET = [
    ["models", PROJECT, "--registry", f"nope://user:{HIDDEN}@host/x"],
    ["promote", PROJECT, "1", "--registry", f"user:{HIDDEN}@host"],
    ["releases", PROJECT, "--releases", f"postgresql://user:{HIDDEN}@host/db"],
    ["releases", PROJECT, "--releases", f"http://user:{HIDDEN}@host/x"],
    ["run", PROJECT, *FILES, "--registry", f"http://user:{HIDDEN}@127.0.0.1:1/"],
    ["run", PROJECT, *FILES, "--registry", f"postgresql+{HIDDEN}://user:{HIDDEN}@127.0.0.1:1/db"],
    ["run", PROJECT, "--source", f"http://user:{HIDDEN}@host/x.csv", "--sink", "out", *NO_MODEL],
    ["run", PROJECT, "--source", f"x://host/x.csv?token={HIDDEN}", "--sink", "out", "--registry", "http://127.0.0.1:1"],
    ["run", PROJECT, *TOPICS, "--values", f"http://user:{HIDDEN}@host"],
    ["run", PROJECT, *FILES, "--alert-to", f"https://user:{HIDDEN}@host/x"],
    ["run", PROJECT, *TOPICS, "--kafka-config", f"password={HIDDEN}"],
    ["train", PROJECT, "--source", f"s3://key:{HIDDEN}@bucket/x.csv"],
    ["train", PROJECT, "--source", "here.csv", "--", f"--sasl.password={HIDDEN}"],
    ["publish", PROJECT, "--source", "here.csv", "--to", f"pubsub://user:{HIDDEN}@x"],
    ["publish", PROJECT, "--source", "here.csv", "--to", f"kafka://user:{HIDDEN}@host:1/topic"],
    ["parity", PROJECT, "--source", f"http://user:{HIDDEN}@host/x"],
    ["baseline", PROJECT, "--source", "here.csv", "--registry", f"nope://user:{HIDDEN}@host/x"],
    ["replay-dead-letters", "--source", f"x://u:{HIDDEN}@host/x", "--to", "n4.jsonl"],
    ["quarantine", f"x://u:{HIDDEN}@host/x", "--drop"],
    ["report", PROJECT, "--run", f"x://u:{HIDDEN}@host/x"],
    ["schema", "infer", PROJECT, "--source", f"x://u:{HIDDEN}@host/x"],
    ["schema", "diff", f"http://u:{HIDDEN}@host/a", "b"],
    ["check", f"http://u:{HIDDEN}@host/a"],
    ["init", f"http://u:{HIDDEN}@host/123"],
    ["sample", "s", "--format", f"http://u:{HIDDEN}@host"],
    ["pubsub", "--topic", f"http://u:{HIDDEN}@host"],
    ["demo", "--project", PROJECT, "--data", f"http://u:{HIDDEN}@host/x.csv"],
    ["models", PROJECT, f"--http://u:{HIDDEN}@host"],
    ["train", PROJECT, "--source", "here.csv", "--start", f"http://u:{HIDDEN}@host"],
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    (folder / "here.csv").write_text("a,b\n1,2\n")
    (folder / "noformat").write_text("")
    (folder / "foreign" / "scores").mkdir(parents=True)
    (folder / "foreign" / "scores" / "mine.txt").write_text("mine")
    (folder / "broken.parquet").write_text("not Parquet")
    (folder / "broken.db").write_text("no database, but some text that is longer than a header")
    (folder / "letters.jsonl").write_text('{"payload": "", "format": "json", "reasons": "no list", "step": "x"}\n')
    (folder / "listed").mkdir()
    (folder / "listed" / "_SUCCESS.json").write_text("[]")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for name in ("HEADRACE_REGISTRY", "PUBSUB_EMULATOR_HOST"):
        environment.pop(name, None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        commands = [
            [arg.replace("{taken}", port) for arg in args] for args, _ in [*AT_ONCE, (MANY, ""), *SLOWER]
        ] + SECRET
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN],
            cwd=folder,
            env=environment,
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert HIDDEN not in done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands)
    return {
        json.dumps(args): answer for (args, _), answer in zip([*AT_ONCE, (MANY, ""), *SLOWER], answers, strict=False)
    } | {json.dumps(args): answer for args, answer in zip(SECRET, answers[-len(SECRET) :], strict=True)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("args", "message"), [*AT_ONCE, *SLOWER])
def test_one_clear_line(ran, args, message):
    code, said, slow = ran[json.dumps(args)]
    assert code == 1, said
    assert len(said.strip().splitlines()) == 1, said
    assert re.search(message, said), said
    assert "Traceback" not in said
    if (args, message) in AT_ONCE:
        assert slow == []


def test_all_faults_are_told_at_once(ran):
    code, said, slow = ran[json.dumps(MANY)]
    assert (code, slow) == (1, [])
    assert [line.split()[1].rstrip(":") for line in said.strip().splitlines()] == [
        "--sink-format",
        "--order",
        "--score-from",
        "--allowance",
        "--runner",
        "none.csv",
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("args", SECRET)
def test_no_secret_is_shown(ran, args):
    code, said, _ = ran[json.dumps(args)]
    assert code in (1, 2), said
    assert HIDDEN not in said
    assert "Traceback" not in said, said
    assert said.strip()


@pytest.mark.parametrize("text", ["flink", "Flink", "flinkrunner", "FLINKRUNNER", " FlinkRunner "])
def test_runners_are_named_without_case_and_ending(text):
    from pipelines.runners import FLINK, profile_of

    assert profile_of(text).name == FLINK


def test_every_runner_is_known_by_its_name_to_beam_too():
    from apache_beam.options.pipeline_options import StandardOptions

    from pipelines.runners import DIRECT, IN_PROCESS, RUNNERS, profile_of

    names = {name for profile in RUNNERS.values() for name in (profile.name, *profile.aliases)}
    assert names - {IN_PROCESS} <= set(StandardOptions.KNOWN_RUNNER_NAMES)
    assert [profile_of(name.lower()).name for name in RUNNERS] == list(RUNNERS)
    assert profile_of("inprocess") == profile_of(DIRECT) == profile_of("direct") == RUNNERS[IN_PROCESS]


def test_a_traceback_and_the_log_show_no_secret(tmp_path):
    code = f"""
import logging, sys, threading
sys.argv = ["headrace", "--registry", "http://user:{HIDDEN}@host"]
from models.redact import guard_output
guard_output(sys.argv[1:])
logging.basicConfig()
logging.getLogger("x").error("lost http://other:s3cret@host, and %s", "{HIDDEN}")
def fail(): raise ValueError("Authorization: Basic czNjcmV0OnB3Cg==, {HIDDEN}")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError:
    logging.exception("it failed")
fail()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: Authorization: ***") == 3
    assert "lost http://***@host, and ***" in done.stderr
    for secret in (HIDDEN, "s3cret", "czNj"):
        assert secret not in done.stderr.replace(f'"{HIDDEN}"', "")


def test_an_interrupted_start_says_so(monkeypatch, capsys):
    from pipelines.cli import entry
    from pipelines.cli import main as cli

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupt)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
