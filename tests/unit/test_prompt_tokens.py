"""Text and ids on their way through tokenizers: margins, truncation, folders, the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, InvalidRequest, PromptUnavailable
from kvatlas.common.prompt import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    PromptBuilder,
    Rendered,
    demo_model_path,
)
from kvatlas.common.prompt.backends import guarded
from kvatlas.common.prompt.corpus import CORPUS
from kvatlas.common.prompt.tokenizer import Tokenizer
from kvatlas.common.settings import ModelSettings

WORDS = ["<unk>", "<s>", "</s>", *"abcdefgh"]
USER = {"role": "user", "content": "hello"}


def tiny_json(*, normalizer: bool = False) -> str:
    """Write a tokenizer of one word per letter, with a BOS and an EOS of its own."""
    library = Library(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer:
        library.normalizer = normalizers.BertNormalizer()
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return library.to_str()


def fill(folder: Path, **files: Any) -> ModelSettings:
    """Make a model folder; names are written with __ for a dot."""
    (folder / "tokenizer.json").write_text(tiny_json())
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ModelSettings(name="tiny", tokenizer=str(folder))


@pytest.fixture(scope="module")
def demo() -> PromptBuilder:
    """Load the demo model."""
    return PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))


def completion(builder: PromptBuilder, **body: Any) -> list[list[int]]:
    """Give the token ids of a completion request."""
    prompt = builder.tokenize(builder.prepare(COMPLETIONS_PATH, body))
    return [list(sequence) for sequence in prompt.sequences]


def reason(builder: PromptBuilder, **body: Any) -> str:
    """Give the reason why a completion has no token ids."""
    with pytest.raises(PromptUnavailable) as caught:
        completion(builder, **body)
    return caught.value.reason


# --- completions ----------------------------------------------------------------------------------


def test_completions_get_special_tokens(tmp_path: Path) -> None:
    """Text gets the tokenizer's own tokens unless the request says no; ids never do."""
    builder = PromptBuilder.load(fill(tmp_path))
    assert completion(builder, prompt="a b") == [[1, 3, 4, 2]]
    assert completion(builder, prompt="a b", add_special_tokens=False) == [[3, 4]]
    assert completion(builder, prompt=[3, 4]) == [[3, 4]]


def test_each_prompt_is_a_sequence(tmp_path: Path) -> None:
    """Lists of texts and lists of ids are several prompts; a list of integers is one."""
    builder = PromptBuilder.load(fill(tmp_path))
    assert completion(builder, prompt=["a", "b"]) == [[1, 3, 2], [1, 4, 2]]
    assert completion(builder, prompt=[[3], [4, 5]]) == [[3], [4, 5]]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"truncate_prompt_tokens": 4}, [1, 5, 6, 2]),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, [1, 3, 4, 5]),
        ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, [4, 5, 6, 2]),
        ({"truncate_prompt_tokens": 2}, [1, 2]),
        ({"truncate_prompt_tokens": 6}, [1, 3, 4, 5, 6, 2]),
        ({"truncate_prompt_tokens": 3, "add_special_tokens": False}, [4, 5, 6]),
        (
            {"truncate_prompt_tokens": 3, "add_special_tokens": False, "truncation_side": "right"},
            [3, 4, 5],
        ),
    ],
)
def test_truncation_keeps_what_the_tokenizer_added(
    tmp_path: Path, options: dict[str, Any], ids: list[int]
) -> None:
    """By default BOS, EOS and the tail of the text stay; a side that is named cuts them as well."""
    builder = PromptBuilder.load(fill(tmp_path))
    assert completion(builder, prompt="a b c d", **options) == [ids]


def test_truncating_ids_and_below_the_margins(tmp_path: Path) -> None:
    """Given ids are cut like text; less room than BOS and EOS need is the engine's to refuse."""
    builder = PromptBuilder.load(fill(tmp_path))
    assert completion(builder, prompt=[3, 4, 5], truncate_prompt_tokens=2) == [[4, 5]]
    assert reason(builder, prompt="a b", truncate_prompt_tokens=1) == "refused"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "refused"),
        ({"prompt": None}, "refused"),
        ({"prompt": ""}, "refused"),
        ({"prompt": []}, "refused"),
        ({"prompt": [""], "add_special_tokens": False}, "refused"),
        ({"prompt": [[]]}, "refused"),
        ({"prompt": [None]}, "refused"),
        ({"prompt": ["a", 1]}, "refused"),
        ({"prompt": [1, "a"]}, "refused"),
        ({"prompt": [True]}, "refused"),
        ({"prompt": [[1], 2]}, "refused"),
        ({"prompt": [-1]}, "refused"),
        ({"prompt": [len(WORDS)]}, "refused"),
        ({"prompt": "a", "suffix": "b"}, "refused"),
        ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": "\ud800"}, "encoding"),
        ({"prompt": "x" * (limits.PROMPT_CHARS_MAX + 1)}, "too_long"),
        ({"prompt": ["x" * (limits.PROMPT_CHARS_MAX // 2 + 1)] * 2}, "too_long"),
        ({"prompt": [1] * (limits.PROMPT_CHARS_MAX + 1)}, "too_long"),
        ({"prompt": [[1] * (limits.PROMPT_CHARS_MAX // 2 + 1)] * 2}, "too_long"),
        ({"prompt": ["a"] * (limits.COMPLETION_PROMPTS_MAX + 1)}, "too_many_prompts"),
    ],
)
def test_completions_without_token_ids(tmp_path: Path, body: dict[str, Any], why: str) -> None:
    """What the engine refuses and what is beyond our bounds goes by load."""
    assert reason(PromptBuilder.load(fill(tmp_path)), **body) == why


@pytest.mark.parametrize("prompt", [7, {}, True])
def test_a_prompt_of_a_wrong_type(demo: PromptBuilder, prompt: Any) -> None:
    """A prompt that is neither string nor list is the client's fault."""
    with pytest.raises(InvalidRequest):
        demo.prepare(COMPLETIONS_PATH, {"prompt": prompt})


def test_longer_than_the_model_takes(tmp_path: Path) -> None:
    """The engine refuses such a prompt, so it is left to the engine."""
    model = fill(tmp_path).model_copy(update={"max_model_len": 4})
    builder = PromptBuilder.load(model)
    body = {"max_tokens": 1}
    assert completion(builder, prompt="a", **body) == [[1, 3, 2]]
    # Four tokens would leave no room for an answer.
    assert reason(builder, prompt="a b", **body) == "refused"
    assert completion(builder, prompt="a b", truncate_prompt_tokens=-1, **body) == [[1, 4, 2]]
    assert reason(builder, prompt="a", max_tokens=5) == "refused"


def test_texts_that_are_too_long_by_their_characters(tmp_path: Path) -> None:
    """Beyond the longest token times the model's length the engine refuses, or cuts the text."""
    model = fill(tmp_path).model_copy(update={"max_model_len": 3})
    builder = PromptBuilder.load(model)
    # The longest token is <unk>: fifteen characters, of which blanks are no tokens.
    text = "a" + " " * 14 + "b"
    assert reason(builder, prompt=text, max_tokens=1, add_special_tokens=False) == "refused"
    cut = {"truncate_prompt_tokens": 2, "max_tokens": 1, "add_special_tokens": False}
    assert completion(builder, prompt=text, truncation_side="left", **cut) == [[4]]
    assert completion(builder, prompt=text, truncation_side="right", **cut) == [[3]]
    assert completion(builder, prompt=text, **cut) == [[3, 4]]


def test_the_models_vocabulary_may_be_larger(tmp_path: Path) -> None:
    """Ids up to the size in config.json are the engine's to take."""
    builder = PromptBuilder.load(fill(tmp_path, config__json={"vocab_size": 64}))
    assert builder.vocab_size == len(WORDS)
    assert completion(builder, prompt=[63]) == [[63]]
    assert reason(builder, prompt=[64]) == "refused"


# --- tokenizers -----------------------------------------------------------------------------------


def test_what_fastokens_cannot_read_goes_to_tokenizers() -> None:
    """A normalizer that fastokens does not know means the slower library, not an error."""
    tokenizer = Tokenizer.from_json(tiny_json(normalizer=True), "test")
    assert tokenizer.kind == "tokenizers"
    assert tokenizer.encode(["A b"], add_special_tokens=True) == [[1, 3, 4, 2]]
    assert tokenizer.decode([1, 3, 4, 2]) == "a b"


def test_both_libraries_agree_on_the_demo_model(demo: PromptBuilder) -> None:
    """The demo model is tokenized fast, and as the reference does it."""
    library = Library.from_file(str(demo_model_path() / "tokenizer.json"))
    assert demo.tokenizer_kind == "fastokens"
    for text in CORPUS:
        ours = demo.encode_text(text, add_special_tokens=False)
        assert ours == library.encode(text, add_special_tokens=False).ids


def test_a_disagreement_means_the_slower_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """One different id on the corpus is enough to distrust fastokens."""
    agreeing = (demo_model_path() / "tokenizer.json").read_text()
    changed = json.loads(agreeing)
    # fastokens is given another vocabulary than tokenizers: two ids have changed places.
    vocab = changed["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other = json.dumps(changed)
    load = Library.from_str
    monkeypatch.setattr(
        "kvatlas.common.prompt.tokenizer.tokenizers.Tokenizer.from_str", lambda _: load(other)
    )
    assert Tokenizer.from_json(agreeing, "test").kind == "tokenizers"


def test_padding_and_truncation_of_the_file_are_off() -> None:
    """What a tokenizer.json says of lengths is not meant for prompts."""
    library = Library.from_str(tiny_json())
    library.enable_truncation(2)
    library.enable_padding(length=9)
    tokenizer = Tokenizer.from_json(library.to_str(), "test")
    assert tokenizer.encode(["a b c"], add_special_tokens=False) == [[3, 4, 5]]


def test_the_demo_model_reads_back(demo: PromptBuilder) -> None:
    """Ordinary text comes out of its tokens as it went in, and English is compressed."""
    text = "When the invoice was paid, she thanked everyone, naïve 世界 🙂\n\n  x = [1, 2]\n"
    assert demo.decode(demo.encode_text(text, add_special_tokens=False)) == text
    english = "The manager asked whether the other members could provide more information. " * 9
    assert len(english) / len(demo.encode_text(english, add_special_tokens=False)) > 3.5
    assert demo.encode_text("<|endoftext|><|im_start|><|im_end|>", add_special_tokens=True) == [
        0, 1, 2,
    ]  # fmt: skip
    assert demo.eos_token_id == 2


def test_the_demo_model_has_a_name() -> None:
    """A configuration may say `tokenizer: demo`, wherever the package is installed."""
    model = ModelSettings(name="m", tokenizer="demo")
    assert PromptBuilder.load(model).vocab_size == 8_192


def test_the_demo_model_is_small() -> None:
    """It ships within the package, so all of it stays below a megabyte."""
    assert sum(path.stat().st_size for path in demo_model_path().iterdir()) < 1_000_000


def test_the_demo_template(demo: PromptBuilder) -> None:
    """ChatML with tools, calls, answers and a switch for thinking."""
    body = {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U"},
            {
                "role": "assistant",
                "reasoning": "R",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "T"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "reasoning_effort": "none",
    }
    rendered = demo.prepare(CHAT_PATH, body)
    [text] = rendered.texts
    assert text.startswith("<|im_start|>system\nS\n\nThese tools")
    assert '{"type": "function", "function": {"name": "f", "description": null' in text
    assert text.endswith(
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\nR\n</think>\n\n"
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nT<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert rendered.chars == len(text)


def test_a_demo_chat_grows_at_its_end(demo: PromptBuilder) -> None:
    """The prompt of the next turn begins with all tokens of the one before it."""
    first = {"messages": [{"role": "system", "content": "Be brief."}, USER]}
    answer = {"role": "assistant", "content": "A story about rivers"}
    second = {"messages": [*first["messages"], answer, USER]}
    before, after = (
        demo.tokenize(demo.prepare(CHAT_PATH, body)).sequences[0] for body in (first, second)
    )
    assert list(after[: len(before)]) == list(before)


def test_warming_up_and_failures(demo: PromptBuilder) -> None:
    """Warming up leaves no trace; what a library cannot do is one error."""
    demo.warm()
    with pytest.raises(PromptUnavailable) as caught:
        demo.tokenize(Rendered(("\ud800",)))
    assert caught.value.reason == "tokenizer_error"
    assert demo.decode([2**40]) == ""


def test_a_panic_of_a_library_is_an_error_like_any_other() -> None:
    """Rust's panics reach Python outside of Exception; real interrupts are left alone."""

    class PanicException(BaseException):
        """What pyo3 raises."""

    def fail(error: type[BaseException]) -> None:
        raise error

    with pytest.raises(PromptUnavailable):
        guarded(lambda: fail(PanicException))
    with pytest.raises(KeyboardInterrupt):
        guarded(lambda: fail(KeyboardInterrupt))


# --- folders --------------------------------------------------------------------------------------


def shown(model: ModelSettings, **body: Any) -> str:
    """Render a chat with a model."""
    return PromptBuilder.load(model).prepare(CHAT_PATH, {"messages": [USER], **body}).texts[0]


def test_templates_of_a_folder(tmp_path: Path) -> None:
    """A file of its own beats tokenizer_config.json, and the operator's file beats both."""
    model = fill(tmp_path, tokenizer_config__json={"chat_template": "config"})
    assert shown(model) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert shown(model) == "file"
    (tmp_path / "mine.jinja").write_text("mine")
    assert shown(model.model_copy(update={"chat_template": tmp_path / "mine.jinja"})) == "mine"


def test_named_templates_of_a_folder(tmp_path: Path) -> None:
    """Templates may be a list of names, and further files."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    model = fill(tmp_path, tokenizer_config__json={"chat_template": named})
    tools = [{"function": {"name": "f"}}]
    assert (shown(model), shown(model, tools=tools)) == ("plain", "tools")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert (shown(model), shown(model, tools=tools)) == ("file", "more")


def test_special_tokens_of_a_folder(tmp_path: Path) -> None:
    """Written as strings or as objects, in either of two files, by any name."""
    model = fill(
        tmp_path,
        tokenizer_config__json={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"content": "<s>"},
            "eos_token": "other",
            "image_token": "<i>",
            "extra_special_tokens": {"boi": "<b>"},
        },
        special_tokens_map__json={"unk_token": "<unk>", "eos_token": "</s>"},
        chat_template__jinja="{{ bos_token + eos_token + unk_token + image_token + boi }}"
        " {{ pad_token is defined }}",
    )
    assert shown(model) == "<s></s><unk><i><b> False"
    assert PromptBuilder.load(model).eos_token_id == 2


def test_the_older_file_is_not_read_beside_a_list_of_added_tokens(tmp_path: Path) -> None:
    """special_tokens_map.json counts only where tokenizer_config.json lists no added tokens."""
    model = fill(
        tmp_path,
        tokenizer_config__json={"added_tokens_decoder": {}, "eos_token": "</s>", "bos_token": None},
        special_tokens_map__json={"eos_token": "other"},
        chat_template__jinja="{{ eos_token }}{{ bos_token is defined }}",
    )
    assert shown(model) == "</s>False"


def test_files_of_templates_replace_those_of_the_configuration(tmp_path: Path) -> None:
    """One file is enough for none of tokenizer_config.json's to count."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    model = fill(tmp_path, tokenizer_config__json={"chat_template": named})
    (tmp_path / "chat_template.jinja").write_text("file")
    assert shown(model, tools=[{"function": {"name": "f"}}]) == "file"


@pytest.mark.parametrize(
    ("config", "template", "reason"),
    [
        ({"model_type": "deepseek_v32"}, "x", "own_renderer"),
        ({"model_type": "deepseek_v32"}, "{{ raise_exception('no') }}", "own_renderer"),
        ({"model_type": "gpt_oss"}, "x", "harmony"),
        ({"architectures": ["GptOssForCausalLM"]}, "x", "harmony"),
    ],
)
def test_models_that_the_engine_renders_by_code(
    tmp_path: Path, config: dict[str, Any], template: str, reason: str
) -> None:
    """Their templates are not what the engine uses; completions are no matter of templates."""
    model = fill(tmp_path, config__json=config, chat_template__jinja=template)
    builder = PromptBuilder.load(model)
    with pytest.raises(PromptUnavailable) as caught:
        builder.prepare(CHAT_PATH, {"messages": [USER]})
    assert caught.value.reason == reason
    assert completion(builder, prompt=[3]) == [[3]]


def test_a_folder_without_template(tmp_path: Path) -> None:
    """Completions work, chats go by load, and there is no end token."""
    builder = PromptBuilder.load(fill(tmp_path))
    with pytest.raises(PromptUnavailable) as caught:
        builder.prepare(CHAT_PATH, {"messages": [USER]})
    assert caught.value.reason == "no_template"
    assert builder.eos_token_id is None


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer.json"),
        ("tokenizer.json", b"\xff", "is not UTF-8"),
        ("tokenizer_config.json", b"{", "is not JSON"),
        ("tokenizer_config.json", b"[]", "is not a JSON object"),
        ("chat_template.jinja", b"{% if %}", "is not a Jinja template"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    """A file that cannot be read is a fault of the configuration and names the model."""
    model = fill(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PromptBuilder.load(model)
    assert caught.value.faults[0].startswith("models.tiny: ")
    assert fault in caught.value.faults[0]


def test_missing_files(tmp_path: Path) -> None:
    """So is one that is not there."""
    model = fill(tmp_path)
    with pytest.raises(ConfigError, match="there is no such file"):
        PromptBuilder.load(model.model_copy(update={"chat_template": tmp_path / "nope"}))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        PromptBuilder.load(model)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        PromptBuilder.load(model)


@pytest.mark.parametrize("tokenizer", ["./nowhere", "/no/where", "a/b/c", "not a name"])
def test_no_folder_and_no_hub_id(tokenizer: str) -> None:
    """What can only be a folder is not looked for on the hub."""
    with pytest.raises(ConfigError, match="is no folder"):
        PromptBuilder.load(ModelSettings(name="m", tokenizer=tokenizer))
