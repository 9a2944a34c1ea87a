"""Transformers' own tests of a language model, run with this package's classes."""

import sys
import unittest
from unittest import mock

import pytest

import recurrent_gemma
from recurrent_gemma import (
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
    RecurrentGemmaModel,
)
from tests.upstream import sources
from tests.upstream.model_tester import RecurrentGemmaModelTester

common = sources.load("test_modeling_common")
configuration = sources.load("test_configuration_common")
training = sources.load("test_training_mixin")

# The exceptions, each with the reason. Tests that are left out:
SKIPPED = {
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": (
        "asks the default implementation for attention weights, which raises since it computes none"
    ),
    "test_num_layers_is_small": "wants at most two layers; one pattern of the published models has three",
}
# Tests that run with other config fields:
OTHER_FIELDS = {
    "test_attention_outputs": ({"block_types": ["attention"]}, "wants weights of every block; only attention has any"),
    "test_model_outputs_equivalence": (
        {"attn_implementation": "eager"},
        "asks the default implementation for attention weights, likewise",
    ),
}
# Tests that run without the check of loaded weights:
LENIENT_LOADING = {
    "test_can_init_all_missing_weights": "loads an empty checkpoint to see it initialized; from_pretrained would raise",
    "test_model_weights_reload_no_missing_tied_weights": "loads a checkpoint without weights, likewise",
}
EXCEPTIONS = [*SKIPPED, *OTHER_FIELDS, *LENIENT_LOADING]
# Tests that Transformers skips for its own RecurrentGemma in tests/models/recurrent_gemma/
# test_modeling_recurrent_gemma.py: 16 in June 2026 (huggingface/transformers-test-ci at 78007d98e3c4, a copy of
# huggingface/transformers; 24 at 5b2984ba6720 of the latter, before some of the tests were removed).
SKIPPED_BY_TRANSFORMERS = 16


class _LanguageModelTests(common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin):
    """All tests of the mixins; that of generation is empty, see tests/modeling/test_generation_coverage.py."""

    all_model_classes = (
        RecurrentGemmaModel,
        RecurrentGemmaForCausalLM,
        RecurrentGemmaForQuestionAnswering,
        RecurrentGemmaForSequenceClassification,
        RecurrentGemmaForTokenClassification,
    )
    model_tester = RecurrentGemmaModelTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # Transformers knows by class names what labels a model takes, and has no such classes of its own.
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return {**inputs, **self.model_tester.labels_of_task(model_class)} if return_labels else inputs

    # Runs a test that is left out for models of before 2023, going by the first line of their sources.
    test_can_init_all_missing_weights_before_2023 = True


class RecurrentGemmaModelTest(_LanguageModelTests, unittest.TestCase):
    def setUp(self):
        if self._testMethodName in SKIPPED:
            self.skipTest(SKIPPED[self._testMethodName])
        fields, _ = OTHER_FIELDS.get(self._testMethodName, ({}, ""))
        self.model_tester = RecurrentGemmaModelTester(**fields)
        if self._testMethodName in LENIENT_LOADING:
            lenient = mock.patch("recurrent_gemma.modeling.pretrained.expect_complete")
            lenient.start()
            self.addCleanup(lenient.stop)

    def test_config(self):
        tester = configuration.ConfigTester(self, config_class=RecurrentGemmaConfig, hidden_size=40)
        tester.run_common_tests()


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception_is_needed(name: str):
    case = type("NoExceptions", (_LanguageModelTests, unittest.TestCase), {})(name)
    result = case.run()
    assert result is not None and result.testsRun == 1 and not result.skipped
    assert result.failures or result.errors


def test_fewer_exceptions_than_transformers_skips_for_its_own_class():
    assert len(EXCEPTIONS) < SKIPPED_BY_TRANSFORMERS


def test_loading_them_leaves_this_package_active_and_its_tests_where_they_are():
    recurrent_gemma.assert_active()
    assert sys.modules["tests.upstream.sources"] is sources
    assert sys.modules[sources.PACKAGE] is not sys.modules["tests"]
