"""Fine-tune on several GPUs, sharded by FSDP2, or in two processes on a CPU.

    accelerate launch --config_file examples/fine_tuning/accelerate/fsdp2.yaml examples/fine_tuning/distributed.py \
        --model google/recurrentgemma-2b
    accelerate launch --config_file examples/fine_tuning/accelerate/two_cpus.yaml examples/fine_tuning/distributed.py

Documents are cut into blocks; the config file alone decides how they and the model are spread. A run that was stopped
goes on from its last checkpoint.
"""

import recipe
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint


def blocks(tokenizer, documents: list[str], length: int) -> list[dict[str, list[int]]]:
    """Token ids of the documents in pieces of up to ``length``, each behind a BOS."""
    ids = tokenizer(documents, add_special_tokens=False).input_ids
    step = length - 1
    return [
        {"input_ids": [tokenizer.bos_token_id, *document[start : start + step]]}
        for document in ids
        for start in range(0, len(document), step)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = recipe.parser(__doc__, steps=40, output="runs/distributed", learning_rate=1e-4)
    parser.add_argument("--block", type=int, default=256, help="tokens of a row")
    parser.add_argument("--batch-size", type=int, default=4, help="rows a process reads in a step")
    parser.add_argument("--eval-rows", type=int, default=64, help="held-out rows to evaluate on")
    options = parser.parse_args(arguments)

    # On the right: what the loss counts does not depend then on which rows are batched.
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    documents = recipe.documents()
    training = TrainingArguments(
        output_dir=str(options.output / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=max(1, options.steps // 20),
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 4),
        save_steps=max(1, options.steps // 2),
        save_total_limit=2,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        seed=options.seed,
    )
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=blocks(tokenizer, documents[::2], options.block),
        eval_dataset=blocks(tokenizer, documents[1::2], options.block)[: options.eval_rows],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    # All processes go on from the same one, whatever each sees of the folder.
    checkpoint = [get_last_checkpoint(training.output_dir) if options.output.joinpath("checkpoints").exists() else None]
    broadcast_object_list(checkpoint)
    if checkpoint[0] is None:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=checkpoint[0])

    if trainer.is_fsdp_enabled:
        # Checkpoints are shards; the result is one model that loads anywhere.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    recipe.save(trainer, options.output / "model")
    if trainer.is_world_process_zero():
        plot = recipe.save_curves(trainer.state.log_history, options.output, title="Fine-tuning in several processes")
        print(f"{training.world_size} processes; losses in {plot}, model in {options.output / 'model'}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
