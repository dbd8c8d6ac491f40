"""A stand-in for `litellm` in the sandbox: `completion(model=..., messages=...)` over the harness's pipe."""

from openai import create


def completion(model="", messages=(), **options):
    """A chat completion."""
    return create(messages=messages, model=model, **options)
