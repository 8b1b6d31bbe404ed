"""What ``gpt1_config.json`` records beside a parameter list or a released checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt1.runtime.errors import InputError
from gpt1.weights import locate
from gpt1.weights.stored import recorded


def test_heads_and_activation_are_read(tmp_path: Path) -> None:
    assert locate.read_config_file(tmp_path) == {}
    (tmp_path / "gpt1_config.json").write_text('{"n_head": 4, "afn": "relu"}')
    assert {name: fact.value for name, fact in recorded(tmp_path).items()} == {
        "n_head": 4,
        "afn": "relu",
    }


@pytest.mark.parametrize(
    "text", ['{"afn": "relu"}', '{"n_head": 4, "afn": "tanh"}', '{"n_head": 4, "afn": ["relu"]}']
)
def test_another_content_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpt1_config.json").write_text(text)
    with pytest.raises(InputError, match='perhaps "afn", one of gelu, relu, swish'):
        locate.read_config_file(tmp_path)


def test_the_vocabulary_beside_a_list(tmp_path: Path) -> None:
    path = tmp_path / "best_params.jl"
    path.touch()
    assert locate.vocabulary_beside(path) is None
    assert locate.vocabulary_beside(tmp_path) is None
    (tmp_path / locate.ENCODER_FILE).touch()
    assert locate.vocabulary_beside(path) == locate.vocabulary_beside(tmp_path) == tmp_path
