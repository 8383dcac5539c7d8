"""Generate the corpora and tasks of the demo study.

The text describes a toy world that a model trained from scratch can learn in minutes. It needs
three skills: tracking the state of things after people act on them, telling kind words from unkind
ones, and adding or subtracting small numbers. The pretraining corpus and the two instruction
corpora each practise these skills in their own format. The tasks use a format that appears nowhere
else, which is what a patch has to learn.

All randomness comes from `random.Random` with string seeds, so a seed gives the same text in every
process and on every machine. Only the standard library is needed; the functions that lm-eval calls
import `datasets`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import DatasetDict

NAMES = ("Mia", "Tom", "Ann", "Ben", "Eva", "Leo", "Ida", "Max", "Zoe", "Sam", "Kim", "Ned")
COUNTED = ("apples", "pears", "plums", "nuts", "shells", "stones", "stamps", "cards")
WORKS = ("film", "song", "play", "story", "meal", "dance", "picture", "show")
PLACES = ("garden", "market", "school", "harbour", "kitchen", "park")
KIND_WORDS = (
    "charming", "warm", "bright", "clever", "lovely", "fine", "tender", "fresh", "witty", "gentle",
)  # fmt: skip
UNKIND_WORDS = (
    "dull", "cold", "clumsy", "bitter", "tired", "boring", "harsh", "stale", "ugly", "noisy",
)  # fmt: skip
GLAD_ACTS = ("smiled", "laughed", "cheered", "clapped")
SAD_ACTS = ("sighed", "frowned", "yawned", "left")
LARGEST_OPERAND = 9


class Family(NamedTuple):
    """Things of one kind, their two states, and the verbs that lead to each state."""

    things: tuple[str, ...]
    state: str
    opposite: str
    verbs: tuple[str, ...]
    opposite_verbs: tuple[str, ...]


class Deed(NamedTuple):
    """An action of a person on a thing, and the state that it leads to."""

    name: str
    verb: str
    family: Family
    thing: str
    is_in_state: bool

    @property
    def resulting_state(self) -> str:
        """The state of the thing after the deed."""
        return self.family.state if self.is_in_state else self.family.opposite


class Step(NamedTuple):
    """One addition or subtraction: `first` `sign` `second` equals `result`."""

    first: int
    sign: str
    second: int
    result: int


FAMILIES = (
    Family(
        ("box", "door", "gate", "chest"), "open", "closed",
        ("opened", "unlocked", "unbarred"), ("closed", "locked", "barred"),
    ),
    Family(
        ("cup", "jar", "pot", "bucket"), "full", "empty",
        ("filled", "loaded", "stocked"), ("drained", "emptied", "spilled"),
    ),
    Family(
        ("coat", "shirt", "hat", "scarf"), "clean", "dirty",
        ("washed", "scrubbed", "rinsed"), ("stained", "smeared", "soiled"),
    ),
    Family(
        ("clock", "bell", "drum", "flute"), "whole", "broken",
        ("mended", "repaired", "fixed"), ("smashed", "cracked", "dropped"),
    ),
)  # fmt: skip
THINGS = tuple(thing for family in FAMILIES for thing in family.things)

WORD_LISTS = (
    NAMES,
    THINGS,
    COUNTED,
    WORKS,
    PLACES,
    KIND_WORDS,
    UNKIND_WORDS,
    GLAD_ACTS,
    SAD_ACTS,
    tuple(str(number) for number in range(2 * LARGEST_OPERAND + 1)),
    tuple(verb for family in FAMILIES for verb in family.verbs + family.opposite_verbs),
    tuple(state for family in FAMILIES for state in (family.state, family.opposite)),
    ("yes", "no", "positive", "negative", "Question", "Answer", "####", "###", "=", "+", "-"),
    ("Once", "Then", "That night", "bird", "found", "went to", "came", "tale", "Tell", "basket"),
    (
        "list", "state", "since", "We write", "value", "words", "guest", "who read",
        "belong together",
    ),
    ("from start to end", "people were there", "there were", "plus", "minus", "Give", "What would"),
    ("the", "a", "is", "was", "has", "and", "with", "it", "this", "in", "now", "how many", "does"),
)  # fmt: skip
SEPARATORS = (" ", " ", " ", " ", ", ", ". ", ": ", "? ", "\n", ".\n")

# Words of the task prompts outside the three skills. The base model must have seen them, or their
# embeddings stay random, but these sentences do not reveal the answers.
SMALL_TALK = (
    "{a} asks for the {thing}. {b} says {answer}.",
    "Is {a} at the {place}? The answer is {answer}.",
    "Question time at the {place}: {a} asks, {b} waits.\nAnswer time: {b} talks, {a} waits.",
    "The number {x} is positive. The number -{y} is negative.",
    "{a} wrote a sentence with the word {polarity} in it.",
    "This is a note about the {place}. How many people were there? {x}.",
    "#### Note {x}\n{a} went to the {place}. Does {b} have time? {b} says {answer}.",
    "#### {x}\n{a} and {b} were at the {place}.",
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. {a} reads it.",
    "Write a response that appropriately completes the request. {b} reads it.",
    "{a} gives a list of the things. {b} has to state the state of the {thing}.",
    "### Instruction:\n{a} waits.\n### Input:\n{b} waits.\n### Response:\n{a} waits.",
)


# ---------------------------------------------------------------------------------------------
# The world


def _deeds(rng: random.Random, is_in_state: bool | None = None) -> tuple[Deed, Deed]:
    """Draw the deeds of two people on things of different families.

    `is_in_state` fixes the outcome of the second deed.
    """
    outcomes = (rng.random() < 0.5, rng.random() < 0.5 if is_in_state is None else is_in_state)
    deeds = []
    for name, family, outcome in zip(
        rng.sample(NAMES, 2), rng.sample(FAMILIES, 2), outcomes, strict=True
    ):
        verb = rng.choice(family.verbs if outcome else family.opposite_verbs)
        deeds.append(Deed(name, verb, family, rng.choice(family.things), outcome))
    return deeds[0], deeds[1]


def _step(rng: random.Random) -> Step:
    """Draw a sum or difference of numbers from 1 to LARGEST_OPERAND, never negative."""
    first, second = rng.randint(1, LARGEST_OPERAND), rng.randint(1, LARGEST_OPERAND)
    if rng.random() < 0.5:
        return Step(first, "+", second, first + second)
    first, second = max(first, second), min(first, second)
    return Step(first, "-", second, first - second)


def _words(rng: random.Random, kind: bool, count: int) -> list[str]:
    """Draw `count` different kind or unkind words."""
    return rng.sample(KIND_WORDS if kind else UNKIND_WORDS, count)


def _act(rng: random.Random, kind: bool) -> str:
    """Draw a reaction to something kind or unkind."""
    return rng.choice(GLAD_ACTS if kind else SAD_ACTS)


# ---------------------------------------------------------------------------------------------
# Pretraining


def _pretraining_deeds(rng: random.Random) -> str:
    """Tell two deeds and the resulting states, in either order."""
    deeds = list(_deeds(rng))
    sentences = [f"{deed.name} {deed.verb} the {deed.thing}" for deed in deeds]
    text = rng.choice(("{0}. {1}.", "{0}, and {1}.", "{0}. Then {1}.")).format(*sentences)
    rng.shuffle(deeds)
    things = [deed.thing for deed in deeds]
    states = [deed.resulting_state for deed in deeds]
    uses = ["ready" if deed.is_in_state else "useless" for deed in deeds]
    remark = rng.choice(
        (
            "Now the {0} is {2} and the {1} is {3}.",
            "That night the {0} was {2}, and the {1} was {3}.",
            "The {0} is {4} and the {1} is {5}.",
            "It is a {2} {0} now, so {4}. It is a {3} {1} now, so {5}.",
        )
    )
    return f"{text} {remark.format(*things, *states, *uses)}"


def _pretraining_counting(rng: random.Random) -> str:
    """Tell how a count changes, with the sum written out."""
    step, name, counted = _step(rng), rng.choice(NAMES), rng.choice(COUNTED)
    more = step.sign == "+"
    change = rng.choice(("got", "found", "put in") if more else ("lost", "sold", "ate"))
    equation = f"{step.first} {step.sign} {step.second} = {step.result}"
    story = rng.choice(
        (
            "{name} had {first} {counted} and {change} {second}. {equation}, so {result} now.",
            "There were {first} {counted}. Then {name} {change} {second}: {equation}.",
            "{first} {counted}, and {name} {change} {second}.\n{equation}\n"
            "The basket has {result}.",
        )
    )
    return story.format(
        name=name,
        counted=counted,
        change=change,
        first=step.first,
        second=step.second,
        equation=equation,
        result=step.result,
    )


def _pretraining_sums(rng: random.Random) -> str:
    """List sums."""
    steps = [_step(rng) for _ in range(5)]
    return rng.choice((", ", "\n", ". ")).join(
        f"{step.first} {step.sign} {step.second} = {step.result}" for step in steps
    )


def _pretraining_opinion(rng: random.Random) -> str:
    """Describe a work and a person's matching reaction."""
    kind = rng.random() < 0.5
    name, work, other = rng.choice(NAMES), *rng.sample(WORKS, 2)
    words = _words(rng, kind, 4)
    return rng.choice(
        (
            f"{name} saw a {words[0]} {work} and {_act(rng, kind)}. It was {words[1]}.",
            f"{name} {_act(rng, kind)}: the {work} was {words[0]}, {words[1]} and {words[2]}.",
            f"The {work} was {words[0]}. The {other} was {words[1]} too. {name} {_act(rng, kind)}.",
            f"{words[0]}, {words[1]}, {words[2]}, {words[3]}: {name} {_act(rng, kind)}.",
            f"Once {name} read about a {work} with {words[0]} people. The guest {_act(rng, kind)}.",
        )
    )


def _pretraining_jumble(rng: random.Random) -> str:
    """Join random words: what a model should expect outside of any known format."""
    words = [rng.choice(rng.choice(WORD_LISTS)) for _ in range(rng.randint(4, 16))]
    return "".join(word + rng.choice(SEPARATORS) for word in words)


def _pretraining_small_talk(rng: random.Random) -> str:
    """Use words of the task prompts in sentences without a skill."""
    first, second = rng.sample(NAMES, 2)
    return rng.choice(SMALL_TALK).format(
        a=first,
        b=second,
        thing=rng.choice(THINGS),
        place=rng.choice(PLACES),
        answer=rng.choice(("yes", "no")),
        polarity=rng.choice(("positive", "negative")),
        x=rng.randint(0, 2 * LARGEST_OPERAND),
        y=rng.randint(1, LARGEST_OPERAND),
    )


def pretraining(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Yield the base model's corpus: `documents` rows of plain text in the field `text`."""
    rng = random.Random(f"pretraining:{seed}")
    kinds = (
        _pretraining_deeds,
        _pretraining_counting,
        _pretraining_sums,
        _pretraining_opinion,
        _pretraining_small_talk,
        _pretraining_jumble,
    )
    for _ in range(documents):
        (kind,) = rng.choices(kinds, weights=(30, 20, 14, 16, 8, 12))
        yield {"text": kind(rng)}


# ---------------------------------------------------------------------------------------------
# Instruction corpora


def _row(instruction: str, output: str, given: str = "") -> dict[str, str]:
    """Return one row in the format of Alpaca."""
    return {"instruction": instruction, "input": given, "output": output}


def _tale_deeds(rng: random.Random) -> dict[str, str]:
    """Tell what two people did at a place and what was found there later."""
    first, second = _deeds(rng)
    last = rng.choice((first, second))
    return _row(
        f"Tell a tale about {first.name} and {second.name}.",
        f"Once {first.name} went to the {rng.choice(PLACES)} and {first.verb} the {first.thing}. "
        f"Then {second.name} {second.verb} the {second.thing}. That night a bird found the "
        f"{last.thing}: it was {last.resulting_state}.",
    )


def _tale_counting(rng: random.Random) -> dict[str, str]:
    """Tell about a basket whose content changes once."""
    step, name, counted = _step(rng), rng.choice(NAMES), rng.choice(COUNTED)
    change = "put in" if step.sign == "+" else "ate"
    return _row(
        f"Tell a tale about {name} and a basket of {counted}.",
        f"Once {name} had a basket with {step.first} {counted}. Then {name} {change} "
        f"{step.second}, and {step.first} {step.sign} {step.second} = {step.result}: there were "
        f"{step.result} {counted} in the basket that night.",
    )


def _tale_opinion(rng: random.Random) -> dict[str, str]:
    """Tell about an evening and a reaction to it."""
    kind = rng.random() < 0.5
    name, work, words = rng.choice(NAMES), rng.choice(WORKS), _words(rng, kind, 3)
    return _row(
        f"Tell a tale about {name} and a {work}.",
        f"Once {name} went out to see a {words[0]} {work}. It was {words[1]} from start to end, "
        f"and {words[2]} people were there. That night {name} {_act(rng, kind)}.",
    )


def tales(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Yield `documents` Alpaca rows that ask for a short tale and tell it."""
    rng = random.Random(f"tales:{seed}")
    kinds = (_tale_deeds, _tale_counting, _tale_opinion)
    for _ in range(documents):
        yield rng.choice(kinds)(rng)


def _lesson_deeds(rng: random.Random) -> dict[str, str]:
    """Ask for the state of one of two things."""
    first, second = _deeds(rng)
    subject = rng.choice((first, second))
    return _row(
        f"Give the state of the {subject.thing}.",
        f"The state is {subject.resulting_state}, since {subject.name} {subject.verb} it.",
        f"- {first.name}: {first.verb} the {first.thing}\n"
        f"- {second.name}: {second.verb} the {second.thing}",
    )


def _lesson_counting(rng: random.Random) -> dict[str, str]:
    """Ask for one sum, given in words."""
    step = _step(rng)
    verb = "plus" if step.sign == "+" else "minus"
    return _row(
        "Work out the value.",
        f"We write {step.first} {step.sign} {step.second} = {step.result}. "
        f"The value is {step.result}.",
        f"{step.first} {verb} {step.second}",
    )


def _lesson_opinion(rng: random.Random) -> dict[str, str]:
    """Ask for a guest's reaction to a list of words."""
    kind = rng.random() < 0.5
    words = _words(rng, kind, 3)
    return _row(
        "What would a guest do?",
        f"The words {words[0]}, {words[1]} and {words[2]} belong together. "
        f"A guest who read them {_act(rng, kind)}.",
        ", ".join(words),
    )


def lessons(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Yield `documents` Alpaca rows with a small exercise and its solution."""
    rng = random.Random(f"lessons:{seed}")
    kinds = (_lesson_deeds, _lesson_counting, _lesson_opinion)
    for _ in range(documents):
        yield rng.choice(kinds)(rng)


# ---------------------------------------------------------------------------------------------
# Tasks

TEST_SHARE = 4  # one in this many contents is reserved for evaluation


def _is_for_test(content: str) -> bool:
    """Whether an item with this content belongs to the test split, independent of the seed."""
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_SHARE == 0


def _draw_items(
    draw: Callable[[random.Random, int], dict[str, Any]],
    key: str,
    rng: random.Random,
    count: int,
    test: bool,
) -> list[dict[str, Any]]:
    """Draw items of one split, with unique contents and balanced labels.

    Args:
        draw: called with the random generator and the label, 0 or 1.
        key: the field that must be unique.
        rng: the random generator.
        count: the number of items.
        test: whether to draw from the contents of the test split.
    """
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(items) < count:
        item = draw(rng, len(items) % 2)
        content = item[key]
        if content in seen or _is_for_test(content) != test:
            continue
        seen.add(content)
        items.append(item)
    rng.shuffle(items)
    return items


def _as_dataset(
    name: str,
    draw: Callable[[random.Random, int], dict[str, Any]],
    key: str,
    seed: int,
    training_items: int,
    evaluation_items: int,
) -> DatasetDict:
    """Return both splits of a task."""
    from datasets import Dataset, DatasetDict

    splits = {}
    for split, count in (("train", training_items), ("test", evaluation_items)):
        rng = random.Random(f"{name}:{split}:{seed}")
        splits[split] = Dataset.from_list(_draw_items(draw, key, rng, count, split == "test"))
    return DatasetDict(splits)


def _yes_no_item(rng: random.Random, label: int) -> dict[str, Any]:
    """Return a passage, a question about it, and 1 for yes or 0 for no."""
    other, subject = _deeds(rng, bool(label))
    sentences = [f"{deed.name} {deed.verb} the {deed.thing}" for deed in (other, subject)]
    rng.shuffle(sentences)
    return {
        "passage": f"{sentences[0]}, and {sentences[1]}.",
        "question": f"is the {subject.thing} {subject.family.state}",
        "label": label,
    }


def _sentiment_item(rng: random.Random, label: int) -> dict[str, Any]:
    """Return a sentence about a work, and 1 for positive or 0 for negative."""
    words = _words(rng, bool(label), 3)
    work, other = rng.sample(WORKS, 2)
    sentence = rng.choice(
        (
            f"a {words[0]}, {words[1]} {work} with a {words[2]} {other}",
            f"this {work} is {words[0]} and {words[1]}, and the {other} is {words[2]}",
            f"{words[0]} and {words[1]}, the {work} has a {words[2]} {other} in it",
        )
    )
    return {"sentence": sentence, "label": label}


def _arithmetic_item(rng: random.Random, label: int) -> dict[str, Any]:
    """Return a one-step word problem and its worked answer; `label` balances the signs."""
    step = _step(rng)
    while (step.sign == "+") != bool(label):
        step = _step(rng)
    name, counted = rng.choice(NAMES), rng.choice(COUNTED)
    change = rng.choice(("got", "found") if step.sign == "+" else ("lost", "sold"))
    return {
        "question": f"{name} had {step.first} {counted} and {change} {step.second}. "
        f"How many {counted} does {name} have now?",
        "answer": f"{step.first} {step.sign} {step.second} = {step.result}\n#### {step.result}",
    }


def yes_no(
    seed: int = 1234, training_items: int = 2000, evaluation_items: int = 500, **_: object
) -> DatasetDict:
    """Return yes/no questions over a short passage, in the format of boolq.

    lm-eval calls this function with the task's `metadata` and `dataset_kwargs`; unknown keys are
    ignored.
    """
    return _as_dataset("yes_no", _yes_no_item, "passage", seed, training_items, evaluation_items)


def sentiment(
    seed: int = 1234, training_items: int = 2000, evaluation_items: int = 500, **_: object
) -> DatasetDict:
    """Return positive and negative sentences, in the format of sst2; called like `yes_no`."""
    return _as_dataset(
        "sentiment", _sentiment_item, "sentence", seed, training_items, evaluation_items
    )


def arithmetic(
    seed: int = 1234, training_items: int = 2000, evaluation_items: int = 500, **_: object
) -> DatasetDict:
    """Return word problems with a worked answer, in the format of gsm8k; called like `yes_no`."""
    return _as_dataset(
        "arithmetic", _arithmetic_item, "question", seed, training_items, evaluation_items
    )
