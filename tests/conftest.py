"""What the tests share: a tiny random policy in Hugging Face's format, the real default, a few questions, a
server on the loopback and a real one."""

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Server, truth
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from judge import Judge
from rar_mini import data, pretrained, prompts
from rar_mini.sampler import Completion
from rar_mini.scores import Rollouts
from rar_mini.tools import memory

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give the whole suite to several processes of one thread each, which takes half the time on two cores.
    `-n 0` keeps it in one. GPU tests stay in one: they would share the device's memory."""
    option = config.option
    worker = "PYTEST_XDIST_WORKER" in os.environ  # which would start workers of its own
    unsaid = getattr(option, "numprocesses", 0) is None  # pytest-xdist is there, and no -n is
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr != "gpu"
    if unsaid and whole and not worker and not option.usepdb:
        option.numprocesses, option.dist = min(4, os.cpu_count() or 1), "loadfile"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes and three special tokens: every text has ids, and decoding gives it back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def write_tiny(directory: Path, **changes: object) -> Path:
    """A random two-layer Llama with grouped queries and a byte tokenizer."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # the usual 0.02 gives almost uniform tokens, on which nothing could fail
        "eos_token_id": 258,
        "pad_token_id": 258,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | changes))
    model.generation_config.eos_token_id = [256, 258]
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def known(name: str, **changes: object) -> PretrainedConfig:
    """The config of a model whose size is known, without a file."""
    return AutoConfig.for_model(**memory.KNOWN[name] | changes)


qwen7, qwen1 = partial(known, "Qwen/Qwen2.5-7B"), partial(known, "Qwen/Qwen2.5-1.5B")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that costs nothing. Read only: it is shared."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "policy")


ENDS = {*range(0, 256, 8), 258}


@pytest.fixture(scope="session")
def many(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with one end token in eight, ENDS, so that answers end at any length."""
    directory = tmp_path_factory.mktemp("many") / "policy"
    shutil.copytree(tiny, directory)
    config = json.loads((directory / "generation_config.json").read_text())
    config["eos_token_id"] = sorted(ENDS)
    (directory / "generation_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with heads of 16 channels, the fewest that FlexAttention takes on a GPU."""
    return write_tiny(tmp_path_factory.mktemp("wide") / "policy", head_dim=16)


@pytest.fixture(scope="session")
def default() -> Path:
    """The real default policy, fetched once into the user's cache."""
    return pretrained.resolve("smollm2-135m")


Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("judge.py", *words)` runs a file of the project as a shell would, but in this process: to
    import torch again takes seconds. One test of each file starts a real one."""

    def run(file: str, *words: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [file, *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / file), run_name="__main__")
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # Python prints it at its end
            code, err = 1, f"{err}{code}\n"
        return subprocess.CompletedProcess(sys.argv, code or 0, out, err)

    return run


@pytest.fixture
def terse(tmp_path: Path) -> Path:
    """A judge's prompts so short that they fit into the window of `tiny`."""
    path = tmp_path / "terse.toml"
    path.write_text(
        """
system = "s"
shared = "{question}{response}"
shared_reference = "{question}{reference}{response}"
rate = "r"
rate_reference = "r"
rate_rubric = "{items}"
met = "{criterion}"
made = "{criterion}"
avoided = "no {criterion}"
"""
    )
    return path


def rolled(prompts: list[list[int]], completions: list[list[Completion]], adv: torch.Tensor) -> Rollouts:
    """Rollouts as the update reads them, with one prompt a group."""
    shown = [[prompt] * len(group) for prompt, group in zip(prompts, completions, strict=True)]
    return Rollouts([], shown, completions, [], adv=adv)


def question(number: int, **changes: object) -> dict:
    """A data row on which even a random byte model earns something: lone letters."""
    rubric = [
        {"title": f"Letter {c}", "description": f"Essential Criteria: Mentions {c}.", "weight": 5}
        for c in "bcdefghjklmno"
    ]
    rubric.append({"title": "Names fever", "description": "Important Criteria: Names fever.", "weight": 3})
    rubric.append(
        {"title": "No aspirin", "description": "Pitfall Criteria: Recommends aspirin.", "weight": -1}
    )
    row = {
        "id": f"q{number}",
        "split": "train",
        "question": f"What is {number}?",
        "reference_answer": "That.",
    }
    return row | {"rubric": rubric} | changes


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Five training questions and two held out."""
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    return write_rows(tmp_path / "questions.jsonl", rows)


@pytest.fixture
def examples(questions: Path) -> list[data.Example]:
    """Two of the training questions."""
    return data.read(questions)[:2]


def told(asker: Judge, example: data.Example, responses: list[str]) -> list[list[float]]:
    """What the honest server says of an example's G responses, criterion by criterion: G x K."""
    texts, items = asker.prompts, asker.rubric(example).criteria
    asked = [(prompts.closed_question(texts, c), prompts.yes_is_bad(texts, c)) for c in items]
    return [[float(truth(response + each) != bad) for each, bad in asked] for response in responses]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no server but its own."""
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on the loopback that misbehaves on request."""
    server = Server(hang=2.0)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    yield server
    server.close()


@pytest.fixture(scope="session")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory, default: Path) -> Iterator[str]:
    """`transformers serve` with the default policy, on a port that was free."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install -e '.[serve]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", default, "--host", "127.0.0.1"]
    log = open(tmp_path_factory.mktemp("serve") / "log", "w+")  # noqa: SIM115, as long as the server
    process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.seek(0) or log.read()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()
