"""Check the machine and the installation: `python -m rpo_kit doctor`, and notebook 00.

Every line is ok, warn (it works, with the limitation named) or fail (it does not work), with a remedy. Nothing is
downloaded, no network is contacted, no model is loaded, and of a key only the name of its variable is shown. Versions
are compared with pyproject.toml, so there is one list of pins. A missing package gets its own line: at its top, this
module needs no other package. On a GPU, each preset gets a line with its estimated memory (memory.py). Whether training
works is tested by `make demo`, and on a GPU by `make gpu-check`.

    doctor()  ->  [Check("cores", "ok", "2"), Check("trl", "warn", "1.14.0; tested with ==1.15.0", "Run: …"), …]
"""

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rpo_kit import bundled
from rpo_kit.errors import KitError
from rpo_kit.machine import cores, cpu_has_bf16, memory, memory_limit, processor
from rpo_kit.memory import estimate
from rpo_kit.presets import PRESETS
from rpo_kit.runs import runs_root

if TYPE_CHECKING:
    from packaging.requirements import Requirement

UNSLOTH = "2026.10.9"  # on both routes, as in pyproject.toml and requirements-cpu-nodeps.txt; a test compares them
MEMORY_GB = 7.5  # ours: the `cpu` preset is meant for 8 GB, of which a machine reports a little less
FREE_MEMORY_GB = 4  # measured: peak of training the bundled model on a CPU, 3.0-4.1 GB
DISK_GB = 2  # ours: converted model, adapters and records of a few runs of the `cpu` preset
BF16_SINCE = (8, 0)  # compute capability of the first NVIDIA cards with bf16; a T4 has 7.5
KEY_VARIABLES = ("OPENAI_API_KEY",)
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `remedy` is empty if there is nothing to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def doctor(runs: Path | None = None) -> list[Check]:
    """All checks, in reading order; `runs` defaults to the folder where runs are kept."""
    runs = runs or runs_root()
    return [
        check_python(),
        check_cores(),
        *unless_missing("memory", lambda: [check_memory()]),
        check_disk(runs),
        check_runs_folder(runs),
        *unless_missing("packages", check_versions),
        *check_device(),
        *unless_missing("notebook kernel", lambda: [check_kernel()]),
        check_bundled_model(),
        *check_keys(),
        Check("network", "ok", "not contacted by this check"),
    ]


def unless_missing(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The lines of a check, or one line that names the package that it lacks."""
    try:
        return list(check())
    except ImportError as error:
        return [import_failure(name, error)]


def import_failure(name: str, error: ImportError) -> Check:
    """The line for an import that fails: the missing package, or the error."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return Check(name, "fail", f"the package {package} is missing", f"Run: python -m pip install {package}")
    return Check(name, "fail", f"import fails: {str(error).splitlines()[0]}", "Reinstall: make clean, then make test.")


def main() -> int:
    """Print the report; return 1 if something fails, else 0."""
    checks = doctor()
    for check in checks:
        print(f"{check.status:<5} {check.name:<16} {check.found}")
        if check.remedy:
            print(f"{'':<22} -> {check.remedy}")
    count = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    print(f"\n{count['ok']} ok, {count['warn']} warnings, {count['fail']} failures")
    return 1 if count["fail"] else 0


# --- the machine ---------------------------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    found = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if (3, 11) <= version[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "Use Python 3.11, 3.12 or 3.13: make clean, then make demo PYTHON=python3.11")


def check_cores() -> Check:
    """The cores this process may use."""
    count = cores()
    if count >= 2:
        return Check("cores", "ok", f"{count} of {processor()}")
    return Check(
        "cores", "warn", str(count), "The times in docs/benchmarks.md are for 2 cores; expect about twice as long."
    )


def check_memory() -> Check:
    total, free = memory_limit() / 1e9, memory()[1] / 1e9
    found = f"{total:.1f} GB, {min(total, free):.1f} GB free"
    if total >= MEMORY_GB and free >= FREE_MEMORY_GB:
        return Check("memory", "ok", found)
    return Check("memory", "warn", found, f"Training takes about {FREE_MEMORY_GB} GB: close other programs first.")


def existing(path: Path) -> Path:
    """`path`, or its nearest ancestor that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_disk(runs: Path) -> Check:
    free = shutil.disk_usage(existing(runs)).free / 1e9
    if free >= DISK_GB:
        return Check("disk", "ok", f"{free:.0f} GB free")
    return Check("disk", "warn", f"{free:.1f} GB free", f"Have {DISK_GB} GB free: delete old runs/ or caches.")


def check_runs_folder(runs: Path) -> Check:
    """Whether a file can be written where runs are kept; the folder itself is not created."""
    folder = existing(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("runs folder", "ok", f"{runs.absolute()} can be written")
    except OSError as error:
        remedy = "Set RPO_RUNS to a folder that you may write to."
        return Check("runs folder", "fail", f"cannot write in {folder} ({error.strerror})", remedy)


# --- the packages --------------------------------------------------------------------------------------------


def pins() -> list["Requirement"]:
    """The requirements of rpo_kit: from pyproject.toml beside the package, else from the installed metadata."""
    from packaging.requirements import Requirement

    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in metadata.requires("rpo-kit") or [] if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def check_versions() -> Iterator[Check]:
    """One line for each package whose version is pinned exactly, and one for all others together."""
    others = []
    for requirement in pins():
        check = compare(requirement)
        pinned = any(specifier.operator == "==" for specifier in requirement.specifier)
        if pinned or check.status != "ok":
            yield check
        else:
            others.append(requirement.name)
    yield Check("other packages", "ok", ", ".join(others))


def compare(requirement: "Requirement") -> Check:
    name, wanted = requirement.name, str(requirement.specifier) or "any version"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "fail", f"not installed; needed: {wanted}", "Run make demo or make test: they install it.")
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name, "ok", version)
    remedy = f'Run: python -m pip install "{requirement}"'
    return Check(name, "warn", f"{version}; tested with {wanted}", remedy)


def check_device() -> list[Check]:
    """torch, the device it computes on, Unsloth, and on a GPU what each preset needs."""
    try:
        import torch
    except ImportError as error:
        return [import_failure("torch works", error)]
    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        size = torch.cuda.get_device_properties(0).total_memory
        described = describe_gpu(torch.__version__, name, capability, size)
        return [described, check_unsloth(gpu=True), *check_presets(size / 1e9)]
    return [describe_cpu(torch.__version__, bool(shutil.which("nvidia-smi"))), check_unsloth(gpu=False)]


def describe_gpu(version: str, name: str, capability: tuple[int, int], memory: int) -> Check:
    found = (
        f"torch {version} on GPU {name}, {memory / 2**30:.0f} GiB, compute capability {capability[0]}.{capability[1]}"
    )
    if capability >= BF16_SINCE:
        return Check("device", "ok", f"{found}, bf16")
    return Check("device", "ok", f"{found}, no bf16: use the colab-t4 preset, which computes in fp16")


def describe_cpu(version: str, nvidia: bool) -> Check:
    """A CPU is enough for the `cpu` preset; without bf16 instructions training is several times slower (measured)."""
    bf16 = "with bf16" if cpu_has_bf16() else "without bf16 instructions: training is slower"
    found = f"torch {version} on CPU, {bf16}"
    if nvidia:
        remedy = "To use the NVIDIA GPU: make clean, then make demo RPO_ROUTE=gpu; check that nvidia-smi works."
        return Check("device", "warn", f"{found}; torch does not see a GPU, though nvidia-smi is installed", remedy)
    return Check("device", "ok", found)


def check_presets(gb: float) -> Iterator[Check]:
    """What each preset needs on a GPU of this size: estimated from shapes, for prompts of the maximum length."""
    for preset in PRESETS.values():
        stages = estimate(preset)
        stage = max(stages, key=lambda name: stages[name])
        listed = ", ".join(f"{name} {size}" for name, size in stages.items())
        found = f"needs up to {stages[stage]} of {gb:.1f} GB, estimated ({listed})"
        if stages[stage] <= gb:
            yield Check(f"preset {preset.name}", "ok", found)
        else:
            remedy = f"Choose a smaller preset, or lower reflection.max_seq_length and the batch of {stage}."
            yield Check(f"preset {preset.name}", "warn", found, remedy)


def check_unsloth(gpu: bool) -> Check:
    """Unsloth's version, from the package metadata: importing it takes 8 s and patches other libraries."""
    remedy = (
        'Run: python -m pip install -e ".[gpu]"'
        if gpu
        else "Run: python -m pip install --no-deps -r requirements-cpu-nodeps.txt (older versions need a GPU)"
    )
    versions = []
    for name in ("unsloth", "unsloth_zoo"):
        try:
            versions.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            return Check("unsloth", "fail", f"{name} is not installed; needed: =={UNSLOTH}", remedy)
    if versions == [UNSLOTH, UNSLOTH]:
        return Check("unsloth", "ok", " and zoo ".join(versions))
    return Check("unsloth", "warn" if gpu else "fail", f"{' and zoo '.join(versions)}; needed: =={UNSLOTH}", remedy)


def check_kernel() -> Check:
    """Whether the notebook kernel `python3`, which every notebook names, is this Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = "Run: python -m ipykernel install --sys-prefix --name python3"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("notebook kernel", "fail", "there is no kernel named python3", remedy)
    ours = not os.path.isabs(command) or Path(command).parent == Path(sys.executable).parent  # "python" means this one
    if ours:
        return Check("notebook kernel", "ok", "python3 starts this Python")
    return Check("notebook kernel", "warn", f"python3 starts another Python: {command}", remedy)


# --- the model and the keys ----------------------------------------------------------------------------------


def check_bundled_model() -> Check:
    folder = bundled.cache_folder()
    converted = bundled.is_complete(folder)
    try:
        bundled.check_hash(bundled.gguf_file())
    except KitError as error:
        if converted:
            return Check("bundled model", "ok", f"converted, in {folder} (its source is gone, and no longer needed)")
        return Check("bundled model", "fail", "not usable", str(error))
    if converted:
        return Check("bundled model", "ok", f"sha256 is right; converted, in {folder}")
    return Check("bundled model", "ok", f"sha256 is right; the first use converts it into {folder} (about 20 s)")


def check_keys() -> Iterator[Check]:
    """Whether a key is set: the name of its variable, never its value or part of it."""
    for name in KEY_VARIABLES:
        state = "is set" if os.environ.get(name) else "is not set (needed only for a model behind an endpoint)"
        yield Check("key", "ok", f"{name} {state}")


if __name__ == "__main__":
    sys.exit(main())
