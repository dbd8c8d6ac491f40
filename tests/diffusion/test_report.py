"""The picture's states, FLOPs and totals from hand-made records."""

import numpy as np

from jaxllm.diffusion import DecodeConfig, forward_flops
from jaxllm.diffusion.commit import Record
from jaxllm.diffusion.report import DRIFTED, REFRESHED, WINDOW, cell_states, summary_line
from jaxllm.models.presets import preset


def test_states_of_a_hand_made_record():
    nan = np.nan
    record = Record(steps=np.array([4]), committed=np.ones((6, 1), int), rows=np.full((6, 1), 7),
                    refresh_from=np.array([[0], [4], [2], [4], [0], [0]]),
                    # full step; no drift; drift in layer 1; drift in the last layer, which refreshes nothing
                    similarity=np.array([[nan] * 4, [.99] * 4, [.99, .5, nan, nan], [.99, .99, .99, .5],
                                         [nan] * 4, [nan] * 4])[..., None])
    states = cell_states(record, 0, preset("llada-tiny"), 0.9)
    assert states.T.tolist() == [[REFRESHED] * 4, [WINDOW] * 4, [WINDOW, DRIFTED, REFRESHED, REFRESHED],
                                 [WINDOW] * 3 + [DRIFTED]]


def record_of(rows, refresh_from):
    steps = len(rows)
    return Record(steps=np.array([steps]), committed=np.ones((steps, 1), int), rows=np.array(rows)[:, None],
                  refresh_from=np.array(refresh_from)[:, None], similarity=np.full((steps, 4, 1), np.nan))


def test_flops_of_elastic_count_what_ran():
    model = preset("llada-tiny")  # D 64, H = G = 4, K 16, F 192, L 4, V 256
    config = DecodeConfig(method="elastic", gen_length=20, window_length=8)
    n = 10 + 20
    attention, row = 4 * 64 * n, 2 * (4 * 64 * 64 + 3 * 64 * 192)
    head = 8 * 2 * 64 * 256
    # A whole step; one of 9 rows; one of 9 rows whose layers 2 and 3 are then computed over all rows.
    expected = 4 * n * (row + attention) + head
    expected += 4 * 9 * (row + attention) + head
    expected += (4 * 9 + 2 * n) * (row + attention) + head
    expected += 2 * 4 * 4 * (2 * 3 * 64 * 64 + 2 * 64 * n)  # a tracked row a layer, in every layer, twice
    assert forward_flops(record_of([n, 9, 9], [0, 4, 2]), 0, model, config, 10) == expected


def test_guidance_counts_both_passes():
    model = preset("llada-tiny")
    config = DecodeConfig(method="full", gen_length=32, cfg_scale=1.0)
    line = summary_line(record_of([42, 42], [0, 0]), 0, model, config, 10, 32)
    assert (line["layers_refreshed"], line["share_of_full_rows"], line["rows_computed"]) == (8, 1.0, 2 * 2 * 4 * 42)
