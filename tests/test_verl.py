"""The way out to verl: its own reward managers call the very function that docs/leaving.md shows."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import Server
from leaving import SERVED, make_environment, rating, run, snippet, swapped

from judge import Judge
from rar_mini import data, grpo

VERL = "verl==0.9.1 --no-deps", "ray==2.60.0 tensordict==0.10.0 hydra-core codetiming aiohttp"
"""Without vLLM, which takes GPUs, and without what pins another torch or transformers."""


@pytest.fixture
def server(server: Server) -> Server:
    return rating(server)


def compute_score(code: str) -> Callable[..., float]:
    """The function that verl would find in a file."""
    module: dict[str, Any] = {}
    exec(code, module)
    return module["compute_score"]


def keyword_reward(name: str, answer: str) -> float:
    """What the keyword judge gives an answer to a bundled question."""
    example = next(example for example in data.sample("medical") if example.id == name)
    return grpo.reward(Judge("keyword", "rar-explicit").score([example], [[answer]])).item()


def test_the_pages_function_for_verl() -> None:
    score = compute_score(snippet("def compute_score"))
    for example in data.sample("medical")[:3]:
        for answer in ("Rest.", example.reference):
            reward = score(data_source="x", solution_str=answer, ground_truth=example.id, extra_info={})
            assert reward == keyword_reward(example.id, answer) and isinstance(reward, float)


def test_a_failure_is_no_score_in_verl(server: Server) -> None:
    """It has no None: its groups' means are plain ones, and a 0 would be a lie."""
    score = compute_score(swapped(snippet("def compute_score"), SERVED))
    assert score("x", "xxxx", "medical-001") == pytest.approx(4 / 9)
    with pytest.raises(RuntimeError, match="refused"):
        score("x", "xxx", "medical-001")


# --- the real verl ------------------------------------------------------------------------------------------

SCORED = """
import asyncio, json, sys

import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from verl import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.reward import load_reward_manager

tokenizer, answers, names = AutoTokenizer.from_pretrained(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
ids = [tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] for _, text in answers]
width = max(map(len, ids))
mask = torch.tensor([[0, 1, 1] + [1] * len(each) + [0] * (width - len(each)) for each in ids])
padded = torch.tensor([each + [tokenizer.pad_token_id] * (width - len(each)) for each in ids])
tensors = {"prompts": torch.full((len(ids), 3), 7), "responses": padded, "attention_mask": mask}
others = {"data_source": ["rar"] * len(ids), "extra_info": [{} for _ in ids]}
others["reward_model"] = [{"style": "rule", "ground_truth": each} for each, _ in answers]
batch = DataProto.from_dict(tensors=tensors, non_tensors=others)


async def judged(manager):
    rows = (manager.run_single(batch[i : i + 1]) for i in range(len(batch)))
    return await asyncio.gather(*rows, return_exceptions=True)


for name in names:
    function = {"path": "rar_reward.py", "name": "compute_score"}
    manager = {"source": "register", "name": name}
    config = OmegaConf.create({"reward": {"custom_reward_function": function, "reward_manager": manager}})
    manager = load_reward_manager(config, tokenizer)
    results = manager.loop.run_until_complete(judged(manager))
    scores = [each["reward_score"] if isinstance(each, dict) else str(each) for each in results]
    placed = [each if isinstance(each, float) else float("nan") for each in scores]
    at = manager.assemble_rm_scores(batch, placed)
    advantages, _ = compute_grpo_outcome_advantage(at, mask[:, 3:], [each for each, _ in answers])
    places = [row.nonzero().flatten().tolist() for row in at]
    print(json.dumps([scores, places, advantages[:, 0].tolist()]))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment with verl."""
    folder = tmp_path_factory.mktemp("verl") / "env"
    yield make_environment(folder, *VERL)
    shutil.rmtree(folder)  # about 230 MB


def scored(python: Path, folder: Path, code: str, tiny: Path, answers: list, *managers: str) -> list[list]:
    """What each reward manager makes of (id, answer) in one batch: the scores, or the words of an error; the
    tokens at which they stand; and GRPO's advantages, a group an id."""
    (folder / "rar_reward.py").write_text(code)
    (folder / "scored.py").write_text(SCORED)
    done = run(folder, python, "scored.py", tiny, json.dumps(answers), *managers)
    return list(map(json.loads, done.stdout.splitlines()[-len(managers) :]))


@pytest.mark.slow
def test_verls_managers_put_our_rewards_at_the_end_token(outside: Path, tiny: Path, tmp_path: Path) -> None:
    answers = [[e.id, text] for e in data.sample("medical")[:2] for text in ("Rest.", e.reference, "é <b>")]
    rewards = [keyword_reward(*each) for each in answers]
    ends = [[len(text.encode())] for _, text in answers]  # a byte is a token, and the end token follows
    code = snippet("def compute_score")
    for scores, places, _ in scored(outside, tmp_path, code, tiny, answers, "naive", "dapo"):
        assert scores == rewards and len(set(scores)) > 2
        assert places == [end if score else [] for end, score in zip(ends, scores, strict=True)]


@pytest.mark.slow
def test_verl_asks_about_answers_together_and_stops_at_a_failure(
    server: Server, outside: Path, tiny: Path, tmp_path: Path
) -> None:
    """It has threads for a function that is not async. A NaN would reach the advantages of a whole group. Its
    rate_limited manager makes a failure a 0: why the page says not to take it."""
    server.latency = 0.3
    code = swapped(snippet("def compute_score"), SERVED)
    answers = [["medical-001", "x" * n] for n in (1, 2, 4, 5)] + [["medical-002", "x" * n] for n in (7, 8, 9)]
    usual, limited = scored(outside, tmp_path, code, tiny, answers, "naive", "rate_limited")
    scores, _, advantages = usual
    rewards = [len(text) / 9 for _, text in answers[:-1]]
    assert scores[:-1] == pytest.approx(rewards) and limited[0] == pytest.approx([*rewards, 0.0])
    assert "no reward for an answer to medical-002" in scores[-1] and "refused" in scores[-1]
    assert server.most >= 4
    assert not any(map(math.isnan, advantages[:4])) and all(map(math.isnan, advantages[4:]))
