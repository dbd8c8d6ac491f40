"""Decoders against the numpy restatement, on settings that no golden covers, with the same random model."""

import numpy as np
import pytest

from jaxllm.diffusion import DecodeConfig, decode_prompts, layer_rows
from tests.diffusion import oracle
from tests.diffusion.helpers import random_pair

BLOCK = {"gen_length": 24, "block_length": 8}
WINDOW = {"gen_length": 24, "window_length": 6}
CASES = {
    # never refreshes; always refreshes above layer 0
    "gamma_minus_1": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=-1.0)),
    "gamma_2": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=2.0)),
    "several_tracks": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=0.97, track_num=3)),
    "drift_over_keys": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=0.97, track_num=2, drift_axis="keys")),
    "block_caching_off": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=0.97, block_caching=False)),
    "top_k": ("elastic", "llada", dict(WINDOW, tokens_per_step=2, gamma=0.97)),
    "factor": ("elastic", "llada", dict(WINDOW, factor=0.7, gamma=0.97)),
    "window_of_one": ("elastic", "llada", dict(gen_length=10, window_length=1, threshold=0.5, gamma=0.97)),
    "window_longer_than_left": ("elastic", "llada", dict(gen_length=10, window_length=64, threshold=0.5, gamma=0.97)),
    "many_tracks": ("elastic", "llada", dict(gen_length=12, window_length=6, threshold=0.5, gamma=0.97, track_num=9)),
    "dream_elastic": ("elastic", "dream", dict(WINDOW, threshold=0.5, gamma=0.97)),
    "dream_block_caching_off": ("elastic", "dream", dict(WINDOW, threshold=0.5, gamma=0.97, block_caching=False)),
    "dream_recompute": ("full_recompute", "dream", dict(WINDOW, threshold=0.5)),
    "recompute_top_k": ("full_recompute", "llada", dict(WINDOW, tokens_per_step=3)),
    "dream_full": ("full", "dream", dict(BLOCK, threshold=0.5)),
    "dream_prefix": ("prefix", "dream", dict(BLOCK, threshold=0.5)),
    "dream_dual": ("dual", "dream", dict(BLOCK, threshold=0.5)),
    "guidance": ("full", "llada", dict(BLOCK, threshold=0.5, cfg_scale=1.5)),
    "schedule": ("full", "llada", dict(BLOCK, steps=9)),
    "schedule_dual": ("dual", "llada", dict(BLOCK, steps=15)),
    "factor_prefix": ("prefix", "llada", dict(BLOCK, factor=0.8)),
    "once": ("elastic", "llada", dict(WINDOW, threshold=0.5, gamma=0.97, once=tuple(range(4, 44)))),
    "once_by_certainty": ("full", "dream", dict(BLOCK, threshold=0.2, once=tuple(range(0, 48, 2)), order="certainty")),
    "once_several_a_step": ("prefix", "llada", dict(BLOCK, tokens_per_step=3, once=tuple(range(46)))),
    "top_k_dual": ("dual", "llada", dict(BLOCK, tokens_per_step=3)),
}
# Each compiles a decoder of its own; what these are about, others or the goldens show too.
SLOW = ("gamma_minus_1", "gamma_2", "top_k", "factor", "window_longer_than_left", "many_tracks", "drift_over_keys",
        "window_of_one", "dream_block_caching_off", "schedule_dual", "factor_prefix", "recompute_top_k")
PROMPT_LENGTHS = (5, 19)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: random_pair(root / family, family, seed=3, vocab=48, sharpness=3.0)
            for family in ("llada", "dream")}


def compare(pair, method, prompts, settings):
    """Token ids, steps, rows, refreshes and similarities of each prompt, decoded as one batch."""
    reference, params, model = pair
    config = DecodeConfig(method=method, **{"eos_id": -1, **settings})
    result = decode_prompts(params, prompts, model=model, config=config, bucket=8)
    records = []
    for row, prompt in enumerate(prompts):
        expected = oracle.decode(method, reference, prompt, **settings)
        # Against float64 an exact comparison is fair only where no decision hangs on rounding.
        assert min(expected.margins.values()) > 2e-6, expected.margins
        assert list(prompt) + np.asarray(result.tokens)[row].tolist() == expected.tokens
        steps = int(result.record.steps[row])
        assert steps == expected.nfe
        assert layer_rows(result.record, row, model, config, len(prompt)) == expected.layer_rows
        committed = np.asarray(result.record.committed)[:steps, row].tolist()
        assert committed == [len(step["committed"]) for step in expected.trace]
        if method == "elastic":
            for i, step in enumerate(expected.trace):
                first = int(result.record.refresh_from[i, row])
                assert (first if first else -1) == step["start_reset"]
                sims = np.asarray(result.record.similarity)[i, :, row]
                np.testing.assert_allclose(sims[np.isfinite(sims)], step["sims"], atol=1e-4)
        records.append(expected)
    return records


def prompts_for(model, seed=0, lengths=PROMPT_LENGTHS):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, model.vocab_size - 2, n).tolist() for n in lengths]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_matches_the_restatement(pairs, name):
    method, family, settings = CASES[name]
    records = compare(pairs[family], method, prompts_for(pairs[family][2]), settings)
    if name == "gamma_minus_1":
        assert all(step["start_reset"] in (-1, 3) for record in records for step in record.trace)
        assert all(step["start_reset"] == 3 for record in records for step in record.trace[1:])
    if name == "once":
        assert all(record.tokens[-24:].count(token) <= 1 for record in records for token in range(4, 44))
    if name == "gamma_2":
        assert all(step["start_reset"] == 1 for record in records for step in record.trace[1:])


def eos_case(pairs, family, method, settings, wanted):
    """A prompt, and a token of its free decode that serves as EOS: the first generated, or one in the middle."""
    reference, _, model = pairs[family]
    for seed in range(20):
        prompt = prompts_for(model, seed, (9,))[0]
        answer = oracle.decode(method, reference, prompt, **settings).tokens[len(prompt):]
        place = 0 if wanted == "first" else 9
        token = answer[place]
        if answer.index(token) == place:
            return prompt, token
    raise AssertionError("no prompt found")


@pytest.mark.parametrize("wanted", ["first", "middle"])
@pytest.mark.parametrize("method", ["full", "elastic", *(pytest.param(m, marks=pytest.mark.slow)
                                                         for m in ("prefix", "dual", "full_recompute"))])
def test_eos(pairs, method, wanted):
    settings = dict(BLOCK if method in ("full", "prefix", "dual") else WINDOW, threshold=0.5)
    prompt, token = eos_case(pairs, "llada", method, settings, wanted)
    record, = compare(pairs["llada"], method, [prompt], dict(settings, eos_id=token))
    assert token in record.tokens[len(prompt):]
    assert record.tokens[-1] == token  # filled to the right of the first EOS
    compare(pairs["llada"], method, [prompt], dict(settings, eos_id=token, fill_eos=False))


def test_answer_length_counts_up_to_the_first_eos(pairs):
    settings = dict(WINDOW, threshold=0.5)
    prompt, token = eos_case(pairs, "llada", "elastic", settings, "middle")
    _, params, model = pairs["llada"]
    result = decode_prompts(params, [prompt], model=model,
                            config=DecodeConfig(method="elastic", eos_id=token, **settings))
    answer = np.asarray(result.tokens)[0].tolist()
    assert int(result.answer_lengths[0]) == answer.index(token) + 1


def test_mask_is_never_committed_unless_asked_for(pairs):
    reference, params, model = pairs["llada"]
    biased = dict(params, head={"kernel": params["head"]["kernel"].at[:, model.mask_id].multiply(8.0)})
    prompt = prompts_for(model)[0]
    for suppress in (True, False):
        config = DecodeConfig(method="full_recompute", eos_id=-1, suppress_mask=suppress, **WINDOW)
        tokens = np.asarray(decode_prompts(biased, [prompt], model=model, config=config).tokens)
        assert (model.mask_id in tokens) is not suppress


def test_temperature_zero_noise_limit_and_keys(pairs):
    import jax

    _, params, model = pairs["llada"]
    prompt = prompts_for(model)[0]

    def tokens(temperature, seed):
        config = DecodeConfig(method="full", temperature=temperature, eos_id=-1, **BLOCK)
        result = decode_prompts(params, [prompt], model=model, config=config, key=jax.random.key(seed))
        return np.asarray(result.tokens)[0].tolist()

    assert tokens(1.0, 0) == tokens(1.0, 0)
    assert tokens(1.0, 0) != tokens(1.0, 1)
    assert tokens(1e-6, 5) == tokens(0.0, 5)
