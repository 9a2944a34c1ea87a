"""Rows for the tasks of the card's capability table, in their data sets' schemas; see ``make_data``."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# Word pairs that plain questions are made of: what, and where it is kept.
THINGS = [
    ("bread", "in a basket"),
    ("a letter", "in an envelope"),
    ("a boat", "in the harbour"),
    ("wine", "in a cellar"),
    ("a horse", "in a stable"),
    ("a coin", "in a purse"),
    ("a picture", "in a frame"),
    ("hay", "in a barn"),
    ("a sword", "in a sheath"),
    ("ink", "in a bottle"),
    ("honey", "in a jar"),
    ("a candle", "in a lantern"),
]
PLACES = [place for _, place in THINGS]


def _options(number: int, count: int) -> tuple[list[str], int]:
    """``count`` places of which one is where thing ``number`` is kept, and its index, which goes round."""
    gold = number % count
    others = [place for place in PLACES if place != THINGS[number][1]]
    options = [others[(number + step) % len(others)] for step in range(count - 1)]
    return [*options[:gold], THINGS[number][1], *options[gold:]], gold


def mmlu(subject: str) -> dict[str, list[Row]]:
    """Splits of ``cais/mmlu``."""

    def row(number: int) -> Row:
        choices, answer = _options(number, 4)
        words = subject.replace("_", " ")
        question = f"A lesson on {words}: where does one keep {THINGS[number][0]}?"
        return {"question": question, "subject": subject, "choices": choices, "answer": answer}

    return {"dev": [row(number) for number in range(5)], "test": [row(number) for number in range(5, 8)]}


def hellaswag() -> list[Row]:
    """Rows of ``Rowan/hellaswag``."""
    rows = []
    for number in range(4):
        endings, gold = _options(number, 4)
        first = f"A woman holds {THINGS[number][0]}."
        rows.append(
            {
                "ind": number,
                "activity_label": "Tidying up",
                "ctx_a": first,
                "ctx_b": "she puts it",
                "ctx": f"{first} she puts it",
                "endings": [f"[step] {ending}  and leaves." for ending in endings],
                "source_id": f"written~{number}",
                "split": "val",
                "split_type": "indomain",
                "label": str(gold),
            }
        )
    return rows


def piqa() -> list[Row]:
    """Rows of ``baber/piqa``."""
    rows = []
    for number in range(4):
        (first, second), gold = _options(number, 2)
        rows.append(
            {"goal": f"Keep {THINGS[number][0]} safe.", "sol1": f"Put it {first}.", "sol2": f"Put it {second}."}
        )
        rows[-1]["label"] = gold
    return rows


def social_iqa() -> list[Row]:
    """Rows of ``lighteval/siqa``: labels are words from "1"."""
    rows = []
    for number in range(4):
        answers, gold = _options(number, 3)
        rows.append(
            {
                "context": f"Robin found {THINGS[number][0]} on the floor.",
                "question": "Where will Robin put it?",
                **{f"answer{letter}": answer for letter, answer in zip("ABC", answers, strict=True)},
                "label": str(gold + 1),
            }
        )
    return rows


def boolq() -> list[Row]:
    """Rows of ``aps/super_glue``, configuration ``boolq``."""
    return [
        {
            "question": f"is {thing} kept {place if number % 2 else PLACES[number - 1]}",
            "passage": f"In this house {thing} is kept {place}.",
            "idx": number,
            "label": number % 2,
        }
        for number, (thing, place) in enumerate(THINGS[:4])
    ]


def winogrande() -> list[Row]:
    """Rows of ``allenai/winogrande``: answers are "1" or "2"."""
    return [
        {
            "sentence": f"The chest did not fit into the {place} because the _ was too {size}.",
            "option1": "chest",
            "option2": place,
            "answer": answer,
        }
        for place, size, answer in (
            ("hall", "big", "1"),
            ("hall", "small", "2"),
            ("cart", "wide", "1"),
            ("cart", "narrow", "2"),
        )
    ]


def commonsense_qa(numbers: Sequence[int]) -> list[Row]:
    """Rows of ``tau/commonsense_qa``."""
    rows = []
    for number in numbers:
        texts, gold = _options(number, 5)
        rows.append(
            {
                "id": f"written-{number}",
                "question": f"Where do people keep {THINGS[number][0]}?",
                "question_concept": THINGS[number][0],
                "choices": {"label": list("ABCDE"), "text": texts},
                "answerKey": "ABCDE"[gold],
            }
        )
    return rows


def openbookqa() -> list[Row]:
    """Rows of ``allenai/openbookqa``, configuration ``main``."""
    rows = []
    for number in range(4):
        texts, gold = _options(number, 4)
        rows.append(
            {
                "id": f"written-{number}",
                "question_stem": f"{THINGS[number][0]} is best kept",
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[gold],
            }
        )
    return rows


def arc(labels: str) -> list[Row]:
    """Rows of ``allenai/ai2_arc``, whose labels are letters or digits."""
    rows = []
    for number in range(4):
        texts, gold = _options(number, 4)
        rows.append(
            {
                "id": f"written-{number}",
                "question": f"Where would you look for {THINGS[number][0]}?",
                "choices": {"text": texts, "label": list(labels)},
                "answerKey": labels[gold],
            }
        )
    return rows


def triviaqa(numbers: Sequence[int]) -> list[Row]:
    """Rows of ``mandarjoshi/trivia_qa``, configuration ``rc.nocontext``; questions end with a question mark."""
    return [
        {
            "question": f"What has {number + 2} sides and is drawn with {number + 2} lines?",
            "question_id": f"written_{number}",
            "question_source": "tests",
            "answer": {
                "aliases": [f"a polygon of {number + 2} sides", f"{number + 2}-gon"],
                "normalized_aliases": [f"polygon of {number + 2} sides", f"{number + 2} gon"],
                "normalized_value": f"{number + 2} gon",
                "type": "WikipediaEntity",
                "value": f"{number + 2}-gon",
            },
        }
        for number in numbers
    ]


def nq_open(numbers: Sequence[int]) -> list[Row]:
    """Rows of ``google-research-datasets/nq_open``."""
    return [
        {"question": f"where is {THINGS[number][0]} kept", "answer": [THINGS[number][1], f"right {THINGS[number][1]}"]}
        for number in numbers
    ]


def humaneval() -> list[Row]:
    """Rows of ``openai/openai_humaneval``."""
    return [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'def add_{number}(value):\n    """Return value plus {number}."""\n',
            "canonical_solution": f"    return value + {number}\n",
            "test": f"def check(candidate):\n    assert [candidate(1), candidate(0)] == [{number + 1}, {number}]\n",
            "entry_point": f"add_{number}",
        }
        for number in range(4)
    ]


def mbpp() -> list[Row]:
    """Rows of ``google-research-datasets/mbpp``, configuration ``full``."""
    return [
        {
            "task_id": 11 + number,
            "text": f"Write a function to multiply a number by {number + 2}.",
            "code": f"def times_{number}(value):\n    return value * {number + 2}",
            "test_list": [f"assert times_{number}({value}) == {value * (number + 2)}" for value in (0, 1, 5)],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for number in range(4)
    ]


def gsm8k(numbers: Sequence[int]) -> list[Row]:
    """Rows of ``openai/gsm8k``, configuration ``main``."""
    return [
        {
            "question": f"Ann has {number + 3} baskets with {number + 2} loaves each. How many loaves has she?",
            "answer": f"{number + 3} times {number + 2} is <<{number + 3}*{number + 2}={(number + 3) * (number + 2)}>>"
            f"{(number + 3) * (number + 2)}.\n#### {(number + 3) * (number + 2)}",
        }
        for number in numbers
    ]


def math(subject: str) -> list[Row]:
    """Rows of ``EleutherAI/hendrycks_math``."""
    return [
        {
            "problem": f"In a class on {subject.replace('_', ' ')}, what is ${number + 3}^2 - 1$?",
            "level": "Level 1",
            "type": subject.replace("_", " ").title(),
            "solution": f"It is {(number + 3) ** 2} less one, so the answer is $\\boxed{{{(number + 3) ** 2 - 1}}}$.",
        }
        for number in range(3)
    ]


def agieval_choice(task: str) -> list[Row]:
    """Rows of ``hails/agieval-*``: the answers that count are a list."""
    rows = []
    for number in range(3):
        places, gold = _options(number, 4)
        choices = [f"({letter}){place}" for letter, place in zip("ABCD", places, strict=True)]
        question = f"Q: For {task}, where is {THINGS[number][0]} kept? Answer Choices: {' '.join(choices)}\n"
        rows.append({"query": f"{question}A: Among A through D, the answer is", "choices": choices, "gold": [gold]})
    return rows


def agieval_math() -> list[Row]:
    """Rows of ``hails/agieval-math``."""
    return [
        {"query": f"Q: What is {number + 2} + {number + 5}?\nA: The answer is", "answer": str(2 * number + 7)}
        for number in range(3)
    ]


def bbh(task: str) -> list[Row]:
    """Rows of ``SaylorTwift/bbh``."""
    return [
        {"input": f"({task.replace('_', ' ')}) Where is {thing} kept?", "target": f"({'ABC'[number]})"}
        for number, (thing, _) in enumerate(THINGS[:3])
    ]
