"""`python -m jaxllm`."""

import sys

from jaxllm.cli import console

sys.exit(console())
