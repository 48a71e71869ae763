"""Templates in the manner of the families that most files come from: what they print and refuse."""

from __future__ import annotations

from datetime import datetime

import pytest

from shardload.chat.messages import Message, ToolCall
from shardload.chat.template import ChatTemplate
from shardload.errors import RequestError

HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "some day" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_text = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "It is " + date_string + ".\\n" + system_text + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One tool call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "You have tools.\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first)
           or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TURNS = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate: user, assistant, user, ...') }}
{% endif %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

INSTRUCTIONS = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_text = messages[0]["content"] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set users = turns | selectattr("role", "equalto", "user") | list %}
{%- set counted = namespace(index=0) %}
{%- for turn in turns %}
    {%- if not (turn.role == "tool" or (turn.tool_calls is defined and turn.tool_calls is not none)) %}
        {%- if (turn["role"] == "user") != (counted.index % 2 == 0) %}
            {{- raise_exception("Turns must alternate") }}
        {%- endif %}
        {%- set counted.index = counted.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn["role"] == "user" %}
        {%- if tools is not none and turn == users[-1] %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.function.items() if key != "return" %}
                    {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
                    {%- else %}{{- '"' + key + '": ' + value | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- endif %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_text is defined %}
            {{- "[INST] " + system_text + "\\n\\n" + turn["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + turn["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif turn.tool_calls is defined and turn.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in turn.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception("Ids of tool calls have 9 characters") }}
            {%- endif %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif turn["role"] == "assistant" %}
        {{- " " + turn["content"] | trim + eos_token }}
    {%- elif turn["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + turn.content | string }}
        {{- ', "call_id": "' + turn.tool_call_id + '"}' }}
        {{- "[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool are known") }}
    {%- endif %}
{%- endfor %}
"""

SYSTEM, ASK = Message("system", "Be kind."), Message("user", " How warm is it? ")
CALL = Message("assistant", tool_calls=(ToolCall("abcdefghi", "warmth", '{"town": "Århus"}'),))
RESULT = Message("tool", "21", tool_call_id="abcdefghi")
ANSWER = Message("assistant", "It is 21.")
TOOL = {"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}}}


def test_headers_with_a_date_and_a_tool_in_use() -> None:
    template = ChatTemplate(HEADERS, "<|begin_of_text|>", "<|eot_id|>", clock=lambda: datetime(2026, 3, 1))
    assert template.render((SYSTEM, ASK, CALL, RESULT)) == (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nIt is 01 Mar 2026.\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow warm is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "warmth", "parameters": {"town": "Århus"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"21"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert "It is today." in template.render((ASK,), extra={"date_string": "today"})
    two = Message("assistant", tool_calls=CALL.tool_calls * 2)
    with pytest.raises(RequestError, match="One tool call at a time!"):
        template.render((ASK, two))


def test_chatml_with_tools() -> None:
    template = ChatTemplate(CHATML_WITH_TOOLS)
    assert template.takes_tools
    assert template.render((SYSTEM, ASK, CALL, RESULT, RESULT), [TOOL]) == (
        "<|im_start|>system\nBe kind.\n\nYou have tools.\n<tools>\n"
        '{"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}}}'
        "\n</tools><|im_end|>\n<|im_start|>user\n How warm is it? <|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "warmth", "arguments": {"town": "Århus"}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response>\n"
        "<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render((ASK,)) == (
        "<|im_start|>user\n How warm is it? <|im_end|>\n<|im_start|>assistant\n"
    )


def test_turns_of_user_and_model() -> None:
    template = ChatTemplate(TURNS, "<bos>", "<eos>")
    assert template.render((ASK, ANSWER, Message("user", "Thanks"))) == (
        "<bos><start_of_turn>user\nHow warm is it?<end_of_turn>\n"
        "<start_of_turn>model\nIt is 21.<end_of_turn>\n"
        "<start_of_turn>user\nThanks<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(RequestError, match="No system role here"):
        template.render((SYSTEM, ASK))
    with pytest.raises(RequestError, match="Turns must alternate"):
        template.render((ASK, ASK))


def test_instructions_with_tools() -> None:
    template = ChatTemplate(INSTRUCTIONS, "<s>", "</s>")
    assert template.render((SYSTEM, ASK, CALL, RESULT, ANSWER, Message("user", "Thanks")), [TOOL]) == (
        "<s>[INST]  How warm is it? [/INST]"
        '[TOOL_CALLS] [{"name": "warmth", "arguments": {"town": "Århus"}, "id": "abcdefghi"}]</s>'
        '[TOOL_RESULTS] {"content": 21, "call_id": "abcdefghi"}[/TOOL_RESULTS] It is 21.</s>'
        '[AVAILABLE_TOOLS] [{"type": "function", "function": '
        '{"name": "warmth", "parameters": {"type": "object"}}}]'
        "[/AVAILABLE_TOOLS][INST] Be kind.\n\nThanks[/INST]"
    )
    assert template.render((ASK,)) == "<s>[INST]  How warm is it? [/INST]"
    with pytest.raises(RequestError, match="9 characters"):
        template.render((ASK, Message("assistant", tool_calls=(ToolCall("short", "warmth", "{}"),))))
