"""`jaxllm bench train`: the training step against the machine's own matmul rate and against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.bench.moe import moe_dispatch
from jaxllm.bench.timing import paired, show, torch_sides
from jaxllm.data.batch import Batch
from jaxllm.models import ModelConfig
from jaxllm.models.presets import preset
from jaxllm.parallel import make_mesh
from jaxllm.parallel.devices import peak_flops
from jaxllm.tracking import environment
from jaxllm.training import causal_loss
from jaxllm.training.meter import flops_per_token
from jaxllm.training.optimizer import OptimizerConfig, make_optimizer
from jaxllm.training.state import place_state
from jaxllm.training.step import jit_step, make_step

# 31M parameters, Llama's architecture: `transformers` has the same model.
MODEL = ModelConfig(vocab_size=8192, d_model=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, d_mlp=1536,
                    max_length=512, causal=True, tie_embeddings=True, family="llama", bos_id=0, eos_id=1, pad_id=1)
# On an accelerator: 1.2B parameters, bfloat16 products over float32 weights.
LARGE = preset("llama-3.2-1b", weight_dtype="float32", head_dtype="bfloat16", remat="dots", max_length=2048)
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=0)
SQUARES, LARGE_SQUARES = (1024, 2048, 4096), (4096, 8192)
TORCH_THREADS = (1, 2)


def bench(quick: bool) -> dict[str, Any]:
    """All sides in turn, printed; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    on_cpu = jax.default_backend() == "cpu"
    model = MODEL if on_cpu else LARGE
    rows, length, repeats = 4 if on_cpu else 8, model.max_length, 2 if quick else 5
    squares = (SQUARES[:2] if quick else SQUARES) if on_cpu else LARGE_SQUARES
    tokens = np.random.default_rng(0).integers(2, model.vocab_size, (rows, length)).astype(np.int32)
    sides: dict[str, Callable[[], Any]] = {"jaxllm": _ours(model, tokens),
                                           **{f"square_{n}": _square(n, model.activation_dtype) for n in squares}}
    peers, missing = torch_sides(lambda: _torch(tokens))
    sides |= peers
    with console.status("timing"):
        seconds = paired(sides, repeats, settle=1)
    flops = flops_per_token(model, length) * tokens.size
    out: dict[str, Any] = {
        "bench": "train", "quick": quick, "environment": environment(), "parameters": model.num_parameters,
        "settings": {"rows": rows, "length": length, "optimizer": "adamw", "dtype": model.activation_dtype},
        "work": {"jaxllm": flops, **{f"square_{n}": 2.0 * n**3 for n in squares}}, "seconds": seconds,
        "notes": [] if missing is None else [f"vs_torch not measured: {missing}"]}
    out["ratios"] = ratios(out)
    if (peak := peak_flops(jax.devices()[0].device_kind)) is not None:
        out["ratios"]["mfu"] = flops / float(np.median(seconds["jaxllm"])) / peak
    with console.status("timing experts"):
        experts = moe_dispatch(repeats=3 if quick else 15)
    out["moe"] = {name: experts[name] for name in ("settings", "forward", "gradient")}
    out["ratios"] |= {name: experts[name] for name in ("moe_blocks_vs_dense", "moe_blocks_vs_dense_grad")}
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    show(console, f"{model.num_parameters / 1e6:.0f}M parameters, {tokens.size} tokens a step",
         ["side", "seconds", "GFLOP/s"], [[n, s, out["work"].get(n, flops) / s / 1e9] for n, s in median.items()], out)
    return out


def ratios(out: dict[str, Any]) -> dict[str, float | None]:
    """Our model FLOP/s over the best square product's; torch's best seconds over ours."""
    median = {name: float(np.median(s)) for name, s in out["seconds"].items()}
    peak = max(out["work"][name] / s for name, s in median.items() if name.startswith("square_"))
    torch_best = min((s for name, s in median.items() if name.startswith("torch_")), default=None)
    return {"matmul_peak_share": out["work"]["jaxllm"] / median["jaxllm"] / peak,
            "vs_torch": None if torch_best is None else torch_best / median["jaxllm"]}


def _ours(model: ModelConfig, tokens: np.ndarray) -> Callable[[], Any]:
    """One step of the loop's own kind, on one device; every call goes on from the last."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(OPTIMIZER, 1000)
    state, layout = place_state(model, optimizer, mesh)
    step = jit_step(make_step(causal_loss(model), optimizer, seed=0), layout, mesh)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = Batch(tokens=tokens, positions=positions, segment_ids=np.ones_like(tokens),
                  loss_weights=np.ones(tokens.shape, np.float32))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return call


def _square(n: int, dtype: str) -> Callable[[], jax.Array]:
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32).astype(dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a)


def _torch(tokens: np.ndarray) -> dict[str, Callable[[], None]]:
    """The same model and optimiser in `transformers`, by number of threads."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=MODEL.vocab_size, hidden_size=MODEL.d_model, intermediate_size=MODEL.d_mlp,
        num_hidden_layers=MODEL.num_layers, num_attention_heads=MODEL.num_heads,
        num_key_value_heads=MODEL.num_kv_heads, max_position_embeddings=MODEL.max_length, tie_word_embeddings=True))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.learning_rate, betas=(OPTIMIZER.b1, OPTIMIZER.b2),
                                  weight_decay=OPTIMIZER.weight_decay, fused=True)
    ids = torch.tensor(tokens, dtype=torch.long)

    def side(threads: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(threads)
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm or float("inf"))
            optimizer.step()
        return call

    return {f"torch_{n}": side(n) for n in TORCH_THREADS}
