"""Every case of Transformers' ``GenerationTesterMixin`` is covered here, or cannot apply.

That mixin is not in Transformers' source distribution (tests/upstream runs the ones that are). Its cases are those of
tests/generation/test_utils.py in huggingface/transformers as of June 2026 (read in the copy
huggingface/transformers-test-ci at 78007d98e3c4). Each is named with our tests of the same behaviour, or, in words,
with what keeps it from applying.
"""

import ast

import pytest

from tests.support import ROOT

_HERE = "tests/modeling/"
_FLASH = "no flash attention: it knows no documents and pads together; what is not known is refused"
_FLASH_TESTS = ["test_errors.py::test_unsupported_attention_implementations"]
_PACKED_TESTS = ["test_equivalence.py::test_packed_rows_equal_their_solo_runs_by_every_description"]
_MODES = "generation/test_modes.py::test_cached_equals_uncached_and_every_token_is_read_once"
_OUTPUTS = "generation/test_outputs.py::test_logits_and_hidden_states"
_BEAM_OUTPUTS = "generation/test_outputs.py::test_beams"
_HANDED_BACK = "generation/test_outputs.py::test_the_cache_that_is_handed_back_has_seen_all_but_the_last_token"
_WEIGHTS = "generation/test_outputs.py::test_attention_weights"

CASES: dict[str, list[str] | str] = {
    "test_greedy_generate": [_MODES],
    "test_greedy_generate_dict_outputs": [_OUTPUTS, _WEIGHTS],
    "test_greedy_generate_dict_outputs_use_cache": [_OUTPUTS, _WEIGHTS, _HANDED_BACK],
    "test_sample_generate": [_MODES],
    "test_sample_generate_dict_output": [_OUTPUTS],
    "test_beam_search_generate": [
        _MODES,
        "generation/test_modes.py::test_beams_of_a_padded_batch_equal_their_solo_runs",
    ],
    "test_beam_search_generate_dict_output": [_BEAM_OUTPUTS],
    "test_beam_search_generate_dict_outputs_use_cache": [_BEAM_OUTPUTS, _HANDED_BACK],
    "test_beam_sample_generate": [_MODES],
    "test_beam_sample_generate_dict_output": [_BEAM_OUTPUTS],
    "test_model_parallel_beam_search": "needs two accelerators; test_devices.py covers layers on several devices",
    "test_generate_without_input_ids": [
        "generation/test_continuation.py::test_without_a_prompt_generation_starts_at_bos"
    ],
    "test_assisted_decoding_matches_greedy_search": [
        "generation/test_assisted.py::test_a_draft_model",
        "generation/test_assisted.py::test_outputs_and_the_cache_that_is_handed_back",
    ],
    "test_assisted_decoding_sample": ["generation/test_assisted.py::test_sampling_with_drafts_draws_from_the_model"],
    "test_prompt_lookup_decoding_matches_greedy_search": [
        "generation/test_assisted.py::test_prompt_lookup",
        "generation/test_assisted.py::test_outputs_and_the_cache_that_is_handed_back",
    ],
    "test_prompt_lookup_decoding_stops_at_eos": ["generation/test_assisted.py::test_the_end_of_a_text_is_the_same"],
    "test_left_padding_compatibility": [
        "test_equivalence.py::test_padded_rows_equal_their_solo_runs",
        "generation/test_modes.py::test_rows_of_a_padded_batch_equal_their_solo_runs",
    ],
    "test_past_key_values_format": [
        "cache/test_cache.py::test_it_is_a_transformers_cache_with_the_attributes_their_tools_read",
        "cache/test_cache.py::test_its_size_is_constant_beyond_the_window_and_its_dtypes_are_right",
    ],
    "test_generate_from_random_inputs_embeds": [
        "generation/test_continuation.py::test_embeddings_of_no_token_are_used_in_place_of_the_ids"
    ],
    "test_generate_from_inputs_embeds": ["generation/test_continuation.py::test_embeddings_with_or_without_their_ids"],
    "test_generate_from_inputs_embeds_with_static_cache": [
        "generation/test_static.py::test_a_static_cache_from_embeddings"
    ],
    "test_generate_continue_from_past_key_values": [
        "generation/test_continuation.py::test_a_cache_that_was_handed_back_goes_on_where_it_stopped",
        "generation/test_continuation.py::test_a_turn_of_a_chat_goes_on_from_the_cache",
    ],
    "test_generate_continue_from_inputs_embeds": [
        "generation/test_continuation.py::test_embeddings_and_then_ids_from_one_cache"
    ],
    "test_generate_with_static_cache": ["generation/test_static.py::test_static_equals_dynamic_for_three_windows"],
    "test_generate_with_quant_cache": ["generation/test_static.py::test_forms_that_do_not_exist_are_refused"],
    "test_generate_compile_model_forward_fullgraph": [
        "cache/test_static.py::test_generate_compiles_the_static_form_once"
    ],
    "test_generate_compilation_all_outputs": [
        "cache/test_static.py::test_generate_compiles_the_static_form_with_every_output"
    ],
    "test_generate_methods_with_logits_to_keep": [
        "generation/test_continuation.py::test_logits_to_keep_changes_no_token_and_keeps_the_last_columns"
    ],
    "test_inherits_generation_mixin": [
        "generation/test_continuation.py::test_the_language_model_inherits_generation_itself"
    ],
    "test_prepare_inputs_for_generation_kwargs_forwards": [
        "generation/test_continuation.py::test_arguments_of_a_caller_reach_forward"
    ],
    "test_eager_matches_sdpa_generate": ["generation/test_modes.py::test_eager_attention_generates_what_sdpa_does"],
    "test_eager_matches_fa2_generate": _FLASH_TESTS,
    "test_eager_matches_fa3_generate": _FLASH_TESTS,
    "test_eager_matches_fa4_generate": _FLASH_TESTS,
    "test_flash_attention_2_continue_generate_with_position_ids": _FLASH,
    "test_eager_padding_matches_padding_free_with_position_ids": _PACKED_TESTS,
    "test_sdpa_padding_matches_padding_free_with_position_ids": _PACKED_TESTS,
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids": _FLASH,
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids_and_fa_kwargs": _PACKED_TESTS,
    "test_flash_attention_3_padding_matches_padding_free_with_position_ids": _FLASH,
    "test_flash_attention_3_padding_matches_padding_free_with_position_ids_and_fa_kwargs": _PACKED_TESTS,
    "test_flash_attention_4_padding_matches_padding_free_with_position_ids": _FLASH,
    "test_flash_attention_4_padding_matches_padding_free_with_position_ids_and_fa_kwargs": _PACKED_TESTS,
    "test_custom_4d_attention_mask": ["test_errors.py::test_masks"],
    "test_forward_with_logits_to_keep": [
        "generation/test_continuation.py::test_logits_to_keep_changes_no_token_and_keeps_the_last_columns"
    ],
    "test_generate_with_and_without_position_ids": ["generation/test_continuation.py::test_position_ids_may_be_given"],
}


@pytest.mark.parametrize("case", [case for case, covered in CASES.items() if not isinstance(covered, str)])
def test_what_covers_a_case_exists(case: str):
    covered = CASES[case]
    assert covered
    for test in covered:
        path, name = test.split("::")
        module = ast.parse((ROOT / _HERE / path).read_text())
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, test
