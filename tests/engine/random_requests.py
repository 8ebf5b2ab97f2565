"""Random requests for the endpoints that render: valid, odd and invalid ones, from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
Json = dict[str, Any]

_WORDS: Final = (  # noqa: SIM905 - a list would be thirty lines
    "cache router prefix block engine the of a is don't 12 3.14159 1,000,000 2.0 -7 Zürich naïve "
    "café Привет мир 你好 世界 東京 キャッシュ مرحبا 한국어 🙂 👩‍💻 ½ № ﬁ e\u0301 x_y camelCase "
    "def return {'a': [1, 2]} SELECT https://example.org/?a=b user@example.org <b> &amp; "
    "\" ' \\ $1 #x"
).split()
_SPACES: Final = (
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "",
    "   ",
    "\n ",
)
_SPECIALS: Final = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<bos>",
    "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>", "<|end|>", "<|user|>",
    "<think>", "</think>", "<\uff5cUser\uff5c>", "[CLS]", "[SEP]", "[MASK]", "<unk>", "<pad>",
    "<image>", "<0x0A>", "\u2581", "\u2581\u2581", "<tool_call>",
)  # fmt: skip
_ODD: Final[tuple[Any, ...]] = (None, "", "x", 0, 1, -1, 2.5, True, False, [], {}, ["x"], {"a": 1})
_ROLES: Final = (
    "user",
    "assistant",
    "system",
    "developer",
    "tool",
    "function",
    "wizard",
    "ipython",
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: where to, and what."""

    path: str
    body: Json


class Requests:
    """Draw requests; the same seed draws the same ones.

    Args:
        random: the source.
        max_model_len: of the engine, to come near it at times.
    """

    def __init__(self, random: Random, max_model_len: int) -> None:
        self._random = random
        self._max_model_len = max_model_len

    def draw(self) -> Request:
        """Draw one."""
        if self._chance(0.2):
            return Request(COMPLETION, self._completion())
        return Request(CHAT, self._chat())

    # --- chats --------------------------------------------------------------------------------

    def _chat(self) -> Json:
        body: Json = {"model": "m", "messages": self._messages()}
        self._some(body, 0.25, "tools", self._tools)
        if "tools" in body:
            choices = ("auto", "none", "required", None, {"function": {"name": "f"}}, "x")
            self._some(body, 0.4, "tool_choice", lambda: self._pick(choices))
        self._some(body, 0.15, "chat_template_kwargs", self._variables)
        efforts = ("none", "low", "high", "max", "medium", None, "much")
        self._some(body, 0.1, "reasoning_effort", lambda: self._pick(efforts))
        self._some(body, 0.15, "add_generation_prompt", self._flag)
        if self._chance(0.15):
            body |= {"add_generation_prompt": False, "continue_final_message": self._flag()}
        self._some(body, 0.1, "documents", self._documents)
        self._some(body, 0.01, "chat_template", lambda: self._pick((None, "", "x")))
        self._shared(body)
        return body

    def _messages(self) -> Any:
        if self._chance(0.01):
            return self._pick(([], [{}]))
        if self._chance(0.8):
            return self._dialogue()
        return [self._message() for _ in range(self._random.randint(1, 6))]

    def _dialogue(self) -> list[Json]:
        """Draw a chat as clients send it: turns that alternate, tools that answer."""
        messages: list[Json] = []
        if self._chance(0.5):
            role = "system" if self._chance(0.8) else "developer"
            messages.append({"role": role, "content": self._content(role)})
        for _ in range(self._random.randint(1, 4)):
            messages.append({"role": "user", "content": self._content("user")})
            if self._chance(0.25):
                calls = [self._call() for _ in range(1 if self._chance(0.7) else 2)]
                messages.append({"role": "assistant", "content": None, "tool_calls": calls})
                messages += [
                    {"role": "tool", "tool_call_id": call.get("id"), "content": self._text()}
                    for call in calls
                ]
            message: Json = {"role": "assistant", "content": self._content("assistant")}
            name = self._pick(("reasoning", "reasoning_content"))
            self._some(message, 0.25, name, self._text)
            messages.append(message)
        return messages if self._chance(0.3) else messages[:-1]

    def _message(self) -> Json:
        role = self._pick(_ROLES)
        message: Json = {"role": role, "content": self._content(role)}
        if self._chance(0.05):
            del message["content"]
        elif self._chance(0.05):
            message["content"] = self._pick(_ODD)
        self._some(message, 0.7 if role == "tool" else 0.05, "tool_call_id", lambda: "call_0001")
        self._some(message, 0.15, "name", self._odd(self._text))
        self._some(message, 0.05, "task", self._odd(self._text))
        self._some(message, 0.15, "reasoning", self._odd(self._text))
        self._some(message, 0.1, "reasoning_content", self._odd(self._text))
        self._some(message, 0.15, "tool_calls", self._odd(lambda: [self._call()]))
        self._some(message, 0.15, "tools", self._odd(self._tools))
        for key in ("refusal", "audio", "function_call", "weird", "annotations"):
            self._some(message, 0.05, key, lambda: self._pick(_ODD))
        return self._shuffled(message)

    def _content(self, role: str) -> Any:
        if self._chance(0.75):
            return self._text()
        if role == "assistant" and self._chance(0.3):
            return None
        return [self._part() for _ in range(self._random.randint(0 if self._chance(0.1) else 1, 3))]

    def _part(self) -> Any:
        if self._chance(0.7):
            part: Json = {"type": "text", "text": self._text()}
            self._some(part, 0.2, "cache_control", lambda: {"type": "ephemeral", "n": 1.5})
            self._some(part, 0.05, "name", self._text)
            self._some(part, 0.03, "uuid", lambda: self._pick((None, "u")))
            return self._shuffled(part)
        kinds: tuple[Callable[[], Any], ...] = (
            lambda: {"type": "refusal", "refusal": self._text()},
            lambda: {"type": "thinking", "thinking": self._text(), "closed": self._flag()},
            lambda: {"type": "tool_reference", "name": "f"},
            lambda: {"type": self._pick(("input_text", "output_text")), "text": self._text()},
            lambda: {"type": "text", "text": self._pick(("", None, 5))},
            lambda: {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            lambda: self._pick(_ODD),
            self._text,
        )
        return self._pick(kinds)()

    def _call(self) -> Json:
        arguments = self._pick((
            '{"city": "Wien", "n": 1.0, "deep": {"b": [1, null], "a": true}}', "{}", "", "[1]", "x",
            '{"a": 1e20, "b": 12345678901234567890123}', '{"x": "ü\\u00e4\\n"}', ' {"a":1} ', "7",
        ))  # fmt: skip
        call: Json = {
            "id": self._pick(("call_0001", "abcdefghi", "x")),
            "type": "function",
            "function": {"name": self._pick(("f", "get_weather")), "arguments": arguments},
        }
        if self._chance(0.1):
            call["function"]["arguments"] = self._pick(_ODD)
        if self._chance(0.05):
            del call[self._pick(("id", "type"))]
        self._some(call, 0.1, "index", lambda: 0)
        self._some(call["function"], 0.1, "extra", lambda: {"z": 1, "a": 2})
        return self._shuffled(call)

    def _tools(self) -> list[Any]:
        return [self._tool() for _ in range(self._random.randint(1, 3))]

    def _tool(self) -> Any:
        parameters = {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": self._text()},
                "b": {"n": 1.0},
            },
            "required": ["city"],
        }
        function: Json = {"name": self._pick(("f", "get_weather", "ä"))}
        self._some(function, 0.7, "description", self._odd(self._text, 0.05))
        self._some(function, 0.7, "parameters", self._odd(lambda: parameters, 0.05))
        self._some(function, 0.2, "strict", self._flag)
        self._some(function, 0.1, "defer_loading", self._flag)
        self._some(function, 0.1, "returns", lambda: {"type": "string"})
        tool: Json = {"type": "function", "function": self._shuffled(function)}
        self._some(tool, 0.05, "defer_loading", self._flag)
        self._some(tool, 0.05, "weird", lambda: 1)
        if self._chance(0.05):
            tool["type"] = self._pick(("x", None))
        return self._shuffled(tool) if self._chance(0.98) else self._pick(_ODD)

    def _variables(self) -> Any:
        if self._chance(0.05):
            return self._pick(_ODD)
        values = (True, False, None, "auto", "x", 0, 1.5, [1, "a"], {"b": 1, "a": None}, "ä")
        names = (
            "custom", "custom", "enable_thinking", "enable_thinking", "thinking", "unknown",
            "padding", "bos_token", "reasoning_effort", "date_string", "tools_in_user_message",
            "truncation", "max_length", "add_generation_prompt", "tools", "documents", "tokenize",
            "chat_template", "return_assistant_tokens_mask", "messages", "conversation",
            "image_token", "cls_token",
        )  # fmt: skip
        return {self._pick(names): self._pick(values) for _ in range(self._random.randint(1, 2))}

    def _documents(self) -> Any:
        if self._chance(0.2):
            return self._pick(_ODD)
        return [{"title": self._text(), "text": self._text()} for _ in range(2)]

    # --- completions --------------------------------------------------------------------------

    def _completion(self) -> Json:
        body: Json = {"model": "m", "prompt": self._prompt()}
        self._some(body, 0.05, "suffix", lambda: self._pick((None, "", "x")))
        self._some(body, 0.1, "echo", self._flag)
        self._shared(body)
        return body

    def _prompt(self) -> Any:
        forms: tuple[Callable[[], Any], ...] = (
            self._text,
            lambda: [self._text() for _ in range(self._random.randint(1, 4))],
            self._ids,
            lambda: [self._ids() for _ in range(self._random.randint(1, 3))],
        )
        return self._pick(_ODD) if self._chance(0.05) else self._pick(forms)()

    def _ids(self) -> list[int]:
        count = self._max_model_len + self._random.randint(-2, 2) if self._chance(0.05) else 8
        return [
            self._random.randrange(2_000) for _ in range(self._random.randint(1, max(1, count)))
        ]

    # --- what both have -----------------------------------------------------------------------

    def _shared(self, body: Json) -> None:
        self._some(body, 0.15, "add_special_tokens", self._flag)
        if self._chance(0.15):
            near = self._max_model_len + self._random.randint(-1, 1)
            counts = (1, 2, 3, 5, 20, 20, 100, -1, -1, 0, None, "4", 3.0, -2, near)
            body["truncate_prompt_tokens"] = self._pick(counts)
            sides = ("left", "right", "left", "right", "left", "right", None, "up")
            self._some(body, 0.5, "truncation_side", lambda: self._pick(sides))
        self._some(
            body,
            0.1,
            "cache_salt",
            lambda: self._pick(("s", "ü", "s 1", "x" * 128, "a", None, "", "a/b")),
        )
        self._some(
            body,
            0.3,
            "max_tokens",
            lambda: self._pick((1, 16, 64, 300, 100, 2, None, None, "5", 0, 9_999)),
        )
        if self._chance(0.15):
            fields: tuple[tuple[str, Sequence[Any]], ...] = (
                ("temperature", (0, 0.7, 3, None, "x")),
                ("top_p", (1, 0, 0.5)),
                ("n", (1, 2, 0)),
                ("stop", ("x", ["a", "b"], "", ["a"] * 5)),
                ("stream", (True, False, None)),
                ("user", ("u", 5)),
                ("seed", (1, None, "x")),
                ("logit_bias", ({"5": 1}, {"x": 1})),
                ("min_tokens", (0, 3, -1)),
                ("response_format", ({"type": "json_object"}, {"type": "x"})),
                ("mm_processor_kwargs", ({}, None, {"a": 1})),
                ("kv_transfer_params", (None, {}, {"a": 1}, "x")),
                ("nonsense", ({"a": 1},)),
            )
            name, values = self._pick(fields)
            body[name] = self._pick(values)

    def _text(self) -> str:
        if self._chance(0.01):
            return str(self._pick(_WORDS)) * self._random.randint(100, self._max_model_len * 2)
        if self._chance(0.05):
            return "".join(self._letter() for _ in range(self._random.randint(1, 40)))
        words = []
        for _ in range(self._random.choice((0, 1, 3, 8, 20, 40))):
            words.append(self._pick(_SPECIALS) if self._chance(0.06) else self._pick(_WORDS))
            words.append(self._pick(_SPACES))
        return "".join(words)

    def _letter(self) -> str:
        """Draw any character but a surrogate; most scripts lie within the first plane."""
        code = self._random.randrange(0x11_0000 if self._chance(0.2) else 0x1_0000)
        return chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd"

    def _flag(self) -> Any:
        if self._chance(0.1):
            return self._pick((None, "true", "no", 1, 0, "x", 2, 1.0))
        return self._chance(0.5)

    def _odd(self, usual: Callable[[], Any], share: float = 0.1) -> Callable[[], Any]:
        return lambda: self._pick(_ODD) if self._chance(share) else usual()

    def _some(self, target: Json, share: float, key: str, draw: Callable[[], Any]) -> None:
        if self._chance(share):
            target[key] = draw()

    def _shuffled(self, source: Json) -> Json:
        items = list(source.items())
        self._random.shuffle(items)
        return dict(items)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, values: Sequence[Any]) -> Any:
        # By way of JSON, so that no two requests share an object.
        picked = self._random.choice(values)
        copy: Any = picked if callable(picked) else json.loads(json.dumps(picked))
        return copy
