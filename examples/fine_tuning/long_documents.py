r"""Fine-tune on a book in order, with the state carried from step to step: truncated back-propagation through time.

    python examples/fine_tuning/long_documents.py

About a minute on two cores with the small model of the package. The chapters make one text, read in ``--lanes`` places
at once; a step sees ``--window-length`` tokens of each and goes on with the state that the text before them left.
The last fifth of each chapter is held out. Writes ``loss.svg``, ``log.json`` and the model, which
``AutoModelForCausalLM`` loads, to ``--output``.

The published model, on one GPU with 80 GB:

    python examples/fine_tuning/long_documents.py --model google/recurrentgemma-2b --text book/*.txt \
        --bf16 --gradient-checkpointing --lanes 1 --window-length 2048 --gradient-accumulation-steps 8 \
        --learning-rate 1e-5 --steps 500

A step takes the memory of its window, however long the book is: see ``packed.py`` for what that is. A window of the
length of the attention window or more lets the gradient reach all that attention sees; what is further back reaches the
loss through the state alone.
"""

import plain_text
import torch
from recipe import parser, save, save_curves
from transformers import default_data_collator

from recurrent_gemma.training import TruncatedBPTTTrainer, cut_into_windows


@torch.no_grad()
def loss_of_windows_alone(model, rows, lanes: int) -> float:
    """Loss over the same labels with nothing carried: each window is read as if it were all there is."""
    model.eval()
    losses, labels = 0.0, 0
    for first in range(0, len(rows), lanes):
        batch = default_data_collator(rows[first : first + lanes])
        ids, targets = (batch[key].to(model.device) for key in ("input_ids", "shift_labels"))
        count = int((targets != -100).sum())
        losses += model(ids, shift_labels=targets, num_items_in_batch=1, use_cache=False).loss.item()
        labels += count
    return losses / labels


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Held-out loss before and after."""
    options_parser = parser(__doc__ or "", steps=60, output="fine_tuned/long_documents", learning_rate=2e-4)
    options_parser.add_argument("--lanes", type=int, default=4, help="places of the text that are read at once")
    options_parser.add_argument("--window-length", type=int, default=128, help="tokens of a step in each lane")
    plain_text.add_options(options_parser)
    options = options_parser.parse_args(arguments)
    model, tokenizer = plain_text.load(options)
    training, held_out = (
        cut_into_windows(
            [{"input_ids": tokenizer("\n\n".join(chapters)).input_ids}],
            lanes=options.lanes,
            window_length=options.window_length,
            bos_token_id=tokenizer.bos_token_id,
        )
        for chapters in plain_text.split_documents(options.text)
    )
    trainer = TruncatedBPTTTrainer(
        model,
        plain_text.training_arguments(
            options,
            per_device_train_batch_size=options.lanes,
            per_device_eval_batch_size=options.lanes,
            train_sampling_strategy="sequential",
        ),
        train_dataset=training,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    log = [{"step": 0, "eval_loss": before}, *trainer.state.log_history]
    plot = save_curves(log, options.output, title="Truncated back-propagation through time")
    save(trainer, options.output)
    alone = loss_of_windows_alone(model, held_out, options.lanes)
    print(f"held-out loss: {before:.4f} before, {after:.4f} after {options.steps} steps; see {plot}")
    print(f"the same windows without the state of those before: {alone:.4f}")
    return before, after


if __name__ == "__main__":
    main()
