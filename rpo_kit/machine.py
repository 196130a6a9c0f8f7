"""What this machine is: processor, cores, memory, GPU, and where caches live.

bf16 results differ from processor to processor, so the provenance of every result names it.

    describe_machine()      # "2 cores of AMD EPYC 9B14, 24 GB of memory, no GPU, Linux"
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def cores() -> int:
    """Cores that this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Bytes of memory of this machine: total and available."""
    import psutil  # imported here, so that `doctor` runs without it and reports it

    state = psutil.virtual_memory()
    return int(state.total), int(state.available)


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory that this process may use: the machine's, or less if a container allows less."""
    total = memory()[0]
    try:
        limit = cgroup.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _cpuinfo() -> str:
    """Linux's description of the processor; "" on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def processor() -> str:
    """The processor's name, such as "AMD EPYC 9B14"."""
    names = (line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bf16: AMX or AVX512-BF16, on Arm the BF16 extension; without it bf16 is slower than
    fp32. $UNSLOTH_CPU_BF16 (0 or 1) takes precedence, as in Unsloth.
    """
    wanted = os.environ.get("UNSLOTH_CPU_BF16", "").strip().lower()
    if wanted:
        return wanted in ("1", "true", "yes", "on")
    needed = {"bf16"} if platform.machine().lower() in ("aarch64", "arm64") else {"avx512_bf16", "amx_bf16"}
    return bool(needed & set(_cpuinfo().lower().split()))


def gpu() -> str | None:
    """The GPU's name; None without one, or before torch was imported, which takes seconds."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def threads() -> int | None:
    """Threads that torch computes with on the CPU; None before torch was imported."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else None


def describe_machine() -> str:
    """One line: cores, processor, memory, GPU and system."""
    size = memory()[0] / 2**30
    return f"{cores()} cores of {processor()}, {size:.0f} GB of memory, {gpu() or 'no GPU'}, {platform.system()}"


def cache_root() -> Path:
    """The folder of converted models, converted data and vectors: $RPO_CACHE, else ~/.cache/rpo_kit."""
    return Path(os.environ.get("RPO_CACHE") or "~/.cache/rpo_kit").expanduser().absolute()
