"""One process of several on this machine: `python -m tests.training.worker PORT COUNT INDEX train ...`."""

import sys

import jax

if __name__ == "__main__":
    port, count, index = (int(x) for x in sys.argv[1:4])
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from jaxllm.cli import main

    sys.exit(main(sys.argv[4:]))
