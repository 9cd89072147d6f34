"""infra/: what Terraform itself says of it, with Google's schema; and what must agree with the application."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from app.settings import Settings
from tests.deploy.programs import ROOT, TOOLS, run, tool

INFRA = ROOT / "infra"
FILEBEAT = {"ELASTICSEARCH_URL", "IN_CLUSTER", "ON_GPU_VM"}
CODE = {path: path.read_text() for path in INFRA.glob("**/*.tf")}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """What Google's provider takes, in a file for its stand-in; and the version of which that is."""
    tool("terraform")
    told = slim(json.loads((TOOLS / "programs/google.json").read_text()))
    file = tmp_path_factory.mktemp("schema") / "google.json"
    file.write_text(json.dumps(told))
    return file, told["version"]


@pytest.fixture(scope="module")
def environ(schema):
    """One stand-in for Google's provider, to which every Terraform turns: each would start dozens of its own."""
    command = [tool(TOOLS / "deploy/bin/python"), "-u", ROOT / "tests/deploy/provider.py", "--dev", schema[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as provider:
        told = next(line for line in provider.stdout if "TF_REATTACH_PROVIDERS=" in line)
        yield {**os.environ, "TF_REATTACH_PROVIDERS": told.partition("=")[2].strip().strip("'")}
        provider.terminate()


@pytest.fixture(scope="module")
def mirror(schema, tmp_path_factory):
    """Here `terraform init` finds a provider of that one version, and nothing else."""
    folder, (_, version) = tmp_path_factory.mktemp("mirror"), schema
    name = f"registry.terraform.io/hashicorp/google/{version}/{platform()}"
    program = folder / name / f"terraform-provider-google_v{version}"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    told = f'provider_installation {{\n  filesystem_mirror {{\n    path = "{folder}"\n  }}\n}}\n'
    (folder / "terraformrc").write_text("disable_checkpoint = true\n" + told)
    return {**os.environ, "TF_CLI_CONFIG_FILE": str(folder / "terraformrc")}


def platform():
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return f"{os.uname().sysname.lower()}_{machine}"


def slim(schema):
    """Only the kinds that the code uses: Terraform asks for all of them at each start."""
    used = set(re.findall(r'(?:resource|data) "(\w+)"', "".join(CODE.values())))
    kinds = {
        part: {name: block for name, block in schema[part].items() if name in used} for part in ("resources", "data")
    }
    assert used == set(kinds["resources"]) | set(kinds["data"])
    return schema | kinds


@pytest.mark.timeout(300)
def test_format_validity_policies_and_terraforms_own_tests(environ):
    told = run(INFRA / "ci/check-terraform", env=environ)
    assert told.stdout.count("The configuration is valid.") == 3
    passed, failed = re.search(r"(\d+) passed, (\d+) failed", told.stdout).groups()
    assert int(passed) >= 19
    assert failed == "0"
    assert re.findall(r"Failed checks: (\d+)", told.stdout) == ["0"]


@pytest.fixture(scope="module")
def root(environ, tmp_path_factory):
    """A copy of infra/, and a command that validates it."""
    folder = tmp_path_factory.mktemp("copy") / "infra"
    shutil.copytree(INFRA, folder)
    shutil.copytree(ROOT / "charts", folder.parent / "charts")

    def terraform(*words, check=True):
        return run("terraform", f"-chdir={folder}/envs/prod", *words, "-no-color", env=environ, check=check)

    terraform("init", "-backend=false", "-input=false")
    terraform.folder = folder
    return terraform


def test_the_schema_is_that_of_a_version_which_every_module_takes(root, mirror):
    run("terraform", f"-chdir={root.folder}/envs/prod", "init", "-backend=false", "-input=false", env=mirror)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "told"),
    [
        ("bucket/main.tf", "uniform_bucket_level_access", "uniform_bucket_access", "Unsupported argument"),
        ("network/main.tf", "log_config", "log_configuration", "Unsupported block type"),
        ("stack/main.tf", "module.bucket.url", "module.bucket.uri", "Unsupported attribute"),
        ("redis/main.tf", "google_redis_instance", "google_redis_instanz", "Invalid resource type"),
        ("gpu_worker/main.tf", "var.secret_prefix", "var.secret_prefics", "Reference to undeclared"),
    ],
)
def test_a_mistake_is_found(root, file, right, wrong, told):
    path = root.folder / "modules" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    try:
        done = root("validate", check=False)
    finally:
        path.write_text(text)
    assert done.returncode == 1
    assert told in done.stderr


# Each is valid Terraform. All are made at once, since one run of the tests tells of every one.
WRONG_WISHES = {
    "network: SSH from everywhere": (
        *("network/main.tf", 'concat(["35.235.240.0/20"], var.ssh_ranges)', '["0.0.0.0/0"]'),
        "SSH must not be open to the world",
    ),
    "network: metrics for the wrong network": (
        *("network/main.tf", "source_ranges = [var.ranges.pods]", "source_ranges = [var.ranges.workers]"),
        "Only the pods scrape the workers",
    ),
    "bucket: seconds for days": (
        *("bucket/main.tf", "var.result_ttl / local.day", "var.result_ttl"),
        "RESULT_TTL in days",
    ),
    "bucket: may be made public": ("bucket/main.tf", '"enforced"', '"inherited"', "Nobody but the roles"),
    "identity: a worker deletes": (
        *("identity/main.tf", 'worker  = ["storage.objects.create", ', 'worker  = ["storage.objects.delete", '),
        "A worker deletes nothing",
    ),
    "identity: a worker signs": (
        *("identity/main.tf", "for_each = local.signing", "for_each = local.in_cluster"),
        "each only as itself",
    ),
    "redis: no password": (
        *("redis/main.tf", "auth_enabled            = true", "auth_enabled            = false"),
        "Password and TLS",
    ),
    "redis: a name that its certificate does not bear": (
        *("redis/outputs.tf", "?ssl_check_hostname=false", ""),
        "Its certificate bears no name",
    ),
    "gpu_worker: deleted when a worker is drained": (
        *("gpu_worker/main.tf", "port         = 9100", "port         = 9464"),
        "no reason to delete its machine",
    ),
    "deployer: deletes machines": (
        *("deployer/main.tf", '"compute.instances.list",', '"compute.instances.delete",'),
        "makes and deletes no machine",
    ),
    "gpu_worker: moved while it runs": (
        *("gpu_worker/main.tf", '"TERMINATE"', '"MIGRATE"'),
        "A machine with a GPU cannot be moved",
    ),
    "gpu_worker: a public address": (
        *("gpu_worker/main.tf", "network_interface {", "network_interface {\n    access_config {}"),
        "A worker has no public address",
    ),
    # It keeps what tells the two versions apart, so that the next wish is found by itself.
    "gpu_worker: another version": (
        *("gpu_worker/main.tf", "= var.worker_version }", '= "v${var.worker_version}" }'),
        "A new machine begins with the version",
    ),
    "gpu_worker: an apply sets the version again": (
        *("gpu_worker/main.tf", "[target_size, all_instances_config]", "[target_size]"),
        "An apply takes no deployment back",
    ),
    "cluster: pods see the node's account": (
        *("cluster/main.tf", '"GKE_METADATA"', '"GCE_METADATA"'),
        "Pods see their own account",
    ),
    "network: health checks from one network": (
        *("network/main.tf", '["130.211.0.0/22", "35.191.0.0/16"]', '["130.211.0.0/22"]'),
        "Google's health checks come from its two networks",
    ),
}


@pytest.fixture(scope="module")
def told_of_wrong_wishes(environ, tmp_path_factory):
    """What `terraform test` says of a copy with every one of them."""
    folder = tmp_path_factory.mktemp("wrong")
    for part in ("infra", "charts"):
        shutil.copytree(ROOT / part, folder / part)
    for file, right, wrong, _ in WRONG_WISHES.values():
        path = folder / "infra/modules" / file
        assert right in path.read_text(), right
        path.write_text(path.read_text().replace(right, wrong, 1))
    stack = f"-chdir={folder}/infra/modules/stack"
    run("terraform", stack, "init", "-backend=false", "-input=false", env=environ)
    run("terraform", stack, "validate", env=environ)
    return run("terraform", stack, "test", "-no-color", env=environ, check=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("wish", WRONG_WISHES)
def test_a_wrong_wish_is_found(told_of_wrong_wishes, wish):
    assert told_of_wrong_wishes.returncode == 1
    assert WRONG_WISHES[wish][-1] in told_of_wrong_wishes.stdout + told_of_wrong_wishes.stderr


# ---- What must agree


def default(module, variable):
    text = (INFRA / "modules" / module / "variables.tf").read_text()
    return re.search(rf'variable "{variable}" {{.*?default\s+= (\S+)\n', text, re.DOTALL)[1]


def test_pictures_live_as_long_as_their_records():
    assert int(default("stack", "result_ttl")) == Settings.model_fields["result_ttl"].default


def test_every_role_that_writes_task_documents_may_sign_the_urls_in_them():
    def writes(role):
        script = f"import sys, app.{role}; sys.exit('app.documents' not in sys.modules)"
        return run(sys.executable, "-c", script, check=False).returncode == 0

    text = (INFRA / "modules/identity/main.tf").read_text()
    signing = json.loads(re.search(r"signing += toset\((.*)\)", text)[1])
    assert set(signing) == {role for role in ("web", "courier", "worker") if writes(role)}


def test_what_a_machine_is_told_are_settings_of_the_application():
    text = (INFRA / "modules/gpu_worker/main.tf").read_text()
    environment = re.search(r"environment = merge\(\{(.*?)\n  scripts = ", text, re.DOTALL)[1]
    own = {
        "IMAGE",
        "GPUS",
        "HUB_TOKEN",
        "SECRET_PREFIX",
        "STOP_SECONDS",
        "JAEGER_ENDPOINT",
        "JAEGER_INSECURE",
        *FILEBEAT,
    }
    assert set(re.findall(r"^ +([A-Z_]+) +=", environment, re.MULTILINE)) - own <= {
        name.upper() for name in Settings.model_fields
    }


def test_the_roots_use_queues_of_the_catalogue():
    queues = {model["queue"] for model in yaml.safe_load((ROOT / "config/models.yaml").read_text())["models"]}
    used = {queue for code in CODE.values() for queue in re.findall(r'queue\s+= "(gen\.[\w.-]+)"', code)}
    assert used
    assert used <= queues


def test_each_roots_default_model_is_on_the_queue_of_its_workers():
    catalogue = yaml.safe_load((ROOT / "config/models.yaml").read_text())["models"]
    queues = {model["model_version"]: model["queue"] for model in catalogue}
    for root in ("dev", "prod"):
        told = dict(re.findall(r'(default_model|queue)\s+= "([^"]+)"', CODE[INFRA / f"envs/{root}/main.tf"]))
        assert queues[told["default_model"]] == told["queue"], root


def test_in_an_empty_project_no_part_is_asked_for_before_its_service_is_on():
    code = CODE[INFRA / "modules/stack/main.tf"]
    parts = re.findall(r'^(?:module|data "\w+") "(\w+)" \{(.*?)^\}', code, re.MULTILINE | re.DOTALL)
    assert "this" in dict(parts), "the zones, which are read while all else is planned"
    assert len(parts) >= 9
    assert [name for name, body in parts if "[google_project_service.this]" not in body] == []
    # The pool of accounts is Google's only once a cluster is there.
    assert "module.cluster.workload_pool" in dict(parts)["identity"]


def test_the_cluster_and_the_chart_agree_on_networks_and_accounts():
    values = yaml.safe_load((ROOT / "charts/darkroom/values-production.yaml").read_text())
    ranges = dict(
        re.findall(r'(\w+)\s+= optional\(string, "([^"]+)"\)', (INFRA / "modules/network/variables.tf").read_text())
    )
    assert values["rabbitmq"]["internalLoadBalancer"]["sourceRanges"] == [ranges["workers"]]
    assert values["redis"]["external"]["egress"][0]["cidr"] == ranges["managed"]
    roles = re.search(r"in_cluster = toset\(\[(.*?)\]\)", (INFRA / "modules/identity/main.tf").read_text())[1]
    assert set(re.findall(r'"(\w+)"', roles)) == set(values["serviceAccounts"])


def test_nothing_is_reached_from_the_world_but_what_serves_it():
    for path, code in CODE.items():
        for open_to_all in re.finditer(r"0\.0\.0\.0/0", code):
            assert "condition" in code[: open_to_all.start()].splitlines()[-1], path
        assert "allUsers" not in re.sub(r"condition.*", "", code)
        assert "access_config" not in re.sub(r"#.*", "", code)
