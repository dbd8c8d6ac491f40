"""Words, filler, and the answers in a reply."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from jaxllm.config import ConfigError

Count = Callable[[str], int]

PLACES = ("harbour", "orchard", "library", "station", "market", "lighthouse", "workshop", "bakery", "garden", "museum",
          "chapel", "mill", "meadow", "bridge", "theatre", "quarry", "stable", "cellar", "tower", "school")
PEOPLE = ("the gardener", "a sailor", "the baker", "an old clerk", "the miller", "a child", "the painter", "a guest",
          "the carpenter", "a teacher", "the watchman", "a traveller", "the weaver", "a fisherman", "the doctor")
DEEDS = ("mended a fence", "counted the boats", "wrote a long letter", "swept the steps", "waited for the rain",
         "hung up a lantern", "sorted the seeds", "looked for a ladder", "told an old story", "carried wood",
         "painted a door", "fed the hens", "folded the maps", "sang to himself", "locked the gate", "made some tea")
TIMES = ("in the morning", "after lunch", "late at night", "on a windy day", "once a week", "before sunrise",
         "during the feast", "in early spring", "when the bells rang", "at low tide")
ADJECTIVES = ("amber", "brisk", "calm", "dusty", "eager", "faint", "gentle", "hollow", "icy", "jolly", "keen", "loud",
              "mellow", "narrow", "odd", "pale", "quiet", "rough", "silver", "tidy", "upper", "vast", "warm", "young")
NOUNS = ("anchor", "basket", "candle", "donkey", "engine", "falcon", "goblet", "hammer", "island", "jacket",
         "kettle", "ladder", "magnet", "needle", "oyster", "pebble", "quiver", "ribbon", "saddle", "tunnel",
         "urchin", "violin", "walnut", "yarrow", "zephyr", "barrel", "copper", "dagger", "ember", "fiddle",
         "garlic", "helmet", "ivory", "jungle", "kernel", "lantern", "mirror", "napkin", "orchid", "pillow",
         "quartz", "rocket", "silk", "timber", "umbra", "velvet", "wagon", "yogurt", "zinc", "acorn", "beetle",
         "cactus", "dahlia", "easel", "ferry", "gravel", "hazel", "inlet", "jasper", "kayak", "lemon", "marble",
         "nettle", "onion", "parcel", "raisin", "sparrow", "thistle", "vessel", "willow", "badger", "canvas",
         "dolphin", "elbow", "funnel", "ginger", "harness", "insect", "jigsaw", "knuckle", "lobster", "muffin",
         "nugget", "otter", "panther", "quill", "reptile", "spindle", "turnip", "valley", "whistle", "zipper",
         "almond", "bucket", "cobweb", "drizzle", "emerald", "feather", "glacier", "hurdle", "icicle", "jewel",
         "kitten", "locket", "mustard", "noodle", "oatmeal", "pigeon", "radish", "saffron")
REPEATED = "The day was long and the road was dry."


def sentences(draw: random.Random) -> Iterator[str]:
    """Made-up prose without an end."""
    while True:
        who = draw.choice(PEOPLE)
        kind = draw.randrange(3)
        if kind == 0:
            text = f"{who} {draw.choice(DEEDS)} near the {draw.choice(PLACES)} {draw.choice(TIMES)}."
        elif kind == 1:
            text = f"{draw.choice(TIMES)}, {who} {draw.choice(DEEDS)} and {draw.choice(DEEDS)}."
        else:
            text = f"the {draw.choice(PLACES)} was empty {draw.choice(TIMES)}, but {who} {draw.choice(DEEDS)}."
        yield text[0].upper() + text[1:]


def fitting(parts: Callable[[int], str], most: int, count: Count) -> int:
    """The largest number of filler parts with which a prompt counts at most `most`; 0 for no limit.

    Args:
      parts: the prompt with so many of them; longer with each.
      most: that the prompt may count.
      count: of a text.

    Raises:
      ConfigError: it counts more without any.
    """
    if most <= 0:
        return 0
    if (least := count(parts(0))) > most:
        raise ConfigError(f"probe.length={most}: without any filler this problem's prompt has {least} already; raise "
                          "length, or lower what the prompt must hold")
    if count(parts(1)) > most:
        return 0
    low, high = 1, 2
    while count(parts(high)) <= most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(parts(middle)) <= most else (low, middle)
    return low


def spread(needles: Sequence[str], filler: Sequence[str], places: Sequence[float]) -> str:
    """Filler with each needle at its place, from 0 (before all of it) to 1 (after)."""
    at: dict[int, list[str]] = {}
    for needle, place in zip(needles, places, strict=True):
        at.setdefault(round(place * len(filler)), []).append(needle)
    out: list[str] = []
    for number in range(len(filler) + 1):
        out += at.get(number, [])
        out += filler[number:number + 1]
    return " ".join(out)


ANSWER = re.compile(r"(?:^|\n)\W*(?:final )?answers?\b\W*?[:=]?[ \t*]*", re.I)


def answers_in(text: str, pattern: str) -> list[str]:
    """What a reply answers, each once, in order: matches of `pattern` after its last `Answer:`, or in all of it."""
    found = list(ANSWER.finditer(text))
    told = text[found[-1].end():] if found else text
    return list(dict.fromkeys(match.lower() for match in re.findall(pattern, told, re.I)))


def overlap(found: Sequence[str], wanted: Sequence[str]) -> float:
    """1.0 for exactly what is wanted, in any order; else the share of what is in both among what is in either."""
    a, b = set(found), {w.lower() for w in wanted}
    return len(a & b) / len(a | b) if a else 0.0
