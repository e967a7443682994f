"""A judge in this process gives the probabilities of its model, whatever is read beside what."""

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import question, write_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import evaluate
import judge as judges
from judge import Judge
from rar_mini import data
from rar_mini.judging import local as local_judge
from rar_mini.judging.asked import Asked
from rar_mini.judging.local import LocalJudge
from rar_mini.judging.wires import worded
from rar_mini.prompts import JudgePrompts

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def fluent(tiny: Path, default: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with the words of the real default: its tokenizer, and a window for whole prompts."""
    directory = tmp_path_factory.mktemp("fluent") / "judge"
    tokenizer = AutoTokenizer.from_pretrained(default)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        tiny, vocab_size=len(tokenizer), max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_local_judge_gives_the_probabilities_of_transformers(fluent: Path, questions: Path) -> None:
    """All questions about a response in one packed pass, against one full pass of transformers each."""
    examples = data.read(questions)
    asker = Judge(f"local:{fluent}", "rar-explicit")
    scores = asker.score(examples[:1], [["Fever, and m.", "No."]])
    model = AutoModelForCausalLM.from_pretrained(fluent, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(fluent)
    yes, no = (
        [tokenizer.convert_tokens_to_ids(t) for t in (w, w.title(), "Ġ" + w, "Ġ" + w.title())]
        for w in ("yes", "no")
    )
    for g, response in enumerate(["Fever, and m.", "No."]):
        asked = Asked(examples[0], response, examples[0].rubric.criteria)
        asked = worded(asked, asker.prompts, asker.backend.secret)
        for k in (0, 13, 14):
            said = f"{asked.shared}{asked.questions[k]}\n{asker.prompts.yes_no}"
            turns = [{"role": "system", "content": asker.prompts.system}, {"role": "user", "content": said}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            p = model(ids).logits[0, -1].softmax(-1)
            expected = (p[yes].sum() / (p[yes].sum() + p[no].sum())).item()
            if k == 14:  # "Recommends aspirin.", a mistake, which is good if it was not made
                expected = 1 - expected
            assert scores.verdict[0, g, k].item() == pytest.approx(expected, abs=1e-5)
            assert asker.mass[15 * g + k] == pytest.approx((p[yes].sum() + p[no].sum()).item(), rel=1e-4)
    mean = sum(asker.mass) / 30
    assert asker.metrics()["judge/mass"] == pytest.approx(mean) and "judge/mass" not in asker.metrics()
    count = asker.ledger.counts
    assert count["tokens_cached"] > 0.75 * count["tokens_in"] > 0, (
        "30 prompts, and one reading of what they share"
    )


def words(n: int, seed: object) -> str:
    """A line of n bytes, which are tokens to the tiny model."""
    return f"{seed}".ljust(n - 1, "x") + "\n"


def test_a_group_is_read_as_one_tree(tiny: Path) -> None:
    """A question of 300 tokens, 8 answers of 250, 10 criteria of 40: an eighth of what 80 prompts are."""
    asker = LocalJudge(str(tiny), "cpu", JudgePrompts(), b"")
    shared = [words(300, "question") + words(250, g) for g in range(8)]
    tree, leaves = asker.tree([[text + words(40, k) for k in range(10)] for text in shared])
    read = sum(map(len, tree.segments))
    assert read == 300 + 8 * (250 + 10 * 40) == 5500
    alone = [tree.sequence(leaf) for each in leaves for leaf in each]
    assert sum(map(len, alone)) == 80 * 590 and read <= 80 * 590 / 8
    assert len({tuple(ids) for ids in alone}) == 80


PARTS = ["One.\n\n", "One.\n", "Two:\n", "  2. b\n", "- c \n", "\n\nd\n", "yes"]


@pytest.mark.parametrize("kind", ["default", "prefixed"])
def test_parts_have_the_tokens_of_the_whole(kind: str, tiny: Path, request: pytest.FixtureRequest) -> None:
    """A paragraph's end was another token where two answers parted behind it: "\\n\\n" alone is one, and
    before a letter two. Tokenizers of SentencePiece's kind put a space before each part."""
    asker = LocalJudge(str(tiny), "cpu", JudgePrompts(), b"")
    if kind == "default":
        tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("default"))
    else:
        vocabulary = {c: i for i, c in enumerate(sorted({*"".join(PARTS), "▁"}))}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    asker.loaded = dataclasses.replace(asker.loaded, tokenizer=tokenizer)
    ways = ["".join(way) for n in (2, 3) for way in itertools.permutations(PARTS, n)]
    for opening in PARTS:
        prompts = [[opening + answer + question for question in ways[:9]] for answer in ways[::21]]
        tree, leaves = asker.tree(prompts)
        for texts, ends in zip(prompts, leaves, strict=True):
            assert [tree.sequence(end) for end in ends] == [tokenizer.encode(text) for text in texts]


def test_offered_words_have_no_more_than_all_probability(tiny: Path) -> None:
    """In bfloat16 a logit of 20.06 is 20, and the share of the word came to 1.06."""
    asker = LocalJudge(str(tiny), "cpu", JudgePrompts(), b"")
    (yes,), (no,) = asker._tokens((("y",), ("n",)))
    head = torch.zeros(259, 2, dtype=torch.bfloat16)
    head[yes, 0], head[yes, 1] = 20.0, 0.0586

    def ones(ids: torch.Tensor, *rest: object) -> torch.Tensor:
        return torch.ones(len(ids), 2, dtype=torch.bfloat16)

    known = {"head": head, "config": asker.loaded.model.config, "__call__": staticmethod(ones)}
    asker.loaded = dataclasses.replace(asker.loaded, model=type("Decoder", (), known)())
    (p,) = asker.read([["a"]], asker.tree, partial(asker._chances, [[yes], [no]]))
    assert 0.999 < p.sum().item() <= 1


def test_neither_budget_nor_neighbours_change_a_verdict(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is halved, and an answer beside one that is too long."""
    examples = data.read(
        write_rows(tmp_path / "rows.jsonl", [question(0, rubric=question(0)["rubric"][-2:])])
    )
    (tmp_path / "p.toml").write_text(
        'system = "s"\nshared = "{question}\\n{response}\\n"\nmet = "{criterion}"'
    )
    asker = Judge(f"local:{tiny}", "rar-explicit", prompts=tmp_path / "p.toml", judge_device="cpu")
    whole = asker.score(examples, [["a", "bb", "ccc", "d"]]).verdict
    monkeypatch.setattr(local_judge, "TOKENS", 300)
    assert (asker.score(examples, [["a", "bb", "ccc", "d"]]).verdict - whole).abs().max() < 1e-5
    beside = asker.score(examples, [["a", "b" * 600, "ccc"]]).verdict
    assert beside[0, 1].isnan().all() and (beside[0, [0, 2]] - whole[0, [0, 2]]).abs().max() < 1e-5
    assert asker.ledger.failures == {"too long": 1}


@pytest.mark.parametrize("method", judges.METHODS)
def test_a_local_judge_serves_every_method(
    tiny: Path, terse: Path, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a byte tokenizer, in which no word is one token, with short questions for its short window."""
    rubric = question(0)["rubric"][-2:]
    rows = [question(i, question="?", reference_answer="!", rubric=rubric) for i in range(2)]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    asker = Judge(f"local:{tiny}", method, prompts=terse, judge_device="cpu")
    scores = asker.score(examples, [["a", "b"]] * 2)
    assert ((0 <= scores.verdict) & (scores.verdict <= 1)).all()
    assert not scores.rating.isnan().any() == (method in judges.RATED)
    assert caplog.text.count("of its probability") == 1  # random weights offer nothing to anyone


def test_a_judge_by_another_method_keeps_its_own_mass(tiny: Path, terse: Path, tmp_path: Path) -> None:
    """A copy shared the list: what one was told of the other's answers entered the mass of both."""
    row = question(0, question="?", rubric=question(0)["rubric"][-2:])
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [row]))
    asker = Judge(f"local:{tiny}", "rar-explicit", prompts=terse, judge_device="cpu")
    asker.score(examples, [["a"]])
    alone, other = list(asker.mass), asker.by("direct-likert")
    assert len(alone) == 2 and other.mass == []
    other.score(examples, [["a"]])
    assert asker.mass == alone and len(other.mass) == 1 and other.ledger is asker.ledger


def test_the_answers_to_one_question_are_read_together(tiny: Path, terse: Path, tmp_path: Path) -> None:
    """And those to another for themselves, however alike the two begin."""
    terse.write_text(terse.read_text().replace('"{question}{response}"', '"{question}\\n{response}\\n"'))
    rows = [question(i, question="?", rubric=question(0)["rubric"][-2:]) for i in range(2)]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", rows), unique=False)
    asker = Judge(f"local:{tiny}", "rar-explicit", prompts=terse, judge_device="cpu")

    def read(P: int, *group: str) -> int:
        """The tokens that go through the model."""
        asker.score(examples[:P], [list(group)] * P)
        new = asker.metrics()
        assert new["judge/questions"] == P * len(group)
        return new["perf/judge/tokens_in"] - new["perf/judge/tokens_cached"]

    opening = len("S" + "system\ns" + "E" + "\n" + "S" + "user\n" + "?\n")  # S and E open and end a turn
    assert read(1, "a", "b", "c") == 3 * read(1, "a") - 2 * opening
    assert read(2, "a") == 2 * read(1, "a") and read(2, "a", "b") == 2 * read(1, "a", "b")


def test_the_command_says_how_much_the_offered_answers_have(
    tiny: Path, terse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [question(i, question="?", response="a" * i, rubric=question(0)["rubric"][-2:]) for i in range(3)]
    path, options = write_rows(tmp_path / "rows.jsonl", rows), {"prompts": terse, "judge_device": "cpu"}
    asker = Judge(f"local:{tiny}", "direct-likert", **options)
    asker.score(data.read(path), [[row["response"]] for row in rows])
    asking = judges.Options(**options)
    judges.score(path, tmp_path / "out.jsonl", f"local:{tiny}", "direct-likert", judging=asking)
    mean = f"{sum(asker.mass) / 3:.2f}"
    assert f"\njudge: mass of the offered answers {mean}, 3 questions," in capsys.readouterr().err
    assert len(set(asker.mass)) == 3 and mean > "0.00", asker.mass


def test_a_text_longer_than_a_local_judges_window_is_a_failure(tiny: Path, tmp_path: Path) -> None:
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [question(0)]))
    asker = Judge(f"local:{tiny}", "rar-explicit", judge_device="cpu")
    assert asker.score(examples, [["long " * 200]]).verdict.isnan().all()
    assert asker.ledger.failures == {"too long": 1} and "reads at most 512" in asker.ledger.reasons()


def test_evaluate_tells_answers_that_are_too_long_from_other_failures(
    tiny: Path, terse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted once, although the same answers are asked about again."""
    row = question(0)
    said = [("b", "good"), ("long " * 200, "flawed")]
    labels = [1] * len(row["rubric"])
    row |= {"labelled_responses": [{"response": t, "quality": q, "labels": labels} for t, q in said]}
    judging = judges.Options(prompts=terse, judge_device="cpu")
    file = write_rows(tmp_path / "rows.jsonl", [row])
    evaluate.measure(f"local:{tiny}", data=file, injections=0, judging=judging)
    *lines, result = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "questions without an answer: " in line]
    assert "answer: 1 x too long (" in line and f"and {tiny} reads at most 512" in line
    assert json.loads(result)["failures"] == {"too long": 1}
    assert json.loads(result)["failed"] == sum(item["weight"] != 0 for item in row["rubric"])
