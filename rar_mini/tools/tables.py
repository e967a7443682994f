"""The paper's tables of its data, counted for any source: `python -m rar_mini.tools.tables`.

Two columns stand beside our counts. `paper` has the figures of arXiv 2507.17746v2: Tables 4 and 5 for
medicine, 7 and 8 for science, counted on train and val. `released` has what others counted on the released
rows: on train and val, and in the last five lines on all splits. Its sizes are from the dataset cards, the
rest is from the data study in github.com/Lvchangze/rubric_harness, which leaves items without a clear
category out of the shares. Tables 6 and 9 count topics, which no row names.

The paper's shares for medicine fit the released science: its Table 5 has 154,808 items, 7.5 a question for
the 20,625 examples of science and 7.7 for the 20,166 of medicine. Its figures for science do not fit each
other: Table 8 has 150,484 items, 7.3 a question.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from rar_mini import data, hub
from rar_mini.data import Example
from rar_mini.options import Parser, one_line
from rar_mini.rubric import CATEGORY_WEIGHT

FIGURES = (
    # what is counted               medicine: paper, released; science: paper, released
    ("examples to train on", "", "17,926", "", "18,333"),
    ("examples held out (val)", "", "2,240", "", "2,292"),
    ("examples to test with", "", "2,242", "", "2,292"),
    ("train and val together", "20,166", "20,166", "20,625", "20,625"),
    ("  items a question", "7.5", "9.58", "7.5", "7.51"),
    ("  words a question", "45.0", "41.3", "52.6", "45.4"),
    ("  % of items essential", "30.7", "21.6", "28.4", "30.6"),
    ("  % of items important", "34.1", "36.0", "34.8", "33.9"),
    ("  % of items optional", "22.1", "28.3", "22.3", "22.0"),
    ("  % of items pitfall", "13.1", "14.2", "14.5", "13.0"),
    ("% of questions asked before", "", "2.56", "", "9.15"),
    ("% of test questions also in train", "", "3.57", "", "12.30"),
    ("% without a reference answer", "", "0.20", "", "9.51"),
    ("% of items without a clear category", "", "0.007", "", "0.49"),
    ("rows whose items all weigh nothing", "", "0", "", "0"),
)


def measure(examples: Sequence[Example], notes: Counter[str]) -> list[float | None]:
    """The numbers that FIGURES names, in its order, before hygiene; None if there is nothing to count.

    `notes` are the ones from reading the examples.
    """
    splits = Counter(example.split for example in examples)
    both = [example for example in examples if example.split != "test"]
    categories = Counter(c.category for example in both for c in example.rubric.criteria)
    rubrics, questions = [e.rubric for e in examples], [data.asked(e) for e in examples]
    trained = {data.asked(example) for example in examples if example.split == "train"}
    leaked = sum(data.asked(example) in trained for example in examples if example.split == "test")

    def over(part: float, whole: int) -> float | None:
        return part / whole if whole else None

    return [
        *(splits[split] for split in ("train", "held_out", "test")),
        len(both),
        over(categories.total(), len(both)),
        over(sum(len(example.question.split()) for example in both), len(both)),
        *(over(100 * categories[category], categories.total()) for category in CATEGORY_WEIGHT),
        over(100 * (len(questions) - len(set(questions))), len(questions)),
        over(100 * leaked, splits["test"]),
        over(100 * sum(not example.reference for example in examples), len(examples)),
        over(100 * notes["items whose category was read from the weight"], sum(map(len, rubrics))),
        notes["rows left out because no item weighs anything"],
    ]


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = Parser(
        "python -m rar_mini.tools.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="as for train.py: rar, a file or a directory; else the bundled sample")
    domains = tuple(hub.RELEASED)
    parser.add_argument("--domain", default="medical", choices=domains, help="also whose figures are shown")
    parser.add_argument("--revision", help="as for train.py")
    parser.add_argument("--skip-bad-rows", action="store_true", help="as for train.py")
    # As it was written when this was a command of data.py.
    parser.add_argument("--stats", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    source, domain, notes = options.data, options.domain, Counter()
    how = {"skip_bad": options.skip_bad_rows, "skip_weightless": True, "notes": notes}
    examples = data.load(source, domain, options.revision, **how)
    name = f"rar at {hub.fetch(domain, options.revision)[1]}" if source == "rar" else source or "bundled"
    print(f"{domain}, {name}\n\n{'':<36}{'here':>10}{'paper':>10}{'released':>10}")
    first = 1 if domain == "medical" else 3
    for row, number in zip(FIGURES, measure(examples, notes), strict=True):
        here = "" if number is None else f"{number:,}" if isinstance(number, int) else f"{number:.2f}"
        print(f"{row[0]:<36}{here:>10}{row[first]:>10}{row[first + 1]:>10}")
    clean = data.tidy(examples, notes)
    print(__doc__[__doc__.index("\n") + 1 :])
    print(f"Hygiene keeps {len(clean):,} of {len(examples):,} rows.")
    for note, count in notes.items():
        print(f"  {note}: {count:,}")


if __name__ == "__main__":
    with one_line("python -m rar_mini.tools.tables"):
        main(sys.argv[1:])
