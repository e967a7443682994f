"""What marks a turn or a thought in a text, and what others may not write: their text is data.

The tokenizer of a server is not known here, so `inert` breaks up whatever has the shape of a control token.
"""

import re

_HTML = """a abbr address article aside b blockquote body br button caption cite code col dd del details dfn
div dl dt em figcaption figure footer form h[1-6] head header hr html i img input ins kbd label li link main
mark meta nav ol option p pre q samp script section select small span strong style sub summary sup table tbody
td textarea tfoot th thead time title tr u ul var"""
"""Tags that answers have and tokenizers do not. (<s> is both, and taken for a token.)"""

_CAPITALS = "INST IMG PREFIX MIDDLE SUFFIX ARGS THINK AUDIO CLS SEP PAD UNK MASK gMASK sMASK BOS EOS EOT"
"""Tokens of one word between brackets, by name, because chemists write concentrations so: [HCN], [NADH]."""

_SHAPE = re.compile(
    rf"""< (?= [|｜]                                                            # <|im_end|>, <｜User｜>
             | (?! /? (?:{"|".join(_HTML.split())}) /? > | [^\s<>\w]* > ) [^\s<>]+ > )  # </s>, <turn|>
       | \[ (?= [|｜] | /? (?:{"|".join(_CAPITALS.split())}) \]                  # [|user|], [INST]
             | (?: /[A-Z]+ | /? [A-Z]+_[A-Z_]+ ) \] | e~\[ )                     # [TOOL_CALLS]
       | \] (?= ~ )                                                              # ]~b], of MiniMax
    """,
    re.VERBOSE,
)


def whole(text: str) -> str:
    """A text with U+FFFD for halves of characters, which neither tokenizers nor files take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def inert(text: str) -> str:
    """Foreign text for a server: a space breaks up whatever the tokenizer there might take for a control
    token, and so for the end of the user's turn."""
    return _SHAPE.sub(r"\g<0> ", whole(text))


def without_thoughts(text: str) -> str:
    """A text without its reasoning sections, also where one was cut before it ended, or where the prompt
    opened it and only its end is here."""
    text, removed = re.subn(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.S | re.I)
    text, opened = re.subn(r"\A.*</think>", "", text, flags=re.S | re.I)
    return text.strip() if removed or opened else text
