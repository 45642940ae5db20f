"""A tokenizer's own chat template: turns framed by the Jinja text that a checkpoint brings along.

Knows what templates may call, as transformers renders them (`apply_chat_template`), and reads off a
template how its turns end. It is code from a hub: it runs in Jinja's sandbox, on plain texts. What
it writes between the header and the text of an answer, such as an empty `<think>`, is not learnt.
Leaves where templates lie to `keras_encdec.sharing.tokenizers`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from keras_encdec.objectives.chat import LAST, SYSTEM, Frame
from keras_encdec.objectives.control import control_tokens
from keras_encdec.objectives.tokenizer import encode, piece_id

_TOKENS = {"bos_token": "start_token", "eos_token": "end_token", "pad_token": "pad_token"}
_WAY_OUT = "preprocessor.chat_template = None frames turns by the tokenizer's pieces instead."


@dataclasses.dataclass(frozen=True)
class Template(Frame):
    """Turns as a chat template frames them.

    Args:
        text: the template.
        special: tokens by their names in templates, such as `bos_token`.
        end: the piece that ends an answer.
        trims: whether white space around an answer is left out.
    """

    text: str
    special: Mapping[str, str]
    end: str = ""
    trims: bool = False

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> "Template":
        """A template for a tokenizer.

        Raises:
            ValueError: if Jinja cannot read it, or it leaves out what a turn says.
        """
        given = {name: getattr(tokenizer, ours, None) for name, ours in _TOKENS.items()}
        template = cls(text, {name: token for name, token in given.items() if token is not None})
        answer = {"role": "assistant", "content": f" {SYSTEM} "}
        shown = template._rendered([{"role": "user", "content": LAST}, answer], False)
        frame = f"[^{LAST}{SYSTEM}]*"
        found = re.fullmatch(f"{frame}{LAST}{frame}{SYSTEM}( ?)({frame})", shown)
        if found is None:
            raise ValueError(
                "Expected a chat template that writes what each turn says, once. Received: one "
                f"that makes {shown!r:.200} of two turns. {_WAY_OUT}"
            )
        end = _end_of(tokenizer, found[2])
        return dataclasses.replace(template, end=end, trims=not found[1])

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self.special.values())

    @property
    def shown(self) -> str:
        return self.text

    def conversation(self, system: str | None, texts: Sequence[str]) -> str:
        roles = ("user", "assistant") * len(texts)
        said = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        first = [] if system is None else [{"role": "system", "content": system}]
        return self._rendered([*first, *said], True)

    def answer(self, text: str) -> str:
        return text.strip() if self.trims else text

    def encode(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        """With the special tokens of templates, which KerasHub's SentencePiece reads as text."""
        found = {token: piece_id(tokenizer, token) for token in self.tokens}
        alone = zip(found.items(), encode(tokenizer, list(found)), strict=True)
        ids = {token: i for (token, i), row in alone if i is not None and i not in row}
        pattern = re.compile(f"({'|'.join(map(re.escape, ids))})")
        parts = [pattern.split(text) if ids else [text] for text in texts]
        each = iter(encode(tokenizer, [part for row in parts for part in row[::2]]))
        return [
            [i for at, part in enumerate(row) for i in ([ids[part]] if at % 2 else next(each))]
            for row in parts
        ]

    def _rendered(self, messages: Sequence[Mapping[str, str]], generates: bool) -> str:
        given = {"messages": messages, "tools": None, "documents": None, **self.special}
        try:
            return _compiled(self.text).render(**given, add_generation_prompt=generates)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"Expected a chat template of Jinja. Received: {error.message!r} in its line "
                f"{error.lineno}. {_WAY_OUT}"
            ) from error
        except Exception as error:  # of any kind: a template is a program
            raise ValueError(
                f"Expected a conversation that the chat template takes. Received: {str(error)!r}, "
                f"its own words, of roles {[m['role'] for m in messages]}. {_WAY_OUT}"
            ) from error


def _end_of(tokenizer: Any, after: str) -> str:
    """The token that begins what stands after an answer; `<eos>` where none does."""
    tokens = {tokenizer.end_token, *control_tokens(tokenizer)}
    return max(filter(after.lstrip().startswith, tokens), key=len, default=tokenizer.end_token)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` around an answer, which marks it elsewhere and changes no text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(text)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; Jinja's own filter escapes HTML."""
    options: Any = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(x, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
