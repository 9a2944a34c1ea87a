"""Truncated back-propagation through time: the state goes on from step to step, the gradient stops at each."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, default_data_collator

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.heads.loss import IGNORED
from recurrent_gemma.training.windows import expect_windows

STATE_FILE = "carried_state.safetensors"
_SHIFTED = "shift_labels"
# Where a row stands, which is for the Trainer: it reaches the batch with remove_unused_columns=False.
_PLACES = ("window", "lane")


class TruncatedBPTTTrainer(Trainer):
    """The Trainer on windows of ``cut_into_windows``: each batch goes on with the state that the one before left.

    A step costs what its window costs, however long the text before it is, and the model learns with the state that it
    has in use. ``cache.detach()`` cuts the gradient after each window; a step of several windows
    (``gradient_accumulation_steps``) sums their gradients. The state begins anew with each epoch, evaluation has one of
    its own, each checkpoint holds it, and a resumed run has the losses of one that was never stopped, bit for bit.
    ``eval_loss`` is the mean over all labels, whatever window they are in.

    Args:
        model: As for ``transformers.Trainer``.
        args: With ``train_sampling_strategy="sequential"``, and ``per_device_train_batch_size`` and
            ``per_device_eval_batch_size`` as many as the data's lanes.
        data_collator: None: Transformers' ``default_data_collator``.
        *others: As for ``transformers.Trainer``.
        **options: As for ``transformers.Trainer``.

    Raises:
        ValueError: A setting that shuffles windows, spreads lanes over processes or replaces the loss; data that
            ``cut_into_windows`` has not made, whose order was changed, or of another number of lanes than the batch
            size; a checkpoint without a state.
        FloatingPointError: The loss of a training window is infinite or NaN, and so is the state after it.
    """

    def __init__(
        self, model: Any = None, args: Any = None, data_collator: Any = None, *others: Any, **options: Any
    ) -> None:
        super().__init__(model, args, data_collator or default_data_collator, *others, **options)
        self._expect_settings()
        self.label_names = [_SHIFTED]
        self._carried: RecurrentGemmaCache | None = None
        self._evaluation: _Evaluation | None = None
        self._windows_per_epoch = 0
        self.add_callback(_BeginAnew(self))

    def get_train_dataloader(self) -> Any:
        self._windows_per_epoch = expect_windows(self.train_dataset, "train_dataset", self._train_batch_size)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        own: Any = self.eval_dataset
        chosen = own if eval_dataset is None else own[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        if chosen is not None:
            expect_windows(chosen, "eval_dataset", self.args.eval_batch_size)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        expect_windows(test_dataset, "test_dataset", self.args.eval_batch_size)
        return super().get_test_dataloader(test_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one window, whose state is carried on without its gradient."""
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        if model.training:
            cache = self._carried = self._new_cache() if self._carried is None else self._carried
        else:
            cache = self._new_cache() if self._evaluation is None else self._evaluation.cache
        inputs = {key: value for key, value in inputs.items() if key not in _PLACES} | {"past_key_values": cache}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._expect_finite(loss, cache.columns, inputs[_SHIFTED].shape[1])
        cache.detach()
        if not model.training and self._evaluation is not None:
            self._evaluation.add(loss.detach(), inputs[_SHIFTED])
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """As in the Trainer, with a state of its own and the loss of every label counted once."""
        self._evaluation = _Evaluation(self._new_cache())
        try:
            output = super().evaluation_loop(*args, **options)
            metrics = output.metrics
            name = f"{options.get('metric_key_prefix', 'eval')}_loss"
            if metrics is not None and name in metrics:
                metrics[name] = self._evaluation.mean()
        finally:
            self._evaluation = None
        return output

    def begin_anew(self) -> None:
        """Forget the state that is carried in training."""
        self._carried = None

    def _expect_finite(self, loss: Tensor, columns: int, window_length: int) -> None:
        """Raise before a state that is broken for good is carried on, which the Trainer's log would show as loss 0."""
        if loss.isfinite():
            return
        self.begin_anew()
        raise FloatingPointError(
            f"loss: expected a finite number, got {loss.item()} in step {self.state.global_step + 1}, window "
            f"{columns // window_length - 1} of the epoch (columns {columns - window_length} to {columns - 1}); the "
            "state that the next windows would go on from is broken with it. Train in bf16 or fp32 instead of fp16, "
            "lower the learning rate, and resume from a checkpoint before this step."
        )

    def _new_cache(self) -> RecurrentGemmaCache:
        return RecurrentGemmaCache(self.accelerator.unwrap_model(self.model).config)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        # The Trainer counts labels where there are ``labels``, from the second column on. Windows without any count as
        # one, or the loss would be 0 / 0.
        counted = [{"labels": F.pad(batch[_SHIFTED], (1, 0), value=IGNORED)} for batch in batch_samples]
        count = super()._get_num_items_in_batch(counted, device)
        return count.clamp(min=1) if isinstance(count, Tensor) else count

    def _save_rng_state(self, output_dir: str) -> None:
        # With the states that resuming needs, before the file that marks a checkpoint as one to resume from.
        super()._save_rng_state(output_dir)
        carried = self._new_cache() if self._carried is None else self._carried
        carried.save(Path(output_dir, STATE_FILE))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, STATE_FILE)
        if not path.is_file():
            raise ValueError(
                f"resume_from_checkpoint: expected {STATE_FILE} in {checkpoint}, got none; resume from a checkpoint "
                "that TruncatedBPTTTrainer wrote, with save_only_model=False."
            )
        steps_per_epoch = -(-self._windows_per_epoch // self.args.gradient_accumulation_steps)
        if self.state.global_step % steps_per_epoch:  # else an epoch begins, and has begun anew
            config = self.accelerator.unwrap_model(self.model).config
            self._carried = RecurrentGemmaCache.load(path, config, device=self.args.device)

    def _expect_settings(self) -> None:
        args = self.args
        refused = {
            "train_sampling_strategy": (args.train_sampling_strategy != "sequential", '"sequential"'),
            "ignore_data_skip": (args.ignore_data_skip, "False, since a state goes on with the window after its own"),
            "dataloader_in_order": (not args.dataloader_in_order, "True"),
            "auto_find_batch_size": (args.auto_find_batch_size, "False, since a batch has as many rows as lanes"),
            "label_smoothing_factor": (args.label_smoothing_factor != 0, "0, since it shifts labels once more"),
            "fsdp": (bool(args.fsdp), "none"),
            "deepspeed": (args.deepspeed is not None, "none"),
        }
        for name, (wrong, expected) in refused.items():
            if wrong:
                raise ValueError(
                    f"{name}: expected {expected}, got {getattr(args, name)!r}; windows are read in order by one "
                    "process, each with the state of the one before."
                )
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                f"args: expected one process on one device, got {args.world_size} of {args.n_gpu} devices each; lanes "
                "are not spread over devices: set CUDA_VISIBLE_DEVICES to one."
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func: expected None, got a function; subclass and override compute_loss.")


class _Evaluation:
    """State and sums of one pass over evaluation data."""

    def __init__(self, cache: RecurrentGemmaCache) -> None:
        self.cache = cache
        self.sums: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, labels: Tensor) -> None:
        """Note a window's mean loss () and its labels (B, L)."""
        count = (labels != IGNORED).sum()
        self.sums.append((loss.double() * count, count))

    def mean(self) -> float:
        """Loss per label; NaN if there was none."""
        loss, count = (torch.stack(values).sum().item() for values in zip(*self.sums, strict=True))
        return loss / count if count else float("nan")


class _BeginAnew(TrainerCallback):
    """Each epoch, also one after an epoch that was cut short, begins without a state."""

    def __init__(self, trainer: TruncatedBPTTTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, *args: Any, **options: Any) -> None:
        self.trainer.begin_anew()
