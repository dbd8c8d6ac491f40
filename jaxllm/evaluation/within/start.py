"""Runs an agent: `run(input, **kwargs)` of the module that is named, and hands over what it returned."""

import importlib
import json
import os
import sys
import traceback


def main():
    """Hear what is to be run, run it, say what came of it."""
    import harness

    harness.open_pipe()
    given = harness.ask({"do": "begin"})
    sys.path[0:0] = [os.path.join(os.getcwd(), "agent"), os.path.join(os.getcwd(), "harness")]
    os.chdir("agent")
    sys.argv = ["agent"]
    try:
        module, _, name = given["function"].rpartition(".")
        found = getattr(importlib.import_module(module), name)(given["input"], **given["kwargs"])
    except BaseException as error:
        traceback.print_exc()
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        out = {"do": "raised", "error": text[:2000]}
    else:
        try:
            json.dumps(found)
            out = {"do": "returned", "value": found}
        except (TypeError, ValueError, RecursionError) as error:
            out = {"do": "garbage", "error": f"{type(found).__name__} that is no JSON: {error}"}
    sys.stdout.flush()
    sys.stderr.flush()
    harness.say(out)
    os._exit(0)


sys.path.insert(0, os.path.join(os.getcwd(), "harness"))
main()
