"""jaxllm: a JAX-native framework for the frontier of LLM research."""

__version__ = "0.1.0"
