"""Arguments: one sentence for what is wrong, with the likeliest right word."""

from __future__ import annotations

import pytest

from trainer.arguments import Parser, suggestion
from trainer.errors import InputError


class Own(Parser):
    program = "python3 bundle.apply.pyz"


@pytest.fixture
def parser() -> Parser:
    made = Own(prog="bundle", allow_abbrev=False)
    commands = made.add_subparsers(dest="command", required=True, metavar="ACTION", parser_class=Own)
    commands.add_parser("verify", allow_abbrev=False).add_argument("--bundle", required=True)
    return made


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["verfy"], "there is no command 'verfy'; did you mean verify?"),
        (["xxx"], "there is no command 'xxx'; choose from verify"),
        (["verify", "--bundel", "x", "--bundle", "x"], "there is no option --bundel; did you mean --bundle; see"),
        (["verify"], "required: --bundle; see `python3 bundle.apply.pyz verify --help`"),
    ],
)
def test_wrong_arguments_are_one_sentence(parser: Parser, words: list[str], sentence: str) -> None:
    assert parser.parse_args(["verify", "--bundle", "x"]).bundle == "x"
    with pytest.raises(InputError) as caught:
        parser.parse_args(words)
    assert sentence in str(caught.value)


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    assert suggestion("lora_q", ["lora_r", "seed"]) == "; did you mean lora_r?"
    assert suggestion("xyz", ["lora_r", "seed"]) == ""
