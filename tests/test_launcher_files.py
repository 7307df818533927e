"""The files in scripts/launchers agree with schemas, with themselves and with the programs."""

import math
import os
import re
import subprocess

import pytest
import yaml
from checkout import GUARD_S, ROOT

FILES = ROOT / "scripts/launchers"
JOB_SETS = ["jobset.yaml", "gke_tpu.yaml"]

# The fields of JobSet (jobset.x-k8s.io/v1alpha2), Job (batch/v1) and Pod (v1) that our files use,
# looked up in the schema of JobSet's CRD. A server of Kubernetes drops others without a word.
FIELDS = {
    "": "apiVersion kind metadata spec",
    "metadata": "name annotations",
    "spec": "failurePolicy network replicatedJobs",
    "spec.failurePolicy": "maxRestarts restartStrategy",
    "spec.network": "enableDNSHostnames publishNotReadyAddresses",
    "spec.replicatedJobs": "name replicas template",
    "spec.replicatedJobs.template": "spec",
    "spec.replicatedJobs.template.spec": (
        "completionMode parallelism completions backoffLimit template"
    ),
}
POD = "spec.replicatedJobs.template.spec.template"
FIELDS |= {
    POD: "spec",
    f"{POD}.spec": "restartPolicy terminationGracePeriodSeconds nodeSelector containers",
    f"{POD}.spec.containers": "name image command env ports resources",
    f"{POD}.spec.containers.env": "name value",
    f"{POD}.spec.containers.ports": "containerPort",
    f"{POD}.spec.containers.resources": "limits",
}
# Whose keys are names that users choose.
MAPS = {
    "metadata.annotations",
    f"{POD}.spec.nodeSelector",
    f"{POD}.spec.containers.resources.limits",
}


def fields_of(value, place=""):
    """The fields of a document, by the place where they stand."""
    if isinstance(value, list):
        for item in value:
            yield from fields_of(item, place)
    elif isinstance(value, dict) and place not in MAPS:
        for name, inner in value.items():
            yield place, name
            yield from fields_of(inner, f"{place}.{name}".lstrip("."))


def read(name):
    document = yaml.safe_load((FILES / name).read_text())
    [replicated] = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    return document, replicated, job, container


@pytest.mark.parametrize("name", JOB_SETS)
def test_a_job_set_has_fields_of_its_schema_only(name):
    document, _, job, container = read(name)
    unknown = {(p, f) for p, f in fields_of(document) if f not in FIELDS.get(p, "").split()}
    assert not unknown
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert all(isinstance(each["value"], str) for each in container["env"])  # a number is refused


def test_the_pods_of_a_job_set_are_told_each_other():
    document, replicated, job, container = read("jobset.yaml")
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["JAX_NUM_PROCESSES"] == str(job["parallelism"] * replicated["replicas"])
    name, [port] = document["metadata"]["name"], container["ports"]
    host = f"{name}-{replicated['name']}-0-0.{name}"
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{host}:{port['containerPort']}"


def test_the_hosts_of_a_slice_have_its_chips():
    _, _, job, container = read("gke_tpu.yaml")
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert chips == math.prod(map(int, topology.split("x")))


# The fields of RayCluster (ray.io/v1) and Pod (v1) that our file uses, as its CRD has them.

RAY_FIELDS = {
    "": "apiVersion kind metadata spec",
    "metadata": "name",
    "spec": "rayVersion headGroupSpec workerGroupSpecs",
    "spec.headGroupSpec": "rayStartParams template",
    "spec.workerGroupSpecs": "groupName replicas minReplicas maxReplicas rayStartParams template",
}
for group in ("spec.headGroupSpec", "spec.workerGroupSpecs"):
    containers = f"{group}.template.spec.containers"
    RAY_FIELDS |= {
        f"{group}.rayStartParams": "num-cpus",
        f"{group}.template": "spec",
        f"{group}.template.spec": "containers volumes",
        f"{group}.template.spec.volumes": "name persistentVolumeClaim",
        f"{group}.template.spec.volumes.persistentVolumeClaim": "claimName readOnly",
        containers: "name image env resources volumeMounts",
        f"{containers}.env": "name value valueFrom",
        f"{containers}.env.valueFrom": "secretKeyRef",
        f"{containers}.env.valueFrom.secretKeyRef": "name key",
        f"{containers}.resources": "limits requests",
        f"{containers}.resources.limits": "cpu memory",
        f"{containers}.resources.requests": "cpu memory",
        f"{containers}.volumeMounts": "name mountPath readOnly",
    }


def test_a_ray_cluster_has_fields_of_its_schema_only_and_asks_for_a_token():
    text = (FILES / "kuberay.yaml").read_text()
    document = yaml.safe_load(text)
    unknown = {(p, f) for p, f in fields_of(document) if f not in RAY_FIELDS.get(p, "").split()}
    assert not unknown
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayCluster")
    head, [workers] = document["spec"]["headGroupSpec"], document["spec"]["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}  # a number is refused
    for group in (head, workers):
        variables = {each["name"] for each in group["template"]["spec"]["containers"][0]["env"]}
        assert variables == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert f"{document['metadata']['name']}-head-svc:6379" in text


PROGRAMS = sorted(path for path in FILES.iterdir() if path.name != "kuberay.yaml")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_file_starts_a_program_as_it_can_be_and_says_whether_it_was_tried(path, monkeypatch):
    import config_file
    import train

    text = path.read_text()
    monkeypatch.chdir(ROOT)
    assert "scripts/train.py" in text
    config, *options = re.findall(r"configs/digits.yaml|--[\w.-]+=gs://\S+", text)
    assert config_file.config_from_args(train.Config, [config, *options])
    [tried] = re.findall(r"^# (Tried|Untried) (?:with|on) ", text, re.MULTILINE)
    page = (ROOT / "docs/launchers.md").read_text().splitlines()
    row = next(line for line in page if f"scripts/launchers/{path.name}" in line)
    assert ("untried" in row) == (tried == "Untried")
    if path.suffix == ".sh":
        subprocess.run(["sh", "-n", str(path)], check=True, timeout=GUARD_S)


GCLOUD = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in *" describe "*) echo "$STATE" ;; esac
"""


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        ("", ["describe", "create", "scp", "ssh", "ssh"]),
        ("READY", ["describe", "scp", "ssh", "ssh"]),
        ("PREEMPTED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_a_slice_is_made_if_needed_and_all_of_its_hosts_train(state, calls, tmp_path):
    for name, script in {"gcloud": GCLOUD, "git": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "calls"
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "a", "ZONE": "z"}
    subprocess.run(
        [str(FILES / "tpu_vm.sh"), "scripts/train.py", "configs/digits.yaml", "--epochs=3"],
        env=variables | {"CALLS": str(log), "STATE": state},
        check=True,
        timeout=GUARD_S,
    )
    called = re.findall(r"^compute tpus tpu-vm (\w+) .*--zone=z", log.read_text(), re.MULTILINE)
    assert called == calls
    last = "--command=cd train && exec .env/bin/python scripts/train.py configs/digits.yaml"
    assert log.read_text().rstrip().endswith(f"--worker=all {last} --epochs=3")
