"""Conversations: a user replies, tokens stay as they were sampled, and what others say is read once and never
trained."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Command
from hostile import Server
from test_recipes import config, cut, numbers, records, same_files, trained, write_recipe
from tiny import byte_tokenizer, question, write_rows
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from judge import Judge
from rar_mini import data, grpo, model, policy, prefix, prompts, sampler
from rar_mini.guard import JudgeFailed
from rar_mini.judging.pairwise import Pairwise
from rar_mini.judging.wrappers import ask
from rar_mini.judging.writer import Writer
from rar_mini.model import Decoder
from rar_mini.policy import Policy
from rar_mini.prefix import Heard, Tree
from rar_mini.rubric import Rubric
from rar_mini.sampler import Completion, Request, Settings
from rar_mini.scores import Rollouts, Scores

pytestmark = pytest.mark.usefixtures("folder")

END = 258
USER = """
    def reply(self, example, turns):
        return f"Why {example.id}?" if len(turns) < 4 else None
"""


def unweighted(tokenizer: PreTrainedTokenizerFast) -> Policy:
    """A policy for what only its tokenizer decides."""
    return Policy(None, tokenizer, frozenset({tokenizer.eos_token_id}), Path())


# --- the next prompt ----------------------------------------------------------------------------------------


def goes_on(actor: Policy) -> None:
    """The prompt of a second turn, made of the first one's tokens, is what the template writes."""
    example = data.Example("q", "train", ({"role": "user", "content": "It hurts."},), "", None, {})
    said = [
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": "<|im_end|> Monday."},
    ]
    bridge = actor.turns.bridge(said[1]["content"])
    sampled = actor.completion("Since when?")
    assert sampled[-1] == bridge[0]
    whole = actor.encode(example, prompts.policy_messages([*example.messages, *said]))
    assert [*actor.encode(example), *sampled[:-1], *bridge] == whole


def test_the_next_prompt_is_what_the_template_writes(default: Path) -> None:
    for tokenizer in (byte_tokenizer(), AutoTokenizer.from_pretrained(default)):
        goes_on(unweighted(tokenizer))


FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LATE = (
    "{% for m in messages %}{% if m.role == 'user' and loop.last %}Now: {% endif %}{{ m.content }}<|im_end|>"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "words", "said"),
    [
        (None, "", "no chat template: expected one"),
        (FORGETS, "", "keeps the thoughts of earlier answers"),
        (LATE, "", "writes an answer as it was sampled"),
        (
            None,
            "--method sft",
            "--method sft learns from reference answers, and the recipe has its own reply",
        ),
    ],
)
def test_a_policy_that_cannot_go_on_is_refused(
    tiny: Path, questions: Path, tmp_path: Path, template: str | None, words: str, said: str
) -> None:
    directory = tmp_path / "policy"
    Policy(model.load(tiny, torch.float32, "cpu"), byte_tokenizer(template), frozenset({END}), tiny).save(
        directory
    )
    own = write_recipe(tmp_path / "own.py", USER)
    with pytest.raises(ValueError, match=said):
        trained(directory, questions, tmp_path / "run", "--recipe", own, *words.split())
    assert not (tmp_path / "run").exists()


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in which the user speaks up to twice."""
    folder = tmp_path_factory.mktemp("talk")
    rows = write_rows(folder / "rows.jsonl", [question(i) for i in range(4)])
    own = write_recipe(folder / "own.py", USER)
    return trained(many, rows, folder / "run", "--recipe", own, "--save-every", 1, "--eval-every", 2)


def test_records_have_every_turn_and_token(run: Path, many: Path) -> None:
    actor, seen = policy.load(str(many), torch.float32, "cpu"), set()
    fresh = [row for row in records(run, "evaluations") if row["split"] == "train"]
    for row in records(run, "rollouts") + fresh:
        turns, heard, start = row.get("turns", []), row.get("heard", []), 0
        seen.add(len(turns))
        assert row["tokens"] == len(row["ids"]) == len(row["sampler_logp"])
        assert [turn["role"] for turn in turns] == ["assistant", "user"] * len(heard)
        for said, answer, reply in zip(heard, turns[::2], turns[1::2], strict=True):
            own = row["ids"][start : said["after"]]
            assert own[-1] in actor.ends and len(own) <= 12 and not said["instead"]
            bridge = actor.turns.bridge(f"Why {row['example_id']}?")
            assert said["ids"] == (bridge[1:] if own[-1] == END else bridge), "its end is not said twice"
            assert (answer["content"], reply["content"]) == (actor.decode(own), f"Why {row['example_id']}?")
            start = said["after"]
        assert row["response"] == actor.decode(row["ids"][start:]) and len(row["ids"][start:]) <= 12
        assert row["finished"] == (row["ids"][-1] in actor.ends)
        assert row["finished"] <= (len(turns) == 4), "whoever ended was replied to"
    assert seen == {0, 2, 4}
    turns = [1 + len(row.get("heard", [])) for row in records(run, "rollouts") if row["step"] == 1]
    assert numbers(run)[1]["conversations/mean_turns"] == pytest.approx(sum(turns) / len(turns))


def test_random_numbers_go_on_from_turn_to_turn(run: Path, many: Path) -> None:
    """Each turn comes out again as a request of its own with the numbers that follow."""
    actor = policy.load(str(many), torch.float32, "cpu")
    rows = [row for row in records(run, "rollouts") if row["step"] == 1]
    g, row = next((i % 4, row) for i, row in enumerate(rows) if len(row.get("heard", [])) == 2)
    draws = sampler.uniforms(config(run)["settings"]["seed"], 1, row["example_id"], g, 36)
    prompt, start = list(row["prompt_ids"]), 0
    for after, heard in [*((said["after"], said["ids"]) for said in row["heard"]), (len(row["ids"]), [])]:
        ((alone,),) = actor.sample(
            [Request(prompt, [draws[start : start + 12]])], Settings(12), lambda n: None
        )
        assert alone.ids == row["ids"][start:after]
        prompt, start = [*prompt, *alone.ids, *heard], after


def test_a_killed_run_goes_on_with_the_same_conversations(run: Path, tmp_path: Path) -> None:
    resumed = cut(run, 1, tmp_path / "cut")
    assert numbers(resumed) == numbers(run)
    assert records(resumed, "rollouts") == records(run, "rollouts")
    same_files(run / "checkpoints" / "step-2", resumed / "checkpoints" / "step-2")


def test_show_has_the_turns_and_replay_judges_the_last_behind_them(run: Path, command: Command) -> None:
    shown = command("judge.py", "show", run).stdout
    assert "user: Why q" in shown and "assistant: " in shown
    done = command("evaluate.py", "replay", run, "--judge", "keyword")
    assert '"same": {"value": 1.0' in done.stdout, done.stderr


def test_a_conversation_ends_where_its_next_turn_has_no_room(
    many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [question(i) for i in range(4)])
    own = write_recipe(tmp_path / "own.py", USER)
    first = max(
        len(row["prompt_ids"]) for row in records(trained(many, rows, tmp_path / "plain"), "rollouts")
    )
    with caplog.at_level(logging.WARNING):
        run = trained(many, rows, tmp_path / "run", "--recipe", own, "--max-prompt-tokens", first)
    assert not any("turns" in row for row in records(run, "rollouts"))
    assert f"had no room: expected at most {first} tokens before it; raise --max-prompt-tokens" in caplog.text


def test_a_reply_that_is_no_text_is_refused(many: Path, questions: Path, tmp_path: Path) -> None:
    own = write_recipe(tmp_path / "own.py", USER.replace('f"Why {example.id}?"', "7"))
    with pytest.raises(ValueError, match="the recipe's reply to 'q[0-4]': expected text or None, got 7"):
        trained(many, questions, tmp_path / "run", "--recipe", own)


def test_an_answer_whose_user_failed_has_no_reward(many: Path, tmp_path: Path) -> None:
    """It is no last answer, and a run in which most users fail stops."""
    body = """
    where: str = "q0"
    def reply(self, example, turns):
        from rar_mini.judging.endpoint import Failure
        if self.where in example.id:
            raise Failure("user")
        return None
"""
    own = write_recipe(tmp_path / "own.py", body)
    rows = write_rows(tmp_path / "rows.jsonl", [question(i) for i in range(2)])
    run = trained(many, rows, tmp_path / "run", "--recipe", own, "--max-judge-failures", 0.6)
    kept = [row for row in records(run, "rollouts") if row["finished"]]
    lost = {row["example_id"] for row in kept if row["reward"] is None}
    assert lost == {"q0"} == {row["example_id"] for row in kept if row.get("unanswered")}
    with pytest.raises(JudgeFailed, match="gave no reward to"):
        trained(many, rows, tmp_path / "all", "--recipe", f"{own} --where q", "--max-judge-failures", 0.1)


def test_halves_of_characters_and_control_tokens_are_read_as_text(many: Path, tmp_path: Path) -> None:
    """A model that plays the user may say anything."""
    rows = write_rows(tmp_path / "rows.jsonl", [question(i) for i in range(4)])
    own = write_recipe(tmp_path / "own.py", USER.replace('f"Why {example.id}?"', r'"\ud800<|im_end|>"'))
    run = trained(many, rows, tmp_path / "run", "--recipe", own)
    talks = [row for row in records(run, "rollouts") if "turns" in row]
    assert talks and {row["turns"][1]["content"] for row in talks} == {"\ufffd<|im_end|>"}
    for row in talks:
        ended = row["ids"][row["heard"][0]["after"] - 1] == END
        assert row["heard"][0]["ids"].count(END) == 2 - ended, "those of the turns alone"


# --- what is trained ----------------------------------------------------------------------------------------


@pytest.fixture
def decoder(tiny: Path) -> Decoder:
    return model.load(tiny, torch.float32, "cpu").double()


def masked(decoder: Decoder, text: Sequence[int], own: Sequence[int]) -> Tensor:
    """The log-probabilities of the tokens at these places of a text, read alone."""
    tree = Tree()
    tree.add(text)
    packed = prefix.pack(tree, "cpu")
    hidden = decoder(packed.ids, packed.positions, packed.attend)
    logp = (hidden @ decoder.head.T).log_softmax(-1)
    return torch.stack([logp[i - 1, text[i]] for i in own])


def gradient(decoder: Decoder, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(decoder.parameters()))])


def batch_of(prompt: list[int], group: list[Completion], adv: list[float]) -> grpo.MicroBatch:
    rollouts = Rollouts([], [[prompt] * len(group)], [group], [], adv=torch.tensor([adv]), recited=True)
    sizes = {"max_new_tokens": 9, "tokens_per_batch": 10**6}
    rollouts.reward = torch.zeros(1, len(group))
    (batch,) = grpo.micro_batches(rollouts, grpo.teaches(rollouts), loss_norm="sum", **sizes)
    return batch


def test_what_the_user_says_is_read_and_not_trained(decoder: Decoder) -> None:
    """Gradients are those of a hand-made loss over each conversation alone, masked by its lengths. Rollouts
    that begin alike share that beginning; also a turn of a single token is trained."""
    prompt, heard = [1, 2, 3], (Heard(2, [20, 21, 22]), Heard(3, [23]))
    group = [
        Completion([10, 11, 12, 13, 14], [0.0] * 5, True, heard=heard),
        Completion([10, 11, 15], [0.0] * 3, True, heard=heard[:1]),
        Completion([16], [0.0], True),
    ]
    texts = [[1, 2, 3, 10, 11, 20, 21, 22, 12, 23, 13, 14], [1, 2, 3, 10, 11, 20, 21, 22, 15], [1, 2, 3, 16]]
    places, adv = [[3, 4, 8, 10, 11], [3, 4, 8], [3]], [0.5, -1.0, 2.0]
    batch = batch_of(prompt, group, adv)
    assert len(batch.packed.ids) == 3 + 5 + 2 + 1, "prompt, first turn and reply once"
    logp, _ = grpo.token_logp(decoder, batch, 1.0)
    alone = [masked(decoder, text, own) for text, own in zip(texts, places, strict=True)]
    torch.testing.assert_close(logp, torch.cat(alone))
    assert batch.rollout.tolist() == [0] * 5 + [1] * 3 + [2]
    ours = gradient(decoder, -(batch.weight * batch.adv * logp).sum())
    alone = [masked(decoder, text, own) for text, own in zip(texts, places, strict=True)]
    wanted = gradient(decoder, -sum(a * logp.sum() for a, logp in zip(adv, alone, strict=True)))
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)  # logp and its gradient are float32


def test_a_teachers_words_are_a_branch_where_the_conversation_went_another_way(decoder: Decoder) -> None:
    """The policy said 30 and 31, the teacher would have said 10 and 11; later it would have said 12."""
    went = Heard(2, [30, 31, 20], instead=True)
    batch = batch_of([1, 2, 3], [Completion([10, 11, 12], [], True, heard=[went])], [1.0])
    logp, _ = grpo.token_logp(decoder, batch, 1.0)
    first, then = masked(decoder, [1, 2, 3, 10, 11], [3, 4]), masked(decoder, [1, 2, 3, 30, 31, 20, 12], [6])
    torch.testing.assert_close(logp, torch.cat([first, then]))


def test_a_rollout_without_a_token_of_its_own_is_not_trained(decoder: Decoder) -> None:
    went = Heard(0, [30, 31, 20], instead=True)
    group = [Completion([], [], True, heard=[went]), Completion([10], [], True)]
    assert batch_of([1, 2, 3], group, [1.0, 1.0]).target.tolist() == [10]


def test_later_turns_share_the_reading_of_their_question(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And give what they give alone."""
    first, read, forward = list(range(40, 60)), [], Decoder.forward
    texts = [[*first, 1, 2, 3], [*first, 4], [7, 8, 9, 5], [7, 8, 9, 6]]
    alone = [sampler._prefill(decoder, [text])[0] for text in texts]
    monkeypatch.setattr(
        Decoder, "forward", lambda self, ids, *rest: read.append(len(ids)) or forward(self, ids, *rest)
    )
    for one, other in zip(sampler._prefill(decoder, texts, [20, 20, 3, 3]), alone, strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(value, getattr(other, name))
    assert read == [20 + 3 + 1 + 3 + 1 + 1]


# --- what is judged -----------------------------------------------------------------------------------------


def test_a_judge_reads_the_last_answer_behind_its_own_conversation() -> None:
    seen = []

    def score(examples: list[data.Example], responses: list[list[str]], **how: object) -> Scores:
        seen.append([(e.question, group) for e, group in zip(examples, responses, strict=True)])
        verdict = torch.tensor([[[float(len(text))] for text in group] for group in responses])
        return Scores(verdict, torch.ones(len(examples), 1), verdict[..., 0], [e.rubric for e in examples])

    judge, asked = SimpleNamespace(score=score), partial(data.Example, split="train", reference="", row={})
    examples = [asked(name, messages=({"role": "user", "content": name},), rubric=name) for name in "ab"]
    rollouts = Rollouts(examples, [], [], [["x", "xx"], ["xxx", "xxxx"]])
    plain = ask(judge, rollouts.posed(examples), rollouts.responses)
    assert seen.pop() == [("a", ["x", "xx"]), ("b", ["xxx", "xxxx"])], "one group a question"
    said = [{"role": "assistant", "content": "When?"}, {"role": "user", "content": "Now."}]
    rollouts.turns = [[said, []], [[], said]]
    scores = ask(judge, rollouts.posed(examples), rollouts.responses)
    talk = "user: {}\n\nassistant: When?\n\nuser: Now."
    assert seen.pop() == [
        (talk.format("a"), ["x"]),
        ("a", ["xx"]),
        ("b", ["xxx"]),
        (talk.format("b"), ["xxxx"]),
    ]
    assert torch.equal(scores.verdict, plain.verdict) and torch.equal(scores.rating, plain.rating)
    assert scores.weight.shape == (2, 1) and scores.rubrics == ["a", "b"]


def test_what_a_policy_thought_is_shown_to_no_judge_user_teacher_or_writer(server: Server) -> None:
    """What it has said is; and the tags in a question are its words."""
    thought, said = "<think>A secret.</think>", {"role": "user", "content": "Why <think> here?"}
    example = data.Example("q", "train", (said,), "reference", Rubric(()), {})
    after = example.after([{"role": "assistant", "content": f"{thought}When?"}, said])
    assert after.question == "user: Why <think> here?\n\nassistant: When?\n\nuser: Why <think> here?"
    asker, seen = Judge("keyword", "rar-explicit"), []
    pairwise = Pairwise(lambda pairs: seen.extend(pairs) or torch.ones(len(pairs)), asker, against="group")
    pairwise.score([example], [[f"{thought}One.", "Two."]])
    assert {text for _, *texts in seen for text in texts} == {"One.", "Two."}
    server.reply = lambda path, body: "text"
    material = {"question": "Why <think> here?", "response 1": f"{thought}One.", "answer": f"{thought}Two."}
    assert Writer(Judge("chat:w", "rar-explicit")).write("TASK", [material], str) == ["text"]
    ((_, body, _),) = server.seen
    shown = body["messages"][-1]["content"]
    assert "here?" in shown and "One." in shown and "Two." in shown and "secret" not in shown
