"""Questions from a CSV file with the columns question, answer and essential (items, split at |)."""

import csv
from dataclasses import dataclass
from pathlib import Path

from rar_mini.recipe import Example, Recipe
from rar_mini.rubric import Criterion, Rubric


@dataclass(frozen=True)
class OwnData(Recipe):
    path: Path

    def load(self, **how: object) -> list[Example]:
        with open(self.path, newline="", encoding="utf-8") as file:
            return [_example(f"row-{n}", row) for n, row in enumerate(csv.DictReader(file), 1)]


def _example(name: str, row: dict[str, str]) -> Example:
    items = [Criterion(text, text, "essential", 1.0) for text in row["essential"].split("|")]
    question = {"role": "user", "content": row["question"]}
    return Example(name, "train", (question,), row["answer"], Rubric(tuple(items)), row)
