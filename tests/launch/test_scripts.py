"""Launch scripts: what they would run, what they do with stand-ins for the tools of clusters, what they refuse."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), LAUNCH / "slurm.sbatch"])
TPU = ["--name", "pod", "--zone", "z1", "--type", "v5litepod-16"]
GKE = ["--name", "run", "--image", "registry/image:1", "--claim", "shared"]
TRAIN = ["--", "jaxllm", "train", "configs/it's a.yaml", "--resume", "a=[1, 2]"]


def script(name, *arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAXLLM_", "XLA_FLAGS", "JAX_"))}
    return subprocess.run([str(LAUNCH / name), *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT,
                          env={**clean, **environment})


def commands(name, *arguments, **environment):
    """The words of every command that a dry run prints."""
    done = script(name, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    # bash's %q may write $'...' for words with line breaks, which shlex does not read.
    return [shlex.split(line[2:].replace("$'", "'")) for line in done.stdout.splitlines() if line.startswith("+ ")]


# The package puts it beside the interpreter, which need not be on the PATH.
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_is_content(path):
    done = subprocess.run([SHELLCHECK, "-x", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name != "common.sh"], ids=lambda p: p.name)
def test_every_script_parses_is_executable_and_has_help(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    done = script(path.relative_to(LAUNCH), "--help")
    assert done.returncode == 0 and f"launch/{path.relative_to(LAUNCH)}" in done.stdout
    assert "set -e" not in done.stdout


def test_the_table_names_every_script():
    table = (LAUNCH / "README.md").read_text()
    for path in SCRIPTS:
        if path.name != "common.sh":
            assert f"`{path.relative_to(LAUNCH)}`" in table


# --- this machine

def test_local_dry_run():
    ran = commands("local.sh", "-n", "2", "--devices", "4", "--port", "5000", "--dry-run", *TRAIN)
    for i, words in enumerate(ran):
        assert words == ["env", "JAX_PLATFORMS=cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
                         "XLA_FLAGS=--xla_force_host_platform_device_count=4", "JAXLLM_COORDINATOR=127.0.0.1:5000",
                         "JAXLLM_NUM_PROCESSES=2", f"JAXLLM_PROCESS_ID={i}", *TRAIN[1:]]
    assert len(ran) == 2


def test_local_prefixes_lines_and_tells_each_its_place():
    done = script("local.sh", "-n", "3", "--", "bash", "-c",
                  'echo "$JAXLLM_PROCESS_ID of $JAXLLM_NUM_PROCESSES at $JAXLLM_COORDINATOR"; printf "no end" >&2')
    assert done.returncode == 0 and done.stderr == ""
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 6 and len({line.split(" at ")[-1] for line in lines if " of 3 at " in line}) == 1
    for i in range(3):
        assert lines[2 * i].startswith(f"[{i}] {i} of 3 at 127.0.0.1:") and lines[2 * i + 1] == f"[{i}] no end"


def test_local_stops_all_after_the_first_failure_and_passes_its_code_on():
    begin = time.monotonic()
    done = script("local.sh", "-n", "3", "--", "bash", "-c",
                  'if [ $JAXLLM_PROCESS_ID = 1 ]; then exit 7; fi; sleep 90 & wait')
    assert done.returncode == 7 and time.monotonic() - begin < 60
    assert done.stderr == "local: process 1 of 3 exited with 7; the others end too\n"


def test_local_kills_what_does_not_listen():
    done = script("local.sh", "-n", "2", "--grace", "1", "--", "bash", "-c",
                  'trap "" TERM; if [ $JAXLLM_PROCESS_ID = 0 ]; then exit 3; fi; sleep 90')
    assert done.returncode == 3


def test_local_passes_signals_on():
    command = [str(LAUNCH / "local.sh"), "-n", "2", "--", "bash", "-c",
               'trap "echo saved; exit 75" TERM; echo ready; while true; do sleep 0.1; done']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 75
    # bash adds a line on the sleep that the signal ended.
    assert sorted(line for line in rest.splitlines() if "Terminated" not in line) == ["[0] saved", "[1] saved"]


# --- TPU pods

def test_tpu_pod_dry_run():
    ran = commands("tpu_pod.sh", *TPU, "--bucket", "gs://mine", "--spot", "--project", "p", "--dry-run", *TRAIN)
    resource = ["gcloud", "compute", "tpus", "queued-resources"]
    place, all_of_them = ["--zone=z1", "--project=p"], ["--node=all", "--worker=all", "--batch-size=all"]
    describe, create, tar, copy, setup, train = ran
    assert describe == [*resource, "describe", "pod", "--format=value(state.state)", *place]
    assert create == [*resource, "create", "pod", "--accelerator-type=v5litepod-16",
                      "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pod", "--spot", *place]
    assert tar[0] == "tar" and {"jaxllm", "configs", "launch", "pyproject.toml", "constraints.txt"} <= set(tar)
    for step in (copy, setup, train):  # one worker alone would wait for the others for ever
        assert step[:4] == resource and step[5:5 + 4] and set(all_of_them) <= set(step)
    remote, = [word for word in setup if word.startswith("--command=")]
    assert "launch/setup.sh --extra tpu" in remote
    # Checkpoints are renamed into place, which the mounted bucket refuses for directories unless it is told how large.
    assert "gcsfuse --implicit-dirs --rename-dir-limit=100000 mine runs" in remote
    remote = train[-3] if train[-1] == "--project=p" else train[-2]
    assert remote.startswith("--command=cd jaxllm && ")
    assert shlex.split(remote.split('PATH" ')[1]) == TRAIN[1:]


def test_tpu_pod_slices_and_images():
    create = commands("tpu_pod.sh", *TPU, "--slices", "2", "--dry-run", *TRAIN)[1]
    assert "--node-count=2" in create and "--node-prefix=pod" in create and "--node-id=pod" not in create
    for kind, image in (("v4-32", "tpu-ubuntu2204-base"), ("v5p-64", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e")):
        ran = commands("tpu_pod.sh", "--name", "n", "--zone", "z", "--type", kind, "--dry-run", *TRAIN)
        assert f"--runtime-version={image}" in ran[1]


# --- Slurm

def test_slurm_dry_run():
    submit, run, again = commands("slurm.sbatch", "--nodes", "2", "--gpus-per-node", "8", "--time", "8:00:00",
                                  "--partition", "gpu", "--dry-run", *TRAIN)
    assert submit == ["sbatch", "--nodes=2", "--ntasks-per-node=8", f"--chdir={ROOT}", "--gpus-per-node=8",
                      "--time=8:00:00", "--partition=gpu", str(LAUNCH / "slurm.sbatch"), "--restarts", "20",
                      "--gpus-per-node", "8", *TRAIN]
    assert run == ["srun", "--label", "--kill-on-bad-exit=1", *TRAIN[1:]]
    assert again == ["scontrol", "requeue", "$SLURM_JOB_ID"]
    submit, run, _ = commands("slurm.sbatch", "--nodes", "3", "--gpus-per-node", "4", "--per-node", "--dry-run", *TRAIN)
    assert "--ntasks-per-node=1" in submit and "--per-node" in submit
    assert run[:2] == ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"]
    submit, _, _ = commands("slurm.sbatch", "--nodes", "3", "--dry-run", *TRAIN)
    assert "--ntasks-per-node=1" in submit and not any("gpus" in word for word in submit)


def test_slurm_options_stand_before_the_first_command():
    head = (LAUNCH / "slurm.sbatch").read_text().split("\nset -euo")[0]
    options = [line.split()[1] for line in head.splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--open-mode=append", "--signal=TERM@180"} <= set(options)


@pytest.fixture
def tools(tmp_path):
    """A PATH with stand-ins that write down how they were called; `srun` exits with the code in a file."""
    log, code = tmp_path / "log", tmp_path / "code"
    for name in ("sbatch", "srun", "scontrol"):
        file = tmp_path / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >>{log}\n'
                        + (f'[ -f {code} ] && exit "$(cat {code})" || exit 0\n' if name == "srun" else ""))
        file.chmod(0o755)
    return tmp_path, log, code


@pytest.mark.parametrize("code, restarts, requeued", [(0, 0, False), (75, 0, True), (75, 3, False), (137, 2, True),
                                                      (1, 0, False), (2, 0, False)])
def test_slurm_requeues_what_is_unfinished(tools, code, restarts, requeued):
    path, log, file = tools
    file.write_text(str(code))
    done = script("slurm.sbatch", "--restarts", "3", "--", "jaxllm", "train", "c", SLURM_JOB_ID="12",
                  SLURM_RESTART_COUNT=str(restarts), PATH=f"{path}:{os.environ['PATH']}")
    assert done.returncode == code
    lines = log.read_text().splitlines()
    assert lines[0] == "srun --label --kill-on-bad-exit=1 jaxllm train c"
    assert (lines[1:] == ["scontrol requeue 12"]) is requeued and len(lines) == 1 + requeued


def test_slurm_does_not_restart_what_no_restart_mends(tools):
    """The first process ends with code 2 and notes why; srun kills the others and reports 143."""
    path, log, file = tools
    file.write_text("143")
    srun = path / "srun"
    srun.write_text(srun.read_text().replace("[ -f", 'echo "optimizer.name=x: use adamw" >>"$JAXLLM_ERROR_FILE"\n[ -f'))
    done = script("slurm.sbatch", "--", "jaxllm", "train", "c", SLURM_JOB_ID="12", PATH=f"{path}:{os.environ['PATH']}")
    assert done.returncode == 143 and "not restarted: optimizer.name=x: use adamw" in done.stderr
    assert len(log.read_text().splitlines()) == 1
    assert not list(ROOT.glob(".jaxllm-error-*"))


def test_slurm_submits_itself(tools):
    path, log, _ = tools
    done = script("slurm.sbatch", "--nodes", "2", "--", "jaxllm", "train", "c", PATH=f"{path}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert log.read_text() == (f"sbatch --nodes=2 --ntasks-per-node=1 --chdir={ROOT} {LAUNCH / 'slurm.sbatch'} "
                               "--restarts 20 -- jaxllm train c\n")


# --- GKE

COUNT = {"type": "integer", "minimum": 1}
TEXT = {"type": "string", "minLength": 1}


def fields(required, **more):
    return {"type": "object", "required": required.split(), **more}


# The fields that make a set of pods one run that starts, fails and restarts together.
JOBSET = fields("apiVersion kind metadata spec", properties={
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"}, "kind": {"const": "JobSet"},
    "metadata": fields("name namespace", properties={"name": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}}),
    "spec": fields("network failurePolicy replicatedJobs", properties={
        "network": fields("enableDNSHostnames", properties={"enableDNSHostnames": {"const": True}}),
        "failurePolicy": fields("maxRestarts rules", properties={
            "maxRestarts": COUNT, "rules": {"items": fields("name action", properties={
                "action": {"const": "FailJobSet"}, "onJobFailureReasons": {"const": ["PodFailurePolicy"]}})}}),
        "replicatedJobs": {"minItems": 1, "maxItems": 1, "items": fields("name replicas template", properties={
            "replicas": COUNT,
            "template": fields("spec", properties={"spec": fields(
                "completionMode parallelism completions backoffLimit podFailurePolicy template", properties={
                    "completionMode": {"const": "Indexed"}, "parallelism": COUNT, "completions": COUNT,
                    "backoffLimit": {"const": 0},
                    "template": fields("spec", properties={"spec": fields(
                        "restartPolicy terminationGracePeriodSeconds nodeSelector containers volumes", properties={
                            "restartPolicy": {"const": "Never"}, "terminationGracePeriodSeconds": COUNT,
                            "nodeSelector": {"additionalProperties": TEXT},
                            "containers": {"minItems": 1, "maxItems": 1, "items": fields(
                                "name image command resources volumeMounts", properties={
                                    "image": TEXT, "command": {"type": "array", "items": {"type": "string"}},
                                    "resources": fields("limits", properties={
                                        "limits": {"additionalProperties": COUNT, "minProperties": 1}})})},
                        })})})})})}})})


def jobset(*arguments):
    done = script("gke/submit.sh", *GKE, *arguments, "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "{{" not in done.stdout and "kubectl create" in done.stdout
    data = yaml.safe_load(done.stdout)
    jsonschema.validate(data, JOBSET)
    job = data["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == TRAIN[1:] and container["image"] == "registry/image:1"
    assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/runs"}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    # Bad settings end the set, everything else restarts it.
    rule, = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "jaxllm", "operator": "In", "values": [2]}}
    return data, job, pod, container


@pytest.mark.parametrize("topology, chips, hosts", [("4x4", None, 4), ("2x2x4", None, 4), ("2x4", "8", 1)])
def test_gke_tpu(topology, chips, hosts):
    more = [] if chips is None else ["--chips-per-host", chips]
    data, job, pod, container = jobset("--tpu", "tpu-v5p-slice", "--topology", topology, "--slices", "2", *more)
    assert job["replicas"] == 2 and job["template"]["spec"]["completions"] == hosts
    assert job["template"]["spec"]["parallelism"] == hosts
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
                                   "cloud.google.com/gke-tpu-topology": topology}
    assert container["resources"]["limits"] == {"google.com/tpu": int(chips or 4)}
    assert data["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == \
        "cloud.google.com/gke-nodepool"
    assert data["spec"]["failurePolicy"]["maxRestarts"] == 20


def test_gke_gpu():
    data, job, pod, container = jobset("--gpu", "nvidia-h100-80gb", "--hosts", "3", "--restarts", "5",
                                       "--namespace", "research")
    assert job["replicas"] == 1 and job["template"]["spec"]["completions"] == 3
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environment = {e["name"]: e.get("value") for e in container["env"]}
    # JobSet's name of the first pod: set, job, its number, pod; in the set's own domain.
    assert environment["JAXLLM_COORDINATOR"] == f"run-{job['name']}-0-0.run:8476"
    assert environment["JAXLLM_NUM_PROCESSES"] == "3"
    index = next(e for e in container["env"] if e["name"] == "JAXLLM_PROCESS_ID")["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert data["metadata"]["namespace"] == "research" and data["spec"]["failurePolicy"]["maxRestarts"] == 5


# --- what is refused

@pytest.mark.parametrize("name, arguments, text", [
    ("local.sh", TRAIN, "-n is missing"), ("local.sh", ["-n", "2"], "the command is missing"),
    ("local.sh", ["-n", "0", *TRAIN], "-n 0: write a whole number"), ("local.sh", ["-n"], "-n needs a value"),
    ("local.sh", ["--nodes", "2", *TRAIN], "unknown option --nodes"),
    ("local.sh", ["-n", "2", "--", "no-such-command"], "no-such-command: no such command"),
    ("tpu_pod.sh", TRAIN, "--name is missing"), ("tpu_pod.sh", ["--name", "n", *TRAIN], "--zone is missing"),
    ("tpu_pod.sh", TPU, "the command is missing"),
    ("tpu_pod.sh", ["--name", "n", "--zone", "z", "--type", "tpu7x-8", *TRAIN], "launch/gke/submit.sh"),
    ("slurm.sbatch", TRAIN, "--nodes is missing"), ("slurm.sbatch", ["--nodes", "2"], "the command is missing"),
    ("gke/submit.sh", TRAIN, "--name is missing"),
    ("gke/submit.sh", ["--name", "Bad_Name", *TRAIN], "--name Bad_Name"),
    ("gke/submit.sh", GKE, "the command is missing"),
    ("gke/submit.sh", [*GKE, *TRAIN], "either --tpu TYPE --topology T or --gpu TYPE --hosts N"),
    ("gke/submit.sh", [*GKE, "--tpu", "t", *TRAIN], "--topology is missing"),
    ("gke/submit.sh", [*GKE, "--tpu", "t", "--topology", "3x3", *TRAIN], "9 chips do not divide"),
    ("gke/submit.sh", [*GKE, "--gpu", "g", *TRAIN], "--hosts is missing"),
])
def test_bad_arguments_are_named(name, arguments, text):
    done = script(name, *arguments)
    assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name, arguments, tool", [
    ("tpu_pod.sh", [*TPU, *TRAIN], "gcloud"), ("slurm.sbatch", ["--nodes", "2", *TRAIN], "sbatch"),
    ("gke/submit.sh", [*GKE, "--gpu", "g", "--hosts", "2", *TRAIN], "kubectl")])
def test_missing_tools_are_named(tmp_path, name, arguments, tool):
    for needed in ("bash", "env", "dirname", "basename", "cat", "sed", "seq"):
        (tmp_path / needed).symlink_to(shutil.which(needed))
    done = script(name, *arguments, PATH=str(tmp_path))
    assert done.returncode == 2 and f"{tool} is not installed" in done.stderr
