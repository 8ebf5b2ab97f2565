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
        ("", "messages[0].content or []"),
        ("", "content"),
        ("{% set parts = message.content %}", "parts"),
        ("{% set m = message %}{% set parts = m.content[1:] %}", "parts"),
        ("{% set m = messages[i] %}", "m['content']"),
        ("{% set some = messages[1:] %}{% for m in some %}{% endfor %}", "m.content"),
        (
            "{% set some = messages if tools else messages[1:] %}{% for m in some %}{% endfor %}",
            "m.content",
        ),
        ("{% set all = [1] + messages %}{% for m in all %}{% endfor %}", "m.content"),
        ("{% macro show(x) %}{{ y }}{% endmacro %}{{ show(message.content) }}", "x"),
        ("{% macro show(x) %}{{ y }}{% endmacro %}{{ show(x=message.content) }}", "x"),
    ],
)
def test_templates_that_loop_over_contents_want_parts(before: str, looped: str) -> None:
    """A loop over a content, however it got there, means lists of parts."""
    template = ChatTemplate.compile(LOOP % (before + EACH % looped), "test")
    assert template.content_format == "openai"


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
        "{% macro show(x) %}{{ x }}{% endmacro %}{{ show(message.content) }}{{ other.f() }}",
    ],
)
def test_other_templates_want_strings(inner: str) -> None:
    """Loops over anything else say nothing of contents."""
    template = ChatTemplate.compile(LOOP % inner, "test")
    assert template.content_format == "string"


def test_what_a_template_reads() -> None:
    """Names are read if they are not set first; the developer's role counts if it is quoted."""
    template = ChatTemplate.compile("{% set a = b %}{{ a }}{{ c.d }}{# developer #}", "test")
    assert {"b", "c"} <= template.variables
    assert "a" not in template.variables
    assert not template.knows_developer
    assert ChatTemplate.compile('{{ x == "developer" }}', "test").knows_developer
