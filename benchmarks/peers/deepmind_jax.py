"""DeepMind's JAX model (PyPI ``recurrentgemma[jax]``) with our weights, compiled by XLA for the CPU."""

import functools
import os
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import CHECK_WINDOW
from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant, Decoding, UnavailableError, Work
from benchmarks.peers.deepmind_weights import deepmind_config, deepmind_weights
from benchmarks.peers.transformers_model import TransformersModel
from recurrent_gemma.conversion_scripts.checkpoints.orbax import array_of, tensor_of


def build_deepmind_jax(size: Size, ours: TransformersModel) -> Contestant:
    """``recurrentgemma.jax.Griffin`` with a copy of our weights, without gradient checkpointing.

    Raises:
        UnavailableError: It is not installed, or our model is not on the CPU.
    """
    if ours.model.device.type != "cpu":
        raise UnavailableError(f"JAX is measured on the CPU only, and this row runs on {ours.model.device}")
    config = deepmind_config(ours.model.config)
    return DeepMindJax(config, deepmind_weights(ours.model, "flax"), ours.parameters)


class DeepMindJax(Contestant):
    """Every function is compiled once for a shape, before anything is timed; decoding is one compiled step a token."""

    def __init__(self, config: Any, weights: Iterable[tuple[str, Tensor]], parameters: int) -> None:
        import jax

        self._config, self._jax, self.parameters = config, jax, parameters
        self.note = f"XLA takes the {os.cpu_count()} cores it finds, whatever torch's threads are"
        # A window as short as the check's is never timed for its own sake, and compiling would take most of the time.
        self._quickly = config.attention_window_size <= CHECK_WINDOW
        self._functions = _compiled(self._quickly)
        self._device = jax.local_devices(backend="cpu")[0]
        with jax.default_device(self._device):
            # Copies, since training gives their memory away; one by one, since large models fit twice but not thrice.
            self._params = _tree((name, jax.numpy.array(array_of(weight))) for name, weight in weights)
        self._model = self._of_dtype(str(self._jax.tree.leaves(self._params)[0].dtype))

    def logits(self, ids: Tensor) -> Tensor:
        return self._tensor(self._call("forward", ids, 0)[0])[0]

    def decoded_logits(self, ids: Tensor, prompt: int) -> Tensor:
        logits, cache = self._call("forward", ids[:, :prompt], 0)
        parts = [self._tensor(logits)]
        for position in range(prompt, ids.shape[1]):
            logits, cache = self._call("step", ids[:, position : position + 1], position, cache)
            parts.append(self._tensor(logits))
        return torch.cat(parts, dim=1)[0]

    def loss(self, ids: Tensor) -> float:
        return float(self._call("loss", ids, 0))

    def prefill(self, ids: Tensor) -> Work:
        return self._compiled_work(lambda: self._read(ids))

    def training_step(self, ids: Tensor) -> Work:
        try:
            import optax
        except ImportError as error:
            raise UnavailableError(f"its optimizer needs optax ({error}): pip install optax") from error
        optimizer = optax.adamw(1e-5, weight_decay=1e-2)
        states = [self._params, optimizer.init(self._params)]
        # The step owns the parameters from here on: it is given their memory to write the new ones into.
        self._params = None
        update = _training(self._quickly)
        tokens, positions = self._inputs(ids, 0)

        def step() -> None:
            with self._jax.default_device(self._device):
                *states[:], loss = update(self._model, optimizer, *states, tokens, positions)
                loss.block_until_ready()

        return self._compiled_work(step)

    def decoding(self, prompt: Tensor, tokens: int) -> Decoding:
        return _Decoding(self, prompt, tokens)

    def to(self, dtype: str) -> None:
        self._model = self._of_dtype(dtype)
        self._params = self._jax.tree.map(lambda weight: weight.astype(dtype), self._params)

    def _of_dtype(self, dtype: str) -> Any:
        from recurrentgemma.jax.griffin import Griffin

        kind = self._jax.numpy.dtype(dtype)
        return Griffin(self._config, gradient_checkpointing=False, dtype=kind, param_dtype=kind)

    def _compiled_work(self, work: Work) -> Work:
        work()
        return work

    def _read(self, ids: Tensor) -> tuple[Any, Any]:
        # Their sampler reads all but the last token without logits.
        cache = self._call("read", ids[:, :-1], 0)
        return self._jax.block_until_ready(self._call("step", ids[:, -1:], ids.shape[1] - 1, cache))

    def _call(self, name: str, ids: Tensor, first: int, *cache: Any) -> Any:
        with self._jax.default_device(self._device):
            return self._functions[name](self._model, self._params, *self._inputs(ids, first), *cache)

    def _inputs(self, ids: Tensor, first: int) -> tuple[Any, Any]:
        positions = self._jax.numpy.arange(first, first + ids.shape[1], dtype="int32")[None]
        return self._jax.numpy.asarray(ids.int().numpy()), positions

    def _tensor(self, array: Any) -> Tensor:
        return tensor_of(self._jax.device_get(array)).float()


class _Decoding(Decoding):
    def __init__(self, model: DeepMindJax, prompt: Tensor, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        logits, self._cache = model._read(prompt)
        numpy = model._jax.numpy
        self._token = logits[:, -1].argmax(axis=-1)[:, None].astype("int32")
        self._position = numpy.full((1, 1), prompt.shape[1], dtype="int32")
        self.state_bytes = sum(array.nbytes for array in model._jax.tree.leaves(self._cache))
        self._run(1)

    def seconds_per_token(self) -> float:
        return self._run(self._tokens)

    def _run(self, tokens: int) -> float:
        model = self._model
        step, block = model._functions["decode"], model._jax.block_until_ready
        state = (self._token, self._position, self._cache)
        with model._jax.default_device(model._device):
            state = block(step(model._model, model._params, *state))
            begin = time.perf_counter()
            for _ in range(tokens):
                state = step(model._model, model._params, *state)
            block(state)
            return (time.perf_counter() - begin) / tokens


# Made once: JAX finds what it has compiled by the very function, the model (compared by its fields) and the shapes.
@functools.cache
def _compiled(quickly: bool) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    def forward(model: Any, params: Any, ids: Any, positions: Any) -> Any:
        return model.apply({"params": params}, ids, positions)

    def read(model: Any, params: Any, ids: Any, positions: Any) -> Any:
        return model.apply({"params": params}, ids, positions, return_logits=False)[1]

    def step(model: Any, params: Any, ids: Any, positions: Any, cache: Any) -> Any:
        return model.apply({"params": params}, ids, positions, cache)

    def decode(model: Any, params: Any, ids: Any, positions: Any, cache: Any) -> Any:
        logits, cache = model.apply({"params": params}, ids, positions, cache)
        return logits[:, -1].argmax(axis=-1)[:, None].astype(jnp.int32), positions + 1, cache

    compile_ = functools.partial(jax.jit, static_argnums=0, compiler_options=_options(quickly))
    return {function.__name__: compile_(function) for function in (forward, read, step, decode)} | {
        "loss": compile_(_loss)
    }


@functools.cache
def _training(quickly: bool) -> Any:
    import jax

    def update(model: Any, optimizer: Any, params: Any, state: Any, ids: Any, positions: Any) -> Any:
        import optax

        loss, gradients = jax.value_and_grad(_loss, argnums=1)(model, params, ids, positions)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, loss

    return jax.jit(update, static_argnums=(0, 1), donate_argnums=(2, 3), compiler_options=_options(quickly))


def _loss(model: Any, params: Any, ids: Any, positions: Any) -> Any:
    import jax
    import jax.numpy as jnp

    logits, _ = model.apply({"params": params}, ids, positions, return_cache=False)
    chances = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return -jnp.take_along_axis(chances, ids[:, 1:, None], axis=-1).mean()


def _options(quickly: bool) -> dict[str, Any] | None:
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if quickly else None


def _tree(weights: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Flax's nested parameters of weights by path."""
    tree: dict[str, Any] = {}
    for path, weight in weights:
        *parents, last = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = weight
    return tree
