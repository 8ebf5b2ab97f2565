"""Texts on which two tokenizers must agree before the faster one is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from kvatlas.common import limits

_WORDS: Final = (
    "the router sends each request where its prefix is cached",
    "don't can't we'll I'VE it's THEY'RE o'clock 'tis",
    "CamelCase snake_case kebab-case SCREAMING_CASE x86_64 utf-8",
    "0 1 12 123 1234 12345 1234567890 1,000,000 3.14159 1e-9 0xFF 2.0",
    "naïve café Zürich façade Ångström Straße ﬁne Ⅷ ½ № ™ ©",
    "Привет мир, как дела? Ёлка",
    "你好世界 大阪 東京 キャッシュ カタカナ ひらがな 한국어 조선말",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี ᚠᛇᚻ ꙮ",
    "e\u0301 a\u0308 n\u0303 \u1e9b\u0323 \u212b \ufb01 \u0344 \u0958 \u2126 \uac00\u11a8",
    "🙂 🚀 👩‍💻 👨‍👩‍👧‍👦 🇦🇹 ❤️ 🏳️‍🌈 \U0001f9d1\U0001f3fd",
    "\u200b zero\u200dwidth \ufeff bom \u00a0 nbsp \u2003 em \u3000 wide \u2028 line \u2029 para",
    "\x00 \x01 \x07 \x1b[0m \x7f \x85 \ufffd \uffff \U0010ffff \ue000",
    "https://example.org/a?b=c&d=e#f user@example.org /usr/bin/env C:\\Windows\\x",
    "!?.,;:()[]{}<>+-*/=%&|^~`@#$_\"'\\ ... --- === !!! ??? <<<>>> ->=> :: //",
    "def f(x: int) -> list[str]:\n    return [str(i) for i in range(x)]\n\n\nprint(f(3))\n",
    "for (int i = 0; i < n; ++i) {\n\tif (a[i] != b[i]) return -1;\r\n}\r\n",
    '{"a": [1, 2.5, null, true], "b": {"c": "\\u00fc\\n"}}',
    "SELECT * FROM t WHERE x >= 1 AND y LIKE '%z%'; -- comment",
    '<html><body class="x">&amp;&lt;</body></html>',
    "| a | b |\n| --- | ---: |\n| 1 | `x` |\n\n* **bold** _it_\n1. one\n",
)
_SPECIALS: Final = (
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>", "a<|endoftext|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "|>",
    "<s> a </s>", "<bos>x<eos>", "[INST] a [/INST]", "[CLS] a [SEP]", "<unk>", "<pad>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<start_of_turn>user\nhi<end_of_turn>\n", "<think>\n\n</think>\n\n",
    "<tool_call>\n{}\n</tool_call>", "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>",
    "<|user|>\nhi<|end|>\n<|assistant|>",
)  # fmt: skip
_SPACES: Final = (
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\r", "\t", "\t\t", " \n", "\n ",
    " \n \n ", "a ", " a", "a  b", "a   b", "a\n\nb", "a \n b", "\ta\t", "  a  ", "a\r\nb\rc\n",
    "\u00a0a", "a\u00a0 b", "\u3000\u3000a", " \t \n\t ", "x\n    y\n        z",
)  # fmt: skip
_RUNS: Final = tuple(
    piece * times
    for piece in ("a", "ab", " ", "\n", "-", "=", "é", "界", "🙂", "0", "!", "a ", "\u0301", "A")
    for times in (2, 3, 7, 17, 64, 301)
)

CORPUS: Final[tuple[str, ...]] = (
    *_WORDS,
    *_SPECIALS,
    *_SPACES,
    *_RUNS,
    *(f" {text}" for text in _WORDS),
    *(text.upper() for text in _WORDS),
    *(text[::-1] for text in _WORDS),
    "\n".join((*_WORDS, *_SPECIALS)),
)
"""About two hundred texts: scripts, code, special tokens, white space, long runs."""


def texts_with(tokens: Iterable[str]) -> list[str]:
    """Set added tokens where matching them may go wrong: alone, doubled, in words and blanks."""
    some = list(islice(tokens, limits.ADDED_TOKENS_CHECKED_MAX))
    frames = ("{0}", "{0}{0}", "a{0}b", "a {0} b", " {0}\n{0}\t", "{0} a", "\n\n{0}\n\n")
    texts = [frame.replace("{0}", token) for token in some for frame in frames]
    return [*texts, *(token[:-1] for token in some), *(token.upper() for token in some)]
