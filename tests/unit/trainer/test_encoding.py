"""Which tokens are trained: the assistant's turns with their stop token, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import encoding, generate
from trainer.errors import InputError

# What matters of Qwen3's own template: think blocks split from the content, kept in the last turn only, an empty
# one written where there is none, and the same empty block in the prompt when thinking is off.
QWEN3 = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- set ns = namespace(last_query=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- set content = message.content -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
<|im_start|>assistant
{% if loop.index0 > ns.last_query and (loop.last or thought) -%}
{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""
STOP = "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"
CALL = {"type": "function", "function": {"name": "field", "arguments": {"q": 2}}}
SYSTEM = {"role": "system", "content": "你是助教。"}
ASK = {"role": "user", "content": "导体内部？"}
REPLY = {"role": "assistant", "content": "电场为零"}


@pytest.fixture(scope="module")
def qwen3(tiny_tokenizer: Any) -> Any:
    found = copy.deepcopy(tiny_tokenizer)
    found.chat_template = QWEN3
    return found


@pytest.fixture(params=["ours", "qwen3"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Any, qwen3: Any) -> Any:
    return {"ours": tiny_tokenizer, "qwen3": qwen3}[request.param]


def row(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "r", "messages": list(messages), **more}


def trained(tokenizer: Any, of: dict[str, Any], *, enable_thinking: bool = False) -> list[str]:
    """The text of the trained tokens of each example."""
    examples = encoding.encode_row(of, tokenizer, enable_thinking=enable_thinking)
    return [tokenizer.decode([t for t in e.labels if t != encoding.IGNORED]) for e in examples]


def prompts(tokenizer: Any, of: dict[str, Any], *, enable_thinking: bool = False) -> list[str]:
    """The text of the untrained tokens of each example."""
    examples = encoding.encode_row(of, tokenizer, enable_thinking=enable_thinking)
    return [tokenizer.decode(e.input_ids[: len(e.input_ids) - e.trained_tokens]) for e in examples]


def test_a_single_turn_trains_its_answer_and_its_end(tokenizer: Any) -> None:
    assert trained(tokenizer, row(SYSTEM, ASK, REPLY)) == ["电场为零" + STOP]


def test_labels_are_the_ids_behind_the_prompt(tokenizer: Any) -> None:
    (example,) = encoding.encode_row(row(ASK, REPLY), tokenizer, enable_thinking=False)
    cut = len(example.input_ids) - example.trained_tokens
    assert len(example.labels) == len(example.input_ids)
    assert example.labels[:cut] == [encoding.IGNORED] * cut
    assert example.labels[cut:] == example.input_ids[cut:]
    assert example.input_ids[-1] == tokenizer.eos_token_id


def test_every_assistant_turn_is_trained_once(tokenizer: Any) -> None:
    more = {"role": "user", "content": "表面？"}
    found = row(SYSTEM, ASK, REPLY, more, {"role": "assistant", "content": "有电荷"})
    assert trained(tokenizer, found) == ["电场为零" + STOP, "有电荷" + STOP]
    examples = encoding.encode_row(found, tokenizer, enable_thinking=False)
    assert [(example.row_id, example.turn) for example in examples] == [("r", 2), ("r", 4)]
    # The second turn sees the first one, as it will at generation time.
    assert "电场为零" + STOP in prompts(tokenizer, found)[1]


@pytest.mark.parametrize(
    "call",
    [CALL, CALL["function"], {"function": {"name": "field", "arguments": '{"q": 2}'}}],
    ids=["whole", "bare", "text"],
)
def test_tool_calls_are_trained_and_tool_messages_are_not(tokenizer: Any, call: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "field", "parameters": {}}}]
    found = row(
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "9e9 N/C"},
        REPLY,
        tools=tools,
    )
    first, second = trained(tokenizer, found)
    assert generate.tool_calls(first.removesuffix(STOP)) == [{"name": "field", "arguments": {"q": 2}}]
    assert first.endswith(STOP)
    assert second == "电场为零" + STOP
    assert "9e9 N/C" in prompts(tokenizer, found)[1]
    assert all('"parameters"' in text for text in prompts(tokenizer, found))


def test_a_refusal_is_trained_like_an_answer(tokenizer: Any) -> None:
    refused = {"role": "assistant", "content": "不代做作业，给思路。"}
    assert trained(tokenizer, row(SYSTEM, ASK, refused, refusal_type="homework")) == ["不代做作业，给思路。" + STOP]


def test_without_thinking_the_empty_block_stands_in_the_prompt(tokenizer: Any) -> None:
    found = row(SYSTEM, ASK, REPLY)
    (prompt,) = prompts(tokenizer, found)
    assert prompt.endswith("<|im_start|>assistant\n" + NO_THOUGHT)
    assert "think" not in trained(tokenizer, found)[0]


def test_with_thinking_the_prompt_leaves_the_block_to_the_model(qwen3: Any, tiny_tokenizer: Any) -> None:
    thought = {"role": "assistant", "content": "<think>\n屏蔽\n</think>\n\n电场为零"}
    for tokenizer in (qwen3, tiny_tokenizer):
        (prompt,) = prompts(tokenizer, row(ASK, thought), enable_thinking=True)
        assert prompt.endswith("<|im_start|>assistant\n")
        assert trained(tokenizer, row(ASK, thought), enable_thinking=True) == [thought["content"] + STOP]
    # Qwen3 writes an empty block itself where a row has no thought; ours does not.
    assert trained(qwen3, row(ASK, REPLY), enable_thinking=True) == [NO_THOUGHT + "电场为零" + STOP]
    assert trained(tiny_tokenizer, row(ASK, REPLY), enable_thinking=True) == ["电场为零" + STOP]


def test_a_thought_in_a_row_without_thinking_is_named_and_not_trained(qwen3: Any) -> None:
    thought = {"role": "assistant", "content": "<think>\n屏蔽\n</think>\n\n电场为零"}
    examples, findings = encoding.encode(
        [(7, row(ASK, thought)), (8, row(ASK, REPLY))], qwen3, "a.jsonl", enable_thinking=False, max_length=200
    )
    assert [(f.severity, f.line) for f in findings] == [("error", 7)]
    assert "does not continue its own prompt" in findings[0].problem
    assert len(examples) == 1


@pytest.mark.parametrize("enable_thinking", [False, True])
def test_the_trained_prompt_is_the_one_that_generation_uses(
    tokenizer: Any, tiny_parameters: Any, enable_thinking: bool
) -> None:
    found = row(SYSTEM, ASK, REPLY, {"role": "user", "content": "表面？"}, {"role": "assistant", "content": "有电荷"})
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    asked = generate.ask(model, tokenizer, found, tiny_parameters(enable_thinking=enable_thinking))
    last = encoding.encode_row(found, tokenizer, enable_thinking=enable_thinking)[-1]
    assert asked.prompt == last.input_ids[: len(last.input_ids) - last.trained_tokens]


def test_rows_that_are_too_long_are_named_one_by_one_and_nothing_is_cut(tokenizer: Any) -> None:
    long = row(ASK, {"role": "assistant", "content": "电场为零" * 40}, id="long")
    longer = row(ASK, REPLY, ASK, {"role": "assistant", "content": "有电荷" * 60}, id="longer")
    numbered = [(1, row(ASK, REPLY)), (3, long), (4, longer)]
    examples, findings = encoding.encode(numbered, tokenizer, "a.jsonl", enable_thinking=False, max_length=100)
    sizes = {example.row_id: len(example.input_ids) for example in examples}
    assert [str(f) for f in findings] == [
        f"error: a.jsonl:{line}: messages[{turn}]: row '{name}' has {sizes[name]} tokens, the limit is 100; "
        "shorten it or raise max_length"
        for line, turn, name in [(3, 1, "long"), (4, 3, "longer")]
    ]
    assert (
        encoding.encode(numbered, tokenizer, "a.jsonl", enable_thinking=False, max_length=max(sizes.values()))[1] == []
    )
    assert encoding.encode(numbered, tokenizer, "a.jsonl", enable_thinking=False, max_length=sizes["long"] - 1)[1]


def test_rows_that_train_no_token_are_named(tokenizer: Any) -> None:
    silent = row(ASK, {"role": "assistant", "content": ""}, id="silent")
    short = row(ASK, {"role": "assistant", "content": "零"}, id="short")
    _, findings = encoding.encode(
        [(1, short), (2, silent)], tokenizer, "a.jsonl", enable_thinking=False, max_length=200
    )
    assert [str(f) for f in findings] == [
        "error: a.jsonl:2: messages[1]: row 'silent' trains no token; give the assistant an answer"
    ]


def test_a_row_that_the_template_refuses_is_named(tiny_tokenizer: Any) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{{ raise_exception('no system turn here') if messages[0].role == 'system' }}" + QWEN3
    numbered = [(1, row(ASK, REPLY)), (2, row(SYSTEM, ASK, REPLY))]
    examples, findings = encoding.encode(numbered, strict, "a.jsonl", enable_thinking=False, max_length=200)
    assert [(f.line, f.problem) for f in findings] == [(2, "the chat template refuses it (no system turn here)")]
    assert len(examples) == 1


def test_a_folder_without_a_tokenizer_or_template_is_refused_in_one_sentence(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=f"no tokenizer could be loaded from '{tmp_path}': ") as caught:
        encoding.load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
    tokenizer = encoding.load_tokenizer(str(tiny_base))
    assert tokenizer.chat_template
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no chat template; use an instruction-tuned model"):
        encoding.load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path, tiny_tokenizer: Any) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.pad_token = None
    plain.save_pretrained(tmp_path)
    found = encoding.load_tokenizer(str(tmp_path))
    assert found.pad_token_id == found.eos_token_id
    assert encoding.load_tokenizer(tiny_tokenizer.name_or_path).pad_token == "<|endoftext|>"
