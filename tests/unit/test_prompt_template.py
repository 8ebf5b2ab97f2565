"""What templates can rely on, what they cannot do, and what their syntax tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.prompt.template import ChatTemplate


def rendered(source: str, **variables: object) -> str:
    """Render a template."""
    return ChatTemplate.compile(source, "test").render(variables)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ x | tojson }}", '{"b": "<ü>", "a": 1.0}'),
        ("{{ x | tojson(indent=1) }}", '{\n "b": "<ü>",\n "a": 1.0\n}'),
        ("{{ x | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":1.0,"b":"<ü>"}'),
        ("{{ x | tojson(ensure_ascii=true) }}", '{"b": "<\\u00fc>", "a": 1.0}'),
    ],
)
def test_tojson_writes_plain_json(source: str, shown: str) -> None:
    """Keys keep their order, and neither HTML nor other scripts are escaped."""
    assert rendered(source, x={"b": "<ü>", "a": 1.0}) == shown


def test_white_space_of_blocks_goes() -> None:
    """Blocks leave neither their indentation nor their line end, and the last line end goes."""
    assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"


def test_loop_controls_and_generation_tags() -> None:
    """Loops can be left, and what a model wrote may be marked."""
    assert (
        rendered("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "1"
    )
    assert rendered("a{% generation %}b{{ x }}{% endgeneration %}c", x=1) == "ab1c"


def test_the_date() -> None:
    """Templates may print today's date."""
    today = datetime.now(UTC)
    near = {(today + timedelta(days=days)).strftime("%Y-%m-%d") for days in (-1, 0, 1)}
    assert rendered("{{ strftime_now('%Y-%m-%d') }}") in near


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ x.y.z }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ range(1000000000) | list }}",
        "{{ [] + {} }}",
        "{% include 'other' %}",
        "{{ object | tojson }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_means_routing_by_load(source: str) -> None:
    """Whatever goes wrong in a template is one error with one reason."""
    with pytest.raises(PromptUnavailable) as caught:
        rendered(source, messages=[], object=object())
    assert caught.value.reason == "template_error"


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% nope %}", "{{ x | nope }}"])
def test_no_template(source: str) -> None:
    """What is not Jinja is a fault of the configuration, told with its place."""
    with pytest.raises(ConfigError) as caught:
        ChatTemplate.compile(source, "here")
    assert caught.value.faults[0].startswith("here: ")


LOOP = "{%% for message in messages %%}%s{%% endfor %%}"
EACH = "{%% for part in %s %%}{%% endfor %%}"


@pytest.mark.parametrize(
    ("before", "looped"),
    [
        ("", "message.content"),
        ("", "message['content']"),
        ("", "message.content | selectattr('type', 'equalto', 'text')"),
        ("", "message.content[1:]"),
        ("", "content"),
        ("{% set some = messages[1:] %}{% for m in some %}{% endfor %}", "m.content"),
        ("{% set a = messages %}{% set b = a %}{% for m in b %}{% endfor %}", "m.content"),
    ],
)
def test_templates_that_loop_over_contents_want_parts(before: str, looped: str) -> None:
    """A loop over a message's content means lists of parts."""
    template = ChatTemplate.compile(LOOP % (before + EACH % looped), "test")
    assert template.content_format == "openai"


@pytest.mark.parametrize(
    "call", ["show(message.content)", "show(x=message.content)", "show(message.content | list)"]
)
def test_a_macro_that_is_given_a_content_loops_over_it(call: str) -> None:
    """A loop over a macro's parameter counts if a call hands a content to it, by any name."""
    macro = "{% macro show(x) %}" + EACH % "x" + "{% endmacro %}"
    given, other = (LOOP % f"{{{{ {what} }}}}" for what in (call, "show(1)"))
    assert ChatTemplate.compile(macro + given, "test").content_format == "openai"
    assert ChatTemplate.compile(macro + other, "test").content_format == "string"


@pytest.mark.parametrize(
    "inner",
    [
        "{{ message.content }}",
        "{% for call in message.tool_calls %}{% endfor %}",
        "{% for call in message['tool_calls'] %}{% endfor %}",
        "{% for key in message %}{% endfor %}",
        "{% set content = message.content %}{{ content.split('x')[-1] }}",
        "{% for x in message.content.split('x') %}{% endfor %}",
        "{% for x in messages.content %}{% endfor %}",
        "{% for x in messages['content'] %}{% endfor %}",
        "{% for x in messages[0].content or [] %}{% endfor %}",
        "{% macro show(x) %}{{ x }}{% endmacro %}{{ show(message.content) }}{{ other.f() }}",
        "{% macro f(content) %}{% for x in content %}{% endfor %}{% endmacro %}{{ f(message) }}",
    ],
)
def test_other_templates_want_strings(inner: str) -> None:
    """Loops over anything else say nothing of contents."""
    template = ChatTemplate.compile(LOOP % inner, "test")
    assert template.content_format == "string"


@pytest.mark.parametrize(
    "source",
    [
        "{% set parts = message.content %}" + EACH % "parts",
        "{% set ns = namespace() %}{% set ns.m = messages %}" + EACH % "content",
        "{% for a, b in messages %}{% endfor %}" + EACH % "content",
        "{% for a, b in content %}{% endfor %}",
    ],
)
def test_where_the_engine_gives_up_it_takes_strings(source: str) -> None:
    """Contents in other variables are not followed, and a target that is no name ends it all."""
    assert ChatTemplate.compile(source, "test").content_format == "string"


def test_a_generation_tag_keeps_its_variables_to_itself() -> None:
    """What is set between the tags is not seen behind them, as with Hugging Face's."""
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert rendered(source) == "21"


def test_what_a_template_reads() -> None:
    """Names are read if they are not set first; the developer's role counts if it is quoted."""
    template = ChatTemplate.compile("{% set a = b %}{{ a }}{{ c.d }}{# developer #}", "test")
    assert {"b", "c"} <= template.variables
    assert "a" not in template.variables
    assert not template.knows_developer
    assert ChatTemplate.compile('{{ x == "developer" }}', "test").knows_developer


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ m.role }}{{ m['role'] }}", "rr"),
        ("{{ m.nope is defined }}{{ m.nope }}", "False"),
        ("{{ m.items() | list | length }}{{ m.items is callable }}", "1True"),
        ("{{ m.__class__ is defined }}", "False"),
    ],
)
def test_keys_and_attributes_of_messages(source: str, shown: str) -> None:
    """A dot reads a key where a dictionary has no such attribute; the sandbox stays closed."""
    assert rendered(source, m={"role": "r"}) == shown
