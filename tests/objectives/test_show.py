"""An example, printed: every token once, spans beside their sentinels, HTML in a notebook."""

import io

import keras_hub
import pytest
from rich.console import Console

from keras_encdec.objectives import UL2, PrefixLM, SpanCorruption
from keras_encdec.objectives.show import show
from keras_encdec.sharing import catalog

TEXT = "Returns the mean of the numbers [bold]along[/bold] the given axis of an array."


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def printed(objective, tokenizer, seed=1, **kwargs):
    console = Console(file=io.StringIO(), width=100, record=True, **kwargs)
    show(objective, TEXT, tokenizer, seed, console)
    return console


def test_spans_stand_beside_their_sentinels(tokenizer):
    objective = SpanCorruption(3, 0.4)
    text = printed(objective, tokenizer).export_text()
    read, written = text.split("encoder reads")
    for line in written.splitlines():
        if "<unused" in line:
            sentinel, span = line.strip("│ ").split(maxsplit=1)
            assert sentinel in read
            assert span in TEXT
    assert read.count("<unused") == written.count("<unused") > 2


def test_sentinels_without_a_token_are_numbers(tokenizer):
    """Rows of an embedding behind the last token, as Qwen has them."""
    some = SpanCorruption(3, 0.4, sentinels=range(4096, 4106))
    text = printed(some, tokenizer).export_text()
    assert text.count("<4096>") == text.count("<4098>") == 2


def test_markup_in_the_text_is_text(tokenizer):
    text = "".join(printed(PrefixLM(), tokenizer).export_text().split())
    assert "[bold]" in text
    assert "[/bold]" in text


def test_prefix_and_modes(tokenizer):
    text = " ".join(printed(PrefixLM(), tokenizer).export_text().split())
    assert "PrefixLM: " in text
    assert "and the end" not in text
    modes = UL2([SpanCorruption()], mode_tokens=True)
    assert "[NLU] Returns" in printed(modes, tokenizer).export_text()
    assert "and the end" in printed(modes, tokenizer).export_text()


def test_colours_in_a_terminal_and_in_html(tokenizer):
    console = printed(SpanCorruption(3, 0.4), tokenizer, force_terminal=True)
    html = console.export_html(clear=False)
    assert "color: #800000" in html
    assert "\x1b[" in console.export_text(styles=True)


def test_the_method_prints(tokenizer, capsys):
    SpanCorruption().show(TEXT, tokenizer, seed=2)
    assert "encoder reads" in capsys.readouterr().out


def test_too_short(tokenizer):
    with pytest.raises(ValueError, match="at least 2"):
        PrefixLM().show("a", tokenizer)
