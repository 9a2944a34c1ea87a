"""The public names and their signatures, pinned: what changes shows up here, and in the changelog."""

import importlib
import pkgutil

import pytest

import recurrent_gemma
from tests.packaging import public_api

PUBLIC_NAMES = {
    "recurrent_gemma": """
        PRESETS PrefixCache RecurrentGemmaCache RecurrentGemmaConfig RecurrentGemmaForCausalLM
        RecurrentGemmaForQuestionAnswering RecurrentGemmaForSequenceClassification RecurrentGemmaForTokenClassification
        RecurrentGemmaModel RecurrentGemmaPreTrainedModel RecurrentGemmaTokenizer __version__ assert_active demo_path
        is_active register unregister
    """,
    "recurrent_gemma.cli": "main",
    "recurrent_gemma.configuration": "PRESETS RecurrentGemmaConfig",
    "recurrent_gemma.conversion_scripts": """
        ConversionError ConversionPlan ConversionResult OptionsError Verification convert verify
    """,
    "recurrent_gemma.conversion_scripts.checkpoints": """
        SUFFIXES Checkpoint ConversionError OptionsError OrbaxCheckpoint TensorInfo TorchCheckpoint
        TransformersCheckpoint is_orbax is_transformers open_checkpoint shards_of write_orbax write_safetensors
        write_torch_file
    """,
    "recurrent_gemma.evaluation": """
        GROUPS ROWS SUITES CardRow Classifier LocalClassifier PerspectiveClassifier average find_row load_tasks
    """,
    "recurrent_gemma.evaluation.long_context": """
        BlockBootstrap Excerpts Interval PasskeyCell PositionBin attention_off excerpts log_spaced_bins passkey
        perplexity_by_position token_losses with_window
    """,
    "recurrent_gemma.launch": "environment",
    "recurrent_gemma.modeling": """
        PrefixCache RecurrentGemmaCache RecurrentGemmaForCausalLM RecurrentGemmaForQuestionAnswering
        RecurrentGemmaForSequenceClassification RecurrentGemmaForTokenClassification RecurrentGemmaModel
        RecurrentGemmaPreTrainedModel
    """,
    "recurrent_gemma.modeling.cache": """
        AttentionState AttentionTrail LayerState LayerTrail RecurrentGemmaCache RecurrentState RecurrentTrail RingState
        SessionFileError SessionInfo StateSignature read_session_info state_signature
    """,
    "recurrent_gemma.modeling.heads": """
        RecurrentGemmaForCausalLM RecurrentGemmaForQuestionAnswering RecurrentGemmaForSequenceClassification
        RecurrentGemmaForTokenClassification
    """,
    "recurrent_gemma.modeling.ops": """
        block_diagonal_linear causal_conv1d causal_conv1d_varlen causal_conv1d_varlen_ gated_activation linear
        linear_cross_entropy local_attention rg_lru rg_lru_varlen rg_lru_varlen_ rms_norm
    """,
    "recurrent_gemma.modeling.ops.causal_conv1d": """
        causal_conv1d causal_conv1d_varlen causal_conv1d_varlen_ conv_history
    """,
    "recurrent_gemma.modeling.ops.cross_entropy": "linear_cross_entropy",
    "recurrent_gemma.modeling.ops.gated_activation": "gated_activation",
    "recurrent_gemma.modeling.ops.linear": "block_diagonal_linear linear",
    "recurrent_gemma.modeling.ops.local_attention": """
        extend_window local_attention local_attention_ring_ ring_to_window window_to_ring
    """,
    "recurrent_gemma.modeling.ops.rg_lru": "rg_lru rg_lru_varlen rg_lru_varlen_",
    "recurrent_gemma.modeling.ops.rms_norm": "rms_norm",
    "recurrent_gemma.modeling.prefix_cache": "PrefixCache PrefixCacheStatistics",
    "recurrent_gemma.serving": "register",
    "recurrent_gemma.tokenization": "CHAT_TEMPLATE RecurrentGemmaTokenizer tokenizer_from_sentencepiece",
    "recurrent_gemma.training": """
        LoraCoverage PackingCollator ParameterCoverage TruncatedBPTTTrainer check_adapter cut_into_windows lora_config
        lora_coverage pack_documents
    """,
}
# Packages whose files are imported one by one, and that export nothing themselves.
WITHOUT_NAMES = {"recurrent_gemma.modeling.ops.linear_scan", "recurrent_gemma.serving.engine"}


@pytest.mark.parametrize("package", PUBLIC_NAMES)
def test_public_names(package: str):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC_NAMES[package].split())
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_every_package_is_pinned():
    walked = pkgutil.walk_packages(recurrent_gemma.__path__, "recurrent_gemma.")
    packages = {"recurrent_gemma", *(module.name for module in walked if module.ispkg)}
    assert packages == PUBLIC_NAMES.keys() | WITHOUT_NAMES
    assert not any(hasattr(importlib.import_module(package), "__all__") for package in WITHOUT_NAMES)


def test_signatures_are_those_that_are_written_down():
    # Renew it with `python -m tests.packaging.public_api`, and write what changed into the changelog.
    assert public_api.lines(list(PUBLIC_NAMES)) == public_api.PATH.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("package", [name for name in PUBLIC_NAMES if name != "recurrent_gemma.cli"])
def test_public_functions_and_classes_say_what_they_do(package: str):
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in module.__all__}
    assert [name for name, value in objects.items() if callable(value) and not value.__doc__] == []
