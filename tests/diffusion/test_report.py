"""The picture's states from hand-made records."""

import numpy as np

from jaxllm.diffusion.commit import Record
from jaxllm.diffusion.report import DRIFTED, REFRESHED, WINDOW, cell_states
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
