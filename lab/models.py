"""The models that a recipe asks beside its run's judge, with the options of asking that the run has."""

from collections.abc import Callable, Sequence

from judge import Judge
from rar_mini import ranks
from rar_mini.config import Config
from rar_mini.forms import T
from rar_mini.judging.writer import Writer


def second_judge(name: str, config: Config) -> Judge:
    """A judge that is asked yes or no."""
    return Judge(name, "rar-explicit", **vars(config.judging))


def text_writer(name: str, config: Config) -> Writer:
    """A chat model that writes texts."""
    return Writer(second_judge(name, config))


def criteria_writer(name: str, config: Config) -> Writer:
    """A chat model that writes criteria. Raises ValueError for options that only fit the data's criteria."""
    return Writer(second_judge(name, config), config.design)


def written_before(
    writer: Writer, task: str, materials: Sequence[dict[str, str]], read: Callable[[str], T]
) -> list[T | None]:
    """What a writer makes of each material before a run begins, on every rank; None if it could not be had.
    Raises ValueError if it made nothing of all."""

    def work() -> list[T | None]:
        written = writer.write(task, materials, read)
        if materials and not any(written):
            name = writer.judges[0].spec
            raise ValueError(f"{name} made nothing of any text that it was shown: {writer.reasons()}")
        return written

    return ranks.first(work)
