"""Writes the rows that the evaluation's tests run on: a few for every task of both tables, in its data set's schema.

    python -m tests.evaluation.make_data [DIR]

Everything in them was written for these tests; only the names of fields, configurations and splits are the data sets'.
``tests/evaluation/local_data`` holds the output.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.evaluation import capability_rows as capability
from tests.evaluation import safety_rows as safety
from tests.evaluation.capability_rows import Row

LOCAL_DATA = Path(__file__).with_name("local_data")

MMLU_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()
BBH_TASKS = """
boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
tracking_shuffled_objects_three_objects web_of_lies word_sorting
""".split()
AGIEVAL_CHOICE_TASKS = """
aqua-rat gaokao-english logiqa-en lsat-ar lsat-lr lsat-rc sat-en sat-en-without-passage sat-math
""".split()
MATH_SUBJECTS = """
algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus
""".split()


def _with_examples(rows: Callable[[Sequence[int]], list[Row]], examples: int, evaluated: int) -> dict[str, list[Row]]:
    """Rows to take ``examples`` from, of which lm-eval draws one more than it uses, and others to evaluate."""
    return {"train": rows(range(examples + 1)), "validation": rows(range(examples + 1, examples + 1 + evaluated))}


def data_sets() -> dict[tuple[str, str | None], dict[str, list[Row]]]:
    """Every data set of both tables: ``{(path, configuration): {split: rows}}``."""
    sets: dict[tuple[str, str | None], dict[str, list[Row]]] = {
        ("Rowan/hellaswag", None): {"validation": capability.hellaswag()},
        ("baber/piqa", None): {"validation": capability.piqa()},
        ("lighteval/siqa", None): {"validation": capability.social_iqa()},
        ("aps/super_glue", "boolq"): {"validation": capability.boolq()},
        ("allenai/winogrande", "winogrande_xl"): {"validation": capability.winogrande()},
        ("tau/commonsense_qa", None): _with_examples(capability.commonsense_qa, 7, 3),
        ("allenai/openbookqa", "main"): {"test": capability.openbookqa()},
        ("allenai/ai2_arc", "ARC-Easy"): {"test": capability.arc("ABCD")},
        ("allenai/ai2_arc", "ARC-Challenge"): {"test": capability.arc("1234")},
        ("mandarjoshi/trivia_qa", "rc.nocontext"): _with_examples(capability.triviaqa, 5, 4),
        ("google-research-datasets/nq_open", None): _with_examples(capability.nq_open, 5, 4),
        ("openai/openai_humaneval", None): {"test": capability.humaneval()},
        ("google-research-datasets/mbpp", "full"): {"test": capability.mbpp()},
        ("openai/gsm8k", "main"): {"train": capability.gsm8k(range(5)), "test": capability.gsm8k(range(5, 9))},
        ("hails/agieval-math", None): {"test": capability.agieval_math()},
        ("allenai/real-toxicity-prompts", None): {"train": safety.realtoxicityprompts()},
        ("AmazonScience/bold", None): {"train": safety.bold()},
        ("jannalu/crows_pairs_multilingual", "english"): {"test": safety.crows_pairs()},
        ("oskarvanderwal/bbq", "All"): {"test": safety.bbq()},
        ("oskarvanderwal/winogender", "all"): {"test": safety.winogender()},
        ("truthfulqa/truthful_qa", "multiple_choice"): {"validation": safety.truthfulqa()},
        ("skg/toxigen-data", "annotated"): {"test": safety.toxigen()},
    }
    families: list[tuple[str, Sequence[str], Callable[[str], dict[str, list[Row]]]]] = [
        ("cais/mmlu", MMLU_SUBJECTS, capability.mmlu),
        ("SaylorTwift/bbh", BBH_TASKS, lambda name: {"test": capability.bbh(name)}),
        ("EleutherAI/hendrycks_math", MATH_SUBJECTS, lambda name: {"test": capability.math(name)}),
        (
            "uclanlp/wino_bias",
            ("type1_pro", "type1_anti", "type2_pro", "type2_anti"),
            lambda name: {"test": safety.winobias(name)},
        ),
    ]
    for path, names, splits in families:
        sets.update({(path, name): splits(name) for name in names})
    sets.update(
        {(f"hails/agieval-{task}", None): {"test": capability.agieval_choice(task)} for task in AGIEVAL_CHOICE_TASKS}
    )
    return sets


def write_data(directory: Path) -> None:
    """Write all rows below ``directory``, in the layout that ``load_tasks(data_dir=)`` reads."""
    for (path, name), splits in data_sets().items():
        folder = directory / path.replace("/", "__") / (name or "default")
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else LOCAL_DATA
    if target == LOCAL_DATA and target.exists():
        shutil.rmtree(target)
    write_data(target)
