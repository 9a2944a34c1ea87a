"""The public names of the package."""

import recurrent_gemma


def test_public_names_are_pinned():
    assert recurrent_gemma.__all__ == [
        "PRESETS",
        "RecurrentGemmaCache",
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaModel",
        "RecurrentGemmaPreTrainedModel",
        "RecurrentGemmaTokenizer",
        "__version__",
        "assert_active",
        "demo_path",
        "is_active",
        "register",
        "unregister",
    ]
    assert all(hasattr(recurrent_gemma, name) for name in recurrent_gemma.__all__)
