"""The measuring itself."""

import numpy as np

from models.evaluate import Score, drawing


def test_drawing_repeats_and_prefers() -> None:
    """The same seed draws the same tokens; what is far less likely is never drawn."""
    scores = np.array([0.0, 8.0, 7.5, -3.0], np.float32)
    first, again = drawing(1), drawing(1)
    drawn = [first(scores) for _ in range(50)]
    assert drawn == [again(scores) for _ in range(50)]
    assert set(drawn) == {1, 2}


def test_rate_of_nothing() -> None:
    """No question, no right answer."""
    assert Score().rate(0) == "0.000"
