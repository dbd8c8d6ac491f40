"""An HTTP server with OpenAI's interface over the generation engine. Needs the extra `serve`.

Entry points: `make_app` (a Starlette application), `Worker` (the thread that owns an engine); the command is
`jaxllm serve`. Routes: `/v1/completions`, `/v1/chat/completions`, `/v1/models`, `/health`. Not here:
masked-diffusion decoders (only causal models are served), tools, log-probabilities of tokens that were not drawn,
penalties, authentication, TLS, more than one model in a process.
"""

from jaxllm.serving.app import make_app
from jaxllm.serving.worker import Worker

__all__ = ["Worker", "make_app"]
