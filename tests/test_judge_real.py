"""A judge on a real server, `transformers serve`, with the default policy's weights."""

from pathlib import Path

import pytest
import torch

import judge as judges
from judge import Judge
from rar_mini import data
from rar_mini.judging import wires
from rar_mini.judging.asked import Asked

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.slow
def test_systemone_on_a_real_server(
    transformers_serve: str, default: Path, examples: list[data.Example]
) -> None:
    """Probabilities for every method, and for one question the one that its weights give to the prompt of the
    server's own making."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"base_url": transformers_serve, "concurrency": 2}
    responses = [["Fever.", "It is a mountain."]] * 2
    for method in judges.METHODS:
        asker = Judge(f"systemone:{default}", method, **options)
        scores = asker.score(examples, responses)
        assert ((0 <= scores.verdict) & (scores.verdict <= 1)).all(), method
        assert asker.ledger.counts["tokens_in"] > 100 and not asker.ledger.failures
    asker = Judge(f"systemone:{default}", "rar-explicit", **options)
    asked = wires.worded(
        Asked(examples[0], "Fever.", examples[0].rubric.criteria[:1]), asker.prompts, asker.server.secret
    )
    said = f"{asked.shared}\n\n{asked.questions[0]}\nAnswer Yes or No only."
    tokenizer = AutoTokenizer.from_pretrained(default)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    logits = AutoModelForCausalLM.from_pretrained(default)(**ids).logits[0, -1]
    expected = logits[tokenizer.convert_tokens_to_ids(["Yes", "No"])].softmax(-1)[0].item()
    verdict = asker.score(examples, responses).verdict[0, 0, 0].item()
    assert verdict == pytest.approx(expected, abs=1e-3) and asker.ledger.counts["calls"] == 0
    again = Judge(f"systemone:{default}", method, **options)
    assert torch.equal(again.score(examples, responses).rating, scores.rating)
    assert again.ledger.counts["calls"] == 0


@pytest.mark.slow
def test_chat_on_a_real_server(transformers_serve: str, default: Path, examples: list[data.Example]) -> None:
    """A model of 135M hardly ever finds the form: what it writes is a verdict or a failure, never a guess."""
    options = {"base_url": transformers_serve, "concurrency": 2, "max_tokens": 48, "parse_retries": 1}
    asker = Judge(f"chat:{default}", "direct-likert", **options)
    scores = asker.score(examples, [["Fever."]] * 2)
    rated = scores.rating[~scores.rating.isnan()]
    assert ((rated >= 1) & (rated <= 10)).all()
    assert asker.ledger.failures.total() == 2 - len(rated) and asker.ledger.counts["tokens_out"] > 0
    assert set(asker.ledger.failures) <= {"malformed", "cut", "empty"}


@pytest.mark.slow
def test_a_model_that_a_real_server_does_not_have(
    transformers_serve: str, examples: list[data.Example]
) -> None:
    with pytest.raises(ConnectionError, match="got HTTP 400: .*pinned"):
        Judge("chat:other", "direct-likert", base_url=transformers_serve).score(examples, [["x"]] * 2)
