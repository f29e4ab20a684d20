"""The parameters: conversion, limits, names, and which layer wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import config
from trainer.errors import InputError

OLD_NAMES = {
    "MODEL_NAME_OR_PATH": ("model_name_or_path", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    "NUM_TRAIN_EPOCHS": ("num_train_epochs", "3", 3.0),
    "PER_DEVICE_TRAIN_BATCH_SIZE": ("per_device_train_batch_size", "2", 2),
    "GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "16", 16),
    "LEARNING_RATE": ("learning_rate", "2e-4", 2e-4),
    "USE_QLORA": ("use_qlora", "0", False),
    "USE_MODELSCOPE": ("use_modelscope", "1", True),
}


def override(value: Any, source: str) -> dict[str, Any]:
    return {"value": value, "source": source}


def resolved(name: str, *, stage: Any = None, profile: Any = None, overrides: Any = None) -> tuple[Any, str]:
    layers = [{} if value is None else {name: value} for value in (stage, profile)]
    values, sources = config.resolve("style", layers[0], "small", layers[1], overrides or {})
    return getattr(values, name), sources[name]


def test_the_defaults_are_those_of_the_older_scripts() -> None:
    values = config.Parameters()
    assert values.model_name_or_path == "Qwen/Qwen3-8B"
    assert (values.num_train_epochs, values.per_device_train_batch_size) == (2.0, 1)
    assert (values.gradient_accumulation_steps, values.learning_rate) == (8, 1e-4)
    assert values.use_qlora is True and values.use_modelscope is False
    assert (values.lora_r, values.lora_alpha, values.lora_dropout) == (16, 32, 0.05)
    assert values.lora_target_modules == "all-linear"


def test_every_default_is_within_its_own_limits() -> None:
    for name, item in config.FIELDS.items():
        assert config.convert(name, item.default) == item.default
        assert config.convert(name, str(item.default)) == item.default, "a default survives being written down"


def test_each_layer_wins_over_the_one_before_and_is_named_as_the_source() -> None:
    environment = config.overrides_from({}, {"LORA_R": "5"}, "variable trainer_hp_{name}")
    both = config.overrides_from({"lora_r": "6"}, {"LORA_R": "5"}, "variable trainer_hp_{name}")
    assert resolved("lora_r") == (16, "default")
    assert resolved("lora_r", stage=3) == (3, "stage style")
    assert resolved("lora_r", stage=3, profile=4) == (4, "profile small")
    assert resolved("lora_r", stage=3, profile=4, overrides=environment) == (5, "environment LORA_R")
    assert resolved("lora_r", stage=3, profile=4, overrides=both) == (6, "variable trainer_hp_lora_r")


@pytest.mark.parametrize("variable", OLD_NAMES)
def test_the_older_scripts_environment_names_work(variable: str) -> None:
    name, text, value = OLD_NAMES[variable]
    assert config.overrides_from({}, {variable: text}, "") == {name: override(value, f"environment {variable}")}
    assert config.overrides_from({}, {variable: "  "}, "") == {}, "an empty variable sets nothing"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("use_qlora", "Yes", True), ("use_qlora", " off ", False), ("use_qlora", 1, True), ("use_qlora", False, False),
        ("learning_rate", "1e-4", 1e-4), ("learning_rate", 1, 1.0), ("num_train_epochs", "3", 3.0),
        ("lora_r", "8", 8), ("lora_r", "8.0", 8), ("lora_r", 8.0, 8), ("seed", "0", 0),
        ("lora_r", "1e2", 100), ("compute_dtype", " float32 ", "float32"), ("max_steps", "-1", -1),
    ],
)  # fmt: skip
def test_values_are_converted_to_the_type_of_the_field(name: str, given: Any, value: Any) -> None:
    found = config.convert(name, given)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "wrong", "words", "right"),
    [
        ("use_qlora", "maybe", "give true, false or auto", "auto"),
        ("use_modelscope", "auto", "give true or false", "true"),
        ("use_qlora", None, "give true, false or auto", "false"),
        ("learning_rate", "fast", "give a number", "1e-3"),
        ("learning_rate", "nan", "give a number", "1e-3"),
        ("learning_rate", "0", "it must be more than 0", "1e-9"),
        ("learning_rate", "1.5", "it must be at most 1", "1"),
        ("learning_rate", True, "give a number", 0.5),
        ("num_train_epochs", "1e400", "give a number", "1e4"),
        ("num_train_epochs", 10**400, "give a number", 10**4),
        ("lora_r", "8.5", "give a whole number", "8"),
        ("lora_r", "", "give a whole number", "8"),
        ("lora_r", [8], "give a whole number", 8),
        ("lora_r", "0", "it must be at least 1", "1"),
        ("lora_r", "1025", "it must be at most 1024", "1024"),
        ("seed", 2**32, "it must be at most 4294967295", 2**32 - 1),
        ("max_steps", 0, "trains nothing", 1),
        ("compute_dtype", "half", "choose one of auto, float32", "float16"),
        ("gate_questions", "heldout", "choose one of held_out, trained", "held_out"),
        ("model_name_or_path", " ", "give a non-empty text", "org/model"),
        ("model_name_or_path", 8, "give a non-empty text", "8"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(name: str, wrong: Any, words: str, right: Any) -> None:
    with pytest.raises(ValueError, match=words):
        config.convert(name, wrong)
    config.convert(name, right)


def test_a_model_name_that_was_never_published_is_refused_with_the_right_one() -> None:
    for wrong in ("Qwen/Qwen3-8B-Instruct", "qwen/qwen3-8b-instruct"):
        with pytest.raises(InputError, match=r"MODEL_NAME_OR_PATH is .* never published; use Qwen/Qwen3-8B$"):
            config.overrides_from({}, {"MODEL_NAME_OR_PATH": wrong}, "")
    for right in ("Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct"):
        assert config.convert("model_name_or_path", right) == right


def test_all_findings_come_at_once_each_with_its_place() -> None:
    variables = {"learnig_rate": 1, "lora_r": "many", "lora_alpha": 32}
    with pytest.raises(InputError) as caught:
        config.overrides_from(variables, {"USE_QLORA": "perhaps"}, "variable trainer_hp_{name}")
    findings = [*caught.value.lines, str(caught.value)]
    assert len(findings) == 3 and caught.value.exit_code == 2
    assert findings[0].startswith("environment USE_QLORA is 'perhaps'")
    unknown = "variable trainer_hp_learnig_rate: there is no parameter 'learnig_rate'; did you mean learning_rate?"
    assert findings[1] == unknown
    assert findings[-1].startswith("variable trainer_hp_lora_r is 'many'") and "2 more above" in findings[-1]


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    with pytest.raises(InputError, match=r"there is no parameter 'colour'$"):
        config.overrides_from({"colour": 1}, {}, "variable {name}")


def test_wrong_values_in_stages_and_profiles_name_their_layer() -> None:
    with pytest.raises(InputError) as caught:
        config.resolve("style", {"lora_r": 0}, "small", {"lora_rank": 1}, {})
    found = [*caught.value.lines, str(caught.value)]
    assert found[0].startswith("stage style: lora_r is 0")
    assert found[1].startswith("profile small: there is no parameter 'lora_rank'")


@pytest.mark.parametrize("source", ["{x}", "a {", "{0}", "file {name}"])
def test_a_source_with_braces_is_only_text(source: str) -> None:
    _, sources = config.resolve("style", {}, "", {}, {"lora_r": override(8, source)})
    assert sources["lora_r"] == source


def test_each_parameter_belongs_to_exactly_one_scope() -> None:
    values = config.Parameters()
    groups = [config.by_scope(values, scope) for scope in ("training", "evaluation", "runtime")]
    assert sorted(name for group in groups for name in group) == sorted(config.FIELDS)
    assert "learning_rate" in groups[0] and "max_new_tokens" in groups[1] and "stage_timeout_seconds" in groups[2]


def test_the_report_table_shows_value_and_source_of_every_parameter() -> None:
    values, sources = config.resolve("style", {}, "", {}, {"lora_r": override("8", "command line")})
    shown = config.table(values, sources)
    assert list(shown) == list(config.FIELDS)
    assert shown["lora_r"] == override(8, "command line") and shown["seed"] == override(42, "default")


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.from_regex(r"[+-]?\d{1,5}(\.\d*)?(e-?\d{1,3})?"),
)  # fmt: skip


@given(name=st.sampled_from(sorted(config.FIELDS)), value=ANYTHING)
@example(name="learning_rate", value=10**400)
@example(name="lora_r", value="9" * 5000)
def test_convert_gives_the_fields_type_or_a_value_error(name: str, value: Any) -> None:
    try:
        found = config.convert(name, value)
    except ValueError as problem:
        assert str(problem).startswith("is "), "the sentence is completed by the source before it"
    else:
        assert type(found).__name__ in config.FIELDS[name].type.split(" | ")
        assert config.FIELDS[name].type != config.SWITCH or found in (True, False, "auto")
        assert config.convert(name, found) == found


@pytest.mark.parametrize("value", ["auto", "hub", "modelscope,hub", " hub , modelscope "])
def test_sources_are_named_in_the_order_in_which_they_are_tried(value: str) -> None:
    assert config.convert("model_sources", value) == value.strip()


@pytest.mark.parametrize("value", ["hub;modelscope", "hugginface", "auto,hub", "hub,"])
def test_a_source_that_nobody_knows_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="give auto, or hub and modelscope separated by a comma"):
        config.convert("model_sources", value)


@pytest.mark.parametrize("value", ["auto", "https://hub.example.org", "http://127.0.0.1:8080/hub/"])
def test_an_endpoint_is_an_address(value: str) -> None:
    assert config.convert("hf_endpoint", value) == value


@pytest.mark.parametrize("value", ["hub.example.org", "ftp://hub.example.org", "https://a b", "https://x.org/?token=1"])
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="an address such as https://hub.example.org"):
        config.convert("hf_endpoint", value)


def test_an_address_with_a_password_is_refused_unseen() -> None:
    with pytest.raises(ValueError, match="an address with a user name or password") as caught:
        config.convert("hf_endpoint", "https://me:my-password@hub.example.org")
    assert "my-password" not in str(caught.value)


def test_what_cannot_be_had_together_is_told_before_anything_starts() -> None:
    def resolved(**values: str) -> config.Parameters:
        overrides = config.overrides_from(values, {}, "-e {name}")
        return config.resolve("style", {}, "", {}, overrides)[0]

    with pytest.raises(InputError, match="shard_base is true and use_qlora is true, .*; set use_qlora to false, or "):
        resolved(shard_base="true", use_qlora="true")
    assert resolved(shard_base="true", use_qlora="auto").shard_base is True
    assert resolved(shard_base="true", use_qlora="true", num_processes="1").shard_base is True
