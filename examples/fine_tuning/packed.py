r"""Fine-tune every weight on documents packed into rows without pads, with the plain Trainer.

    python examples/fine_tuning/packed.py

About a minute on two cores with the small model of the package: 29 chapters are packed into 40 rows, the last fifth of
each is held out. Writes ``loss.svg``, ``log.json`` and the model, which ``AutoModelForCausalLM`` loads, to
``--output``.

The published model, on one GPU with 80 GB:

    python examples/fine_tuning/packed.py --model google/recurrentgemma-2b --text chapters/*.txt \
        --bf16 --gradient-checkpointing --max-length 2048 --batch-size 1 --gradient-accumulation-steps 16 \
        --learning-rate 1e-5 --steps 500

Weights, their gradients and Adam's two moments in float32 take 16 bytes a parameter, 43 GB for its 2.7 billion;
``--optim adafactor`` saves nearly half of that. Activations come on top: 4.5 GB for a row of 2048
tokens with these options. Training steps make no logits; evaluation does, 256,000 a token, 2.1 GB for 2048 tokens in
float32, several times over. With less memory take fewer tokens to a batch, more batches to a step.
"""

import plain_text
from recipe import parser, save, save_curves
from transformers import Trainer

from recurrent_gemma.training import PackingCollator, pack_documents


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Held-out loss before and after."""
    options_parser = parser(__doc__ or "", steps=40, output="fine_tuned/packed", learning_rate=2e-4)
    options_parser.add_argument("--max-length", type=int, default=1024, help="tokens of a row")
    options_parser.add_argument("--batch-size", type=int, default=2, help="rows of a batch")
    plain_text.add_options(options_parser)
    options = options_parser.parse_args(arguments)
    model, tokenizer = plain_text.load(options)
    training, held_out = (
        pack_documents(
            [{"input_ids": tokenizer(document).input_ids} for document in documents],
            max_length=options.max_length,
            overlong="split",
            bos_token_id=tokenizer.bos_token_id,
        )
        for documents in plain_text.split_documents(options.text)
    )
    used = sum(len(row["input_ids"]) for row in training) / (len(training) * options.max_length)
    print(
        f"{len(training)} rows of up to {options.max_length} tokens, {used:.1%} filled; {len(held_out)} rows held out"
    )
    trainer = Trainer(
        model,
        plain_text.training_arguments(
            options, per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=options.batch_size
        ),
        train_dataset=training,
        eval_dataset=held_out,
        data_collator=PackingCollator(pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    log = [{"step": 0, "eval_loss": before}, *trainer.state.log_history]
    plot = save_curves(log, options.output, title="Packed fine-tuning")
    save(trainer, options.output)
    print(f"held-out loss: {before:.4f} before, {after:.4f} after {options.steps} steps; see {plot}")
    return before, after


if __name__ == "__main__":
    main()
