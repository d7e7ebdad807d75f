"""cloudbuild.yaml is well formed, its substitutions are explained, and its scripts run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.rendering import ROOT, kubectls, load, pods

BUILD_FILE = ROOT / "cloudbuild.yaml"
SCHEMA = Path(__file__).with_name("build-schema.json")
SDK_MESSAGES = Path(
    "/usr/lib/google-cloud-sdk/lib/googlecloudsdk/generated_clients/apis/cloudbuild/v1/cloudbuild_v1_messages.py"
)
BUILT_IN = {"PROJECT_ID", "COMMIT_SHA", "BUILD_ID"}
DIGEST = "sha256:" + "0" * 64
DIGESTS = dict.fromkeys(("_PYTHON_DIGEST", "_DOCKER_DIGEST", "_SDK_DIGEST"), DIGEST)


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    """The Build message."""
    message: dict[str, Any] = yaml.safe_load(BUILD_FILE.read_text())
    return message


def step(build: dict[str, Any], step_id: str) -> dict[str, Any]:
    """One step by its id."""
    return next(s for s in build["steps"] if s["id"] == step_id)


def script(build: dict[str, Any], step_id: str, **substitutions: str) -> str:
    """A step's shell text as Cloud Build hands it over: substitutions filled in, `$$` undone."""
    values = build["substitutions"] | substitutions
    text = re.sub(r"(?<!\$)\$\{(_?[A-Z_]+)\}", lambda m: values[m[1]], step(build, step_id)["args"][-1])
    return text.replace("$$", "$")


def test_the_file_matches_cloud_builds_schema(build: dict[str, Any]) -> None:
    import jsonschema  # noqa: PLC0415  # takes seconds, in each process that collects the tests

    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert [error.message for error in schema.iter_errors(build)] == []


def test_the_schema_has_only_fields_of_cloud_build() -> None:
    """Compared with the API client inside the Google Cloud SDK, where there is one."""
    if not SDK_MESSAGES.exists():
        pytest.skip("no Google Cloud SDK here")
    text, schema = SDK_MESSAGES.read_text(), json.loads(SCHEMA.read_text())
    parts = {
        "Build": schema,
        "BuildStep": schema["$defs"]["step"],
        "BuildOptions": schema["$defs"]["options"],
    }
    for name, part in parts.items():
        (body,) = re.findall(rf"^class {name}\(_messages.Message\):\n(.*?)(?=^class |\Z)", text, re.M | re.S)
        fields = set(re.findall(r"^  (\w+) = _messages\.\w+Field\(", body, re.M))
        assert part["properties"].keys() <= fields, name


def test_the_image_is_built_before_checks_and_pushed_after_them(build: dict[str, Any]) -> None:
    order = ["build", "environment", "lint", "test", "push", "render", "deploy", "smoke"]
    assert [s["id"] for s in build["steps"]] == order


def test_every_substitution_is_used_has_a_word_on_top_and_is_defined(build: dict[str, Any]) -> None:
    text = BUILD_FILE.read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)\}", text))
    assert used - BUILT_IN - build["substitutions"].keys() == DIGESTS.keys(), "required, so without a default"
    assert build["substitutions"].keys() <= used
    for name in DIGESTS:
        assert f"#   {name} " in text
    for name in build["substitutions"]:
        assert re.search(rf"  {name}: .*#|#.*\n  {name}: ", text), f"{name} is not explained"


def test_shell_variables_are_not_mistaken_for_substitutions(build: dict[str, Any]) -> None:
    for one in build["steps"]:
        for argument in one["args"]:
            assert not re.search(r"(?<!\$)\$(?!\$|\{_?[A-Z][A-Z_]*\})", argument), one["id"]


def test_images_are_named_by_digest(build: dict[str, Any]) -> None:
    for one in build["steps"]:
        assert re.search(r"@\$\{_[A-Z]+_DIGEST\}$", one["name"]), one["name"]
    text = BUILD_FILE.read_text()
    assert re.findall(r"^\s+\w+=(\S+/\S+:\S+)$", text, re.M) == [
        "docker.io/library/python:3.11-slim-bookworm@${_PYTHON_DIGEST}"
    ] * text.count("python=")


def containers(build: dict[str, Any], step_id: str) -> list[list[str]]:
    """The arguments of each `docker run` in a step, without the text that the container reads."""
    text = re.sub(r"<<'END'\n.*?\nEND\n", "\n", script(build, step_id, **DIGESTS), flags=re.S)
    return [
        shlex.split(command)[2:]
        for line in text.splitlines()
        for command in line.split("|")
        if command.strip().startswith("docker run")
    ]


def values_of(option: str, arguments: list[str]) -> list[str]:
    """Values of an option that is written as `--option value`."""
    return [arguments[at + 1] for at, word in enumerate(arguments) if word == option]


@pytest.mark.parametrize("step_id", ["environment", "lint", "test"])
def test_checks_cannot_reach_the_built_image(build: dict[str, Any], step_id: str) -> None:
    """They run in containers on a copy: no /workspace, no Docker socket and, where their code runs, no network."""
    found = containers(build, step_id)
    assert found
    for arguments in found:
        assert values_of("--volume", arguments) == ["checks:/checks"]
        options = {word.split("=")[0] for word in arguments if word.startswith("-")}
        assert options <= {
            "--rm",
            "--interactive",
            "--network",
            "--volume",
            "--workdir",
            "-eu",
            "--extract",
            "--directory",
        }
        assert values_of("--network", arguments) == ([] if step_id == "environment" else ["none"])


def test_steps_before_the_push_run_only_docker_and_tar_in_the_workspace(build: dict[str, Any]) -> None:
    for step_id in ("environment", "lint", "test"):
        outside = re.sub(r"<<'END'\n.*?\nEND\n", "\n", script(build, step_id, **DIGESTS), flags=re.S)
        for line in filter(None, map(str.strip, outside.splitlines())):
            assert re.match(r"python=|docker run |tar --create \. \| docker run ", line), line


def test_the_container_with_a_network_runs_only_pip_on_wheels(build: dict[str, Any]) -> None:
    (inside,) = re.findall(r"<<'END'\n(.*?)\nEND\n", script(build, "environment", **DIGESTS), re.S)
    for line in inside.splitlines():
        assert re.match(
            r"export PIP_|python -m venv |\.venv/bin/pip install .*--require-hashes --only-binary :all:", line
        )


def test_scripts_pass_the_shells_syntax_check(build: dict[str, Any]) -> None:
    values = DIGESTS | {"COMMIT_SHA": "0" * 40, "BUILD_ID": "b", "PROJECT_ID": "p"}
    for one in build["steps"]:
        if one.get("entrypoint") == "bash":
            assert one["args"][0] == "-euc", f"{one['id']} must stop at the first fault"
            done = subprocess.run(
                ["bash", "-n"],
                input=script(build, one["id"], **values),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{one['id']}: {done.stderr}"


@pytest.mark.parametrize(
    "folders", ["knative/overlays/gke", "knative/base/dispatch keda", "knative/overlays/cloud-run"]
)
def test_the_render_step_puts_the_pushed_digest_everywhere(build: dict[str, Any], folders: str, tmp_path: Path) -> None:
    image = f"europe-west4-docker.pkg.dev/p/async-processor/async-processor@{DIGEST}"
    for folder in ("knative", "keda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "image.txt").write_text(image + "\n")
    text = script(build, "render", _FOLDERS=folders)
    path = f"{Path(kubectls()[0]).parent}:/usr/bin:/bin"
    subprocess.run(["bash", "-euc", text], cwd=tmp_path, env={"PATH": path}, check=True)
    rendered = sorted(tmp_path.glob("deploy/*.yaml"))
    assert [f.stem for f in rendered] == sorted(folder.replace("/", "-") for folder in folders.split())
    found = [pod for file in rendered for pod in pods(load(file.read_text()))]
    assert found
    assert {pod.spec["containers"][0]["image"] for pod in found} == {image}


def test_lint_and_test_run_what_the_makefile_runs(build: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target, step_id in [("lint", "lint"), ("types", "lint"), ("imports", "lint"), ("test", "test")]:
        (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.M)
        for command in re.findall(r"\$\(BIN\)/(.+?)(?: -n .*)?$", recipe, re.M):
            assert command.strip() in step(build, step_id)["args"][-1], command


def test_packages_for_the_checks_are_those_of_the_lock_files(build: dict[str, Any]) -> None:
    installs = [
        line
        for step_id in ("environment", "lint", "test")
        for line in step(build, step_id)["args"][-1].splitlines()
        if "pip install" in line
    ]
    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-index --no-deps" in line, line
