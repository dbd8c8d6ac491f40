"""Ratios of hand-made seconds."""

import pytest

from jaxllm.bench.train import ratios


def test_ratios_of_hand_made_seconds():
    out = {"seconds": {"jaxllm": [2.0, 1.0, 3.0], "square_1024": [0.5, 0.5, 0.5], "square_2048": [2.0, 1.0, 4.0],
                       "torch_1": [9.0, 8.0, 7.0], "torch_2": [5.0, 6.0, 4.0]},
           "work": {"jaxllm": 120.0, "square_1024": 20.0, "square_2048": 200.0}}
    # Ours 60 a second; the best product 100; torch's better side 5 seconds.
    assert ratios(out) == {"matmul_peak_share": pytest.approx(0.6), "vs_torch": pytest.approx(2.5)}
    del out["seconds"]["torch_1"], out["seconds"]["torch_2"]
    assert ratios(out)["vs_torch"] is None
