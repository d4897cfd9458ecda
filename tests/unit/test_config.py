"""Configuration models: messages for wrong settings, digests, merging."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from fetal_core.config import (
    Config,
    describe_faults,
    differences,
    digest,
    merge,
    nearest,
    parse,
    read_toml,
)
from fetal_core.errors import ConfigError, StorageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.text(max_size=4), JSON, max_size=4)


class Inner(Config):
    epochs: int = Field(default=3, ge=1)
    rate: float = 0.1


class Outer(Config):
    inner: Inner = Inner()
    mode: Literal["fast", "slow"] = "fast"

    @model_validator(mode="after")
    def _together(self) -> Outer:
        if self.mode == "slow" and self.inner.epochs > 10:
            raise ValueError("slow allows 10 epochs")
        return self


def fault(values: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, "run.toml")
    return str(caught.value)


def test_unknown_key_names_the_nearest_and_all_valid_ones() -> None:
    message = fault({"inner": {"epoch": 3}})
    assert "run.toml" in message
    assert "inner.epoch: unknown key; did you mean 'epochs'? Valid keys: epochs, rate" in message


def test_unknown_key_like_no_other_lists_the_valid_ones_only() -> None:
    assert "zzz: unknown key. Valid keys: inner, mode" in fault({"zzz": 1})


def test_all_faults_come_in_one_message_with_field_value_and_rule() -> None:
    message = fault({"inner": {"epochs": 0, "rate": "much"}, "mode": "quick", "other": 1})
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    assert len(lines) == 4
    assert "inner.epochs: Input should be greater than or equal to 1 (got 0)" in message
    assert "inner.rate: Input should be a valid number" in message
    assert "(got 'much')" in message
    assert "mode: Input should be 'fast' or 'slow' (got 'quick')" in message


def test_rule_over_several_fields_is_told_without_repeating_the_whole_configuration() -> None:
    message = fault({"mode": "slow", "inner": {"epochs": 11}})
    assert message.endswith("  - configuration: slow allows 10 epochs")


@pytest.mark.parametrize("values", [[], [1], "text", None])
def test_something_else_than_a_table_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="not a table"):
        parse(Outer, values, "run.json")  # type: ignore[arg-type]


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().epochs = 5  # type: ignore[misc]


def test_faults_of_a_pydantic_error_are_listed() -> None:
    with pytest.raises(ValueError, match="epochs") as caught:
        Inner(epochs=0)
    assert describe_faults(Inner, caught.value).startswith("  - epochs: ")  # type: ignore[arg-type]


def test_invalid_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = = 3\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_toml(str(file))


def test_toml_of_another_encoding_and_missing_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes("mode = 'gr\u00fcn'".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(str(file))
    with pytest.raises(StorageError, match="no such file"):
        read_toml(str(tmp_path / "none.toml"))


@given(TABLES)
def test_digest_does_not_depend_on_the_order_of_keys(values: dict[str, object]) -> None:
    assert digest(dict(reversed(values.items()))) == digest(values)


def test_digest_tells_configurations_apart() -> None:
    assert Inner().digest() == Inner(epochs=3).digest()
    assert Inner().digest() != Inner(epochs=4).digest()
    assert len(Inner().digest()) == 64


def test_merge_replaces_leaves_and_keeps_the_rest() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    assert merge(base, {"a": {"y": {"z": 5}}, "c": 6}) == {
        "a": {"x": 1, "y": {"z": 5}},
        "b": 3,
        "c": 6,
    }
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "b": 3}


@given(TABLES)
def test_merging_nothing_or_the_same_changes_nothing(values: dict[str, object]) -> None:
    assert merge(values, {}) == merge({}, values) == merge(values, values) == values
    assert differences(values, values) == {}


def test_differences_name_the_changed_leaves() -> None:
    old = {"train": {"epochs": 3, "seed": 0}, "gone": 1}
    new = {"train": {"epochs": 4, "seed": 0}, "came": 2}
    assert differences(old, new) == {
        "came": (None, 2),
        "gone": (1, None),
        "train.epochs": (3, 4),
    }


def test_nearest_is_silent_about_words_like_no_other() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"
    assert nearest("qqq", ["epochs", "seed"]) == ""
