"""A stand-in for `openai` in the sandbox: `OpenAI().chat.completions.create(...)` over the harness's pipe."""

import harness


class Thing(dict):
    """A dict whose keys are attributes too; a key that is missing is None."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def model_dump(self, **_):
        """The plain dict."""
        return dict(self)


def thing(value):
    """Dicts in a JSON value as `Thing`s."""
    if isinstance(value, dict):
        return Thing({key: thing(item) for key, item in value.items()})
    return [thing(item) for item in value] if isinstance(value, list) else value


def create(messages=(), model="", **options):
    """A chat completion; `model` is the harness's choice, whatever is asked for."""
    if options.pop("stream", False):
        raise ValueError("stream=True is not offered here")
    if "max_completion_tokens" in options:
        options["max_tokens"] = options.pop("max_completion_tokens")
    found = harness.chat([dict(m) for m in messages], **options)
    usage = {**found["usage"], "total_tokens": sum(found["usage"].values())}
    message = {"content": None, "tool_calls": None, **found["message"]}
    return thing({"id": "harness", "object": "chat.completion", "model": model, "usage": usage,
                  "choices": [{"index": 0, "message": message, "finish_reason": found["reason"]}]})


class _Completions:
    create = staticmethod(create)


class _Chat:
    completions = _Completions()


class OpenAI:
    """The client; what it is made with is not used."""

    chat = _Chat()

    def __init__(self, *_, **__):
        pass
