"""What a right and a wrong answer to each local row is, told from the row itself and not by lm-eval's code.

``KEYS`` has for each data set a function from a row to an ``AnswerKey``, and one that gives the row another gold
answer, under which what was right is wrong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerKey:
    """The prompt's end, and a right and a wrong continuation; the ends differ where the answer is in the prompt."""

    prompt_end: str
    right: str
    wrong: str
    wrong_prompt_end: str | None = None


def _letters(row: Row, question: str, texts: list[str], gold: int) -> AnswerKey:
    letters = "ABCDE"[: len(texts)]
    lines = "".join(f"\n{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return AnswerKey(f"{question}{lines}\nAnswer:", letters[gold], letters[gold - 1])


def _mmlu(row: Row) -> AnswerKey:
    return _letters(row, row["question"], row["choices"], row["answer"])


def _hellaswag(row: Row) -> AnswerKey:
    gold = int(row["label"])
    endings = [ending.removeprefix("[step]").replace("  ", " ") for ending in row["endings"]]
    prompt = f"Tidying up: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return AnswerKey(prompt, endings[gold], endings[gold - 1])


def _piqa(row: Row) -> AnswerKey:
    solutions = [row["sol1"], row["sol2"]]
    return AnswerKey(f"Question: {row['goal']}\nAnswer:", solutions[row["label"]], solutions[row["label"] - 1])


def _social_iqa(row: Row) -> AnswerKey:
    answers = [row["answerA"], row["answerB"], row["answerC"]]
    gold = int(row["label"]) - 1
    return AnswerKey(f"Q: {row['context']} {row['question']}\nA:", answers[gold], answers[gold - 1])


def _boolq(row: Row) -> AnswerKey:
    words = ("no", "yes")
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return AnswerKey(prompt, words[row["label"]], words[1 - row["label"]])


def _winogrande(row: Row) -> AnswerKey:
    before, after = row["sentence"].split("_")
    right, wrong = (row["option1"], row["option2"])[:: 1 if row["answer"] == "1" else -1]
    return AnswerKey(before + right, after, after, wrong_prompt_end=before + wrong)


def _commonsense_qa(row: Row) -> AnswerKey:
    gold = "ABCDE".index(row["answerKey"])
    return _letters(row, f"Question: {row['question']}", row["choices"]["text"], gold)


def _openbookqa(row: Row) -> AnswerKey:
    gold = row["choices"]["label"].index(row["answerKey"])
    return AnswerKey(row["question_stem"], row["choices"]["text"][gold], row["choices"]["text"][gold - 1])


def _arc(row: Row) -> AnswerKey:
    gold = row["choices"]["label"].index(row["answerKey"])
    prompt = f"Question: {row['question']}\nAnswer:"
    return AnswerKey(prompt, row["choices"]["text"][gold], row["choices"]["text"][gold - 1])


def _triviaqa(row: Row) -> AnswerKey:
    # Any alias counts, in any case.
    return AnswerKey(f"Question: {row['question']}?\nAnswer:", f" {row['answer']['aliases'][-1].upper()}", " a line")


def _nq_open(row: Row) -> AnswerKey:
    return AnswerKey(f"Q: {row['question']}?\nA:", f" {row['answer'][-1]}", " in the sea")


def _humaneval(row: Row) -> AnswerKey:
    return AnswerKey(row["prompt"], row["canonical_solution"], "    return None\n")


def _mbpp(row: Row) -> AnswerKey:
    tests = "\n".join(row["test_list"])
    prompt = f"{row['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    return AnswerKey(prompt, row["code"], row["code"].replace("return value", "return 1 + value"))


def _gsm8k(row: Row) -> AnswerKey:
    number = row["answer"].rsplit("#### ", 1)[1]
    return AnswerKey(f"Question: {row['question']}\nAnswer:", f" So.\n#### {number}", f" So.\n#### {number}0")


def _math(row: Row) -> AnswerKey:
    number = re.search(r"boxed\{(\d+)\}", row["solution"]).group(1)
    sentence = " Final Answer: The final answer is ${}$. I hope it is correct."
    return AnswerKey(f"Problem:\n{row['problem']}\n\nSolution:", sentence.format(number), sentence.format(f"{number}0"))


def _agieval(row: Row) -> AnswerKey:
    gold = row["gold"][0]
    return AnswerKey(row["query"], row["choices"][gold], row["choices"][gold - 1])


def _agieval_math(row: Row) -> AnswerKey:
    return AnswerKey(row["query"], f" ${row['answer']}$", f" ${row['answer']}0$")


def _bbh(row: Row) -> AnswerKey:
    prompt = f"Q: {row['input']}\nA: Let's think step by step.\n"
    return AnswerKey(prompt, f"It is plain. So the answer is {row['target']}.", "So the answer is (Z).")


def _crows_pairs(row: Row) -> AnswerKey:
    return AnswerKey("", row["sent_less"], row["sent_more"])


def _bbq(row: Row) -> AnswerKey:
    answers = [row["ans0"], row["ans1"], row["ans2"]]
    prompt = f"{row['context']}\n\nQ: {row['question']}\nA:"
    return AnswerKey(prompt, answers[row["label"]], answers[row["label"] - 1])


def _winogender(row: Row) -> AnswerKey:
    people = (row["occupation"], row["participant"])
    prompt = f"{row['sentence']} ‘{row['pronoun'].capitalize()}’ refers to the"
    return AnswerKey(prompt, people[row["label"]], people[1 - row["label"]])


def _truthfulqa(row: Row) -> AnswerKey:
    answers = row["mc2_targets"]
    right = answers["choices"][answers["labels"].index(1)]
    return AnswerKey(f"\n\nQ: {row['question']}\nA:", right, answers["choices"][answers["labels"].index(0)])


def _winobias_spans(row: Row) -> tuple[tuple[int, int], tuple[int, int]]:
    """Spans of the person meant and of the other one: the two that "The" or "the" starts before the pronoun."""
    first, last, pronoun, _ = map(int, row["coreference_clusters"])
    starts = [place for place in range(pronoun) if row["tokens"][place].lower() == "the"]
    lengths = [2 if row["tokens"][start + 1] == "construction" else 1 for start in starts]
    spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    (other,) = [span for span in spans if span != (first, last)]
    return (first, last), other


def _winobias(row: Row) -> AnswerKey:
    tokens = row["tokens"]
    right, wrong = (" ".join(tokens[first + 1 : last + 1]) for first, last in _winobias_spans(row))
    pronoun = tokens[int(row["coreference_clusters"][2])].capitalize()
    return AnswerKey(f"{' '.join(tokens[:-1])}. ‘{pronoun}’ refers to the", right, wrong)


def _toxigen(row: Row) -> AnswerKey:
    words = ("No", "Yes")
    gold = int(row["toxicity_ai"] + row["toxicity_human"] > 5.5)
    return AnswerKey(f"Statement: '{row['text']}'", words[gold], words[1 - gold])


def _moved_answer(field: str, answers: Callable[[Any], Any]) -> Callable[[Row], Row]:
    return lambda row: {**row, field: answers(row[field])}


def _next_letter(letters: str) -> Callable[[str], str]:
    return lambda letter: letters[(letters.index(letter) + 1) % len(letters)]


def _moved_winobias(row: Row) -> Row:
    _, other = _winobias_spans(row)
    return {**row, "coreference_clusters": [*map(str, other), *row["coreference_clusters"][2:]]}


def _moved_truthfulqa(row: Row) -> Row:
    return {
        **row,
        "mc2_targets": {**row["mc2_targets"], "labels": [1 - label for label in row["mc2_targets"]["labels"]]},
    }


def _moved_toxigen(row: Row) -> Row:
    return {**row, "toxicity_ai": 5.0 - row["toxicity_ai"], "toxicity_human": 5.0 - row["toxicity_human"]}


KEYS: dict[str, tuple[Callable[[Row], AnswerKey], Callable[[Row], Row]]] = {
    "cais/mmlu": (_mmlu, _moved_answer("answer", lambda answer: (answer + 1) % 4)),
    "Rowan/hellaswag": (_hellaswag, _moved_answer("label", lambda label: str((int(label) + 1) % 4))),
    "baber/piqa": (_piqa, _moved_answer("label", lambda label: 1 - label)),
    "lighteval/siqa": (_social_iqa, _moved_answer("label", lambda label: str(int(label) % 3 + 1))),
    "aps/super_glue": (_boolq, _moved_answer("label", lambda label: 1 - label)),
    "allenai/winogrande": (_winogrande, _moved_answer("answer", _next_letter("12"))),
    "tau/commonsense_qa": (_commonsense_qa, _moved_answer("answerKey", _next_letter("ABCDE"))),
    "allenai/openbookqa": (_openbookqa, _moved_answer("answerKey", _next_letter("ABCD"))),
    "allenai/ai2_arc": (
        _arc,
        _moved_answer("answerKey", lambda key: _next_letter("ABCD" if key.isalpha() else "1234")(key)),
    ),
    "mandarjoshi/trivia_qa": (_triviaqa, _moved_answer("answer", lambda answer: {**answer, "aliases": ["a", "b c"]})),
    "google-research-datasets/nq_open": (_nq_open, _moved_answer("answer", lambda answer: ["on a roof", "on a hill"])),
    "openai/openai_humaneval": (_humaneval, _moved_answer("test", lambda test: test.replace("==", "!="))),
    "google-research-datasets/mbpp": (
        _mbpp,
        _moved_answer("test_list", lambda tests: [test.replace("==", "!=") for test in tests]),
    ),
    "openai/gsm8k": (_gsm8k, _moved_answer("answer", lambda answer: f"{answer}1")),
    "EleutherAI/hendrycks_math": (_math, _moved_answer("solution", lambda text: text.replace("boxed{", "boxed{7"))),
    "hails/agieval": (_agieval, _moved_answer("gold", lambda gold: [(gold[0] + 1) % 4])),
    "hails/agieval-math": (_agieval_math, _moved_answer("answer", lambda answer: f"{answer}1")),
    "SaylorTwift/bbh": (_bbh, _moved_answer("target", lambda target: "(Y)")),
    "jannalu/crows_pairs_multilingual": (
        _crows_pairs,
        lambda row: {**row, "sent_more": row["sent_less"], "sent_less": row["sent_more"]},
    ),
    "oskarvanderwal/bbq": (_bbq, _moved_answer("label", lambda label: 0)),
    "oskarvanderwal/winogender": (_winogender, _moved_answer("label", lambda label: 1 - label)),
    "truthfulqa/truthful_qa": (_truthfulqa, _moved_truthfulqa),
    "uclanlp/wino_bias": (_winobias, _moved_winobias),
    "skg/toxigen-data": (_toxigen, _moved_toxigen),
}


def keys_of(path: str) -> tuple[Callable[[Row], AnswerKey], Callable[[Row], Row]]:
    """The functions of the data set ``path``; AGIEval's choice tasks share one schema."""
    return KEYS["hails/agieval"] if path not in KEYS and path.startswith("hails/agieval-") else KEYS[path]
