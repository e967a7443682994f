"""What a run says about itself: a step's metrics (docs/metrics.md defines each) and the lines it prints."""

import math
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rar_mini import grpo, scale
from rar_mini.forms import printable
from rar_mini.sampler import Completion
from rar_mini.scores import Scores, transcript

FIRST_LOSS = """\
  The loss is about 0 and that is right: no weight has moved since the answers were sampled, so every ratio
  is 1, and a group's advantages sum to 0. Its gradient is not (see grad): answers above their group's mean
  become more likely. Watch the reward, not the loss."""

RECENT = 16
"""Steps back in which an item that all answers meet, or none, counts as dead."""


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds by stage, and completion tokens per second of the whole step."""
        return {f"perf/seconds_{stage}": seconds for stage, seconds in self.seconds.items()} | {
            "perf/tokens_per_second": tokens / sum(self.seconds.values())
        }


def describe(reward: Tensor, completions: Sequence[Sequence[Completion]]) -> dict[str, float | None]:
    """Metrics of a step's rollouts: reward (P, G) with NaN where the judge failed, completions[p][g].

    What is not defined, such as the mean of no rewards, is None.
    """
    scored = ~reward.isnan()
    lengths = torch.tensor(
        [[len(c.ids) for c in group] for group in completions], dtype=torch.float32
    )  # (P, G)
    finished = torch.tensor([[c.finished for c in group] for group in completions])
    thoughts = torch.tensor([[c.only_thoughts for c in group] for group in completions])
    several = scored.sum(-1) >= 2  # (P,)
    groups = [row[mask] for row, mask in zip(reward[several], scored[several], strict=True)]
    ties = grpo.tied(reward[several]).tolist()
    means = [group.mean().item() for group in groups]
    return {
        "reward": mean(reward[scored].tolist()),
        "reward_std": mean([group.std(correction=0).item() for group in groups]),
        "frac_reward_zero_std": mean(ties),
        "frac_ties_right": mean([tie and x > 0.5 for tie, x in zip(ties, means, strict=True)]),
        "frac_ties_wrong": mean([tie and x <= 0.5 for tie, x in zip(ties, means, strict=True)]),
        "reward_length_correlation": _correlation(reward, lengths, scored),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": 1 - finished.float().mean().item(),
        "completions/only_thoughts_ratio": thoughts.float().mean().item(),
        "judge/failures": int((~scored).sum()),
    }


def parts(scores: Scores) -> dict[str, float | None]:
    """The mean reward by the items with a check alone, which is exact, and by the judged ones alone: absent
    if no item has a check."""
    if not any(item.check for rubric in scores.rubrics for item in rubric.criteria):
        return {}
    rewards = {"checked": grpo.reward(scores.checked()), "judged": grpo.reward(scores.checked(False))}
    return {f"reward/{part}": mean(each.flatten().tolist()) for part, each in rewards.items()}  # (P, G) each


def chosen(trained: Tensor) -> dict[str, float]:
    """Metrics of which of a step's rollouts were trained, (P, G) bool."""
    return {"completions/trained_ratio": trained.float().mean().item()}


def redrawn(drawn: int, trained: Tensor) -> dict[str, int]:
    """Metrics of a step that draws further questions for groups that teach nothing; trained (P, G) bool."""
    return {"groups/drawn": drawn, "groups/dropped": int((~trained.any(-1)).sum())}


def talks(turns: Sequence[Sequence[Sequence[dict[str, str]]]]) -> dict[str, float | None]:
    """Metrics of conversations, by what was said before each last answer, P x G: absent if nobody replies."""
    counts = [1 + len(said) // 2 for group in turns for said in group]
    return {"conversations/mean_turns": mean(counts)} if counts else {}


def verdicts(recent: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float | None]:
    """Metrics of the verdicts in the rows of rollouts.jsonl, steps oldest first: the newest step's mean by
    category, the shares of the recent steps' items that no answer met, or that every answer met, and how
    often the same answer was judged again, and otherwise.

    Items that none or all meet are dead: verdicts of 0 or 1 on them move no advantage. A rating is no verdict
    on an item. An item that a recipe made for its answers is asked about once, and one with a check never.
    """
    rates: dict[str, list[float]] = defaultdict(list)
    met: dict[tuple[str, int], list[bool]] = defaultdict(list)
    same: dict[tuple[str, int, str], list[bool]] = defaultdict(list)  # verdicts on one answer's item
    for rows in recent:
        for row in rows:
            for place, item in enumerate(row["verdicts"]):
                if item["verdict"] is not None and item["category"] != "rating":
                    met[row["example_id"], place].append(item["verdict"] >= 0.5)
                    if "rubric" not in row and not item.get("checked"):
                        same[row["example_id"], place, transcript(row)].append(item["verdict"] >= 0.5)
                    if rows is recent[-1]:
                        rates[item["category"]].append(item["verdict"])
    metrics = {f"pass_rate/{category}": mean(values) for category, values in sorted(rates.items())}
    if met:
        metrics["items/never_met"] = mean([not any(answers) for answers in met.values()])
        metrics["items/always_met"] = mean([all(answers) for answers in met.values()])
    if again := [answers for answers in same.values() if len(answers) > 1]:
        metrics["items/repeated"] = len(again)
        metrics["items/contradicted"] = mean([len(set(answers)) > 1 for answers in again])
    return metrics


def mean(values: Sequence[float]) -> float | None:
    """The mean of the finite values, None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _correlation(reward: Tensor, lengths: Tensor, scored: Tensor) -> float | None:
    """Pearson's correlation of reward and length within groups: both less their group's mean."""
    a, b = [], []
    for row, length, mask in zip(reward, lengths, scored, strict=True):
        a.append(row[mask] - row[mask].mean())
        b.append(length[mask] - length[mask].mean())
    x, y = torch.cat(a), torch.cat(b)
    scale = (x.norm() * y.norm()).item()
    return (x @ y).item() / scale if scale > 1e-9 else None


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """The mean change over questions and its standard error, or None if fewer than two have both scores."""
    changes = torch.tensor([b - a for a, b in zip(before, after, strict=True) if math.isfinite(a + b)])
    if len(changes) < 2:
        return None
    return changes.mean().item(), changes.std().item() / math.sqrt(len(changes))


def say(config: Any, step: int, first: int, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the step's line, and now and then an answer with its verdicts: the best of the first group."""
    tqdm.write(line(step, config.steps, metrics))
    if config.supervised:
        return
    # Under another norm long answers weigh more, a recipe may have other advantages, those of part of a group
    # do not sum to 0, and if every group ties there is nothing to explain.
    usual = config.loss_norm == "sequence" and config.inner_epochs == 1 and config.recipe is None
    whole = config.train_rollouts is None and config.cut_answers != "mask"
    if step == 1 and usual and whole and metrics.get("grad_norm"):
        tqdm.write(FIRST_LOSS)
    if config.show_every and (step == first or step % config.show_every == 0):
        tqdm.write(rollout(max(rows[: config.group_size], key=lambda row: row["advantage"])))


def line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    """One step on one line. It is shorter for reference answers, which nobody sampled or judged."""

    def show(name: str, form: str) -> str:
        value = metrics.get(name)
        return "-" if value is None else format(value, form)

    stages = ("sample", "judge", "train") if "reward" in metrics else ("train",)
    seconds = "+".join(show(f"perf/seconds_{stage}", ".1f") for stage in stages)
    learned = f"loss {show('loss', '.4f')}"
    if "reward" in metrics:
        learned = (
            f"reward {show('reward', '.3f')}  spread {show('reward_std', '.3f')}  "
            f"ties {show('frac_reward_zero_std', '.0%')}  length {show('completions/mean_length', '.0f')}  "
            f"cut {show('completions/clipped_ratio', '.0%')}  loss {show('loss', '+.1e')}"
        )
    text = (
        f"step {step:>{len(str(steps))}}/{steps}  {learned}  grad {show('grad_norm', '.2f')}  {seconds} s  "
        f"{show('perf/tokens_per_second', '.0f')} tok/s"
    )
    if metrics.get("completions/only_thoughts_ratio"):
        text += f"  cut in thoughts {show('completions/only_thoughts_ratio', '.0%')}"
    if metrics.get("groups/dropped"):
        text += f"  dropped {metrics['groups/dropped']} of {metrics['groups/drawn']} groups"
    failures = metrics.get("judge/failures")
    return text + (f"  judge failed on {failures}" if failures else "")


def rollout(row: dict[str, Any], width: int = 100) -> str:
    """One answer with its verdicts, for a person to read."""
    lines = [printable(f"  {row['example_id']}, step {row['step']}: {row['prompt']}")]
    reward = "none, the judge failed" if row["reward"] is None else f"{row['reward']:.3f}"
    lines += textwrap.wrap(
        printable(transcript(row)) or "(nothing)", width, initial_indent="  > ", subsequent_indent="    "
    )
    for item in row["verdicts"]:
        verdict = "?" if item["verdict"] is None else f"{item['verdict']:.2f}".removesuffix(".00")
        weight = f"weight {item['weight']:<4g}{printable(item['category']):<10}"
        checked = " (checked)" if item.get("checked") else ""
        lines.append(f"    {verdict:>4}  {weight} {printable(item['title'])}{checked}")
    end = "" if row["finished"] else ", cut"
    lines.append(f"    reward {reward}, advantage {row['advantage']:+.2f}, {row['tokens']} tokens{end}")
    return "\n".join(lines)


def opening(
    config: Any, questions: dict[str, int], answers: int, calls: float, of_scores: int, folder: Path
) -> list[str]:
    """What a run is about to do and what it costs: `answers` to judge, by so many `calls` each, and the calls
    of the scores."""
    released = config.data == "rar" and f"rar, {config.domain} at {config.revision:.12}"
    times = config.resample_ties
    again = f"; for groups that tie up to {times} times as many more" if times else ""
    return [
        f"method   {config.method}: {answers} answers x {calls:.1f} = {answers * calls:.0f} questions to the "
        f"judge, and {of_scores} for the scores{again}",
        f"data     {released or config.data or config.domain}: {questions['train']} training questions, "
        f"{questions['held_out']} held out",
        f"steps    {config.steps} of {config.prompts_per_step} questions x {config.group_size} answers of at "
        f"most {config.max_new_tokens} tokens",
        f"run      {folder}",
    ]


def saving(every: int, keep: int, weights: int, moments: int) -> str:
    """What a checkpoint takes on the disk, said before the first one is written."""
    parts = f"weights {weights / 1e6:,.0f} MB, moments {moments / 1e6:,.0f} MB"
    whole = (weights + moments) / 1e6
    return f"saves    {whole:,.0f} MB every {every} steps ({parts}); the newest {keep} stay"


def scores(rewards: Mapping[str, Sequence[float]], monitors: Collection[str]) -> dict[str, float | None]:
    """Metrics of an evaluation: the mean of each score's rewards, one a question, and if several monitors
    have all scored, how far each two of them are apart on a question, on average."""
    metrics = {f"eval/{name}_reward": mean(values) for name, values in rewards.items()}
    gold = [rewards[name] for monitor in monitors if (name := f"held_out_{monitor}") in rewards]
    if len(gold) == len(monitors) > 1:
        apart = [abs(x - y) for a, b in combinations(gold, 2) for x, y in zip(a, b, strict=True)]
        metrics["eval/gold_disagreement"] = mean(apart)
    return metrics


def before(scores: Mapping[str, Sequence[float]]) -> str:
    """The scores before training, by name, and the scale on which they stand, a line a split."""
    means = {name: mean(values) for name, values in scores.items()}
    own = {name: x for name, x in means.items() if x is not None and not scale.is_fixed(name)}
    lines = ["before   " + ", ".join(f"eval/{name}_reward {x:.3f}" for name, x in own.items())]
    for split in own:
        rewards = [f"{words} {x:.3f}" for words, x in scale.of(means, split).items()]
        lines += [f"scale    {split}: {', '.join(rewards)}"] if rewards else []
    return "\n".join(lines)
