"""The edit alone, on held-out tasks whose function is given: models before and after RL, paired by task.

Run: python docs/experiments/swe/edits.py runs/swe docs/experiments/swe/edits.json NAME=MODEL ...
"""

import sys
from pathlib import Path

from reinforce import pass_rates
from selfplay import bootstrap, held_out

from jaxllm.files import write_json
from jaxllm.swe.closed import as_text, tokens_of
from jaxllm.swe.judging import PatchReward
from jaxllm.swe.sites import edit_choice


def main(out: Path, results: Path, models: dict[str, str]) -> None:
    """Pass rates of 16 draws for each model, differences from the first."""
    tokens, prompts, items = tokens_of(), [], held_out(out, 50)
    for item in items:
        place = item.instance.about["path"], item.instance.about["function"]
        found = edit_choice(tokens, item.tree, *place, item.report)
        if found is not None:
            prompts.append({"prompt": as_text(tokens, found.tokens), "instance_id": item.instance.instance_id,
                            "path": place[0], "function": place[1]})
    reward = PatchReward(str(out / "instances.jsonl"), str(out / "verdicts.jsonl"))
    about: dict = {"tasks": len(items), "that_fit": len(prompts), "models": {}}
    first = None
    for name, model in models.items():
        found = pass_rates(Path(model), prompts, reward, 3)
        rates = found.mean(1)
        first = rates if first is None else first
        about["models"][name] = {"pass_rate": float(rates.mean()), "interval": bootstrap(rates),
                                 "pass_at_16": float(found.any(1).mean()), "interval_at_16": bootstrap(found.any(1)),
                                 "more_than_first": float((rates - first).mean()),
                                 "interval_more": bootstrap(rates - first), "rates": rates.tolist()}
        print(name, {k: v for k, v in about["models"][name].items() if k != "rates"}, flush=True)
        write_json(results, about)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), dict(word.split("=", 1) for word in sys.argv[3:]))
