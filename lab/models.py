"""The models that a recipe asks beside its run's judge, with the options of asking that the run has."""

from judge import Judge
from rar_mini.config import Config
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
